"""lpkernel bank build and bank show."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpkernel.commands.common import (
    Progress,
    add_autoencoder,
    add_output,
    add_overwrite,
    integers,
    list_left_out,
    list_skipped,
    load_bank,
    report,
)
from lpkernel.errors import InputError

if TYPE_CHECKING:
    from lpkernel import Bank

FIRST_NAMES = 5
WHERE_NAMES = 20
AT_ONCE = 4096  # images whose codes are looked at together


def register(commands: Any) -> None:
    actions = commands.add_parser("bank", help="encode examples, or look at a bank").add_subparsers(
        metavar="ACTION", required=True
    )
    build = actions.add_parser("build", help="encode a folder of images")
    build.add_argument("folder", type=Path, metavar="FOLDER", help="images, recursively; subfolders are labels")
    build.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the bank to write, *.lpbank")
    add_autoencoder(build)
    build.add_argument("--crop", type=integers(4), metavar="x0,y0,x1,y1", help="pixels cut out of each image first")
    build.add_argument("--attributes", type=Path, metavar="FILE", help="table of CelebA or CelebAMask-HQ, text or CSV")
    build.add_argument(
        "--mapping",
        type=Path,
        metavar="FILE",
        help="CelebA-HQ-to-CelebA-mapping.txt, for images of CelebA-HQ and the attributes of CelebA",
    )
    build.add_argument("--channels", type=int, help="kept by the PCA (default: 16, or as many as there are)")
    build.add_argument("--max-patch", type=int, default=8, help="largest patch side the bank is exact for (default: 8)")
    build.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    build.add_argument("--batch", type=int, default=32, help="images encoded at once (default: 32)")
    build.add_argument(
        "--strict", action="store_true", help="stop at a file that cannot be used instead of skipping it"
    )
    add_overwrite(build, "replace a file that is there already")
    add_output(build)
    build.set_defaults(run=run_build, begins=lambda args: f"encoding {args.folder} for {args.out}")

    show = actions.add_parser("show", help="what a bank holds")
    show.add_argument("bank", type=Path, metavar="BANK", help="a bank, or default for the embedded avatars")
    show.add_argument(
        "--where", metavar="EXPR", help="count the images with these attributes or labels, name the first"
    )
    add_output(show)
    show.set_defaults(run=run_show)


def run_build(args: argparse.Namespace) -> None:
    from lpkernel import Bank, load_autoencoder
    from lpkernel.shards import discard_cache

    # before the encoding, which may take hours
    if args.out.is_dir() or not args.out.parent.is_dir():
        raise InputError(f"--out {args.out}: expected a file name in a folder that exists")
    if args.out.exists() and not args.overwrite:
        raise InputError(f"--out {args.out}: is there already; --overwrite replaces it, another name keeps it")
    autoencoder = load_autoencoder(args.autoencoder, args.device, args.dtype)
    cache = args.out.with_name(args.out.name + ".cache")
    with Progress("encoding", None, "image", args.quiet) as progress:
        bank = Bank.build(
            args.folder,
            autoencoder,
            channels=args.channels,
            max_patch=args.max_patch,
            crop=args.crop,
            strict=args.strict,
            limit=args.limit,
            attributes=args.attributes,
            mapping=args.mapping,
            batch=args.batch,
            progress=progress.reach,
            cache=cache,
        )
    bank.save(args.out)
    discard_cache(cache)
    if not args.quiet:
        list_skipped(bank.skipped)
        list_left_out(bank.left_out)
    skipped = [list(pair) for pair in bank.skipped]
    result = {"bank": str(args.out), **describe(bank), "skipped": skipped, "left_out": bank.left_out}
    report(args, result, [f"{bank.size} images in {args.out}, {len(bank.skipped)} files skipped"])


def run_show(args: argparse.Namespace) -> None:
    bank = load_bank(str(args.bank))
    found = {"bank": str(args.bank), **describe(bank)}
    if args.where is not None:
        chosen = bank.where(args.where)
        names = [name for name, match in zip(bank.names, chosen, strict=True) if match]
        found = {
            "bank": str(args.bank),
            "where": args.where,
            "images": bank.size,
            "matching": len(names),
            "first_names": names[:WHERE_NAMES],
        }
    report(args, found, [f"{name.replace('_', ' '):<24}{_text(value)}" for name, value in found.items()])


def describe(bank: Bank) -> dict[str, Any]:
    """What a bank holds, ready for JSON."""
    rows, width = (None, len(bank.pca.mean)) if bank.codebook is None else bank.codebook.shape
    return {
        "images": bank.size,
        "grid": bank.grid,
        "kind": "codes" if bank.is_discrete else "latents",
        "codebook_rows": rows,
        "codebook_width": width,
        "codes_used": _codes_used(bank),
        "channels": bank.channels,
        "explained_variance": round(float(bank.pca.explained.sum()), 6),
        "max_patch": bank.max_patch,
        "fixed_point_limit": bank.limit,
        "autoencoder": bank.autoencoder_name,
        "autoencoder_fingerprint": bank.autoencoder_fingerprint,
        "image_size": bank.image_size,
        "source_size": bank.source_size,
        "labels": dict(sorted(Counter(bank.labels or []).items())),
        "attributes": {name: int(values.sum()) for name, values in bank.attributes.items()},
        "first_names": bank.names[:FIRST_NAMES],
    }


def _codes_used(bank: Bank) -> int | None:
    import numpy as np

    if bank.codebook is None:
        return None
    used = np.zeros(len(bank.codebook), bool)
    for start in range(0, bank.size, AT_ONCE):
        used[bank.sound_codes(slice(start, start + AT_ONCE))] = True
    return int(used.sum())


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(value)
    return "none" if value is None else str(value) or "unknown"
