"""Networks. The only package that imports flax."""
