"""A model over whole sets or files: features, scores, targets, classes."""
