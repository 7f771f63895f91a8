"""lpkernel bank: build, show, append, subset, merge and verify."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpkernel.commands.common import (
    Progress,
    add_autoencoder,
    add_output,
    add_overwrite,
    bank_path,
    integers,
    list_left_out,
    list_skipped,
    load_bank,
    nonempty,
    path_of,
    report,
    whole,
)
from lpkernel.errors import InputError, counted, printable

if TYPE_CHECKING:
    from lpkernel import Bank

FIRST_NAMES = 5
WHERE_NAMES = 20
AT_ONCE = 4096  # images whose codes are read together


def register(commands: Any) -> None:
    actions = commands.add_parser("bank", help="encode examples, or look at a bank").add_subparsers(
        metavar="ACTION", required=True
    )
    build = actions.add_parser("build", help="encode a folder of images")
    _add_sources(build)
    build.add_argument("--crop", type=integers(4), metavar="x0,y0,x1,y1", help="pixels cut out of each image first")
    build.add_argument("--channels", type=whole, help="channels that the PCA keeps (default: 16, or all if fewer)")
    build.add_argument(
        "--max-patch", type=whole, default=8, help="largest patch side the bank is exact for (default: 8)"
    )
    _add_target(build)
    build.set_defaults(run=run_build, begins=lambda args: f"encoding {args.folder} into {args.out}")

    append = actions.add_parser("append", help="encode more images in the same way as a bank's, and add them")
    append.add_argument(
        "bank", type=nonempty, metavar="BANK", help="the bank to add to; unchanged unless --out names it"
    )
    _add_sources(append)
    _add_target(append)
    append.set_defaults(run=run_append, begins=lambda args: f"encoding {args.folder} into {args.out}")

    subset = actions.add_parser("subset", help="some images of a bank, in its number system")
    subset.add_argument("bank", type=nonempty, metavar="BANK", help="a bank, or default for the embedded avatars")
    subset.add_argument("--where", metavar="EXPR", required=True, help="the images with these attributes or labels")
    _add_target(subset)
    subset.set_defaults(run=run_subset)

    merge = actions.add_parser("merge", help="merge several banks into one, as if built at once")
    merge.add_argument(
        "banks", type=nonempty, nargs="+", metavar="BANK", help="banks built with the same autoencoder and crop"
    )
    _add_target(merge)
    merge.set_defaults(run=run_merge)

    verify = actions.add_parser("verify", help="read a whole bank and verify its checksum")
    verify.add_argument("bank", type=nonempty, metavar="BANK")
    add_output(verify)
    verify.set_defaults(run=run_verify)

    show = actions.add_parser("show", help="what a bank holds")
    show.add_argument("bank", type=path_of, metavar="BANK", help="a bank, or default for the embedded avatars")
    show.add_argument(
        "--where", metavar="EXPR", help="count the images with these attributes or labels and name the first few"
    )
    add_output(show)
    show.set_defaults(run=run_show)


def _add_sources(parser: argparse.ArgumentParser) -> None:
    """Add what is encoded, and how."""
    parser.add_argument(
        "folder", type=path_of, metavar="FOLDER", help="a folder of images, searched recursively; subfolders are labels"
    )
    add_autoencoder(parser)
    parser.add_argument(
        "--attributes", type=path_of, metavar="FILE", help="table of CelebA or CelebAMask-HQ, text or CSV"
    )
    parser.add_argument(
        "--mapping",
        type=path_of,
        metavar="FILE",
        help="CelebA-HQ-to-CelebA-mapping.txt, for images of CelebA-HQ and the attributes of CelebA",
    )
    parser.add_argument(
        "--missing-attributes",
        choices=("refuse", "skip"),
        default="refuse",
        help="where the table has no row for an image: stop, or leave the image out (default: refuse)",
    )
    parser.add_argument("--limit", type=whole, metavar="N", help="only the first N images")
    parser.add_argument("--flip", action="store_true", help="add each image's mirror image: twice as many examples")
    parser.add_argument("--batch", type=whole, default=32, help="images encoded at once (default: 32)")
    parser.add_argument(
        "--strict", action="store_true", help="stop at a file that cannot be used instead of skipping it"
    )


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--out", type=path_of, required=True, metavar="FILE", help="the bank to write, *.lpbank")
    add_overwrite(parser, "replace a file that exists already")
    add_output(parser)


def run_build(args: argparse.Namespace) -> None:
    _check_target(args)
    _write(args, _encoded(args, args.crop, args.channels, args.max_patch))


def run_append(args: argparse.Namespace) -> None:
    from lpkernel import Bank

    _check_target(args)
    bank = load_bank(args.bank)
    more = _encoded(args, bank.crop, bank.channels, bank.max_patch)
    merged = Bank.merge([bank, more])
    merged.skipped, merged.left_out = more.skipped, more.left_out
    _write(args, merged, dropped=_dropped([bank, more], merged))


def run_subset(args: argparse.Namespace) -> None:
    _check_target(args)
    bank = load_bank(args.bank)
    _write(args, bank.subset(bank.where(args.where, at_least=1)), encoded=False)


def run_merge(args: argparse.Namespace) -> None:
    from lpkernel import Bank

    _check_target(args)
    banks = [load_bank(name) for name in args.banks]
    merged = Bank.merge(banks)
    _write(args, merged, encoded=False, dropped=_dropped(banks, merged))


def _dropped(banks: Sequence[Bank], merged: Bank) -> list[str]:
    """The attributes of some of these banks that the merged one does not have."""
    return sorted({name for bank in banks for name in bank.attributes} - set(merged.attributes))


def run_verify(args: argparse.Namespace) -> None:
    from lpkernel import Bank

    bank = Bank.load(bank_path(args.bank), verify=True)
    for start in range(0, bank.size, AT_ONCE):
        bank.fixed_values(slice(start, start + AT_ONCE))
    result = {"bank": args.bank, "images": bank.size, "sound": True}
    report(args, result, [f"{args.bank}: {counted(bank.size, 'image')}, sound"])


def _check_target(args: argparse.Namespace) -> None:
    """Raise InputError if --out cannot be written: before the encoding, which may take hours."""
    if args.out.is_dir() or not args.out.parent.is_dir():
        raise InputError(f"--out {args.out}: expected a file name in a folder that exists")
    if args.out.exists() and not args.overwrite:
        raise InputError(f"--out {args.out}: exists already; --overwrite replaces it, another name keeps it")


def _encoded(
    args: argparse.Namespace, crop: tuple[int, int, int, int] | None, channels: int | None, max_patch: int
) -> Bank:
    from lpkernel import Bank, load_autoencoder

    autoencoder = load_autoencoder(args.autoencoder, args.device, args.dtype)
    with Progress("encoding", None, "image", args.quiet) as progress:
        return Bank.build(
            args.folder,
            autoencoder,
            channels=channels,
            max_patch=max_patch,
            crop=crop,
            strict=args.strict,
            limit=args.limit,
            attributes=args.attributes,
            mapping=args.mapping,
            missing_attributes=args.missing_attributes,
            flip=args.flip,
            batch=args.batch,
            progress=progress.reach,
            cache=_cache(args),
        )


def _cache(args: argparse.Namespace) -> Path:
    out: Path = args.out
    return out.with_name(out.name + ".cache")


def _write(args: argparse.Namespace, bank: Bank, encoded: bool = True, dropped: Sequence[str] = ()) -> None:
    """Writes the bank and says so. encoded: whether files were read; dropped: attributes that were lost."""
    from lpkernel.bank.shards import discard_cache

    bank.save(args.out)
    discard_cache(_cache(args))
    if not args.quiet:
        list_skipped(bank.skipped)
        list_left_out(bank.left_out)
        if dropped:
            text = f"lpkernel: attributes that only some of the images have are left out: {', '.join(dropped)}"
            print(printable(text), file=sys.stderr)
    skipped = [list(pair) for pair in bank.skipped]
    result = {"bank": str(args.out), **describe(bank), "skipped": skipped, "left_out": bank.left_out}
    result["dropped_attributes"] = list(dropped)
    skips = f", {counted(len(bank.skipped), 'file')} skipped" if encoded else ""
    report(args, result, [f"{counted(bank.size, 'image')} in {args.out}{skips}"])


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
        "crop": bank.crop,
        "colours": bank.colours is not None,
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
