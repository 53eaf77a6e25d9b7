"""Models in Python programs: load one, and ask it about videos (docs/python.md)."""
