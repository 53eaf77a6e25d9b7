"""Frozen networks whose features a student learns to predict."""
