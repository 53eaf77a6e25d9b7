"""One file per task, one protocol each; every result says how it was made."""
