"""Records -> the batches of a training stream or an evaluation pass."""
