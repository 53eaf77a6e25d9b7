"""What watches a running process: requests to stop, steps that hang."""
