"""What stands between the network and Gradio: who may ask, for what, and in which form.

Gradio serves far more than the page needs, takes files by the names that a client gives, and fetches addresses. So
only the routes in `Guard` exist; a posted job is read here and rewritten from parts of the types that its controls
send, none of which can name a file; and no header or query reaches Gradio that it does not need.
"""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from lpkernel.alignment import FRAMINGS
from lpkernel.errors import InputError, LpkernelError, short

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PICTURE = 64 * 2**20  # bytes of a picture file
UPLOADS = 8  # picture files that may come in at once, one from each address
PIECE = 2**16  # bytes of an answer that are sent at once
OPEN = 64  # requests that an address may have open, event streams among them
PATIENCE = 60  # seconds for a posted body; a picture has five times as long
SETTLED = 60  # seconds after which results that are not fetched are dropped
LARGEST_NUMBER = 2**53  # in either direction: integers that a browser holds exactly
LONGEST = 1024  # characters of a path; with more, or with names of more than 255, systems fail in ways of their own
SESSION = "[a-z0-9]{4,32}"
FILES = re.compile(
    r"/|/theme\.css|/favicon\.ico|/manifest\.json|/(?:assets|static)(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,254})+"
)
HEARTBEAT = re.compile(f"/gradio_api/heartbeat/{SESSION}")
HEADERS = (b"host", b"accept", b"accept-encoding", b"if-none-match", b"if-modified-since", b"x-forwarded-proto")
NAME = re.compile(r"([a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")

Check = Callable[[object], bool]


class Refused(Exception):
    """A refusal instead of the page's answer: an HTTP status and one line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status, self.line = status, line


def without_folders(text: str) -> str:
    """A message with the folders of its files removed: visitors need not know where the server keeps them."""
    return re.sub(r"(?<![\w.~/])~?/(?:[^\s/'\"]+/)*(?=[^\s/'\"])", "", text)


def number(value: object) -> bool:
    """A finite number that a browser can hold, or an empty field."""
    return value is None or (
        isinstance(value, int | float) and type(value) is not bool and -LARGEST_NUMBER <= value <= LARGEST_NUMBER
    )


def text(longest: int | None) -> Check:
    """A text of at most so many characters; None leaves that to the limit on the whole body."""
    return lambda value: type(value) is str and (longest is None or len(value) <= longest)


def one_of(choices: Iterable[object]) -> Check:
    """A text among these."""
    known = frozenset(choices)
    return lambda value: type(value) is str and value in known


def some_of(choices: Iterable[object]) -> Check:
    """A list of texts among these, each at most once."""
    known = frozenset(choices)
    return lambda value: type(value) is list and all(map(one_of(known), value)) and len(set(value)) == len(value)


def truth(value: object) -> bool:
    """A box that is ticked or not."""
    return type(value) is bool


def nothing(value: object) -> bool:
    """What stays on the server; the browser sends null in its place."""
    return value is None


class Queue(Protocol):
    """The jobs of a page (`page.Jobs`)."""

    inputs: dict[int, list[Check]]
    triggers: frozenset[int]

    def admit(self, session: str, address: str) -> None:
        """Raise Refused if the session, the address or the whole page already has as many jobs, or results to fetch, as
        it may."""

    def known(self, session: str) -> bool:
        """Whether the session has posted a job whose results have not been fetched yet."""

    def drop(self, recent: set[str], read: set[str]) -> None:
        """Forget all sessions that have no job, except those in `read`, and those in `recent` with results unread."""


def host_name(host: str) -> str:
    """A host as it is written in an address: IPv6 in brackets, lower case."""
    return f"[{host.lower()}]" if ":" in host and not host.startswith("[") else host.lower()


def hosts(host: str, port: int, others: Iterable[str] = ()) -> frozenset[str]:
    """The `Host` headers that are answered: loopback names and `host` with the port; of `others`, a name with the port
    or without one, or a name and port as given. Raises InputError for anything that is not a name."""
    found = set()
    for name in map(host_name, (*LOOPBACK, host)):
        found |= {f"{name}:{port}"} | ({name} if port == 80 else set())
    for other in others:
        if NAME.fullmatch(other.lower()) is None:
            raise InputError(
                f"--allow-host: got {short(other)!r}, expected a name as browsers show it, such as faces.example.org "
                "or faces.example.org:8000"
            )
        found |= {other.lower()} if re.search(r":\d+$", other) else {other.lower(), f"{other.lower()}:{port}"}
    return frozenset(found)


def parsed(body: bytes, queue: Queue) -> dict[str, Any]:
    """A job that a client posted, as it goes to Gradio. Raises Refused unless it has the form that the page sends."""
    wrong = Refused(400, "this is not a job of the page; load the page again")
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise wrong from error
    if type(given) is not dict or not given.keys() <= {"data", "fn_index", "trigger_id", "session_hash", "event_data"}:
        raise wrong
    index, session, data, trigger = (given.get(key) for key in ("fn_index", "session_hash", "data", "trigger_id"))
    if type(index) is not int or index not in queue.inputs or type(data) is not list:
        raise wrong
    if type(session) is not str or re.fullmatch(SESSION, session) is None:
        raise wrong
    if trigger is not None and (type(trigger) is not int or trigger not in queue.triggers):
        raise wrong
    checks = queue.inputs[index]
    if len(data) != len(checks) or not all(check(value) for check, value in zip(checks, data, strict=True)):
        raise wrong
    # event_data, what happened in the browser, is left out: no handler asks for it.
    return {"data": data, "fn_index": index, "session_hash": session, "trigger_id": trigger}


async def parts(scope: Message, receive: Receive, limit: int, seconds: float) -> AsyncIterator[bytes]:
    """A posted body, piece by piece. Raises Refused when it is longer than `limit` or takes too long."""
    too_long = Refused(413, f"more than {limit // 2**20} MB; send less")
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if not declared.isdigit() or int(declared[:20]) > limit:
        raise too_long
    got, more = 0, True
    try:
        async with asyncio.timeout(seconds):
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    raise Refused(400, "the request was broken off")
                part, more = message.get("body", b""), message.get("more_body", False)
                got += len(part)
                if got > limit:
                    raise too_long
                yield part
    except TimeoutError as error:
        raise Refused(408, f"it took more than {seconds} seconds; send it again") from error


@dataclass(eq=False)
class Guard:
    """The application around Gradio's. allowed: from `hosts`. body: bytes that a job may have.

    frame: turns a picture file into a PNG in a data URL, framed as the bank's images in one of `FRAMINGS`, and a line
    that says how. put_back: puts a result, as `page.gallery` gives it, in its place in the file framed so, as a PNG.
    folder: where a file lies meanwhile.
    """

    inner: Application
    queue: Queue
    allowed: frozenset[str]
    frame: Callable[[Path, str], str]
    put_back: Callable[[bytes, Path, str], bytes]
    folder: Path
    body: int
    _open: Counter[str] = field(default_factory=Counter)
    _sending: set[str] = field(default_factory=set)
    _streams: Counter[str] = field(default_factory=Counter)
    _posted: dict[str, float] = field(default_factory=dict)
    _joining: asyncio.Lock = field(default_factory=asyncio.Lock)
    _framing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.inner(scope, receive, send)
        if scope["type"] != "http":
            raise ValueError("the page has no other protocols")
        address = str((scope.get("client") or ["unknown"])[0])
        self._open[address] += 1
        try:
            self._check_host(scope)
            if self._open[address] > OPEN:
                raise Refused(429, f"this address has {OPEN} requests open; close some")
            await self._route(scope, receive, send, address)
        except Refused as refused:
            await _say(send, refused.status, refused.line)
        finally:
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]

    def _check_host(self, scope: Message) -> None:
        """Refuse requests from pages of other sites: under another name for this machine, or across origins."""
        given = [value.decode("latin-1").lower() for key, value in scope["headers"] if key == b"host"]
        if len(given) != 1 or not self._ours(given[0], scope):
            name = short(given[0]) if given and NAME.fullmatch(given[0]) else "that name"
            raise Refused(
                403, f"the page is not served as {name}; --allow-host NAME of lpkernel demo allows more names"
            )
        for key, value in scope["headers"]:
            if key == b"origin":
                scheme, _, origin = value.decode("latin-1").lower().partition("://")
                if scheme not in ("http", "https") or not self._ours(origin, scope):
                    raise Refused(403, "pages of other sites may not use this one")

    def _ours(self, host: str, scope: Message) -> bool:
        """Whether a name is allowed, or is the very address that was connected to, which no other site can assume."""
        if host in self.allowed or NAME.fullmatch(host) is None:
            return host in self.allowed
        try:
            ours, port = ip_address(scope["server"][0].partition("%")[0]), scope["server"][1]
            named = urlsplit(f"//{host}")
            mapped = ours.ipv4_mapped if isinstance(ours, IPv6Address) else None
            return ip_address(named.hostname or "") in (ours, mapped) and (named.port or 80) == port
        except (KeyError, TypeError, ValueError):
            return False

    async def _route(self, scope: Message, receive: Receive, send: Send, address: str) -> None:
        path, method = scope["path"], scope["method"]
        if method in ("GET", "HEAD") and len(path) <= LONGEST and FILES.fullmatch(path):
            return await self._forward(scope, receive, send)
        if method == "GET" and HEARTBEAT.fullmatch(path):
            return await self._forward(scope, receive, send)
        if method == "GET" and path == "/gradio_api/queue/data":
            return await self._results(scope, receive, send)
        if method == "POST" and path == "/gradio_api/queue/join":
            return await self._join(scope, receive, send, address)
        if method == "POST" and path == "/lpkernel/picture":
            return await self._picture(scope, receive, send, address)
        if method == "POST" and path == "/lpkernel/whole":
            return await self._whole(scope, receive, send, address)
        raise Refused(404, "the page has no such part")

    async def _forward(
        self,
        scope: Message,
        receive: Receive,
        send: Send,
        query: bytes = b"",
        more: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        """Ask Gradio, with what it needs to know of the request."""
        kept = [(key, value) for key, value in scope["headers"] if key in HEADERS]
        path = scope["path"]
        asked = {"raw_path": path.encode("ascii"), "query_string": query, "headers": [*kept, *more]}
        await self.inner({**scope, **asked}, receive, send)

    async def _results(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            asked = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=8)
        except ValueError as error:
            raise Refused(400, "more fields than the page sends; load the page again") from error
        session = asked.get("session_hash", [""])[0]
        if re.fullmatch(SESSION, session) is None or not self.queue.known(session):
            raise Refused(404, "the session has no job")
        self._streams[session] += 1
        try:
            await self._forward(scope, receive, send, f"session_hash={session}".encode("ascii"))
        finally:
            self._streams[session] -= 1
            if not self._streams[session]:
                del self._streams[session]

    async def _join(self, scope: Message, receive: Receive, send: Send, address: str) -> None:
        _expect(scope, b"application/json")
        body = b"".join([part async for part in parts(scope, receive, self.body, PATIENCE)])
        job = parsed(body, self.queue)
        try:
            body = json.dumps(job, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:  # half of a surrogate pair
            raise Refused(400, "this is not a job of the page; load the page again") from error
        read = False

        async def replay() -> Message:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": body, "more_body": False}

        more = ((b"content-type", b"application/json"), (b"content-length", str(len(body)).encode("ascii")))
        # The answer is sent after the lock is released: a client that reads nothing would keep all others waiting.
        answer: list[Message] = []

        async def collect(message: Message) -> None:
            answer.append(message)

        async with self._joining:  # otherwise many at once would each find the same free place
            now = asyncio.get_running_loop().time()
            self._posted = {one: when for one, when in self._posted.items() if now - when < SETTLED}
            self.queue.drop(set(self._posted), set(self._streams))
            try:
                self.queue.admit(job["session_hash"], address)
            except Refused as busy:  # in the form that Gradio's browser code reads and shows to the visitor
                await _say(collect, busy.status, json.dumps({"detail": busy.line}), b"application/json")
            else:
                self._posted[job["session_hash"]] = now
                await self._forward(scope, replay, collect, more=more)
        for message in answer:
            await send(message)

    async def _picture(self, scope: Message, receive: Receive, send: Send, address: str) -> None:
        framing = scope["query_string"].decode("latin-1").removeprefix("framing=") or FRAMINGS[0]
        with self._turn(address):
            async with self._received(scope, receive, framing) as (_, path):
                url = await asyncio.to_thread(self.frame, path, framing)
        await _say(send, 200, url)

    async def _whole(self, scope: Message, receive: Receive, send: Send, address: str) -> None:
        asked = re.fullmatch(rb"framing=([a-z-]{1,16})&result=(\d{1,9})", scope["query_string"])
        if asked is None or int(asked[2]) > self.body:
            raise Refused(400, "this is not a result of the page; load the page again")
        framing = asked[1].decode("ascii")
        with self._turn(address):  # until it is read: it may be large
            async with self._received(scope, receive, framing, int(asked[2])) as (result, path):
                picture = await asyncio.to_thread(self.put_back, result, path, framing)
            await _answer(send, 200, picture, b"image/png")

    @contextmanager
    def _turn(self, address: str) -> Iterator[None]:
        """One of the places for picture files, of which an address may take one. Raises Refused when there is none."""
        if address in self._sending or len(self._sending) >= UPLOADS:
            raise Refused(429, "other pictures are being received; try again")
        self._sending.add(address)
        try:
            yield
        finally:
            self._sending.discard(address)

    @asynccontextmanager
    async def _received(
        self, scope: Message, receive: Receive, framing: str, first: int = 0
    ) -> AsyncIterator[tuple[bytes, Path]]:
        """The `first` bytes of a posted body, and the picture file after them, one file at a time: a large one takes
        much memory. Raises Refused, also when the picture is at fault."""
        _expect(scope, b"application/octet-stream")
        if framing not in FRAMINGS:
            raise Refused(400, f"framing: expected {', '.join(FRAMINGS[:-1])} or {FRAMINGS[-1]}")
        try:
            with tempfile.NamedTemporaryFile(dir=self.folder) as file:
                begin = bytearray()
                async for part in parts(scope, receive, first + PICTURE, 5 * PATIENCE):
                    cut = first - len(begin)
                    begin += part[:cut]
                    file.write(part[cut:])
                file.flush()
                async with self._framing:
                    yield bytes(begin), Path(file.name)
        except LpkernelError as error:
            raise Refused(422, without_folders(" ".join(str(error).split()))) from error


def _expect(scope: Message, kind: bytes) -> None:
    """Refuse a body of another type: browsers ask before they send these types on behalf of another site."""
    if dict(scope["headers"]).get(b"content-type", b"").partition(b";")[0].strip() != kind:
        raise Refused(415, f"the body is not {kind.decode()}")


async def _say(send: Send, status: int, line: str, kind: bytes = b"text/plain; charset=utf-8") -> None:
    await _answer(send, status, line.encode("utf-8"), kind)


async def _answer(send: Send, status: int, body: bytes, kind: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode("ascii"))]
    if status >= 400:
        headers.append((b"connection", b"close"))  # the rest of a body need not be read
    await send({"type": "http.response.start", "status": status, "headers": headers})
    view = memoryview(body)  # in pieces: each waits until most of those before it are read
    for begin in range(0, len(body), PIECE):
        await send({"type": "http.response.body", "body": view[begin : begin + PIECE].tobytes(), "more_body": True})
    await send({"type": "http.response.body", "body": b""})
