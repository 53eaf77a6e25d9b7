"""A table in a file of its own."""

import json

import pytest


@pytest.fixture
def table(tmp_path):
    def write(text: str | list[dict], name: str = "t.csv"):
        path = tmp_path / (name if isinstance(text, str) else "t.jsonl")
        if not isinstance(text, str):
            text = "".join(json.dumps(line) + "\n" for line in text)
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        return path

    return write
