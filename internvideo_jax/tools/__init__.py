"""Commands about a run that need neither its data nor its accelerators."""
