"""Serving the page: from this machine alone, asking nothing of any other."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from lpkernel.demo.engine import Engine
from lpkernel.errors import InputError, MissingExtra

# What a browser may ask for: this server's own files and what stands in the page. It refuses all else.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' blob:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; frame-ancestors 'self'; base-uri 'self'; form-action 'self'; object-src 'none'"
)


def check_installed() -> None:
    """Raise MissingExtra unless Gradio can be imported; its own reports to its makers are off from here on."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise MissingExtra("gradio", "demo", "lpkernel demo") from error


@contextmanager
def own_folder() -> Iterator[Path]:
    """A folder for visitors' pictures, removed at the end, by Ctrl+C or SIGTERM; Gradio reads it when imported."""

    def stop(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    old = signal.signal(signal.SIGTERM, stop)
    try:
        with tempfile.TemporaryDirectory(prefix="lpkernel-demo-") as folder:
            os.environ["GRADIO_TEMP_DIR"] = folder
            yield Path(folder)
    finally:
        signal.signal(signal.SIGTERM, old)


def application(engine: Engine) -> Any:
    """The ASGI application of an engine's page."""
    check_installed()
    import gradio as gr
    from fastapi import FastAPI

    from lpkernel.demo.page import build

    here = files("lpkernel.demo")
    script = here.joinpath("page.js").read_text("utf-8")
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None, docs_url=None, redoc_url=None),
        build(engine),
        path="/",
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=here.joinpath("page.css").read_text("utf-8"),
        head=f"<script>{script}</script>",
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size="64mb",
    )
    return with_policy(app)


def with_policy(app: Any) -> Callable[..., Any]:
    """The application with `POLICY` on every answer."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        async def add(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {
                    **message,
                    "headers": [*message.get("headers", []), (b"content-security-policy", POLICY.encode("ascii"))],
                }
            await send(message)

        await app(scope, receive, add)

    return wrapped


def listen(host: str, port: int) -> socket.socket:
    """A listening socket: who connects waits until it is served. Port 0 takes any free one. Raises InputError."""
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
    """What to type into the browser."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def server(app: Any) -> Any:
    """A server for an application; `server(app).run(sockets=[bound])` serves until it is interrupted."""
    import uvicorn

    return uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=2))
