"""Clips that two sets share, and clips of a published list that a set lacks."""
