"""A proxy between a client and an HTTP server on loopback; it breaks what it is told to break."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOP = ("connection", "transfer-encoding", "content-length", "keep-alive")


@dataclass
class Fault:
    """What becomes of the next `times` requests whose `METHOD PATH` fits the pattern.

    Attributes:
      kind: a status; `cut`: half of the answer's body; `cut_upload`: the server gets half of the
        request's body; `delay`: a second passes.
      do: called in its stead, before the request is passed on.
    """

    pattern: str
    kind: str
    times: int = 1
    do: Callable[[], None] = lambda: None


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed says nothing of interest."""


class Proxy:
    """Attributes:
    port: it listens at.
    seen: `METHOD PATH` of each request, with the name of an object that is uploaded.
    faults: what is to be broken; used up.
    broken: how many were.
    """

    def __init__(self, upstream: int):
        self.upstream, self.seen, self.faults, self.broken = upstream, [], [], 0
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def handle_any(self) -> None:
                proxy.handle(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = handle_any

        self._server = _Quiet(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _fault(self, line: str) -> Fault | None:
        with self._lock:
            self.seen.append(line)
            for fault in self.faults:
                if re.search(fault.pattern, line):
                    fault.times -= 1
                    self.faults = [each for each in self.faults if each.times > 0]
                    self.broken += 1
                    return fault
        return None

    def handle(self, client: BaseHTTPRequestHandler) -> None:
        body = _body(client)
        fault = self._fault(f"{client.command} {client.path}{_name(client.path, body)}")
        kind = fault.kind if fault else ""
        if fault:
            fault.do()
        if kind == "delay":
            time.sleep(1.0)
        if kind.isdigit():
            _answer(client, int(kind), {}, _refusal(client.path, int(kind)))
            return
        if kind == "cut_upload":
            self._half(client, body)
            client.close_connection = True
            return
        server = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=30)
        headers = {k: v for k, v in client.headers.items() if k.lower() not in HOP}
        if client.headers.get("Transfer-Encoding"):
            headers["Content-Length"] = str(len(body))
        try:
            server.request(client.command, client.path, body or None, headers)
            found = server.getresponse()
            data = found.read()
            _answer(client, found.status, dict(found.getheaders()), data, cut=kind == "cut")
        finally:
            server.close()

    def _half(self, client: BaseHTTPRequestHandler, body: bytes) -> None:
        """Half of a request, as of a connection that breaks."""
        server = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=5)
        server.putrequest(client.command, client.path, skip_host=True, skip_accept_encoding=True)
        for name, value in client.headers.items():
            if name.lower() not in HOP:
                server.putheader(name, value)
        server.putheader("Content-Length", str(len(body)))
        server.endheaders(body[: len(body) // 2])
        server.close()


def _name(path: str, body: bytes) -> str:
    """The name of an object that Google's protocol has in the body of an upload."""
    found = re.search(rb'"name"\s*:\s*"([^"]+)"', body[:4096]) if "/upload/" in path else None
    return f" {found[1].decode()}" if found else ""


def _refusal(path: str, status: int) -> bytes:
    """The body of an answer with that status, as the two services have it."""
    if "/b/bucket" in path:
        return json.dumps({"error": {"code": status, "message": "injected"}}).encode()
    code = {403: "AccessDenied", 503: "SlowDown"}.get(status, "InternalError")
    return f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()


def _body(client: BaseHTTPRequestHandler) -> bytes:
    if client.headers.get("Expect", "").lower() == "100-continue":
        pass  # the base class has answered that
    if "chunked" in client.headers.get("Transfer-Encoding", ""):
        parts = []
        while size := int(client.rfile.readline().split(b";")[0], 16):
            parts.append(client.rfile.read(size))
            client.rfile.readline()
        while client.rfile.readline().strip():  # trailers
            pass
        return b"".join(parts)
    return client.rfile.read(int(client.headers.get("Content-Length") or 0))


def _answer(
    client: BaseHTTPRequestHandler,
    status: int,
    headers: dict[str, str],
    data: bytes,
    cut: bool = False,
) -> None:
    client.send_response_only(status)
    for name, value in headers.items():
        if name.lower() not in HOP:
            client.send_header(name, value)
    length = {name.lower(): value for name, value in headers.items()}.get("content-length")
    head = client.command == "HEAD"
    client.send_header("Content-Length", (length or "0") if head else str(len(data)))
    client.end_headers()
    if not head:
        client.wfile.write(data[: len(data) // 2] if cut else data)
    if cut:
        client.wfile.flush()
        client.close_connection = True


@contextmanager
def proxied(upstream: int) -> Iterator[Proxy]:
    proxy = Proxy(upstream)
    yield proxy
    proxy.close()
