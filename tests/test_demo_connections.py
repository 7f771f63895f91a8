"""Connections of the demo's server on which nothing is asked, or only slowly, or no answer is read."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from lpkernel.demo import connections, serve

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"
REQUEST = HEAD + b"\r\n"
Place = tuple[str, int]


LARGE = 2**25  # bytes, more than the system keeps for a connection


async def answer(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/large":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % LARGE)]})
        await send({"type": "http.response.body", "body": bytes(LARGE)})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(connections, "PATIENCE", 0.5)
    monkeypatch.setattr(connections, "OPEN", 5)
    monkeypatch.setattr(connections, "SLOW", 1)
    made, bound = serve.server(answer, tmp_path), serve.listen("127.0.0.1", 0)
    thread = Thread(target=made.run, kwargs={"sockets": [bound]})
    thread.start()
    yield bound.getsockname()
    made.should_exit = True
    thread.join()


def answered(connection: socket.socket) -> bool:
    """Whether a request gets its answer."""
    connection.sendall(REQUEST)
    got = b""
    while not got.endswith(b"ok") and (part := connection.recv(1000)):
        got += part
    return got.startswith(b"HTTP/1.1 200 ") and got.endswith(b"ok")


def ended(connection: socket.socket) -> bool:
    """Whether the server closes a connection without a word, within 10 seconds."""
    with suppress(ConnectionError):
        return connection.recv(100) == b""
    return True


@pytest.mark.parametrize("requests", [0, 1])
@pytest.mark.parametrize("sent", [b"", HEAD[:3], HEAD], ids=["nothing", "a word", "a line"])
def test_a_head_that_never_ends_is_given_up(place: Place, requests: int, sent: bytes) -> None:
    with socket.create_connection(place, 10) as connection:
        for _ in range(requests):
            assert answered(connection)
        connection.sendall(sent)
        assert ended(connection)


def test_a_head_that_drips_is_given_up(place: Place) -> None:
    with socket.create_connection(place, 10) as connection, suppress(ConnectionError):
        begun = time.monotonic()
        while time.monotonic() - begun < 10:
            connection.sendall(b"G")
            time.sleep(0.05)
        pytest.fail("the connection is still open")


def test_a_connection_may_ask_again_and_again(place: Place) -> None:
    with socket.create_connection(place, 10) as connection:
        for _ in range(4):
            assert answered(connection)
            time.sleep(0.3)


def test_an_address_has_so_many_connections(place: Place) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(place, 10, ("127.0.0.3", 0))) for _ in range(5)]
        assert answered(held[-1])
        assert ended(stack.enter_context(socket.create_connection(place, 10, ("127.0.0.3", 0))))
        assert answered(stack.enter_context(socket.create_connection(place, 10, ("127.0.0.4", 0))))


def read(connection: socket.socket, pause: float) -> int:
    """How many bytes come, read piece by piece with a pause after each, until the server ends the connection."""
    got = 0
    with suppress(ConnectionError):
        while part := connection.recv(2**20):
            got += len(part)
            time.sleep(pause)
    return got


@pytest.mark.parametrize("more", [b"", b"Connection: close\r\n"], ids=["kept open", "closed"])
@pytest.mark.parametrize("following", [0, 3])
def test_an_answer_that_is_not_read_is_dropped(place: Place, more: bytes, following: int) -> None:
    request = HEAD.replace(b"/ ", b"/large ") + more + b"\r\n"
    with socket.create_connection(place, 10) as connection:
        connection.sendall(request * (1 + following))
        time.sleep(3)
        assert read(connection, 0) < LARGE


def test_an_answer_that_is_read_slowly_arrives(place: Place) -> None:
    with socket.create_connection(place, 10) as connection:
        connection.sendall(HEAD.replace(b"/ ", b"/large ") + b"\r\n")
        assert read(connection, 0.1) > LARGE
