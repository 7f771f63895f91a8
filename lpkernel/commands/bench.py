"""lpkernel bench: time every backend beside other libraries, after checking all answers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lpkernel.commands.common import (
    EMBEDDED,
    add_output,
    check_folder,
    integers,
    load_bank,
    nonempty,
    path_of,
    report,
    whole,
    write_json,
)


def words(text: str) -> tuple[str, ...]:
    """Comma-separated names; "none" for no name at all."""
    return () if text == "none" else tuple(text.split(","))


def register(commands: Any) -> None:
    parser = commands.add_parser("bench", help="time every backend against other libraries")
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help="topk, step, generate, memory, decode (default: these), sweep"
    )
    parser.add_argument(
        "--bank", type=nonempty, default=EMBEDDED, metavar="FILE", help="a bank of codes (default: the avatars)"
    )
    parser.add_argument("--data", type=words, metavar="D1,...", help="codes of the step: bank, random (default: both)")
    for letter, meaning in (
        ("n", "queries or images"),
        ("b", "bank sizes"),
        ("d", "widths of the sweep"),
        ("p", "patch sides"),
        ("k", "neighbours"),
    ):
        parser.add_argument(f"--{letter}", type=integers(), metavar=f"{letter.upper()}1,...", help=meaning)
    parser.add_argument("--backend", type=words, metavar="B1,...", help="lpkernel's backends to time (default: all)")
    parser.add_argument(
        "--peers",
        type=words,
        metavar="P1,...",
        help="what to compare with; searches: matmul, matmul-tf32, matmul-compiled, matmul-compiled-tf32, cdist, "
        "faiss, sklearn, keops; generations: torch-float32, torch-tf32, torch-compiled; decoders: module, module-tf32, "
        "module-bfloat16, module-compiled, taming; or none (default: all)",
    )
    parser.add_argument(
        "--autoencoder", type=nonempty, default="default", metavar="SRC", help="the autoencoder of the decode case"
    )
    parser.add_argument("--device", default="cpu", help="where everything runs: cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--full", action="store_true", help="the whole sweep: hours, not minutes")
    parser.add_argument("--threads", type=whole, help="CPU threads for all of them (default: torch's number)")
    parser.add_argument("--budget", type=float, default=0.5, metavar="S", help="seconds per measurement (default: 0.5)")
    parser.add_argument(
        "--longest",
        type=float,
        metavar="S",
        help="skip searches that take longer (default: 10) and shorten generations that do (default: 60)",
    )
    parser.add_argument("--seed", type=whole, default=0)
    parser.add_argument("--out", type=path_of, default=Path("out/bench"), metavar="FOLDER", help="default: out/bench")
    add_output(parser)
    parser.set_defaults(run=run, begins=lambda args: f"measuring, into {args.out}")


def run(args: argparse.Namespace) -> None:
    check_folder(args.out)
    import torch

    from lpkernel.benchmarks import machine
    from lpkernel.benchmarks import report as reports
    from lpkernel.benchmarks.checks import WrongAnswer
    from lpkernel.benchmarks.suite import Options, Suite

    lists = {"cases": tuple(args.cases), "data": args.data, "backends": args.backend, "peers": args.peers}
    given = {name: value for name, value in lists.items() if value is not None and (value or name == "peers")}
    numbers = {name: getattr(args, name) for name in ("n", "b", "d", "p", "k")}
    options = Options(
        **given,
        **numbers,
        autoencoder=args.autoencoder,
        device=args.device,
        full=args.full,
        threads=torch.get_num_threads() if args.threads is None else args.threads,
        budget=args.budget,
        longest=args.longest,
        seed=args.seed,
    )
    bank = load_bank(args.bank)
    suite = Suite(options, bank, _teller(args.quiet))
    show = not (args.json or args.quiet)
    facts = {
        "machine": machine.facts(options.threads, suite.bounds, options.device),
        "versions": machine.versions(),
        "commit": machine.commit(),
        "bank": {"path": Path(args.bank).name, "images": bank.size, "channels": bank.channels},
        "options": {"budget": options.budget, "longest": options.longest, "seed": options.seed, "full": options.full},
        "decoded": {"autoencoder": options.autoencoder, "device": machine.device_name(options.device)},
    }

    def found() -> dict[str, Any]:
        verdicts = reports.verdicts(suite.results)
        return {**facts, **suite.results.json(), "verdicts": verdicts, "files": ["bench.json"]}

    args.out.mkdir(parents=True, exist_ok=True)
    for point in suite.run():
        if show:
            print("\n".join([*reports.table(point, suite.results), ""]), flush=True)
        write_json(args.out / "bench.json", found())  # the results so far, in case the run is cut off
    result = found()
    device = f"{result['machine']['device']}, {options.threads} threads"
    try:
        from lpkernel.benchmarks import plots

        result["files"] += plots.draw(suite.results, device, args.out)
    except ImportError:
        suite.results.miss("plots", "the package matplotlib is not installed: pip install 'lpkernel[bench]'")
        result["absent"] = suite.results.absent
    write_json(args.out / "bench.json", result)
    lines = [*reports.summary(suite.results), f"{', '.join(result['files'])} in {args.out} ({device})"]
    report(args, result, lines)
    if suite.results.refused:
        who = ", ".join(sorted({entry["provider"] for entry in suite.results.refused}))
        raise WrongAnswer(f"{len(suite.results.refused)} wrong answers were refused, of {who}; see bench.json")


def _teller(quiet: bool) -> Callable[[str], None]:
    def tell(line: str) -> None:
        if not quiet and sys.stderr.isatty():
            print(f"lpkernel bench: {line}", file=sys.stderr)

    return tell
