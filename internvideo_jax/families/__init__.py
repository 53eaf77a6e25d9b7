"""One folder per published lineage: its networks, its names in torch, its published files."""
