"""The one way from records and texts to vectors: decode ahead, pad to one shape, run, fetch."""
