"""Shards of records: storage, reading, the index, writing, the manifest."""
