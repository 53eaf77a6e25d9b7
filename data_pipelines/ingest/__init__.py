"""Video files to shards: ``python -m data_pipelines.ingest --help``.

============  ===================================================================
``sources``   what to ingest: folders here, ``tables`` for CSV, TSV and JSONL
``labels``    the class list, and the rows that do not fit it
``plan``      which clip goes into which shard; ``estimate`` says how many shards
``decode``    one video to frames; ``container`` opens it, ``picture`` encodes
``work``      one shard: the unit of work, of restart and of failure
``pool``      processes for the shards (``worker``), and what to do when one dies
``run``       all of it, with ``lock``, ``losses`` and ``progress``
============  ===================================================================
"""
