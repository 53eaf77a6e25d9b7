"""The processes of a job meet before jax starts, and notice within seconds when one is gone.

jax's coordination service does both as well, but ends the program from native code: a process that
does not come, comes twice or dies shows as SIGABRT with a stack of C++ frames, and a host that is
gone only after a heartbeat has been missed for long. Here every process keeps one TCP connection to
process 0: the kernel closes it at the moment a process dies, whatever killed it, and messages can
name who and why. jax's heartbeats stay on behind it.

Messages are one JSON object per line: hello, go, refused, beat, lost, failed, bye.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable

BEAT_SECONDS = 1.0
# A host that vanishes closes no connection; this long without a beat and it counts as gone.
SILENCE_SECONDS = 30.0
RETRY_SECONDS = 0.2


class Line:
    """One connection that carries JSON lines."""

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = connection
        self.heard = time.monotonic()
        self._rest = b""

    def send(self, **message: object) -> None:
        """Nothing happens when the other side is gone: reading will tell."""
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout: float) -> list[dict]:
        """What has arrived within the time; EOFError when the other side has closed."""
        self.connection.settimeout(timeout)
        try:
            data = self.connection.recv(65536)
        except TimeoutError:
            return []
        except OSError as error:
            raise EOFError(str(error)) from error
        finally:
            with contextlib.suppress(OSError):
                self.connection.settimeout(None)
        if not data:
            raise EOFError("its connection closed without a goodbye")
        self.heard = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def wait(self, deadline: float) -> dict | None:
        """The next message, None when the time is over; EOFError as `receive`."""
        while (left := deadline - time.monotonic()) > 0:
            if messages := self.receive(left):
                return messages[0]
        return None


class Peers:
    """The other processes, as seen from this one.

    Args:
      lines: process number -> connection; all of them on process 0, only process 0 elsewhere.
    """

    def __init__(self, process: int, processes: int, lines: dict[int, Line]):
        self.process, self.processes = process, processes
        self.lost: str = ""  # what happened, once something has
        self._lines = lines
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, on_lost: Callable[[str, int | None], None]) -> None:
        """Starts the thread that watches.

        Args:
          on_lost: called once in that thread with what happened and, where the other process
            ended with an error of its own, its exit code.
        """
        self._thread = threading.Thread(target=self._run, args=(on_lost,), daemon=True)
        self._thread.name = "peers"
        self._thread.start()

    def _run(self, on_lost: Callable[[str, int | None], None]) -> None:
        selector = selectors.DefaultSelector()
        for number, line in self._lines.items():
            line.heard = time.monotonic()
            selector.register(line.connection, selectors.EVENT_READ, number)
        beaten = 0.0
        while not self._stop.is_set() and self._lines:
            ready = {key.data for key, _ in selector.select(BEAT_SECONDS / 2)}
            now = time.monotonic()
            if now - beaten > BEAT_SECONDS:
                beaten = now
                for line in self._lines.values():
                    line.send(kind="beat")
            for number, line in list(self._lines.items()):
                ended, what, code = self._look(number, line, number in ready)
                if what and not self._stop.is_set():
                    self._report(number, what, code)
                    on_lost(what, code)
                    return
                if ended:
                    selector.unregister(line.connection)
                    del self._lines[number]

    def _look(self, number: int, line: Line, ready: bool) -> tuple[bool, str, int | None]:
        """(said goodbye, what happened if it is gone, its exit code if it told)."""
        try:
            messages = line.receive(BEAT_SECONDS) if ready else []
        except EOFError as error:
            return False, f"process {number} or its host is gone ({error})", None
        for message in messages:
            if message["kind"] == "bye":
                return True, "", None
            if message["kind"] == "lost":
                return False, message["what"], message["code"]
            if message["kind"] == "failed":
                what = f"process {number} ended with an error: {message['what']}"
                return False, what, message["code"]
        silent = time.monotonic() - line.heard
        if silent > SILENCE_SECONDS:
            return False, f"process {number} or its host is gone (silent for {silent:.0f} s)", None
        return False, "", None

    def _report(self, number: int, what: str, code: int | None) -> None:
        self.lost = what
        for other, line in self._lines.items():
            if other != number:
                line.send(kind="lost", what=what, code=code)

    def leave(self, error: str = "", code: int | None = None) -> None:
        """Says goodbye, or what went wrong; the others end in that case."""
        self._stop.set()
        for line in list(self._lines.values()):
            if error:
                line.send(kind="failed", what=error, code=code)
            else:
                line.send(kind="bye")


def peer_port(coordinator: str) -> int:
    """Port of process 0 for the connections of this module; 0 = do without them."""
    text = os.environ.get("IVJ_PEER_PORT", "")
    if text and not text.isdigit():
        raise ValueError(f"IVJ_PEER_PORT = {text!r}: expected a port number, 0 for none")
    return int(text) if text else int(coordinator.rpartition(":")[2]) + 1


def meet(coordinator: str, processes: int, process: int, timeout: float) -> Peers | None:
    """Waits until all processes of the job are there; None where IVJ_PEER_PORT is 0.

    Args:
      coordinator: host:port of jax's coordination service, which will run in process 0.

    Raises:
      RuntimeError: a port is taken, process 0 cannot be reached, somebody is missing, there twice
        or expects another number of processes.
    """
    host, port = coordinator.rpartition(":")[0].strip("[]"), peer_port(coordinator)
    if not port:
        return None
    deadline = time.monotonic() + timeout
    if process == 0:
        return _receive_all(coordinator, port, processes, deadline, timeout)
    line = _reach(coordinator, host, port, deadline, timeout)
    line.send(kind="hello", process=process, processes=processes)
    try:
        # Process 0 gives up first and says why.
        answer = line.wait(deadline + 10)
    except EOFError as error:
        raise RuntimeError(
            f"process 0 at {coordinator} ended while this process ({process} of {processes}) "
            "joined; look at its output"
        ) from error
    if answer is None or answer["kind"] != "go":
        raise RuntimeError(answer["what"] if answer else _no_answer(coordinator, port, timeout))
    return Peers(process, processes, {0: line})


def _no_answer(coordinator: str, port: int, timeout: float) -> str:
    return (
        f"process 0 at {coordinator} could not be reached for {timeout:.0f} s on port {port} (the "
        "port after the coordinator's, or IVJ_PEER_PORT); is it running, is the address the same "
        "in all processes, and does the network let both ports through?"
    )


def _reach(coordinator: str, host: str, port: int, deadline: float, timeout: float) -> Line:
    reason = ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            return Line(socket.create_connection((host, port), min(left, 10.0)))
        except OSError as error:  # not up yet, or a name that is not known yet
            reason = str(error)
            time.sleep(RETRY_SECONDS)
    raise RuntimeError(f"{_no_answer(coordinator, port, timeout)} ({reason})")


def _listen(port: int, coordinator: str) -> socket.socket:
    """The server socket; also finds out whether the coordinator's port is free, jax would crash."""
    dual = socket.has_dualstack_ipv6()
    family, options = (socket.AF_INET6 if dual else socket.AF_INET), {"dualstack_ipv6": dual}
    for number in (int(coordinator.rpartition(":")[2]), port):
        try:
            server = socket.create_server(("", number), family=family, backlog=1024, **options)
        except OSError as error:
            raise RuntimeError(
                f"process 0 cannot listen on port {number} ({os.strerror(error.errno or 0)}): "
                "another job of this machine uses it; give another port than that of "
                f"{coordinator}"
            ) from error
        if number != port:
            server.close()
    return server


def _receive_all(
    coordinator: str, port: int, processes: int, deadline: float, timeout: float
) -> Peers:
    lines: dict[int, Line] = {}
    refused = ""
    with _listen(port, coordinator) as server:
        while len(lines) < processes - 1 and not refused:
            left = deadline - time.monotonic()
            if left <= 0:
                missing = [str(n) for n in range(1, processes) if n not in lines]
                refused = (
                    f"after {timeout:.0f} s {len(lines) + 1} of {processes} processes had joined "
                    f"at {coordinator}; missing: {', '.join(missing[:10])}"
                    f"{' ...' if len(missing) > 10 else ''}. Start {processes} processes with "
                    f"numbers 0 to {processes - 1}, or give the right number"
                )
                break
            server.settimeout(left)
            try:
                line = Line(server.accept()[0])
                hello = line.wait(time.monotonic() + 10)
            except (TimeoutError, EOFError, ValueError):
                continue  # nobody, or not one of ours
            if not hello or hello.get("kind") != "hello":
                continue
            number, count = hello["process"], hello["processes"]
            if count != processes:
                refused = (
                    f"process {number} was started as one of {count}, process 0 as one of "
                    f"{processes}; start all with the same number of processes"
                )
            elif number in lines or not 0 < number < processes:
                refused = (
                    f"two processes say that they are number {number} of {processes}; expected "
                    f"each of 0 to {processes - 1} once"
                )
            if refused:
                line.send(kind="refused", what=refused)
            else:
                lines[number] = line
    for line in lines.values():
        line.send(kind="refused" if refused else "go", what=refused)
    if refused:
        raise RuntimeError(refused)
    return Peers(0, processes, lines)
