"""Everything about data: video files to indexed shards, shards to training batches.

The writing side (`ingest`) turns video files into TFRecord shards once; the
record layer (`records.schema`, `records.reader`,
`records.manifest`) is shared by writer and reader, so the two cannot drift apart.
Nothing in this package imports jax, flax or `internvideo_jax`.
"""
