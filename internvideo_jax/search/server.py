"""The page and its JSON interface over HTTP; docs/video-search.md describes the interface."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import json
import os
import re
import socket
import socketserver
import stat
import sys
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from internvideo_jax import __version__
from internvideo_jax.evaluators.published.templates import TEMPLATES
from internvideo_jax.search.answers import MOST, Answers, BadQuestion
from internvideo_jax.search.connections import BoundedHandler, BoundedServer
from internvideo_jax.search.index import IndexedVideo, identity_of
from internvideo_jax.search.media import Unsatisfiable, byte_range, media_type
from internvideo_jax.types import Plain

LARGEST_REQUEST = 64 * 2**10  # bytes of a body
MOST_LABELS = 200
_CHUNK = 256 * 2**10
_FOLDER = Path(__file__).parent
_PAGES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "media-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)


@dataclasses.dataclass
class Desk:
    """What the server knows: set by the thread that builds the index, read by those that answer.

    Attributes:
      answers: None until the index is there.
      error: why there will be none; `code`: with which exit code the command then ends.
    """

    labels: Sequence[str] = ()
    template: str = "plain"
    answers: Answers | None = None
    error: str = ""
    code: int = 0
    done: int = 0
    total: int = 0

    @property
    def state(self) -> str:
        """loading | error | ready"""
        if self.error:
            return "error"
        return "ready" if self.answers else "loading"


class Refused(Exception):
    """A request that gets an error code; the message goes to the client."""

    def __init__(self, status: int, message: str, **headers: str):
        super().__init__(message)
        self.status, self.headers = status, headers


class SearchServer(BoundedServer):
    """Answers at http://host:port/.

    Raises:
      OSError: the address is taken or not ours.
    """

    def __init__(self, host: str, port: int, desk: Desk):
        self.desk = desk
        self.stopping = threading.Event()
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)
        # A web page elsewhere can make its own name point at this machine (DNS rebinding); on the
        # loopback only the loopback's names are answered.
        self.names = {"localhost", "127.0.0.1", "[::1]", host} if _is_loopback(host) else None

    @property
    def url(self) -> str:
        """Its address in a browser."""
        host, port = self.server_address[:2]
        name = f"[{host!s}]" if ":" in str(host) else str(host)
        return f"http://{name}:{port}/"

    def stop(self, signum: int = 0, frame: object = None) -> None:
        """Ends `serve_forever`; as a handler of signals, too.

        A handler that raises may do so in a callback of a library, where its exception is lost.
        """
        self.stopping.set()

    def service_actions(self) -> None:
        """Called by `serve_forever` between requests."""
        if self.stopping.is_set():
            raise KeyboardInterrupt

    def server_bind(self) -> None:
        """Takes the port."""
        # HTTPServer's own asks the name service for the host's name, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: socket.socket, client_address: tuple[str, int]) -> None:
        """One line, except for clients that went away."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            print(f"error while answering {client_address}: {error!r}", file=sys.stderr)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Handler(BoundedHandler):
    server: SearchServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    server_version = f"internvideo_jax/{__version__}"
    sys_version = ""

    def do_GET(self) -> None:
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            # Nobody reads a body here; it must not be taken for the next request.
            self.close_connection = self.unread = True
        self._answer(self._get)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_PUT(self) -> None:
        self._answer(self._no_method)

    do_DELETE = do_PATCH = do_OPTIONS = do_PUT

    def log_message(self, format: str, *args: Any) -> None:
        """No line per request."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses: broken request lines and headers, unknown methods."""
        self.close_connection = self.unread = True
        self.request_version = "HTTP/1.1"  # a line that is none counts as HTTP/0.9: no headers
        self._json(code, {"error": HTTPStatus(code).phrase})

    def _answer(self, work: Callable[[str], None]) -> None:
        try:
            work(self._checked_path())
        except Refused as error:
            # Nothing is known of a body that was not read, so the connection ends with it.
            self.close_connection = self.unread = True
            self._json(error.status, {"error": str(error)}, error.headers)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:  # noqa: BLE001  (one bad request must not show a traceback)
            self.close_connection = True
            print(f"error while answering {self.path!r}: {error!r}", file=sys.stderr)
            with contextlib.suppress(OSError):
                self._json(500, {"error": "the server failed to answer; its log says why"})

    def _checked_path(self) -> str:
        try:
            path = urlsplit(self.path).path
        except ValueError as error:
            raise Refused(400, "the request names no address") from error
        for name in ("Host", "Content-Length"):
            if len(self.headers.get_all(name, ())) > 1:
                raise Refused(400, f"the request has several headers {name}")
        names = self.server.names
        name = re.sub(r":[0-9]*$", "", self.headers.get("Host", "")).lower()
        if names is not None and name not in names:
            raise Refused(403, "this server answers to its own address only")
        return path

    def _no_method(self, path: str) -> None:
        raise Refused(405, f"{self.command} is not known here", Allow="GET, HEAD, POST")

    def _get(self, path: str) -> None:
        if path in _PAGES:
            name, kind = _PAGES[path]
            self._send(200, kind, (_FOLDER / name).read_bytes())
        elif path == "/api/status":
            self._json(200, self._status())
        elif path in _POSTED:
            raise Refused(405, f"{path} takes POST", Allow="POST")
        elif (number := _number(path, "/media/")) is not None:
            videos = self._ready().index.videos
            if number >= len(videos):
                raise Refused(404, f"there is no video {number}")
            self._file(videos[number])
        elif (number := _number(path, "/thumbnail/")) is not None:
            clips = self._ready().index.clips
            if number >= len(clips):
                raise Refused(404, f"there is no clip {number}")
            self._send(200, "image/jpeg", clips[number].thumbnail)
        else:
            raise Refused(404, "there is no such page")

    def _post(self, path: str) -> None:
        if path not in _POSTED:
            known = path in _PAGES or path == "/api/status"
            status, text = (405, f"{path} takes GET") if known else (404, "there is no such page")
            raise Refused(status, text, **({"Allow": "GET, HEAD"} if known else {}))
        asked = self._body()
        answers = self._ready()
        try:
            self._json(200, _POSTED[path](self, answers, asked))
        except BadQuestion as error:
            # The body was read, so that the connection can go on.
            self._json(400, {"error": str(error)})

    def _body(self) -> dict[str, Any]:
        if self.headers.get("Transfer-Encoding"):
            raise Refused(411, "send the body with a Content-Length")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refused(411, "send the body with a Content-Length")
        if len(length) > 9 or int(length) > LARGEST_REQUEST:
            raise Refused(413, f"the request is larger than {LARGEST_REQUEST} bytes")
        # Forms of other sites cannot send this type without being asked about it first.
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "send Content-Type: application/json")
        data = self.rfile.read(int(length))
        if len(data) < int(length):
            raise Refused(400, "the body is shorter than its Content-Length")
        try:
            asked = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Refused(400, "the body is not JSON") from error
        if not isinstance(asked, dict):
            raise Refused(400, "the body is no JSON object")
        return asked

    def _ready(self) -> Answers:
        desk = self.server.desk
        if desk.answers is None:
            if desk.error:
                raise Refused(503, desk.error)
            text = f"the videos are being read: {desk.done} of {desk.total}"
            raise Refused(503, text, **{"Retry-After": "2"})
        return desk.answers

    def _status(self) -> dict[str, Any]:
        desk = self.server.desk
        found: dict[str, Any] = {
            "state": desk.state,
            "error": desk.error,
            "done": desk.done,
            "total": desk.total,
            "labels": list(desk.labels),
            "template": desk.template,
            "templates": list(TEMPLATES),
        }
        if desk.answers is not None:
            index = desk.answers.index
            found["videos"], found["clips"] = len(index.videos), len(index.clips)
            found["skipped"] = [dataclasses.asdict(file) for file in index.skipped]
            found["weights"] = desk.answers.encoder.digest
        return found

    def _search(self, answers: Answers, asked: dict[str, Any]) -> dict[str, Any]:
        found = answers.search(_take(asked, "query", str), _take(asked, "count", int, 12))
        results = []
        for hit in found.hits:
            clip = answers.index.clips[hit.clip]
            video = answers.index.videos[clip.video]
            results.append(
                {
                    "rank": hit.rank,
                    "similarity": round(hit.similarity, 6),
                    "clip": hit.clip,
                    "file": video.name,
                    "start": clip.start,
                    "end": clip.end,
                    "note": video.note,
                    "media": f"/media/{clip.video}",
                    "thumbnail": f"/thumbnail/{hit.clip}",
                }
            )
        return {"query": found.query, "note": found.note, "results": results}

    def _label(self, answers: Answers, asked: dict[str, Any]) -> dict[str, Any]:
        clips, labels = _take(asked, "clips", list), _take(asked, "labels", list)
        if len(clips) > MOST or not all(type(clip) is int for clip in clips):
            raise BadQuestion(f"clips: expected at most {MOST} whole numbers")
        if len(labels) > MOST_LABELS or not all(isinstance(label, str) for label in labels):
            raise BadQuestion(f"labels: expected at most {MOST_LABELS} texts")
        names = answers.check_labels(labels)
        rows = answers.label(clips, names, _take(asked, "template", str, "plain"))
        return {
            "labels": names,
            "clips": [
                {"clip": clip, "probabilities": [round(float(p), 6) for p in row]}
                for clip, row in zip(clips, rows, strict=True)
            ],
        }

    def _file(self, video: IndexedVideo) -> None:
        try:
            # Not blocking: a pipe that took the file's place must not hold the thread.
            handle = os.open(video.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        except (OSError, ValueError) as error:
            raise Refused(404, "the video is no longer there") from error
        info = os.fstat(handle)
        # Whatever stands there now: a link in the path may lead to any file of this machine.
        if not stat.S_ISREG(info.st_mode) or identity_of(info) != video.identity:
            os.close(handle)
            raise Refused(404, "the video is no longer there")
        with os.fdopen(handle, "rb") as file:
            size = info.st_size
            headers = {"Accept-Ranges": "bytes"}
            try:
                part = byte_range(self.headers.get("Range"), size)
            except Unsatisfiable as error:
                text = "the range is beyond the end of the file"
                raise Refused(416, text, **{"Content-Range": f"bytes */{size}"}) from error
            start, end = part or (0, size)
            if part:
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
            headers["Content-Length"] = str(end - start)
            self._head(206 if part else 200, media_type(video.name), headers)
            if self.command == "HEAD":
                return
            file.seek(start)
            while start < end:
                data = file.read(min(_CHUNK, end - start))
                if not data:  # it became shorter; the client sees the connection end
                    self.close_connection = True
                    return
                self.wfile.write(data)
                start += len(data)

    def _json(self, status: int, content: Plain, headers: dict[str, str] | None = None) -> None:
        self._send(status, "application/json", json.dumps(content).encode(), headers)

    def _send(
        self, status: int, kind: str, data: bytes, headers: dict[str, str] | None = None
    ) -> None:
        self._head(status, kind, {**(headers or {}), "Content-Length": str(len(data))})
        if self.command != "HEAD":
            self.wfile.write(data)

    def _head(self, status: int, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        common = {
            "Content-Type": kind,
            "Content-Security-Policy": _POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-cache",
        }
        for name, value in {**common, **headers}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()


_POSTED = {"/api/search": _Handler._search, "/api/labels": _Handler._label}


def _number(path: str, prefix: str) -> int | None:
    """N of `prefix`N, None for anything else; no part of a path is ever used as a file name."""
    text = path.removeprefix(prefix) if path.startswith(prefix) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _take(asked: dict[str, Any], name: str, kind: type, default: Any = None) -> Any:
    value = asked.get(name, default)
    if type(value) is not kind:
        kinds = {str: "a text", int: "a whole number", list: "a list"}
        raise BadQuestion(f"{name}: expected {kinds[kind]}")
    return value


def serve(server: SearchServer, build: Callable[[threading.Event], None]) -> None:
    """Answers until ctrl-c, while `build` makes the index beside it.

    Args:
      build: called in a thread with an event that says when to stop; fills the desk.
    """
    stop = threading.Event()
    builder = threading.Thread(target=build, args=(stop,), daemon=True)
    builder.start()
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        print("\nstopped", flush=True)
    finally:
        stop.set()
        server.server_close()
        builder.join(timeout=30)
