"""The experiments: what is run, in which order, and running it."""
