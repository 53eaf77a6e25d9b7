"""Published tests, prompts and templates, as data."""
