"""The student: its loss and where the weights come from, its name, and the topology term."""
