"""One writer per remote directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import fsspec
import pytest

from data_pipelines.records import remote_lock, storage
from data_pipelines.records.remote_lock import RemoteLock

PLACE = "memory://locks/run"


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    fsspec.filesystem("memory").store.clear()
    monkeypatch.setattr(remote_lock, "RENEW_SECONDS", 0.02)
    monkeypatch.setattr(remote_lock, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(remote_lock, "SETTLE_SECONDS", 0.0)


def leave(**changes: object) -> None:
    """The file of a process that was killed."""
    content = {"token": "x", "host": "elsewhere", "process": 1, "since": "then", "count": 3}
    storage.write_atomic(f"{PLACE}/ingest.lock", json.dumps(content | changes).encode())


def test_a_holder_that_lives_keeps_others_out(capsys):
    with RemoteLock(PLACE):
        with pytest.raises(RuntimeError, match=rf"{PLACE}: another .*\(process {os.getpid()} on"):
            RemoteLock(PLACE).__enter__()
        assert "watching for" in capsys.readouterr().err
    assert storage.below(PLACE) == {}


def test_a_holder_that_is_gone_is_taken_over():
    leave()
    with RemoteLock(PLACE) as lock:
        lock.require()
        assert json.loads(storage.read_text(f"{PLACE}/ingest.lock"))["host"] != "elsewhere"


def test_a_dead_process_of_this_machine_is_not_waited_for(monkeypatch):
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], text=True,
                          capture_output=True)  # fmt: skip
    leave(host=remote_lock.socket.gethostname(), process=int(done.stdout))
    monkeypatch.setattr(remote_lock, "PATIENCE_SECONDS", 60.0)
    began = time.monotonic()
    with RemoteLock(PLACE):
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff"])
def test_a_file_that_says_nothing_holds_nothing(content):
    storage.write_atomic(f"{PLACE}/ingest.lock", content)
    with RemoteLock(PLACE):
        pass


def test_who_was_taken_over_notices():
    with RemoteLock(PLACE) as lock:
        leave()
        for _ in range(200):
            time.sleep(0.01)
            if lock._lost:
                break
        with pytest.raises(RuntimeError, match="process 1 on elsewhere"):
            lock.require()
    assert "elsewhere" in storage.read_text(f"{PLACE}/ingest.lock")  # not ours to remove
