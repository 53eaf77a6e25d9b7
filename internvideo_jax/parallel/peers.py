"""The processes of a job meet before jax starts, and notice within seconds when one is gone.

jax's coordination service does both as well, but ends the program from native code: a process that
does not come, comes twice or dies shows as SIGABRT with a stack of C++ frames, and a host that is
gone only after a heartbeat has been missed for long. Here every process keeps one TCP connection to
process 0: the kernel closes it at the moment a process dies, whatever killed it, and messages can
name who and why. jax's heartbeats stay on behind it.

Messages are one JSON object per line. While they meet: a process knocks, process 0 challenges it,
the process says hello, and process 0 lets all go or refuses. Both sides prove with the challenges
that they know IVJ_JOB_TOKEN, where the job has one (`launch` and scripts/slurm.sh make one), so
that what a stranger sends to the port is ignored; without a token it must still be the exact
messages of a job at this port. Later: beat, lost, failed, bye.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable

from data_pipelines.commands.exit_codes import ExitCode, PassingFault

TOKEN = "IVJ_JOB_TOKEN"
# Kind of a message -> its fields and their types.
MESSAGES: dict[str, dict[str, tuple[type, ...]]] = {
    "knock": {"nonce": (str,)},
    "challenge": {"nonce": (str,), "proof": (str,)},
    "hello": {"process": (int,), "processes": (int,), "proof": (str,)},
    "go": {},
    "refused": {"what": (str,), "code": (int,)},
    "beat": {},
    "lost": {"what": (str,), "code": (int, type(None))},
    "failed": {"what": (str,), "code": (int, type(None))},
    "bye": {},
}
LONGEST_LINE = 8192  # bytes
HANDSHAKE_SECONDS = 10.0
MOST_HANDSHAKES = 4096  # connections that have not proved anything yet
BEAT_SECONDS = 1.0
# A host that vanishes closes no connection; this long without a beat and it counts as gone.
SILENCE_SECONDS = 30.0
RETRY_SECONDS = 0.2


def parse(line: bytes) -> dict | None:
    """The message of a line; None for what is none."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or not isinstance(kind := message.get("kind"), str):
        return None
    fields = MESSAGES.get(kind)
    if fields is None or message.keys() - {"kind"} != fields.keys():
        return None
    return message if all(type(message[name]) in kinds for name, kinds in fields.items()) else None


def prove(nonce: str, *facts: object) -> str:
    """What only a process of this job can answer to a challenge."""
    text = json.dumps([nonce, *map(str, facts)])
    return hmac.new(os.environ.get(TOKEN, "").encode(), text.encode(), hashlib.sha256).hexdigest()


def is_proof(text: str, nonce: str, *facts: object) -> bool:
    """Whether `text` proves the same secret and facts, compared in constant time."""
    # Not every text of JSON can be encoded.
    return text.isascii() and hmac.compare_digest(text, prove(nonce, *facts))


class Line:
    """One connection that carries JSON lines.

    Attributes:
      strange: whether something came that is no message; it is ignored.
    """

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = connection
        self.heard = time.monotonic()
        self.strange = False
        self.nonce = ""  # of our challenge
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
        messages = [parse(line) for line in lines]
        if None in messages or len(self._rest) > LONGEST_LINE:
            self.strange, self._rest = True, self._rest[:0]
        return [message for message in messages if message is not None]

    def close(self) -> None:
        """Ends the connection; no error where it has ended."""
        with contextlib.suppress(OSError):
            self.connection.close()

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
        if line.strange:
            line.strange = False
            print(f"warning: process {number} sent what is no message", file=sys.stderr, flush=True)
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
        return _Meeting(coordinator, port, processes).run(deadline, timeout)
    line = _reach(coordinator, host, port, processes, process, deadline, timeout)
    try:
        # Process 0 gives up first and says why.
        answer = line.wait(deadline + 10)
    except EOFError as error:
        raise PassingFault(
            f"process 0 at {coordinator} ended while this process ({process} of {processes}) "
            "joined; look at its output"
        ) from error
    if answer is None:
        raise PassingFault(_no_answer(coordinator, port, timeout))
    if answer["kind"] == "refused":
        kind = PassingFault if answer["code"] == ExitCode.AGAIN else RuntimeError
        raise kind(answer["what"])
    return Peers(process, processes, {0: line})


def _no_answer(coordinator: str, port: int, timeout: float) -> str:
    return (
        f"process 0 at {coordinator} could not be reached for {timeout:.0f} s on port {port} (the "
        "port after the coordinator's, or IVJ_PEER_PORT); is it running, is the address the same "
        "in all processes, and does the network let both ports through?"
    )


def _reach(
    coordinator: str,
    host: str,
    port: int,
    processes: int,
    process: int,
    deadline: float,
    timeout: float,
) -> Line:
    """The connection to a process 0 that has proved to be that of this job, and knows us."""
    reason = ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            line = Line(socket.create_connection((host, port), min(left, HANDSHAKE_SECONDS)))
        except OSError as error:  # not up yet, or a name that is not known yet
            reason = str(error)
            time.sleep(RETRY_SECONDS)
            continue
        nonce = secrets.token_hex(16)
        line.send(kind="knock", nonce=nonce)
        with contextlib.suppress(EOFError):
            answer = line.wait(time.monotonic() + min(left, HANDSHAKE_SECONDS))
            challenged = answer if answer and answer["kind"] == "challenge" else None
            if challenged and is_proof(challenged["proof"], nonce, 0):
                proof = prove(challenged["nonce"], coordinator_port(coordinator), process)
                line.send(kind="hello", process=process, processes=processes, proof=proof)
                return line
        reason = f"what answers there is no process of this job, or has another {TOKEN}"
        line.close()
        time.sleep(RETRY_SECONDS)
    raise PassingFault(f"{_no_answer(coordinator, port, timeout)} ({reason})")


def coordinator_port(coordinator: str) -> str:
    """The port of an address."""
    # Hosts may know process 0 by other names; its port they must agree on.
    return coordinator.rpartition(":")[2]


def _listen(port: int, coordinator: str) -> socket.socket:
    """The server socket; also finds out whether the coordinator's port is free, jax would crash."""
    dual = socket.has_dualstack_ipv6()
    family, options = (socket.AF_INET6 if dual else socket.AF_INET), {"dualstack_ipv6": dual}
    for number in (int(coordinator_port(coordinator)), port):
        try:
            server = socket.create_server(("", number), family=family, backlog=1024, **options)
        except OSError as error:
            raise PassingFault(
                f"process 0 cannot listen on port {number} ({os.strerror(error.errno or 0)}): "
                "another job of this machine uses it; give another port than that of "
                f"{coordinator}"
            ) from error
        if number != port:
            server.close()
    return server


class _Meeting:
    """Process 0 while it waits for the others; strangers neither end nor delay it."""

    def __init__(self, coordinator: str, port: int, processes: int):
        self.coordinator, self.processes = coordinator, processes
        self.lines: dict[int, Line] = {}
        self._server = _listen(port, coordinator)
        self._selector = selectors.DefaultSelector()
        self._waiting: dict[Line, float] = {}  # since when; in that order
        self._told = False

    def run(self, deadline: float, timeout: float) -> Peers:
        """Raises as `meet`."""
        refused, code = "", int(ExitCode.FAILED)
        with self._server as server, self._selector as selector:
            server.setblocking(False)
            selector.register(server, selectors.EVENT_READ, None)
            while len(self.lines) < self.processes - 1 and not refused:
                left = deadline - time.monotonic()
                if left <= 0:
                    refused, code = self._missing(timeout), int(ExitCode.AGAIN)
                    break
                for key, _ in selector.select(min(left, 1.0)):
                    refused = refused or (self._look(key.data) if key.data else self._accept())
                for line, since in list(self._waiting.items()):
                    if time.monotonic() - since > HANDSHAKE_SECONDS:
                        self._drop(line)
            for line in list(self._waiting):
                self._drop(line, quiet=True)
        for line in self.lines.values():
            if refused:
                line.send(kind="refused", what=refused, code=code)
            else:
                line.send(kind="go")
        if refused:
            raise (PassingFault if code == ExitCode.AGAIN else RuntimeError)(refused)
        return Peers(0, self.processes, self.lines)

    def _accept(self) -> str:
        try:
            line = Line(self._server.accept()[0])
        except OSError:  # it left again
            return ""
        if len(self._waiting) >= MOST_HANDSHAKES:
            self._drop(next(iter(self._waiting)))
        self._waiting[line] = time.monotonic()
        self._selector.register(line.connection, selectors.EVENT_READ, line)
        return ""

    def _look(self, line: Line) -> str:
        """Takes what has arrived; returns why the job cannot be."""
        try:
            messages = line.receive(HANDSHAKE_SECONDS)
        except EOFError:
            messages, line.strange = [], True
        for message in messages:
            if message["kind"] == "knock" and not line.nonce:
                line.nonce = secrets.token_hex(16)
                line.connection.settimeout(1.0)
                line.send(kind="challenge", nonce=line.nonce, proof=prove(message["nonce"], 0))
            elif message["kind"] == "hello" and line.nonce:
                facts = coordinator_port(self.coordinator), message["process"]
                if is_proof(message["proof"], line.nonce, *facts):
                    return self._join(line, message["process"], message["processes"])
                line.strange = True
            else:
                line.strange = True
        if line.strange:
            self._drop(line)
        return ""

    def _join(self, line: Line, number: int, count: int) -> str:
        refused = ""
        if count != self.processes:
            refused = (
                f"process {number} was started as one of {count}, process 0 as one of "
                f"{self.processes}; start all with the same number of processes"
            )
        elif number in self.lines or not 0 < number < self.processes:
            refused = (
                f"two processes say that they are number {number} of {self.processes}; expected "
                f"each of 0 to {self.processes - 1} once"
            )
        if refused:
            line.send(kind="refused", what=refused, code=int(ExitCode.FAILED))
            return refused
        del self._waiting[line]
        self._selector.unregister(line.connection)
        self.lines[number] = line
        return ""

    def _drop(self, line: Line, *, quiet: bool = False) -> None:
        del self._waiting[line]
        self._selector.unregister(line.connection)
        if not (self._told or quiet):
            self._told = True
            with contextlib.suppress(OSError):
                print(
                    f"warning: ignored a connection from {line.connection.getpeername()[0]} to the "
                    f"port where the processes meet: no process of this job, or another {TOKEN}",
                    file=sys.stderr,
                    flush=True,
                )
        line.close()

    def _missing(self, timeout: float) -> str:
        missing = [str(n) for n in range(1, self.processes) if n not in self.lines]
        return (
            f"after {timeout:.0f} s {len(self.lines) + 1} of {self.processes} processes had joined "
            f"at {self.coordinator}; missing: {', '.join(missing[:10])}"
            f"{' ...' if len(missing) > 10 else ''}. Start {self.processes} processes with "
            f"numbers 0 to {self.processes - 1}, or give the right number"
        )
