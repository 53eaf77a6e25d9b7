"""A config -> the checked pieces of a run -> a jitted step."""
