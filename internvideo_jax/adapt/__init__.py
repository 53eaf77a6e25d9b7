"""Continuing pre-training on a folder of videos, with the probe before and after."""
