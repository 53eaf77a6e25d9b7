"""Services that rows, pictures and the report of a run are sent to, beside its own files."""
