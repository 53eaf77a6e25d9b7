"""CLIP: the text network and the frozen image network."""
