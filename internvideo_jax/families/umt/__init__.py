"""Unmasked Teacher (Li et al. 2023)."""
