"""The training loop and what it is made of: objective, meters, progress, TensorBoard's events, stops and seeds."""
