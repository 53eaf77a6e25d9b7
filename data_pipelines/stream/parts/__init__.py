"""The parts of a batch beside the pixels."""
