"""UniFormerV2 (Li et al. 2022)."""
