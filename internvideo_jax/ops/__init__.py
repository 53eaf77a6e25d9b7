"""Numerics without parameters."""
