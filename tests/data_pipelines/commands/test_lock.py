"""One ingest per directory."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from data_pipelines.commands import lock
from data_pipelines.commands.lock import DirectoryLock


def test_second_holder_is_refused_with_the_first_named(tmp_path):
    with DirectoryLock(str(tmp_path)):
        began = time.monotonic()
        with pytest.raises(RuntimeError, match=rf"another ingest .*\(process {os.getpid()} on"):
            DirectoryLock(str(tmp_path)).__enter__()
        assert time.monotonic() - began < 1
    with DirectoryLock(str(tmp_path)):
        pass


def test_lock_is_released_by_an_exception(tmp_path):
    with pytest.raises(KeyError), DirectoryLock(str(tmp_path)):
        raise KeyError
    with DirectoryLock(str(tmp_path)):
        pass


def holder(directory, code: str) -> subprocess.Popen:
    script = "from data_pipelines.commands.lock import DirectoryLock\nimport os, subprocess, time\n"
    script += f"with DirectoryLock({str(directory)!r}) as lock:\n" + textwrap.indent(code, "    ")
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def test_killed_holder_releases_it(tmp_path):
    process = holder(tmp_path, "print(flush=True)\ntime.sleep(60)")
    with pytest.raises(RuntimeError, match=f"process {process.pid}"):
        DirectoryLock(str(tmp_path)).__enter__()
    process.send_signal(signal.SIGKILL)
    process.wait()
    with DirectoryLock(str(tmp_path)):
        pass


ORPHAN = """
subprocess.Popen(["sleep", "SECONDS"], pass_fds=[lock.fileno()])
print(flush=True)
os._exit(0)
"""


def test_workers_of_a_killed_holder_are_waited_for(tmp_path):
    holder(tmp_path, ORPHAN.replace("SECONDS", "1.5")).wait()
    began = time.monotonic()
    with DirectoryLock(str(tmp_path)):
        assert time.monotonic() - began > 0.5


def test_patience_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_PATIENCE_SECONDS", 0.5)
    holder(tmp_path, ORPHAN.replace("SECONDS", "3")).wait()
    with pytest.raises(RuntimeError, match="another ingest"):
        DirectoryLock(str(tmp_path)).__enter__()


def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, capsys):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    with DirectoryLock(str(tmp_path / "new")):
        assert "ingest.lock cannot be locked on this file system" in capsys.readouterr().err


def test_a_directory_says_who_holds_it_and_since_when(tmp_path):
    words = "{directory} {process} {host} {since}"
    with DirectoryLock(str(tmp_path), "x.lock", words):
        with pytest.raises(RuntimeError, match=rf"{os.getpid()} \S+ \d{{4}}-\d\d-\d\dT"):
            DirectoryLock(str(tmp_path), "x.lock", words).__enter__()
        (tmp_path / "x.lock").write_text(f"elsewhere {os.getpid()}\n")  # of an earlier version
        with pytest.raises(RuntimeError, match=rf"{os.getpid()} elsewhere an unknown time"):
            DirectoryLock(str(tmp_path), "x.lock", words).__enter__()
