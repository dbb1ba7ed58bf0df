"""Point clouds, diagrams and images on disk; the embedding that makes the clouds; and fitting a RipsNet to them."""
