"""The server of the page under clients that are many, slow, silent or too generous."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from internvideo_jax.search import connections
from internvideo_jax.search.server import LARGEST_REQUEST, Desk
from tests.search.test_server import Client, started

HALF = b"GET /api/status HTTP/1.1\r\nHost: localhost\r\nX: "
STATUS = HALF + b"y\r\n"


@pytest.fixture
def client() -> Iterator[Client]:
    with started(Desk()) as client:
        yield client


def connect(client: Client) -> socket.socket:
    return socket.create_connection(("127.0.0.1", client.port), timeout=20)


def read_all(connection: socket.socket) -> bytes:
    answer = b""
    while part := connection.recv(65536):
        answer += part
    return answer


def test_200_connections_at_once_are_all_answered(client):
    with ExitStack() as stack:
        both = [stack.enter_context(connect(client)) for _ in range(200)]
        for connection in both:
            connection.sendall(STATUS + b"Connection: close\r\n\r\n")
        answers = [read_all(connection) for connection in both]
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)


def test_half_requests_take_a_bounded_number_of_threads_and_make_room(client, monkeypatch):
    monkeypatch.setattr(connections, "PATIENCE", 0.1)
    before = threading.active_count()
    with ExitStack() as stack:
        halves = [stack.enter_context(connect(client)) for _ in range(500)]
        for connection in halves:
            connection.sendall(HALF)
        began, most = time.monotonic(), 0
        for _ in range(5):  # behind all of them
            assert client.get("/api/status")[0] == 200
            most = max(most, threading.active_count() - before)
        assert most <= connections.MOST_THREADS
        # Well below the time after which they would have been cut.
        assert time.monotonic() - began < connections.REQUEST_SECONDS


@pytest.mark.parametrize("place", ["line", "headers", "body", "between requests"])
def test_a_request_that_comes_byte_by_byte_is_cut(client, monkeypatch, place):
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.8)
    start = {
        "line": b"GET /",
        "headers": HALF,
        "body": b"POST /api/search HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n",
        "between requests": STATUS + b"\r\n",
    }[place]
    with connect(client) as connection:
        connection.sendall(start)
        if place == "between requests":
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        began = time.monotonic()
        connection.settimeout(0.1)
        ended = False
        while not ended and time.monotonic() - began < 15:
            try:
                if place != "between requests":
                    connection.sendall(b"a")
                ended = connection.recv(65536) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                ended = True
        assert ended and time.monotonic() - began > 0.3
    assert client.get("/api/status")[0] == 200


def test_each_request_of_a_connection_has_its_own_time(client, monkeypatch):
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 1.0)
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
    connection.connect()
    first = connection.sock
    for _ in range(4):
        time.sleep(0.4)
        connection.request("GET", "/api/status")
        answer = connection.getresponse()
        assert answer.status == 200 and answer.read()
        assert connection.sock is first
    connection.close()


@pytest.mark.parametrize("size", [LARGEST_REQUEST + 1, 5 * 10**6, 30 * 10**6])
def test_a_body_that_is_too_large_gets_its_answer_while_it_is_sent(client, size, capsys):
    head = (
        "POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {size}\r\n\r\n"
    )
    with connect(client) as connection:
        connection.sendall(head.encode())
        connection.sendall(bytes(size))  # all of it, before the answer is looked at
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert "larger than 65536 bytes" in json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]
    assert not capsys.readouterr().err


def test_a_body_without_an_end_is_not_read_for_ever(client, monkeypatch):
    monkeypatch.setattr(connections, "LINGER_BYTES", 2**20)
    head = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(client) as connection, pytest.raises(ConnectionError):
        connection.sendall(head)
        for _ in range(64):
            connection.sendall(b"10000\r\n" + bytes(2**16) + b"\r\n")
            time.sleep(0.01)


def test_a_body_of_a_request_that_takes_none_is_no_second_request(client):
    inner = b"GET /api/status HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connect(client) as connection:
        connection.sendall(STATUS + b"Content-Length: %d\r\n\r\n" % len(inner) + inner)
        assert read_all(connection).count(b"HTTP/1.1 ") == 1


def test_a_body_that_ends_early_is_a_400(client):
    with connect(client) as connection:
        connection.sendall(
            b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{}"
        )
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")


def test_more_than_can_be_served_is_told(client, monkeypatch):
    """Threads that are busy with answers make no room."""
    monkeypatch.setattr(connections, "PATIENCE", 0.02)
    monkeypatch.setattr(connections.BoundedServer, "_take_slot", lambda self: False)
    status, headers, body = client.get("/api/status")
    assert (status, headers["Retry-After"]) == (503, "2")
    assert json.loads(body) == {"error": "too many connections"}
