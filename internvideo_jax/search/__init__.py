"""Searching a folder of videos with text: on the command line, and as a small web page."""
