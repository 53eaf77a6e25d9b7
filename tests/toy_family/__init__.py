"""A family of text only, as someone would add it: this folder and lines in the registry."""
