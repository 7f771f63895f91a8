"""The demo's server under attack, as a user runs it: hostile requests, a crowd, other sites, and signals."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import fakes
import numpy as np
import pytest
from hostile import page, slow
from PIL import Image

import lpkernel as lp
from lpkernel.cli import main
from lpkernel.demo import guard
from lpkernel.errors import InputError

pytest.importorskip("gradio")

SECRET = "sesame-7f3a9c"  # content of the marker file
SECONDS = 60  # a server that does not answer by then fails


@dataclass
class Server:
    """A running demo. asked: the requests that another server on this machine received meanwhile."""

    process: subprocess.Popen[str]
    host: str
    port: int
    temporary: Path
    marker: Path
    said: Path
    other: str
    asked: list[str]

    def fill(self, raw: bytes) -> bytes:
        """The bytes of a case, with this server's names filled in."""
        names = {
            b"@HOST@": f"{self.host}:{self.port}",
            b"@MARKER@": str(self.marker),
            b"@OTHER@": self.other,
            b"@TEMPORARY@": str(self.temporary),
        }
        head, gap, body = raw.partition(b"\r\n\r\n")
        filled = []
        for part in (head, body):
            for mark, name in names.items():
                part = part.replace(mark, name.encode())
            filled.append(part)
        head = filled[0].replace(b"Content-Length: %d\r" % len(body), b"Content-Length: %d\r" % len(filled[1]))
        head = re.sub(rb"Content-Length: %d$" % len(body), b"Content-Length: %d" % len(filled[1]), head)
        return head + gap + filled[1]

    def send(self, raw: bytes, broken: bool = False) -> bytes:
        """All that the server answers to some bytes until it closes the connection."""
        with socket.create_connection((self.host, self.port), SECONDS) as connection:
            got = b""
            with suppress(ConnectionError):  # refused before all of it was read
                connection.sendall(self.fill(raw))
                if broken:
                    connection.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                while part := connection.recv(2**16):
                    got += part
        return got

    def ask(
        self, method: str, path: str, body: Any = None, source: str = "127.0.0.1", **headers: str
    ) -> tuple[int, str]:
        """Status and text of the answer to an honest request."""
        connection = http.client.HTTPConnection(self.host, self.port, SECONDS, (source, 0))
        if isinstance(body, list | dict):
            body, headers["Content-Type"] = json.dumps(body), "application/json"
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        words = answer.read().decode()
        connection.close()
        return answer.status, words

    def post(self, function: int, data: list[Any], session: str, source: str = "127.0.0.1") -> int:
        """Post a job; the status of the answer."""
        body = {"data": data, "fn_index": function, "session_hash": session, "trigger_id": None}
        return self.ask("POST", "/gradio_api/queue/join", body, source)[0]

    def results(self, session: str, source: str = "127.0.0.1") -> str:
        """All messages of a session's jobs."""
        status, words = self.ask("GET", f"/gradio_api/queue/data?session_hash={session}", source=source)
        assert status == 200, words
        return words

    def check(self, words: bytes | str) -> None:
        """An answer must reveal nothing about the machine."""
        text = words.decode("utf-8", "replace") if isinstance(words, bytes) else words
        for secret in (SECRET, str(self.temporary), str(Path.home()) + "/", "Traceback", 'File "', os.getcwd()):
            assert secret not in text


class _Counting(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_error(404)

    do_HEAD = do_POST = do_PUT = do_CONNECT = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(folder: Path, *options: str, autoencoder: str = f"{fakes.__file__}:FakeVQ") -> Iterator[Server]:
    """A demo of a tiny bank, with another server beside it."""
    images = np.random.default_rng(3).integers(0, 256, (20, 64, 64, 3), np.uint8)
    lp.Bank.build(images, fakes.FakeVQ(), channels=3).save(folder / "small.lpbank")
    temporary, marker, said = folder / "temporary", folder / "marker.txt", folder / "said"
    temporary.mkdir()
    marker.write_text(SECRET)
    other = HTTPServer(("127.0.0.1", 0), _Counting)
    asked = other.asked = []  # type: ignore[attr-defined]
    Thread(target=other.serve_forever, daemon=True).start()
    command = [
        sys.executable,
        "-m",
        "lpkernel",
        "demo",
        "--port",
        "0",
        "--device",
        "cpu",
        "--backend",
        "numpy",
        *options,
    ]
    command += ["--bank", str(folder / "small.lpbank"), "--autoencoder", autoencoder]
    kept = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(sys.path)}
    with (
        said.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=kept) as process,
    ):
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            found = re.search(r"http://([^/]+):(\d+)/", first)
            assert found, f"the server said {first!r} and {said.read_text()!r}"
            place = f"127.0.0.1:{other.server_port}"
            yield Server(process, found[1], int(found[2]), temporary, marker, said, place, asked)
        finally:
            process.kill()
            other.shutdown()
            other.server_close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("demo")) as running:
        yield running


@pytest.mark.parametrize("name", page.CASES)
def test_a_hostile_request_gets_nothing(server: Server, name: str) -> None:
    case = page.CASES[name]
    answer = server.send(case.raw, case.broken)
    server.check(answer)
    if case.broken and not answer:
        return
    assert answer.startswith(b"HTTP/1.1 ")
    status = int(answer[9:12])
    if not case.taken:
        assert 400 <= status < 500, answer[:300]
        assert len(answer) < 2000
    elif b"/queue/join" not in case.raw:
        assert status in (200, 422), answer[:300]
    else:
        assert status == 200, answer[:300]
        session = json.loads(case.raw.partition(b"\r\n\r\n")[2])["session_hash"]
        words = server.results(session)
        server.check(words)
        assert '"process_completed"' in words
        assert '"success":true' in words.partition('"process_completed"')[2]


def test_after_all_that_the_server_is_as_before(server: Server) -> None:
    assert server.asked == []
    assert "Traceback" not in server.said.read_text()
    assert [path for path in server.temporary.rglob("*") if path.is_file()] == []
    status, words = server.ask("GET", "/")
    assert (status, "lpk-painter" in words) == (200, True)
    server.check(words)
    assert server.post(0, page.HONEST[0], "visitor1") == 200
    assert server.results("visitor1").count("data:image/png;base64,") >= 2


def test_the_cases_are_of_the_page(server: Server) -> None:
    """Each function has the inputs that the cases put files into, and no case got lost."""
    words = server.ask("GET", "/")[1]
    config = json.JSONDecoder().raw_decode(words.partition("window.gradio_config = ")[2])[0]
    assert {one["id"]: len(one["inputs"]) for one in config["dependencies"]} == {
        function: len(data) for function, data in page.HONEST.items()
    }
    assert len(page.CASES) >= 450


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "faces.example.org"])
def test_the_page_has_its_own_names(server: Server, name: str) -> None:
    allowed = guard.hosts("127.0.0.1", server.port, ["faces.example.org"])
    assert f"{name.lower()}:{server.port}" in allowed
    if name != "faces.example.org":
        host = f"{name}:{server.port}"
        assert server.ask("GET", "/theme.css", Host=host, Origin=f"http://{host}")[0] == 200


def test_hosts_are_names() -> None:
    assert guard.hosts("faces", 80, ["a.example", "B.example:81", "[fe80::1]"]) == {
        *(
            f"{name}{port}"
            for name in ("localhost", "127.0.0.1", "[::1]", "faces", "a.example", "[fe80::1]")
            for port in ("", ":80")
        ),
        "b.example:81",
    }
    assert "0.0.0.0:7860" in guard.hosts("0.0.0.0", 7860)


@pytest.mark.parametrize("name", ["", "*", "http://a", "a/b", "a b", "a:b", "a:123456", "é", "a..b", ".", "::1", "a\n"])
def test_an_allowed_host_that_is_no_name_gives_one_line(capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(InputError, match=r"^--allow-host: got [^\n]*, expected a name [^\n]*$"):
        guard.hosts("127.0.0.1", 7860, [name])
    assert main(["demo", "--port", "0", f"--allow-host={name}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_everybody_s_server_has_the_names_that_are_given(tmp_path: Path) -> None:
    with serving(tmp_path, "--host", "0.0.0.0", "--allow-host", "faces.example.org") as server:
        for name, status in (
            (f"127.0.0.1:{server.port}", 200),
            (f"localhost:{server.port}", 200),
            ("faces.example.org", 200),
            (f"faces.example.org:{server.port}", 200),
            (f"127.0.0.2:{server.port}", 403),
            (f"evil.example:{server.port}", 403),
            (f"10.9.8.7:{server.port}", 403),
        ):
            assert server.ask("GET", "/theme.css", Host=name)[0] == status, name
        server.host = "127.0.0.2"  # this machine too, at another of its addresses
        assert server.ask("GET", "/theme.css", Host=f"127.0.0.2:{server.port}")[0] == 200
        assert server.ask("GET", "/theme.css", Host=f"evil.example:{server.port}")[0] == 403


@pytest.mark.parametrize(
    ("connected", "host", "ours"),
    [
        ("192.168.1.5", "192.168.1.5:7860", True),
        ("192.168.1.5", "192.168.1.6:7860", False),
        ("192.168.1.5", "192.168.1.5:7861", False),
        ("192.168.1.5", "a@192.168.1.5:7860", False),
        ("192.168.1.5", "192.168.1.5:7860/a", False),
        ("::ffff:192.168.1.5", "192.168.1.5:7860", True),
        ("2001:db8::5", "[2001:db8::5]:7860", True),
        ("2001:db8::5", "[2001:db8:0:0::5]:7860", True),
        ("2001:db8::5", "[2001:db8::6]:7860", False),
        ("fe80::1%eth0", "[fe80::1]:7860", True),
        ("192.168.1.5", "faces:7860", False),
    ],
)
def test_the_address_that_is_connected_to_is_a_name(connected: str, host: str, ours: bool) -> None:
    one = guard.Guard(None, None, guard.hosts("0.0.0.0", 7860), None, None, Path(), 0)  # type: ignore[arg-type]
    assert one._ours(host, {"server": (connected, 7860)}) is ours


def test_a_body_that_never_ends_is_given_up() -> None:
    async def receive() -> guard.Message:
        await asyncio.sleep(600)
        raise AssertionError

    async def read() -> None:
        async for _ in guard.parts({"headers": []}, receive, 10, 0.01):
            pass

    with pytest.raises(guard.Refused, match="took more than"):
        asyncio.run(read())


def test_a_visitor_who_reads_no_answer_stops_nobody_else() -> None:
    """The answer to a job, or its refusal, waits for its client alone."""

    class Queue:
        inputs, triggers = {0: []}, frozenset[int]()  # type: ignore[var-annotated]

        def admit(self, session: str, address: str) -> None:
            if session == "refused":
                raise guard.Refused(503, "busy")

        def known(self, session: str) -> bool:
            return True

        def drop(self, recent: set[str], read: set[str]) -> None:
            pass

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await guard._answer(send, 200, b"{}", b"application/json")

    one = guard.Guard(inner, Queue(), frozenset({"a"}), None, None, Path(), 1000)  # type: ignore[arg-type]
    got: list[int] = []

    async def post(session: str, reads: bool) -> None:
        body = json.dumps({"data": [], "fn_index": 0, "session_hash": session, "trigger_id": None}).encode()
        scope: Any = {"type": "http", "method": "POST", "path": "/gradio_api/queue/join", "query_string": b""}
        scope["headers"] = [(b"host", b"a"), (b"content-type", b"application/json")]

        async def receive() -> guard.Message:
            return {"type": "http.request", "body": body}

        async def send(message: guard.Message) -> None:
            if not reads:
                await asyncio.Event().wait()
            if "status" in message:
                got.append(message["status"])

        await one(scope, receive, send)

    async def visit() -> None:
        unread = [asyncio.create_task(post(session, False)) for session in ("accepted", "refused")]
        for session in ("honest1", "refused"):
            await asyncio.wait_for(post(session, True), SECONDS)
        for task in unread:
            task.cancel()

    asyncio.run(visit())
    assert got == [200, 503]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("/root/a/faces.lpbank: damaged bank", "faces.lpbank: damaged bank"),
        ("bank '/srv/faces.lpbank' is gone", "bank 'faces.lpbank' is gone"),
        ("~/a/b.png: no such file", "b.png: no such file"),
        ("patch / 3, a/b and http://a/b", "patch / 3, a/b and http://a/b"),
    ],
)
def test_messages_lose_their_folders(said: str, shown: str) -> None:
    assert guard.without_folders(said) == shown


@pytest.fixture
def queued() -> tuple[Any, Any]:
    """The jobs of a page, and Gradio's queue of them."""
    from lpkernel.demo.engine import Engine
    from lpkernel.demo.page import Jobs, build

    images = np.zeros((3, 64, 64, 3), np.uint8)
    made = build(Engine(lp.Bank.build(images, fakes.FakeVQ(), channels=3), fakes.FakeVQ()))
    return Jobs(made), made._queue


def test_results_that_nobody_fetches_are_dropped(queued: tuple[Any, Any]) -> None:
    """They are dropped at the next job that anybody posts, except those of open streams and of the last minute; and
    where all results have been fetched, nothing is kept."""
    jobs, queue = queued
    for session, waiting in (("recent", True), ("read", False), ("gone", True), ("fetched", False)):
        queue.pending_messages_per_session[session] = asyncio.Queue()
        queue.pending_event_ids_session[session] = {"job"} if waiting else set()
    jobs.drop({"recent", "fetched"}, {"read"})
    assert [jobs.known(one) for one in ("recent", "read", "gone", "fetched")] == [True, True, False, False]
    assert list(queue.pending_event_ids_session) == ["recent", "read"]


def test_sessions_are_bounded(queued: tuple[Any, Any]) -> None:
    """Gradio's queue would drop one that has a job when there are many, and stop."""
    from lpkernel.demo.page import FETCHING, FETCHING_OF_ADDRESS

    jobs, queue = queued

    def post(count: int, address: str) -> None:
        jobs.admit(f"s{count}", address)
        queue.pending_messages_per_session[f"s{count}"] = asyncio.Queue()
        queue.pending_event_ids_session[f"s{count}"] = {"job"}

    for count in range(FETCHING):
        post(count, f"address {count // FETCHING_OF_ADDRESS}")
        if count == FETCHING_OF_ADDRESS:
            with pytest.raises(guard.Refused, match="fetched"):
                post(FETCHING, "address 0")
    with pytest.raises(guard.Refused, match="fetched"):
        post(FETCHING, "another")
    post(0, "address 0")  # one that is known
    assert queue.pending_messages_per_session.max_size > FETCHING
    jobs.drop({f"s{count}" for count in range(1, FETCHING)}, set())
    post(FETCHING, "another")


@pytest.mark.parametrize("cpp", [True, False])
def test_visitors_choose_among_fast_backends(monkeypatch: pytest.MonkeyPatch, cpp: bool) -> None:
    """A job on a slow one could keep all others waiting for half an hour."""
    from lpkernel.backends import registry
    from lpkernel.demo.engine import Engine
    from lpkernel.demo.page import backends

    monkeypatch.setattr(registry.BACKENDS["cpp"], "unavailable", lambda device: [] if cpp else ["it was not built"])
    bank = lp.Bank.build(np.zeros((3, 64, 64, 3), np.uint8), fakes.FakeVQ(), channels=3)
    offered = backends(Engine(bank, fakes.FakeVQ()))
    assert offered[0] == "auto" and "numpy" not in offered
    assert ("torch" in offered) is not cpp
    assert "numpy" in backends(Engine(bank, fakes.FakeVQ(), backend="numpy"))


def drawn(count: int) -> list[Any]:
    """A job of `count` images."""
    return [count, *page.HONEST[0][1:]]


def test_a_crowd_does_not_lock_others_out(tmp_path: Path) -> None:
    with serving(tmp_path, autoencoder=f"{slow.__file__}:SlowVQ") as server:
        # one visitor with 300 jobs; then one with 300 names, recognised by the address
        for sessions, source in ((1, "127.0.0.1"), (300, "127.0.0.2")):
            taken = [server.post(0, drawn(4), f"crowd{sessions}x{count % sessions}") for count in range(300)]
            assert set(taken) == {200, 503}
            assert server.post(0, drawn(2), f"visitor{sessions}", source) == 200
            words = server.results(f"visitor{sessions}", source)
            assert words.count("data:image/png;base64,") >= 2
            assert '"success":true' in words.partition('"process_completed"')[2]
        assert server.said.read_text() == ""


def test_results_that_nobody_fetches_are_bounded(server: Server) -> None:
    """After some jobs, a session that never reads its results may post no more."""
    found = {server.post(5, [None, None], "unread1") for _ in range(40) if server.ask("GET", "/theme.css")}
    assert found == {200, 503}
    assert server.results("unread1")
    assert server.post(5, [None, None], "unread1") == 200


def test_an_address_has_so_many_requests(server: Server) -> None:
    raw = server.fill(page.ask("GET", "/gradio_api/heartbeat/crowded1"))
    streams = []
    try:
        for _ in range(guard.OPEN):
            streams.append(socket.create_connection((server.host, server.port), SECONDS, ("127.0.0.3", 0)))
            streams[-1].sendall(raw)
            assert streams[-1].recv(100).startswith(b"HTTP/1.1 200")
        assert server.ask("GET", "/theme.css", source="127.0.0.3")[0] == 429
        assert server.ask("GET", "/theme.css", source="127.0.0.4")[0] == 200
    finally:
        for one in streams:
            one.close()


def test_a_picture_has_a_limit(server: Server) -> None:
    head = page.ask("POST", "/lpkernel/picture", kind=page.OCTETS).replace(
        b"Content-Length: 0", b"Transfer-Encoding: chunked"
    )
    answer = server.send(head + (b"400000\r\n" + bytes(2**22) + b"\r\n") * 17 + b"0\r\n\r\n")
    assert b" 413 " in answer
    assert b"more than 64 MB" in answer
    kind = {"Content-Type": page.OCTETS}
    assert server.ask("POST", "/lpkernel/picture", page.SQUARE, **kind)[1].startswith("data:image/png;base64,")
    answer = server.send(page.whole(page.RESULT, page.SQUARE))
    assert answer.startswith(b"HTTP/1.1 200")
    with Image.open(io.BytesIO(answer.partition(b"\r\n\r\n")[2])) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (40, 40))
    assert [path for path in server.temporary.rglob("*") if path.is_file()] == []


def test_an_address_has_one_whole_picture_to_read(tmp_path: Path) -> None:
    """The next one is not made before it is read."""
    large = bytes(2**20)
    one = guard.Guard(None, None, frozenset({"a"}), None, lambda *_: large, tmp_path, 9)  # type: ignore[arg-type]
    got: list[tuple[str, int]] = []

    async def post(address: str, read: asyncio.Event) -> None:
        scope: Any = {"type": "http", "method": "POST", "path": "/lpkernel/whole", "client": (address, 1)}
        scope |= {"query_string": b"framing=auto&result=1"}
        scope["headers"] = [(b"host", b"a"), (b"content-type", page.OCTETS.encode())]

        async def receive() -> guard.Message:
            return {"type": "http.request", "body": b"ab"}

        async def send(message: guard.Message) -> None:
            if "status" in message:
                got.append((address, message["status"]))
            assert len(message.get("body", b"")) < len(large)  # so that the server can wait between the pieces
            await read.wait()

        await one(scope, receive, send)

    async def visit() -> None:
        later, at_once = asyncio.Event(), asyncio.Event()
        at_once.set()
        first = asyncio.create_task(post("one", later))
        while not got:
            await asyncio.sleep(0.01)
        await post("one", at_once)
        await post("two", at_once)
        later.set()
        await first
        await post("one", at_once)

    asyncio.run(visit())
    assert got == [("one", 200), ("one", 429), ("two", 200), ("one", 200)]


def _leave_alone(server: Server) -> None:
    pass


def _open_stream(server: Server) -> None:
    server.keep = socket.create_connection((server.host, server.port), SECONDS)  # type: ignore[attr-defined]
    server.keep.sendall(server.fill(page.ask("GET", "/gradio_api/heartbeat/open1")))  # type: ignore[attr-defined]
    assert server.keep.recv(100)  # type: ignore[attr-defined]


def _run_job(server: Server) -> None:
    """A job that would take ten minutes, and the stream that waits for it."""
    assert server.post(0, drawn(5), "endless1") == 200
    server.keep = socket.create_connection((server.host, server.port), SECONDS)  # type: ignore[attr-defined]
    stream = server.fill(page.ask("GET", "/gradio_api/queue/data?session_hash=endless1"))
    server.keep.sendall(stream)  # type: ignore[attr-defined]
    got = b""
    while b"decoding" not in got:
        got += server.keep.recv(2**16)  # type: ignore[attr-defined]


def _send_half(server: Server) -> None:
    """A picture of which half has been sent."""
    server.keep = socket.create_connection((server.host, server.port), SECONDS)  # type: ignore[attr-defined]
    raw = page.picture(bytes(2**20))
    server.keep.sendall(server.fill(raw)[: 2**19])  # type: ignore[attr-defined]
    while not [path for path in server.temporary.rglob("*") if path.is_file()]:
        pass


@pytest.mark.parametrize(
    ("busy", "number"),
    [
        (_leave_alone, signal.SIGTERM),
        (_open_stream, signal.SIGTERM),
        (_run_job, signal.SIGTERM),
        (_send_half, signal.SIGTERM),
        (_run_job, signal.SIGINT),
        (_leave_alone, signal.SIGHUP),
        (_send_half, signal.SIGHUP),
    ],
)
def test_a_signal_ends_it_whatever_it_does(
    tmp_path: Path, busy: Callable[[Server], None], number: signal.Signals
) -> None:
    with serving(tmp_path, autoencoder=f"{slow.__file__}:SlowVQ") as server:
        busy(server)
        server.process.send_signal(number)
        assert server.process.wait(2) == 128 + number  # the promised time, in seconds
        assert list(server.temporary.iterdir()) == []
        assert server.said.read_text() == ""
