"""What comes out: rows and tables, scores of a network, figures and what they show."""
