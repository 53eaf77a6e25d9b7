"""What a person sees of a run: metrics, progress, tables, pictures, the report."""
