"""Image transformers of the form of DINO (Caron et al. 2021) and DeiT, as initial weights."""
