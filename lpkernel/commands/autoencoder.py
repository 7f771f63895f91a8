"""lpkernel autoencoder convert: a VQ-GAN checkpoint as a diffusers folder."""

from __future__ import annotations

import argparse
from typing import Any

from lpkernel.commands.common import add_output, path_of, report


def register(commands: Any) -> None:
    actions = commands.add_parser("autoencoder", help="prepare autoencoders").add_subparsers(
        metavar="ACTION", required=True
    )
    parser = actions.add_parser(
        "convert", help="convert a VQ-GAN checkpoint (taming-transformers) to a diffusers folder"
    )
    parser.add_argument("checkpoint", type=path_of, metavar="CKPT", help=".ckpt, .pt, .pth or .safetensors")
    parser.add_argument("out", type=path_of, metavar="OUT", help="folder to make")
    parser.add_argument(
        "--config", type=path_of, metavar="YAML", help="the project's yaml file (default: inferred from the weights)"
    )
    add_output(parser)
    parser.set_defaults(run=run, begins=lambda args: f"converting {args.checkpoint}")


def run(args: argparse.Namespace) -> None:
    from lpkernel.autoencoder.taming import convert

    out = convert(args.checkpoint, args.out, args.config)
    report(args, {"autoencoder": str(out)}, [f"autoencoder in {out}; use it as --autoencoder {out}"])
