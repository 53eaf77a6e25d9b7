"""Which frames of a video, and the pixels that are made of them."""
