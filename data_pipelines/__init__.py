"""Everything about data: video files to indexed shards, shards to training batches.

The writing side (:mod:`data_pipelines.ingest`) turns video files into TFRecord shards once; the
record layer (:mod:`~data_pipelines.schema`, :mod:`~data_pipelines.records`,
:mod:`~data_pipelines.manifest`) is shared by writer and reader, so the two cannot drift apart.
Nothing in this package imports jax, flax or ``internvideo_jax``.
"""
