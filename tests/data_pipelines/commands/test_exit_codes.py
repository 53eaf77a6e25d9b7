"""The table of exit codes: which error ends with which code, what a launcher starts again."""

from __future__ import annotations

import errno
import os
import signal
import socket
from pathlib import Path

import pytest

from data_pipelines.commands.ending import quietly, run_command
from data_pipelines.commands.exit_codes import (
    STOPPED,
    UNREAD,
    ExitCode,
    PassingFault,
    exit_code_of,
    message_of,
    starts_again,
)
from data_pipelines.records import storage
from tests.data_pipelines.records.flaky import ServerError, fails, flaky


class JaxRuntimeError(RuntimeError):
    """Named as jax's own, which this package does not import."""


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def full() -> OSError:
    with pytest.raises(OSError) as caught, open("/dev/full", "w") as file:
        file.write("x")
        file.flush()
    return caught.value


ERRORS = {
    "settings": (ValueError("config.optim.lr"), ExitCode.USAGE),
    "no such file": (FileNotFoundError(errno.ENOENT, "No such file or directory", "a"), 2),
    "not allowed": (PermissionError(errno.EACCES, "Permission denied", "a"), 2),
    "no such package": (ImportError("pip install x"), ExitCode.USAGE),
    "too many skipped steps": (RuntimeError("config.max_nonfinite allows 5"), ExitCode.FAILED),
    "no memory": (MemoryError("Unable to allocate 12. TiB"), ExitCode.FAILED),
    "device memory": (JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), ExitCode.FAILED),
    "bug": (KeyError("row"), ExitCode.BUG),
    "bug of types": (TypeError("None is no text"), ExitCode.BUG),
    "bug that quotes a file": (KeyError("No space left on device"), ExitCode.BUG),
    "pipe closed by head": (BrokenPipeError(errno.EPIPE, "Broken pipe"), ExitCode.USAGE),
    "full disk": (full(), ExitCode.AGAIN),
    "locked": (caused(RuntimeError("another run works here"), BlockingIOError(11, "")), 3),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), ExitCode.AGAIN),
    "failing disk": (OSError(errno.EIO, "Input/output error"), ExitCode.AGAIN),
    "lost mount": (OSError(errno.ESTALE, "Stale file handle"), ExitCode.AGAIN),
    "wrapped": (caused(RuntimeError("could not save"), full()), ExitCode.AGAIN),
    "wrapped twice": (caused(ValueError("a"), caused(RuntimeError("b"), full())), ExitCode.AGAIN),
    "in words": (ValueError("FAILED_PRECONDITION: [OS error 28: No space left on device]"), 75),
    "worker": (PassingFault("a worker process was ended by SIGKILL"), ExitCode.AGAIN),
    "time-out": (TimeoutError("timed out"), ExitCode.AGAIN),
    "refused": (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), ExitCode.AGAIN),
    "no name service": (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), ExitCode.AGAIN),
    "no such host": (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), 2),
    "device": (JaxRuntimeError("INTERNAL: TPU halted"), ExitCode.AGAIN),
    "other process": (JaxRuntimeError("UNAVAILABLE: connection reset"), ExitCode.AGAIN),
    "ctrl-c": (KeyboardInterrupt(), 130),
    "SIGTERM": (KeyboardInterrupt(signal.SIGTERM), 143),
}


@pytest.mark.parametrize("case", ERRORS)
def test_every_error_has_its_code(case):
    error, code = ERRORS[case]
    assert exit_code_of(error) == code


def test_an_error_raised_for_another_keeps_its_code_unless_it_hides_it():
    def raised(hide: bool) -> BaseException:
        with pytest.raises(ValueError) as caught:
            try:
                raise OSError(errno.EIO, "Input/output error")
            except OSError:
                if hide:
                    raise ValueError("settings") from None
                raise ValueError("settings")  # noqa: B904
        return caught.value

    assert exit_code_of(raised(hide=False)) == ExitCode.AGAIN
    assert exit_code_of(raised(hide=True)) == ExitCode.USAGE


def test_a_storage_outage_says_what_was_tried_for_how_long_and_what_to_do(monkeypatch):
    monkeypatch.setattr(storage.time, "sleep", lambda _: None)
    with flaky() as system:
        storage.write_atomic("flaky://bucket/a", b"0123")
        system.faults[:] = [fails(ServerError(503))] * storage.RETRY.attempts
        with pytest.raises(storage.StorageError) as caught:
            storage.read_bytes("flaky://bucket/a")
    text = message_of(caught.value)
    assert exit_code_of(caught.value) == ExitCode.AGAIN
    assert "flaky://bucket/a: reading: gave up after 8 attempts in 0.0 s" in text
    assert "start the run again" in text and text.count("again") == 1


def test_messages_of_passing_faults_say_that_starting_again_helps():
    assert message_of(OSError(errno.ENOSPC, "No space left on device", "/a")).endswith(
        "'/a'. Once this has passed, start the same command again: it goes on"
    )
    assert message_of(ValueError("x")) == "x" and message_of(RuntimeError()) == "RuntimeError"
    assert message_of(MemoryError()) == "this machine has not enough memory (MemoryError)"


@pytest.mark.parametrize(
    ("ends", "again"),
    [
        *(([code], False) for code in (0, 2, 3, *STOPPED)),
        *(([code], True) for code in (1, 70, 75, 134, 137, 7)),
        ([75] * 5, True),
        ([75] * 6, False),
        ([75, 75, 2], False),
        ([70, 70], False),
        ([1, 70], False),
        ([70, 75, 1], False),
        ([75, 75, 70], True),
        ([70, 137], True),
    ],
)
def test_what_is_started_again(ends, again):
    assert starts_again(ends, 5) is again
    assert not starts_again(ends, 0)


def test_the_guide_has_every_code():
    guide = Path(__file__).resolve().parents[3] / "docs" / "launch.md"
    rows = [line.split("|") for line in guide.read_text().splitlines() if line.startswith("| ")]
    codes = {cell for row in rows for cell in row[1].replace(",", " ").split() if cell.isdigit()}
    assert {str(int(code)) for code in (*ExitCode, *STOPPED)} <= codes


def test_a_command_ends_with_the_code_of_its_error(capsys):
    def broken() -> int:
        raise KeyError("row")

    def stopped() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    def fills() -> int:
        raise full()

    assert run_command(lambda: ExitCode.BAD_DATA, "stopped") == 1
    assert run_command(fills, "stopped") == ExitCode.AGAIN
    assert "error: [Errno 28] No space left on device. Once this" in capsys.readouterr().err
    assert run_command(stopped, "stopped; go on") == 143
    assert capsys.readouterr().err == "stopped; go on\n"
    assert run_command(broken, "stopped") == ExitCode.BUG
    assert "Traceback" in (shown := capsys.readouterr().err) and "KeyError: 'row'" in shown


def test_a_broken_pipe_to_something_else_stays_an_error(monkeypatch, tmp_path):
    def work():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with open(tmp_path / "out", "w") as file:
        monkeypatch.setattr("sys.stdout", file)
        with pytest.raises(BrokenPipeError):
            quietly(work)


def test_output_that_nobody_reads_is_no_error(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as file:
        monkeypatch.setattr("sys.stdout", file)
        said = []
        assert run_command(lambda: print("x"), said.append) == UNREAD == 141
        assert said == [] and not starts_again([UNREAD], 5)
