"""A threaded HTTP server whose threads, waiting and reading are bounded."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MOST_THREADS = 128
REQUEST_SECONDS = 30.0  # from the first wait for a request to its last byte
TIMEOUT = 60.0  # seconds for a piece of an answer
# With all threads taken, a connection that has sent no request for so long makes room.
PATIENCE = 1.0
# What a client still sends is read before the connection ends: else it might not see the answer.
LINGER_BYTES, LINGER_SECONDS = 64 * 2**20, 5.0
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 2\r\n"
    b'Content-Length: 33\r\nConnection: close\r\n\r\n{"error": "too many connections"}'
)


class _Reading(io.RawIOBase):
    """What a client sends, up to a deadline for all of a request.

    Attributes:
      since: when the server began to wait for the request.
      waiting: whether it waits for bytes at this moment.
    """

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self.since, self.waiting = time.monotonic(), False

    def readable(self) -> bool:
        return True

    def begin(self) -> None:
        """A new request may come."""
        self.since = time.monotonic()

    def readinto(self, buffer: bytearray | memoryview) -> int:
        left = self.since + REQUEST_SECONDS - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long")
        self._connection.settimeout(left)
        self.waiting = True
        try:
            return self._connection.recv_into(buffer)
        finally:
            self.waiting = False
            with contextlib.suppress(OSError):
                self._connection.settimeout(TIMEOUT)

    def end(self) -> None:
        """The thread that waits for bytes finds the end of the connection."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


class BoundedServer(ThreadingHTTPServer):
    """At most MOST_THREADS connections at a time; more wait, silent ones make room."""

    daemon_threads = True
    request_queue_size = 1024  # connections that the system keeps until there is a thread

    def __init__(self, address: tuple[str, int], handler: type[BoundedHandler]):
        self._slots = threading.BoundedSemaphore(MOST_THREADS)
        self.reading: set[_Reading] = set()
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def process_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:
        """Answers in a thread, or says at once that all are busy."""
        if not self._take_slot():
            with contextlib.suppress(OSError):
                request.settimeout(PATIENCE)
                request.sendall(_BUSY)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # the system gives no thread
            self._slots.release()
            raise

    def process_request_thread(
        self, request: socket.socket, client_address: tuple[str, int]
    ) -> None:
        """Answers, and makes room for another."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def _take_slot(self) -> bool:
        for _ in range(4):
            if self._slots.acquire(timeout=PATIENCE / 2):
                return True
            with self._lock:
                silent = [one for one in self.reading if one.waiting]
            silent = [one for one in silent if time.monotonic() - one.since > PATIENCE]
            for one in sorted(silent, key=lambda one: one.since)[: MOST_THREADS // 4]:
                one.end()
        return self._slots.acquire(timeout=PATIENCE)

    def enter(self, reading: _Reading) -> None:
        """A connection begins to read."""
        with self._lock:
            self.reading.add(reading)

    def leave(self, reading: _Reading) -> None:
        """A connection reads no more."""
        with self._lock:
            self.reading.discard(reading)


class BoundedHandler(BaseHTTPRequestHandler):
    """Requests under a deadline; sets `unread` where the rest of a request is of no interest."""

    server: BoundedServer  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = TIMEOUT

    def setup(self) -> None:
        """Reads through a guard of its time."""
        super().setup()
        self.unread = False
        self._reading = _Reading(self.connection)
        self.rfile = io.BufferedReader(self._reading, 65536)
        self.server.enter(self._reading)

    def handle_one_request(self) -> None:
        """One request, whose time begins now."""
        self._reading.begin()
        super().handle_one_request()

    def finish(self) -> None:
        """Ends so that an answer to unread content still arrives."""
        try:
            with contextlib.suppress(OSError):
                self.wfile.flush()
                if self.unread:
                    self._linger()
            super().finish()
        finally:
            self.server.leave(self._reading)

    def _linger(self) -> None:
        self.connection.shutdown(socket.SHUT_WR)
        until, left = time.monotonic() + LINGER_SECONDS, LINGER_BYTES
        while left > 0 and (seconds := until - time.monotonic()) > 0:
            self.connection.settimeout(seconds)
            data = self.connection.recv(min(65536, left))
            if not data:
                return
            left -= len(data)
