"""lpkernel demo: a page in the browser that generates, edits and shows where each piece comes from."""

from __future__ import annotations

import argparse
from typing import Any

from lpkernel.commands.common import EMBEDDED, add_autoencoder, load_bank, nonempty, whole

HOST, PORT = "127.0.0.1", 7860


def register(commands: Any) -> None:
    parser = commands.add_parser("demo", help="a page in the browser: generate, edit, see where pieces come from")
    parser.add_argument(
        "--bank", type=nonempty, default=EMBEDDED, metavar="FILE", help="a bank (default: the embedded avatars)"
    )
    add_autoencoder(parser)
    parser.add_argument("--backend", default="auto", help="the page's first choice: auto, numpy, torch, cpp, ...")
    parser.add_argument(
        "--host",
        type=nonempty,
        default=HOST,
        help=f"address to serve: {HOST} is this machine alone, 0.0.0.0 everybody (no password)",
    )
    parser.add_argument("--port", type=whole, default=PORT, help=f"0: any free port (default: {PORT})")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name of this machine, or NAME:PORT, under which browsers may ask for the page; may be given repeatedly "
        "(always allowed: localhost, the address that is connected to, and --host)",
    )
    parser.set_defaults(run=run, begins=lambda _: "preparing the page")


def run(args: argparse.Namespace) -> None:
    from lpkernel import load_autoencoder
    from lpkernel.autoencoder.once import Once
    from lpkernel.backends import registry
    from lpkernel.demo import guard, serve
    from lpkernel.demo.engine import Engine

    guard.hosts(args.host, args.port, args.allow_host)
    with serve.own_folder() as folder:
        serve.check_installed()
        registry.choose(args.backend, args.device)
        bank = load_bank(args.bank)
        autoencoder = Once(load_autoencoder(args.autoencoder, args.device, args.dtype))
        bank.check_autoencoder(autoencoder)
        with serve.listen(args.host, args.port) as bound:
            allowed = guard.hosts(args.host, bound.getsockname()[1], args.allow_host)
            app = serve.application(Engine(bank, autoencoder, args.device, args.backend), allowed, folder)
            print(f"lpkernel: the page is at {serve.address(bound)} (Ctrl+C ends it)", flush=True)
            serve.server(app, folder).run(sockets=[bound])
