"""Serving the page from this machine alone, with no requests to any other."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from lpkernel.demo.engine import Engine
from lpkernel.demo.guard import Guard, host_name
from lpkernel.demo.painting import data_url, read_closed
from lpkernel.errors import InputError, MissingExtra
from lpkernel.pictures.render import png

GRADIO_FOLDER = "GRADIO_TEMP_DIR"
# What a browser may load: this server's own files and what is in the page. It refuses all else.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' blob:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; frame-ancestors 'self'; base-uri 'self'; form-action 'self'; object-src 'none'"
)


def check_installed() -> None:
    """Raise MissingExtra unless Gradio can be imported; from here on its analytics are off."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise MissingExtra("gradio", "demo", "lpkernel demo") from error


@contextmanager
def own_folder() -> Iterator[Path]:
    """A folder for visitors' pictures, which others cannot read; Gradio uses it if it is imported meanwhile.

    It is removed at the end, by Ctrl+C, SIGTERM, or SIGHUP when the terminal closes, unless that is ignored (nohup).
    """
    ends = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ends.append(signal.SIGHUP)
    before = os.environ.get(GRADIO_FOLDER)
    folder = Path(tempfile.gettempdir(), f"lpkernel-demo-{secrets.token_hex(8)}")
    old = {number: signal.signal(number, leaving(folder)) for number in ends}  # for as long as the folder is there
    try:
        folder.mkdir(0o700)
        os.environ[GRADIO_FOLDER] = str(folder)
        yield folder
    finally:
        # else a later import of Gradio would make the folder again, for everyone to read
        os.environ.pop(GRADIO_FOLDER, None)
        if before is not None:
            os.environ[GRADIO_FOLDER] = before
        shutil.rmtree(folder, ignore_errors=True)
        for number, handler in old.items():
            signal.signal(number, handler)


def leaving(folder: Path) -> Callable[[int, Any], None]:
    """A signal handler that removes the folder and ends the process at once: no running job, no open stream and no
    visitor who is still sending can delay it."""

    def leave(number: int, _: Any) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(128 + number)

    return leave


def application(engine: Engine, allowed: frozenset[str], folder: Path) -> Any:
    """The ASGI application of an engine's page. allowed: from `guard.hosts`. folder: for files that come in."""
    check_installed()
    import gradio as gr
    from fastapi import FastAPI

    from lpkernel.demo.page import Jobs, build

    here = files("lpkernel.demo")
    script = here.joinpath("page.js").read_text("utf-8")
    page = build(engine)
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None, docs_url=None, redoc_url=None),
        page,
        path="/",
        theme=_theme(),
        css=here.joinpath("page.css").read_text("utf-8"),
        head=f"<script>{script}</script>",
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
    )
    # A job may carry a picture and a mask of the bank's size, however badly they compress.
    body = 2**20 + 12 * engine.autoencoder.image_size**2

    def frame(path: Path, framing: str) -> str:
        framed = engine.frame(path, framing)
        return f"{data_url(framed.pixels)} {engine.framed_words(framed)}"

    def put_back(result: bytes, path: Path, framing: str) -> bytes:
        closed = read_closed(result, engine.autoencoder.image_size)
        return png(engine.put_back(closed, path, framing), fast=True)

    guarded = Guard(app, Jobs(page), allowed, frame, put_back, folder, body)
    return with_policy(guarded)


def _theme() -> Any:
    """Fonts of the visitor's own machine, and text dark enough to be read (WCAG 2 AA)."""
    import gradio as gr

    base = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return base.set(
        color_accent="*primary_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_title_text_color="*neutral_700",
        block_label_text_color="*neutral_700",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )


def with_policy(app: Any) -> Callable[..., Any]:
    """The application with `POLICY` on every response, which pages of other sites may not use."""
    added = [
        (b"content-security-policy", POLICY.encode("ascii")),
        (b"cross-origin-resource-policy", b"same-origin"),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
    ]

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        async def add(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        await app(scope, receive, add)

    return wrapped


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; connections wait until they are served. Port 0 takes any free one. Raises InputError."""
    if not 0 <= port < 2**16:
        raise InputError(f"--port: got {port}, expected 0 to {2**16 - 1}")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(place)
            bound.listen()
        except OSError:
            bound.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"--host {host} --port {port}: {reason}; choose another") from error
    return bound


def address(bound: socket.socket) -> str:
    """What to type into the browser of this machine."""
    host, port = bound.getsockname()[:2]
    return f"http://{host_name({'0.0.0.0': '127.0.0.1', '::': '::1'}.get(host, host))}:{port}/"


def server(app: Any, folder: Path) -> Any:
    """A server for an application; run(sockets=[bound]) serves until a signal ends process and folder."""
    import uvicorn

    from lpkernel.demo.connections import Connection

    # What a proxy says about its clients is not trusted: places in the queue go by the address that connects.
    config = uvicorn.Config(
        app, http=Connection, log_level="critical", ws="none", proxy_headers=False, server_header=False
    )
    made = uvicorn.Server(config)
    made.handle_exit = leaving(folder)  # type: ignore[method-assign, assignment]
    return made
