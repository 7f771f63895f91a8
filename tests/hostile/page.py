"""Requests that no page sends, byte by byte, from somebody who is after files, other hosts or other people's turns.

In a case's bytes @HOST@ stands for the server's own name, @MARKER@ for a file outside everything served, @OTHER@
for the address of another server, @TEMPORARY@ for the folder of the demo's own files.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from PIL import Image


@dataclass(frozen=True)
class Ask:
    """raw: all bytes of a request. taken: whether it is a job (or picture) that may be accepted; else it is refused.

    broken: the request has no end and need not be answered.
    """

    raw: bytes
    taken: bool = False
    broken: bool = False


# What the page itself sends for each of its functions.
HONEST: dict[int, list[Any]] = {
    0: [2, 0, "", 3, 3, 0, 0, "numpy", "paper", 0, "", "", "", "", ""],
    1: ["1 notes.png: not an image", None],
    2: [0, None],
    3: [None, "", [], "edit", "free", False, 2, 0, "", 3, 3, 0, 0, "numpy", 1],
    4: [None, ""],
    5: [None, None],
}
# What may be chosen instead of what the style sets.
STYLE = (("carry", "resize"), ("cut", "replace"), ("0", "0.375", "1"), ("yes", "no"), ("yes", "no"))
JSON = "application/json"
OCTETS = "application/octet-stream"
FILE = {"_type": "gradio.FileData"}


def ask(method: str, path: str, body: bytes = b"", host: str = "@HOST@", kind: str = "", **headers: Any) -> bytes:
    """A request whose body has the stated length, with the connection to be closed after it."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if kind:
        lines.append(f"Content-Type: {kind}")
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def job(function: int, data: Any, session: Any = "hostile1", **more: Any) -> bytes:
    """A job, exactly or nearly as the page posts it."""
    body = {"data": data, "fn_index": function, "session_hash": session, "trigger_id": None, **more}
    return join(json.dumps(body).encode())


def join(body: bytes, kind: str = JSON, **headers: str) -> bytes:
    return ask("POST", "/gradio_api/queue/join", body, kind=kind, **headers)


def picture(data: bytes, kind: str = OCTETS, **headers: str) -> bytes:
    return ask("POST", "/lpkernel/picture", data, kind=kind, **headers)


def whole(result: bytes, data: bytes, query: str = "framing=auto&result={}", kind: str = OCTETS) -> bytes:
    """A result and the picture that it is to be put back into."""
    return ask("POST", "/lpkernel/whole?" + query.format(len(result)), result + data, kind=kind)


def _nested(value: Any, depth: int) -> Any:
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


# A file by its name, in forms that Gradio knows or that somebody may hope it knows.
FILES: dict[str, Any] = {
    "path": {"path": "@MARKER@", "meta": FILE},
    "path alone": {"path": "@MARKER@"},
    "two paths": {"path": "@TEMPORARY@", "orig_name": "@MARKER@", "meta": FILE},
    "stream": {"path": "@MARKER@", "is_stream": True, "meta": FILE},
    "url": {"url": "http://@OTHER@/url", "path": "a.png", "meta": FILE},
    "address": {"path": "http://@OTHER@/path", "meta": FILE},
    "file address": {"path": "file://@MARKER@", "meta": FILE},
    "data address": {"path": "data:text/plain,a", "url": "data:text/plain,a", "meta": FILE},
    "served": {"path": "/gradio_api/file=@MARKER@", "meta": FILE},
    "served by address": {"path": "http://@HOST@/gradio_api/file=@MARKER@", "meta": FILE},
    "proxy": {"path": "a", "url": "/gradio_api/proxy=http://@OTHER@/proxy", "meta": FILE},
    "another type": {"path": "@MARKER@", "meta": {"_type": "gradio.FileDataDict"}},
    "type outside": {"path": "@MARKER@", "_type": "gradio.FileData"},
    "in a list": [{"path": "@MARKER@", "meta": FILE}],
    "in a dict": {"value": {"path": "@MARKER@", "meta": FILE}},
    "deep": _nested({"path": "@MARKER@", "meta": FILE}, 40),
    "editor": {"background": {"path": "@MARKER@", "meta": FILE}, "layers": [], "composite": None},
    "gallery": [{"image": {"path": "http://@OTHER@/gallery", "meta": FILE}, "caption": None}],
    "update": {"__type__": "update", "value": {"path": "@MARKER@", "meta": FILE}},
}


def _files() -> dict[str, Ask]:
    """A file in place of each input of each function, in each form in turn."""
    found, ways = {}, list(FILES.items())
    places = [(function, place) for function, data in HONEST.items() for place in range(len(data))]
    for step, (function, place) in enumerate(places):
        for turn in range(4):
            name, value = ways[(4 * step + turn) % len(ways)]
            data = [*HONEST[function][:place], value, *HONEST[function][place + 1 :]]
            found[f"file {name}: function {function}, input {place}"] = Ask(job(function, data))
    return found


def _bodies() -> dict[str, Ask]:
    """Malformed jobs."""
    good = {"data": HONEST[2], "fn_index": 2, "session_hash": "hostile1", "trigger_id": None}
    other: dict[str, Any] = {
        "function -1": {"fn_index": -1},
        "function 6": {"fn_index": 6},
        "function true": {"fn_index": True},
        "function 1.0": {"fn_index": 1.0},
        "function text": {"fn_index": "0"},
        "function null": {"fn_index": None},
        "function list": {"fn_index": [0]},
        "function huge": {"fn_index": 10**30},
        "session null": {"session_hash": None},
        "session number": {"session_hash": 5},
        "session empty": {"session_hash": ""},
        "session path": {"session_hash": "../../etc/passwd"},
        "session newline": {"session_hash": "abcdef\n"},
        "session long": {"session_hash": "a" * 5000},
        "session list": {"session_hash": ["abcdef"]},
        "session unicode": {"session_hash": "abcdé٣"},
        "trigger text": {"trigger_id": "1"},
        "trigger unknown": {"trigger_id": 10**6},
        "trigger file": {"trigger_id": FILES["path"]},
        "data null": {"data": None},
        "data dict": {"data": {"0": 0}},
        "data text": {"data": "0"},
        "data short": {"data": []},
        "data long": {"data": [0] * 10_000},
        "api name": {"api_name": "run"},
        "event id": {"event_id": "a"},
        "batched": {"batched": True},
        "simple": {"simple_format": True},
        "token": {"oauth_token": "a"},
        "request": {"request": {"headers": {}}},
    }
    found = {f"job with {name}": Ask(join(json.dumps(good | value).encode())) for name, value in other.items()}
    values: dict[str, str] = {
        "number text": '"5"',
        "number true": "true",
        "number NaN": "NaN",
        "number infinite": "-Infinity",
        "number overflow": "1e999",
        "number of digits": "9" * 4000,
        "number of too many digits": "9" * 100_000,
        "number list": "[0]",
        "number dict": "{}",
    }
    for name, value in values.items():
        body = json.dumps(good | {"data": ["@", None]}).replace('"@"', value)
        found[f"job with {name}"] = Ask(join(body.encode()))
    texts: dict[str, Any] = {"long": "a" * 1001, "null": None, "number": 5, "half a surrogate": "\ud800", "list": ["a"]}
    for name, words in texts.items():
        found[f"job with text {name}"] = Ask(job(0, [*HONEST[0][:2], words, *HONEST[0][3:]]))
    for place, choice in (
        (2, "ears"),
        (2, ["ears"]),
        (2, [["eyes"]]),
        (3, "paint"),
        (4, "wild"),
        (4, None),
        (5, 1),
        (5, None),
        (13, "sh"),
    ):
        data = [*HONEST[3][:place], choice, *HONEST[3][place + 1 :]]
        found[f"job with choice {place} {choice!r}"] = Ask(job(3, data))
    for name, content in {
        "nothing": b"",
        "words": b"these are words",
        "half": b'{"data": [',
        "a list": b"[]",
        "a number": b"7",
        "null": b"null",
        "deep lists": b"[" * 200_000,
        "deep data": b'{"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "bytes": bytes(range(256)),
        "utf-16": json.dumps(good).encode("utf-16"),
        "two documents": json.dumps(good).encode() * 2,
        "a pickle": b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
    }.items():
        found[f"body of {name}"] = Ask(join(content if name != "utf-16" else content[:-1]))
    found["body of megabytes"] = Ask(join(b" " * 3 * 2**20))
    found["body of spaces"] = Ask(join(b" " * 2**20))
    found["body as a form"] = Ask(join(json.dumps(good).encode(), "application/x-www-form-urlencoded"))
    found["body as text"] = Ask(join(json.dumps(good).encode(), "text/plain"))
    found["body of a file"] = Ask(
        join(b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n', "multipart/form-data")
    )
    found["body of no kind"] = Ask(join(json.dumps(good).encode(), ""))
    return found


def _taken() -> dict[str, Ask]:
    """Jobs of the right form with values as wrong as possible: each ends in one line."""
    draw = random.Random(5)
    numbers = [-1, 0, 1, 33, 2**31, -(2**31), 2**53, -(2**53), 0.5, -0.5, 1e15, None]
    texts = [
        "",
        "~",
        "&",
        "(" * 400,
        "~" * 999,
        "__import__('os').system('true')",
        "\0",
        "é\u202e\n<script>",
        "@MARKER@",
        "%s%n",
    ]
    found = {}
    for count in range(24):
        count_seed, patches = ([draw.choice(numbers) for _ in range(some)] for some in (2, 4))
        style = [draw.choice(("", *words)) for words in STYLE]
        data = [*count_seed, draw.choice(texts), *patches, "numpy", "paper", draw.choice(numbers), *style]
        if data[0] == 33:
            data[0] = 2
        found[f"settings {count}"] = Ask(job(0, data, f"settings{count}"), taken=True)
    for name, text in {
        "markup": "<img src=http://@OTHER@/markup onerror=alert(1)>",
        "path": "@MARKER@",
        "data": "data:image/png;base64,",
        "svg": "data:image/svg+xml;base64,PHN2Zz48aW1hZ2UgaHJlZj0iaHR0cDovLy8iLz48L3N2Zz4=",
        "not base64": "data:image/png;base64,%%%%",
        "long": "data:image/png;base64," + "A" * 400_000,
        "lines": "a\nb\r\nc" * 2000,
    }.items():
        found[f"picture field of {name}"] = Ask(job(1, [f"1 {text}", None], f"field{len(found)}"), taken=True)
        found[f"mask field of {name}"] = Ask(job(3, [None, text, *HONEST[3][2:]], f"field{len(found)}"), taken=True)
    for number in (-1, 20, 2**53, -(2**53), 1.5, None):
        found[f"bank image {number}"] = Ask(job(2, [number, None], f"bank{len(found)}"), taken=True)
    for index in ("-1", "99", "a", "\u0663", "\u00b2"):
        found[f"result {index!r}"] = Ask(job(4, [None, f"1 {index}"], f"result{len(found)}"), taken=True)
    event = {"index": FILES["path"], "value": FILES["address"], "_data": FILES["path"]}
    found["file in an event"] = Ask(job(5, [None, None], "event1", event_data=event), taken=True)
    return found


API = (
    "file=@MARKER@", "file/@MARKER@", "file=/etc/hostname", "file=http://@OTHER@/file", "file=../../etc/passwd",
    "file=@TEMPORARY@", "proxy=http://@OTHER@/proxy", "proxy=@MARKER@", "upload", "upload_progress?upload_id=a", "info",
    "info/", "openapi.json", "runs", "deep_link?session_hash=hostile1", "app_id", "user", "token", "login_check",
    "dev/reload", "startup-events", "custom_component/a/client/component/index.js", "stream/a/b/1/playlist.m3u8",
    "stream/a/b/1/playlist-file", "stream/a/b/1/c.ts", "call/run", "call/v2/run", "call/run/a", "run/run", "api/run",
    "reset", "cancel", "component_server", "process_recording", "vibe-edit", "vibe-code", "vibe-starter-queries",
    "undo-vibe-edit", "run-history/connect", "run-history/buckets", "profiling/traces", "mcp", "mcp/", "mcp/sse",
    "mcp/schema", "heartbeat/", "heartbeat/../../etc/passwd", "heartbeat/" + "a" * 200, "heartbeat/A%00", "queue/data",
    "queue/data?session_hash=", "queue/data?session_hash=nobody", "queue/data?session_hash=../a", "queue/join",
    "queue/data?a=" + "&a=" * 8, "queue/data?session_hash[]=a", "queue/data/", "queue/status", "predict",
    "theme.css", "",
)  # fmt: skip
ROOT = (
    "config", "config/", "login", "logout", "monitoring", "monitoring/summary", "monitoring/a", "docs", "redoc", "dev",
    "openapi.json", "svelte/svelte.js", "pwa_icon", "robots.txt", "_app/a.js", "page", "gradio_api", "lpkernel", "..",
    "lpkernel/picture", ".env", "file=@MARKER@", "lpkernel/picture/", "assets", "assets/", "static/", "@MARKER@",
    "assets/../../../../../../../../etc/passwd", "assets/..%2f..%2f..%2fetc%2fpasswd", "assets/%2e%2e/%2e%2e/routes.py",
    "static/..\\..\\..\\routes.py", "static/%2e%2e%5c%2e%2e", "assets//etc/passwd", "static/%2fetc%2fpasswd",
    "static/./../../index.html", "assets/a%00.js", "assets/%c0%ae%c0%ae/a", "static/....//....//routes.py", "%2e%2e",
    "static/%252e%252e/%252e%252e/routes.py", "assets/.htaccess", "assets/a.js;/../..", "assets/" + "a/" * 2000,
    "assets/" + "a" * 256, "static/a/" + "a" * 300 + "/a",
    "?deep_link=../../a", "theme.css/../gradio_api/info",
)  # fmt: skip


def _routes() -> dict[str, Ask]:
    """Parts of Gradio that the page does not need, and files beside those that it does."""
    found = {}
    for path in API:
        found[f"GET {path[:60]}"] = Ask(ask("GET", f"/gradio_api/{path}"))
    for path in ROOT:
        if path != "?deep_link=../../a":
            found[f"GET root {path[:60]}"] = Ask(ask("GET", f"/{path}"))
    for path in ("upload", "cancel", "reset", "component_server", "call/run", "run/predict", "stream/a", "vibe-edit/"):
        body = json.dumps({"data": [FILES["path"]], "session_hash": "hostile1", "fn_index": 0, "event_id": "a"})
        found[f"POST {path}"] = Ask(ask("POST", f"/gradio_api/{path}", body.encode(), kind=JSON))
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="../../a.png"\r\n\r\nabc\r\n--x--\r\n'
    found["POST upload of a file"] = Ask(
        ask("POST", "/gradio_api/upload", form, kind="multipart/form-data; boundary=x")
    )
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "CONNECT", "BREW"):
        found[f"{method} /"] = Ask(ask(method, "/"))
        found[f"{method} queue"] = Ask(ask(method, "/gradio_api/queue/join"))
    return found


def _hosts() -> dict[str, Ask]:
    """The page under names that are not its own, and from pages of other sites."""
    found = {}
    names = (
        "evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example", "@HOST@.evil.example",
        "evil.example@@HOST@", "localhost", "localhost:1", "127.0.0.1", "127.0.0.2", "10.0.0.1", "[::1", "0x7f000001",
        "2130706433", "127.1", "", " ", "*", "null", "@OTHER@", "[::ffff:7f00:1]:1", "localhost:99999", "a" * 5000,
    )  # fmt: skip
    for name in names:
        found[f"host {name[:40]!r}"] = Ask(ask("GET", "/", host=name))
        found[f"job for host {name[:40]!r}"] = Ask(
            job(2, HONEST[2]).replace(b"Host: @HOST@", b"Host: " + name.encode(), 1)
        )
    for origin in ("http://evil.example", "https://evil.example", "null", "", "file://", "http://@OTHER@", "http://localhost",
                   "http://127.0.0.1:1", "http://@HOST@.evil.example", "@HOST@", "chrome-extension://a", "http://@HOST@/a",
                   "ftp://@HOST@", "http://a@@HOST@"):  # fmt: skip
        body = json.dumps({"data": HONEST[2], "fn_index": 2, "session_hash": "hostile1", "trigger_id": None}).encode()
        found[f"job from {origin!r}"] = Ask(join(body, Origin=origin))
        found[f"stream from {origin!r}"] = Ask(ask("GET", "/gradio_api/heartbeat/hostile1", Origin=origin))
        found[f"picture from {origin!r}"] = Ask(picture(PNG, Origin=origin))
    upgrade: dict[str, Any] = {
        "Upgrade": "websocket",
        "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    found["websocket"] = Ask(
        ask("GET", "/gradio_api/queue/join", **upgrade).replace(b"Connection: close", b"Connection: Upgrade", 1)
    )
    found["websocket of another host"] = Ask(ask("GET", "/", host="evil.example", **upgrade))
    good = join(json.dumps({"data": HONEST[2], "fn_index": 2, "session_hash": "hostile1"}).encode())
    found["two hosts"] = Ask(good.replace(b"Host: @HOST@", b"Host: @HOST@\r\nHost: evil.example", 1))
    found["no host"] = Ask(good.replace(b"Host: @HOST@\r\n", b"", 1))
    found["no host, HTTP 1.0"] = Ask(b"GET / HTTP/1.0\r\n\r\n")
    found["forwarded for another host"] = Ask(ask("GET", "/", host="evil.example", X_Forwarded_Host="@HOST@"))
    return found


def _png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that claims this size."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(data)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part)) for kind, part in chunks
    )


def _saved(
    kind: str, size: tuple[int, int] = (40, 30), mode: str = "RGB", colour: tuple[int, ...] = (90, 60, 30)
) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, format=kind)
    return file.getvalue()


PNG, SQUARE = _saved("PNG"), _saved("PNG", (40, 40))  # the bank's pictures are square
RESULT = _saved("PNG", (64, 64), "RGBA")


def _pictures() -> dict[str, Ask]:
    """Picture files that are not pictures or are too large."""
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://@OTHER@/svg"/></svg>'
    draw = random.Random(7)
    found = {
        "nothing": b"",
        "words": b"these are words",
        "a path": b"@MARKER@",
        "an address": b"http://@OTHER@/picture",
        "svg": svg,
        "html": b"<html><img src=http://@OTHER@/html></html>",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n(@MARKER@) (r) file showpage\n%%EOF\n",
        "a cut PNG": PNG[:-40],
        "a wide PNG": _png(2**31 - 1, 2**31 - 1),
        "a large PNG": _png(60_000, 60_000, bytes(1000)),
        "an empty PNG": _png(0, 0),
        "a tiny PNG": _png(1, 1, bytes(4)),
        "a PNG of no data": _png(64, 64),
        "a cut JPEG": _saved("JPEG")[:200],
        "a cut TIFF": _saved("TIFF")[:100],
        "a cut WebP": _saved("WEBP")[:60],
        "a cut BMP": _saved("BMP")[:60],
        "an MPO": b"\xff\xd8\xff\xe2" + bytes(2000),
        "a pickle": b"\x80\x04cposix\nsystem\n(S'true'\ntR.",
        "zeros": bytes(100_000),
        "an LHA": b"PK\x03\x04" + bytes(200),
    }
    cases = {f"picture of {name}": Ask(picture(data)) for name, data in found.items()}
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP"):
        for count in range(3):
            data = bytearray(_saved(kind)[: 60 if count else None])
            for place in draw.sample(range(len(data)), 8):
                data[place] = draw.randrange(256)
            cases[f"picture of a spoilt {kind} {count}"] = Ask(picture(bytes(data)), taken=True)
    cases["picture as a form"] = Ask(picture(PNG, "multipart/form-data; boundary=x"))
    cases["picture as text"] = Ask(picture(PNG, "text/plain"))
    cases["picture of any kind"] = Ask(picture(PNG, ""))
    for name, query in {
        "another framing": "framing=square",
        "a file for a framing": "framing=@MARKER@",
        "two framings": "framing=crop&framing=align",
        "another question": "path=@MARKER@",
        "a long question": "framing=" + "a" * 9000,
    }.items():
        raw = picture(PNG).replace(b"/lpkernel/picture ", f"/lpkernel/picture?{query} ".encode(), 1)
        cases[f"picture with {name}"] = Ask(raw)
    length = f"Content-Length: {len(PNG)}".encode()
    for name, said in {"terabytes": b"9" * 13, "negative": b"-1", "words": b"many", "digits": b"9" * 300}.items():
        cases[f"picture of length {name}"] = Ask(picture(PNG).replace(length, b"Content-Length: " + said))
    return cases


def _wholes() -> dict[str, Ask]:
    """Broken results, and broken pictures to put them back into."""
    found = {
        f"whole with a result of {name}": Ask(whole(result, SQUARE))
        for name, result in {
            "nothing": b"",
            "words": b"these are words",
            "a path": b"@MARKER@",
            "another size": SQUARE,
            "no part": _saved("PNG", (64, 64), "RGBA", (0, 0, 0, 0)),
            "a JPEG": _saved("JPEG", (64, 64)),
            "a cut PNG": RESULT[:-40],
            "a large PNG": _png(60_000, 60_000, bytes(1000)),
            "a PNG of no data": _png(64, 64),
        }.items()
    }
    for name, data in {"nothing": b"", "words": b"words", "a cut PNG": SQUARE[:-40], "a path": b"@MARKER@"}.items():
        found[f"whole in a picture of {name}"] = Ask(whole(RESULT, data))
    for name, query in {
        "nothing": "",
        "no length": "framing=auto",
        "no framing": "result={}",
        "another framing": "framing=square&result={}",
        "a file for a framing": "framing=@MARKER@&result={}",
        "a negative length": "framing=auto&result=-1",
        "a length of words": "framing=auto&result=all",
        "a length of terabytes": "framing=auto&result=999999999",
        "a longer length": "framing=auto&result=5000",
        "a file": "framing=auto&result={}&file=@MARKER@",
    }.items():
        found[f"whole that asks {name}"] = Ask(whole(RESULT, SQUARE, query))
    found["whole as a form"] = Ask(whole(RESULT, SQUARE, kind="multipart/form-data; boundary=x"))
    return found


def _wire() -> dict[str, Ask]:
    """Bytes that are not HTTP, or two requests where there should be one."""
    good = job(2, HONEST[2])
    chunked = good.partition(b"\r\n\r\n")[0].rpartition(b"\r\n")[0] + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    hidden = b"GET /gradio_api/file=@MARKER@ HTTP/1.1\r\nHost: @HOST@\r\n\r\n"
    return {
        "no HTTP": Ask(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)),
        "a line": Ask(b"hello\r\n\r\n"),
        "HTTP 9": Ask(b"GET /a HTTP/9.9\r\nHost: @HOST@\r\nConnection: close\r\n\r\n"),
        "HTTP 2": Ask(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        "an address for a path": Ask(b"GET http://@OTHER@/absolute HTTP/1.1\r\nHost: evil.example\r\n\r\n"),
        "an address for a path, own host": Ask(ask("GET", "http://@OTHER@/absolute")),
        "a tunnel": Ask(b"CONNECT @OTHER@ HTTP/1.1\r\nHost: @OTHER@\r\n\r\n"),
        "a long line": Ask(ask("GET", "/" + "a" * 100_000)),
        "a long header": Ask(ask("GET", "/a", X="a" * 100_000)),
        "many headers": Ask(ask("GET", "/a").replace(b"\r\n\r\n", b"\r\nX: a" * 5000 + b"\r\n\r\n")),
        "a header of two lines": Ask(ask("GET", "/a", X="a\r\n b")),
        "bad chunks": Ask(chunked + b"zz\r\nabc\r\n0\r\n\r\n"),
        "a large chunk": Ask(chunked + b"fffffffffffffff\r\nabc", broken=True),
        "chunks without end": Ask(chunked + b"".join(b"10000\r\n" + b" " * 65536 + b"\r\n" for _ in range(24))),
        "chunks and a length": Ask(
            good.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n", 1), broken=True
        ),
        "two requests in one": Ask(ask("POST", "/gradio_api/cancel", hidden, kind=JSON)),
        "a query on a file": Ask(ask("GET", "/gradio_api/heartbeat/a?" + quote("x" * 100))),
    }


CASES: dict[str, Ask] = {
    **_files(), **_bodies(), **_taken(), **_routes(), **_hosts(), **_pictures(), **_wholes(), **_wire()
}  # fmt: skip
