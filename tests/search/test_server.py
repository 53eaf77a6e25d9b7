"""The page's interface over HTTP: answers, files, and requests that nobody should send."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from internvideo_jax.search.answers import Answers
from internvideo_jax.search.cache import EmbeddingCache
from internvideo_jax.search.clips import Sampling, list_videos
from internvideo_jax.search.index import VideoIndex, build_index, identity_of
from internvideo_jax.search.media import Unsatisfiable, byte_range
from internvideo_jax.search.server import LARGEST_REQUEST, Desk, SearchServer
from tests.search.colours import index_of, paint


class Client:
    """Requests to a server on the loopback, each on a connection of its own."""

    def __init__(self, port: int):
        self.port = port

    def raw(self, method: str, path: str, body: bytes | None = None, **headers: str):
        """(status, headers, body)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, names)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def get(self, path: str, **headers: str):
        return self.raw("GET", path, **headers)

    def post(self, path: str, content: Any, **headers: str) -> tuple[int, Any]:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers.setdefault("Content_Type", "application/json")
        status, _, body = self.raw("POST", path, data, **headers)
        return status, json.loads(body)


@contextlib.contextmanager
def started(desk: Desk) -> Iterator[Client]:
    server = SearchServer("127.0.0.1", 0, desk)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield Client(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def client(answers) -> Iterator[Client]:
    with started(Desk(("red", "green"), "plain", answers)) as client:
        yield client


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def waiting(desk) -> Iterator[Client]:
    with started(desk) as client:
        yield client


def test_the_page_names_nothing_outside(client):
    for path, kind in (
        ("/", "text/html"),
        ("/page.js", "text/javascript"),
        ("/page.css", "text/css"),
        ("/icon.svg", "image/svg+xml"),
    ):
        status, headers, body = client.get(path)
        assert status == 200 and headers["Content-Type"].startswith(kind)
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert b"http:" not in body.replace(b"http://www.w3.org", b"") and b"https:" not in body


def test_status(client):
    status, _, body = client.get("/api/status")
    found = json.loads(body)
    assert status == 200 and found["state"] == "ready"
    assert (found["videos"], found["clips"], found["labels"]) == (4, 4, ["red", "green"])
    assert [file["name"] for file in found["skipped"]] == ["damaged.mp4"]
    assert "kinetics28" in found["templates"]


def test_search_and_labels(client, videos):
    status, found = client.post("/api/search", {"query": "blue", "count": 3})
    assert status == 200 and [row["rank"] for row in found["results"]] == [1, 2, 3]
    best = found["results"][0]
    assert best["file"] == "deep/c <b>&.mp4" and best["similarity"] > 0.7
    assert (best["start"], best["end"]) == (0.0, 1.0)
    status, headers, body = client.get(best["media"])
    assert status == 200 and headers["Content-Type"] == "video/mp4"
    assert body == (videos / best["file"]).read_bytes()
    assert client.get(best["thumbnail"])[2].startswith(b"\xff\xd8")
    clips = [row["clip"] for row in found["results"]]
    status, marked = client.post("/api/labels", {"clips": clips, "labels": ["red", "blue"]})
    assert status == 200 and [row["clip"] for row in marked["clips"]] == clips
    assert marked["clips"][0]["probabilities"][1] > 0.9


@pytest.mark.parametrize(
    "query", ["<img src=x onerror=alert(1)>", "\ud83d", "red " * 2500, "\x00\u202e", "' OR 1=1 --"]
)
def test_hostile_queries_are_answered(client, query):
    status, found = client.post("/api/search", {"query": query})
    assert status == 200 and len(found["results"]) == 4
    assert ("cut to the first 1000" in found["note"]) == (len(query) > 1000)


BAD = {
    "empty": ("/api/search", {"query": ""}, 400, "the query is empty"),
    "no query": ("/api/search", {}, 400, "query: expected a text"),
    "number": ("/api/search", {"query": 3}, 400, "query: expected a text"),
    "count": (
        "/api/search",
        {"query": "red", "count": True},
        400,
        "count: expected a whole number",
    ),
    "huge count": ("/api/search", {"query": "red", "count": 10**30}, 400, "expected 1 to 100"),
    "array": ("/api/search", [1], 400, "no JSON object"),
    "not JSON": ("/api/search", b"{", 400, "the body is not JSON"),
    "deep JSON": ("/api/search", b"[" * 60000, 400, "the body is not JSON"),
    "not UTF-8": ("/api/search", b'{"query": "\xff"}', 400, "the body is not JSON"),
    "too large": ("/api/search", b" " * (LARGEST_REQUEST + 1), 413, "larger than 65536 bytes"),
    "clip": ("/api/labels", {"clips": [99], "labels": ["a"]}, 400, "there is no clip 99"),
    "negative": ("/api/labels", {"clips": [-1], "labels": ["a"]}, 400, "there is no clip -1"),
    "clip text": ("/api/labels", {"clips": ["0"], "labels": ["a"]}, 400, "whole numbers"),
    "no labels": ("/api/labels", {"clips": [0], "labels": []}, 400, "no labels"),
    "label kind": ("/api/labels", {"clips": [0], "labels": [1]}, 400, "expected at most 200 texts"),
    "many": ("/api/labels", {"clips": [0], "labels": ["a"] * 201}, 400, "at most 200 texts"),
    "template": (
        "/api/labels",
        {"clips": [0], "labels": ["a"], "template": "x"},
        400,
        "unknown templates 'x'",
    ),
    "path": ("/api/other", {}, 404, "no such page"),
    "page": ("/", {}, 405, "takes GET"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_get_their_code_and_one_message(client, case, capsys):
    path, content, code, message = BAD[case]
    status, found = client.post(path, content)
    assert (status, message in found["error"]) == (code, True), found
    assert "Traceback" not in found["error"] and not capsys.readouterr().err


def test_forms_of_other_sites_are_refused(client):
    status, found = client.post("/api/search", {"query": "red"}, Content_Type="text/plain")
    assert status == 415 and "application/json" in found["error"]
    assert client.get("/", Host="evil.example:80")[0] == 403
    assert client.get("/", Host=f"localhost:{client.port}")[0] == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH"])
def test_other_methods_are_refused(client, method):
    status, headers, _ = client.raw(method, "/api/search")
    assert status == 405 and "GET" in headers["Allow"]


def test_get_where_post_is_wanted(client):
    assert client.get("/api/search")[0] == 405


@pytest.mark.parametrize(
    "path",
    [
        "/media/4",
        "/media/-1",
        "/media/99999999999999999999",
        "/media/../../etc/passwd",
        "/media/..%2f..%2fetc%2fpasswd",
        "/media/0/../1",
        "/media/²",
        "/media/",
        "/thumbnail/4",
        "/page.py",
        "/../server.py",
        "//etc/passwd",
        "/damaged.mp4",
    ],
)
def test_only_files_of_the_index_can_be_had(client, path):
    status, _, body = client.get(path.replace("²", "%C2%B2"))
    assert status == 404 and "error" in json.loads(body)


def test_ranges_of_a_file(client, videos):
    data = (videos / "a.mp4").read_bytes()
    size = len(data)
    for header, start, end in (
        ("bytes=0-0", 0, 1),
        ("bytes=10-", 10, size),
        ("bytes=5-9", 5, 10),
        ("bytes=-7", size - 7, size),
        (f"bytes=3-{size * 2}", 3, size),
    ):
        status, headers, body = client.get("/media/0", Range=header)
        assert (status, body) == (206, data[start:end]), header
        assert headers["Content-Range"] == f"bytes {start}-{end - 1}/{size}"
    for header in ("bytes=0-1,4-5", "lines=0-1", "bytes=9-5", "bytes=-", "bytes=" + "9" * 40 + "-"):
        status, headers, body = client.get("/media/0", Range=header)
        assert (status, body) == (200, data), header
        assert headers["Accept-Ranges"] == "bytes"
    status, headers, _ = client.get("/media/0", Range=f"bytes={size}-")
    assert status == 416 and headers["Content-Range"] == f"bytes */{size}"
    status, headers, body = client.raw("HEAD", "/media/0")
    assert (status, body, headers["Content-Length"]) == (200, b"", str(size))


def test_ranges_of_an_empty_file():
    assert byte_range("bytes=0-", 10) == (0, 10) and byte_range(None, 0) is None
    for header in ("bytes=0-", "bytes=-1", "bytes=-0"):
        with pytest.raises(Unsatisfiable):
            byte_range(header, 0)


def test_a_file_that_went_away_is_404(tmp_path, answers):
    index: VideoIndex = answers.index
    os.mkfifo(tmp_path / "pipe.mp4")
    gone = [tmp_path / "gone.mp4", tmp_path, tmp_path / "pipe.mp4"]
    videos = []
    for path in gone:
        identity = identity_of(path.stat()) if path.exists() else (0, 0, 0, 0)
        videos.append(dataclasses.replace(index.videos[0], path=str(path), identity=identity))
    other = Answers(dataclasses.replace(index, videos=tuple(videos)), answers.encoder)
    with started(Desk(answers=other)) as client:
        for number in range(3):
            assert client.get(f"/media/{number}")[0] == 404


@pytest.mark.parametrize(
    "change", ["link", "link in the folder", "folder", "other file", "written to", "same name"]
)
def test_a_file_that_became_another_one_is_not_served(tmp_path, answers, change):
    """What stands under a path of the index now may be any file of this machine."""
    folder, secret = tmp_path / "videos" / "deep", tmp_path / "secret"
    folder.mkdir(parents=True)
    paint(folder / "a.mp4", "red")
    paint(folder / "b.mp4", "blue")
    secret.mkdir()
    (secret / "a.mp4").write_bytes(b"secret")
    index, _ = index_of(tmp_path / "videos", answers.encoder)
    assert [video.name for video in index.videos] == ["deep/a.mp4", "deep/b.mp4"]
    with started(Desk(answers=Answers(index, answers.encoder))) as client:
        assert client.get("/media/0")[2] == (folder / "a.mp4").read_bytes()
        if change == "folder":
            folder.rename(tmp_path / "moved")
            folder.symlink_to(secret)
        elif change == "written to":
            with open(folder / "a.mp4", "ab") as file:
                file.write(b"more")
        else:
            content = (folder / "a.mp4").read_bytes()
            (folder / "a.mp4").rename(folder / "old.mp4")
            if change == "link":
                (folder / "a.mp4").symlink_to(secret / "a.mp4")
            elif change == "link in the folder":
                (folder / "a.mp4").symlink_to("old.mp4")
            elif change == "other file":
                (folder / "a.mp4").write_bytes(b"secret")
            else:
                (folder / "a.mp4").write_bytes(content)
        status, _, body = client.get("/media/0")
        assert status == 404 and b"no longer there" in body
        if change != "folder":
            assert client.get("/media/1")[0] == 200


def test_links_out_of_the_folder_are_declared_and_not_followed(tmp_path, answers):
    folder = tmp_path / "videos"
    folder.mkdir()
    for place in (tmp_path / "other.mp4", tmp_path / "away" / "b.mp4", folder / "real.mp4"):
        paint(place, "red")
    (folder / "out.mp4").symlink_to(tmp_path / "other.mp4")
    (folder / "up.mp4").symlink_to("../other.mp4")
    (folder / "deep").symlink_to(tmp_path / "away")
    (folder / "inside.mp4").symlink_to("real.mp4")
    (tmp_path / "alias").symlink_to(folder)
    for root in (folder, tmp_path / "alias"):
        index = build_index(
            list_videos(root),
            answers.encoder,
            Sampling(4, 16),
            EmbeddingCache(None, "", ""),
            within=root,
        )
        assert [video.name for video in index.videos] == ["inside.mp4", "real.mp4"]
        assert sorted(file.name for file in index.skipped) == ["deep/b.mp4", "out.mp4", "up.mp4"]
        assert {file.reason for file in index.skipped} == {
            "is a link out of the folder, which is not followed"
        }
        with started(Desk(answers=Answers(index, answers.encoder))) as client:
            for number in range(2):
                status, headers, body = client.get(f"/media/{number}")
                assert status == 200 and body == (folder / "real.mp4").read_bytes()
                assert headers["Content-Type"] == "video/mp4"


def test_before_the_index_is_there(waiting, desk):
    desk.done, desk.total = 3, 7
    assert json.loads(waiting.get("/api/status")[2])["state"] == "loading"
    status, found = waiting.post("/api/search", {"query": "red"})
    assert status == 503 and found["error"] == "the videos are being read: 3 of 7"
    assert waiting.get("/media/0")[0] == 503
    desk.error = "no memory"
    found = json.loads(waiting.get("/api/status")[2])
    assert (found["state"], found["error"]) == ("error", "no memory")
    assert waiting.post("/api/search", {"query": "red"}) == (503, {"error": "no memory"})


def test_a_bug_is_a_500_without_its_traceback(waiting, desk, capsys):
    desk.answers = object()  # pyright: ignore[reportAttributeAccessIssue]
    status, found = waiting.post("/api/search", {"query": "red"})
    assert status == 500 and found == {"error": "the server failed to answer; its log says why"}
    assert "AttributeError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/9.9\r\n\r\n", b"505"),
        (b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"501"),
        (b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n\r\n", b"403"),
        (b"GET http://[::1 HTTP/1.1\r\n\r\n", b"400"),
        (b"GET http://[::1/ HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
        (b"POST http://[::1 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", b"400"),
        (
            b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
            b"Content-Length: 40\r\n\r\n{}",
            b"400",
        ),
        (b"POST /api/search HTTP/1.1\r\nHost: localhost\r\n\r\n", b"411"),
        (
            b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"0\r\n\r\n",
            b"411",
        ),
        (
            b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
            b"411",
        ),
        (
            b"POST /api/search HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: 99999999999999\r\n\r\n",
            b"413",
        ),
    ],
)
def test_broken_requests_end_the_connection(client, request_, code, capsys):
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        connection.sendall(request_)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.split(b" ")[1] == code
    json.loads(answer.split(b"\r\n\r\n", 1)[1])
    assert client.get("/api/status")[0] == 200
    assert not capsys.readouterr().err


def test_a_client_that_leaves_does_not_matter(client, capsys):
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            connection.sendall(b"GET /media/0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert client.get("/api/status")[0] == 200
    assert not capsys.readouterr().err


def test_a_connection_serves_several_requests(client):
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
    for query in ("red", "", "blue"):
        body = json.dumps({"query": query})
        connection.request("POST", "/api/search", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == (200 if query else 400)
        answer.read()
    connection.close()


def test_many_clients_at_once(client, answers):
    compiled, wrong = answers.encoder.compiled, []

    def ask(colour: str, file: str) -> None:
        for _ in range(5):
            status, found = client.post("/api/search", {"query": colour})
            if status != 200 or found["results"][0]["file"] != file:
                wrong.append((colour, status, found))

    pairs = [("red", "a.mp4"), ("green", "b.mp4"), ("blue", "deep/c <b>&.mp4")] * 4
    threads = [threading.Thread(target=ask, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and answers.encoder.compiled == compiled
