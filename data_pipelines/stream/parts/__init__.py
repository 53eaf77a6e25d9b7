"""The parts of a batch: `base` says what one is, `made` which of them a stream or a pass has."""
