"""Layers shared by every network."""
