"""lpkernel info: what is installed and what can run here."""

from __future__ import annotations

import argparse
from typing import Any

from lpkernel.commands.common import add_autoencoder, add_compile, add_output, report


def register(commands: Any) -> None:
    parser = commands.add_parser("info", help="versions, hardware, and each backend: usable or the reasons why not")
    add_autoencoder(parser)
    add_compile(parser)
    add_output(parser)
    parser.set_defaults(run=run, begins=lambda _: "looking at this machine")


def run(args: argparse.Namespace) -> None:
    from lpkernel.info import info

    found = info(args.autoencoder, args.device, args.dtype, args.compile)
    report(args, found, _lines(found))


def _lines(found: dict[str, Any]) -> list[str]:
    rows = [("lpkernel", found["lpkernel"]), ("python", f"{found['python']}, {found['platform']}")]
    rows += [(name, version or "not installed") for name, version in found["packages"].items()]
    cpu = found["cpu"]
    rows.append(("cpu", f"{cpu['model']}, {cpu['usable_cores']} of {cpu['cores']} cores usable"))
    rows += [("gpu", name) for name in found["gpus"] or ["none that torch can use"]]
    for name, build in found["build"].items():
        made = f"{build.get('compiler')}, {' '.join(build.get('flags', []))}" if build["built"] else build["reason"]
        rows.append((f"build {name}", made if build["built"] else f"not built: {made}"))
    rows += [(f"data {name}", "present" if there else "missing") for name, there in found["data"].items()]
    for name, backend in found["backends"].items():
        rows.append((f"backend {name}", "usable" if backend["usable"] else "no: " + "; ".join(backend["reasons"])))
    rows.append(("backend auto", found["auto"]["backend"] or f"none: {found['auto']['reason']}"))
    made = found["autoencoder"]
    if "layers" in made:
        rows += [(f"autoencoder {kind}", line) for kind, line in made["layers"].items()]
    else:
        rows.append(("autoencoder", f"no: {made['reason']}"))
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]
