"""Tools for datasets that exist: `ivj data --help`.

verify        reading everything back
settings      `--config` and `--config.data.x=y` to the settings of a stream
inspect       what is in a split, and which clips a step of the stream shows
sheet         those clips as a picture and as a page
bench         how fast this machine reads a split
feed          how many accelerators that is enough for
"""
