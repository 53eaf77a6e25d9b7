"""TPU-first training system for video foundation models. Start with README.md, then train.py."""

__version__ = "0.1.0"
