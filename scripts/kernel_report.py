"""The resources and estimated cost of the shipped GPU kernels, found without a GPU: `make kernel-report`.

Reads the CUDA kernels for sm_80, 90 and 100, in the built extension where that has them, compiles the Triton kernels
for these and gfx942 (registers, spills, shared memory, occupancy), runs the cases below through the compiled PTX of
sm_80 on the CPU (instructions, bytes), and compares both with the peaks of an H100. Writes out/kernel-report.md and
.json. Nothing is measured on hardware: times are lower bounds that no launch can beat, not what one takes.

tests/emulation/budgets.json holds what is allowed: more, or any spill, is an error. --write-budgets renews it, and
triton_resources.json beside it, which keeps the resources of Triton kernels that have not changed since.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from emulation.build import cuda_module, kernel_sources, translated_kernels
from emulation.compile import CSRC
from emulation.resources import (
    ARCHITECTURES,
    Resources,
    TritonKernel,
    blocks_per_multiprocessor,
    cuda_resources,
    record_resources,
)
from emulation.sass import inner_loop, listing
from emulation.shipped import cubin
from numpy.typing import DTypeLike
from scans import World

from lpkernel import plan as plans
from lpkernel.backends import cuda_launches
from lpkernel.backends.base import TopkRequest
from lpkernel.backends.cuda import CudaBackend, Tuning
from lpkernel.backends.cuda_launches import Launch, Machine, Work

ROOT = Path(__file__).resolve().parents[1]
BUDGETS = ROOT / "tests" / "emulation" / "budgets.json"
AMD = "gfx942"
CORES = len(os.sched_getaffinity(0))
SCREEN_TILE = 128  # queries, and bank rows, of a block that searches by tensor cores
SEARCH_BLOCKS = 2  # of a masked_topk with eight warps, that its launch bounds let a multiprocessor hold
SLAB = 1024  # most latents of a block that are run here; codes and searches, whose first ones cost more, are all run


@dataclass(frozen=True)
class Peaks:
    """Data sheet figures: bytes per second; lanes, and bytes of shared memory, per clock and multiprocessor."""

    multiprocessors: int = 132
    clock: float = 1.755e9
    memory: float = 3.35e12
    l2: float = 5.5e12
    l2_bytes: float = 50e6
    issue: int = 128
    integer: int = 64
    shared: int = 128
    lookups: float = 7.4e12  # of 4 bytes in shared memory, a second
    launch: float = 3e-6
    tensor: float = 989e12  # float16 multiplies and adds


H100 = Peaks()
MACHINE = Machine(H100.multiprocessors, 227 << 10, 90)


@dataclass(frozen=True)
class Case:
    """A shape of the work. run(native) does one block's share of `steps` steps on the emulated module.

    pairs: query-bank pairs of that share; operations: its lookups and adds, or multiplies and adds. The whole launch
    has `blocks` such blocks, `scale` times the work that is run here. memory: bytes that a step must fetch from the
    device's memory because they fit no cache; floor: the roofline's fixed seconds per step.
    """

    name: str
    kernel: str
    threads: int
    shared: int
    blocks: int
    steps: int
    pairs: int
    operations: int
    scale: float
    memory: float
    floor: float
    run: Callable[[ModuleType], None]


def _work(images: int, bank: int, plan: plans.Plan, k: int, codes: int, width: int) -> Work:
    compared = plan.flat.steps[:, 1]
    most = max(1, int(compared.max(initial=0)))
    return Work(images, bank, max(1.0, float(compared.mean())), most, k, codes, width)


def _kernel_name(launch: Launch) -> str:
    names = {cuda_launches.CODE_ROWS: f"CodeRows<{launch.tile}>", cuda_launches.CODE_GATHER: "CodeGather"}
    return f"scan_kernel<{names.get(launch.form, f'Latents<{launch.tile}>')}>"


def scan_case(name: str, images: int, bank: int, plan: plans.Plan, k: int, codes: int, channels: int) -> Case:
    """A scan as the launch table would start it on an H100; codes > 0: in the code domain."""
    work = _work(images, bank, plan, k, codes, 1 if codes else channels)
    launch = cuda_launches.choose(work, MACHINE)
    slab = -(-bank // launch.group)
    part = slab if codes else min(slab, SLAB)
    compared = int(plan.flat.steps[:, 1].sum())
    blocks = -(-images // launch.tile) * launch.group

    def run(native: ModuleType) -> None:
        world = World(part, plan.sides[-1], channels, codes or 64)
        request = world.request(plan, range(launch.tile), min(k, part), in_codes=bool(codes))
        backend = CudaBackend(native, "cpu")
        backend.tuning = Tuning(**{**asdict(launch), "group": 1})
        backend.scan(request)

    steps = len(plan.flat.steps)
    lookups = images * bank * compared / steps
    bank_bytes = bank * compared / steps * 2 * work.width
    cells = 1 if codes else work.width
    rate = H100.lookups if codes else H100.multiprocessors * H100.clock * H100.integer
    return Case(
        name=name,
        kernel=_kernel_name(launch),
        threads=launch.threads,
        shared=cuda_launches.shared_bytes(launch, work),
        blocks=blocks,
        steps=steps,
        pairs=launch.tile * part * steps,
        operations=2 * launch.tile * part * compared * cells,
        scale=slab / part,
        memory=0.0 if codes else bank_bytes,  # the codes of a bank fit the L2 cache
        floor=max(lookups * cells / rate, bank_bytes / (H100.l2 if codes else H100.memory)),
        run=run,
    )


def screen_case(queries: int, bank: int, width: int, k: int, dtype: DTypeLike) -> Case:
    """A masked_topk by tensor cores, without masks: two blocks of its screen, and their share of the other kernels."""
    rows, stride = 2 * SCREEN_TILE, 2  # more of the bank is sampled than on a GPU

    def run(native: ModuleType) -> None:
        random = np.random.default_rng(0)
        asked, held = ((99 * random.standard_normal((count, width))).astype(dtype) for count in (SCREEN_TILE, rows))
        backend = CudaBackend(native, "cpu")
        backend.tuning = Tuning(search=(8, 8, 1, 1, stride))
        backend.masked_topk(TopkRequest(asked, held, k, None, None))

    return Case(
        name=f"search {np.dtype(dtype).name}, Q={queries:,}, B={bank:,}, D={width}",
        kernel="screen_kernel<false, false, false>",
        threads=SCREEN_TILE,
        shared=4 * 2 * SCREEN_TILE * 64,
        blocks=-(-queries // SCREEN_TILE) * -(-bank // SCREEN_TILE),
        steps=1,
        pairs=SCREEN_TILE * rows,
        operations=2 * SCREEN_TILE * rows * width,
        scale=SCREEN_TILE / rows,
        memory=0.0,
        floor=max(2 * queries * bank * width / H100.tensor, bank * width * np.dtype(dtype).itemsize / H100.memory),
        run=run,
    )


def search_case(queries: int, bank: int, width: int, k: int, dtype: DTypeLike) -> Case:
    """A masked_topk without masks, as the launch table would start it on an H100; its "step" is the search."""
    if cuda_launches.choose_stride(queries, bank, k):
        return screen_case(queries, bank, width, k, dtype)
    size = np.dtype(dtype).itemsize
    tile = cuda_launches.choose_topk(queries, bank, k, MACHINE.shared)
    slabs = cuda_launches.choose_slabs(queries, bank, tile, SEARCH_BLOCKS * H100.multiprocessors)
    here, slab = min(queries, tile[0] * tile[1]), -(-bank // slabs)

    def run(native: ModuleType) -> None:
        random = np.random.default_rng(0)
        asked, rows = ((99 * random.standard_normal((count, width))).astype(dtype) for count in (here, slab))
        CudaBackend(native, "cpu").masked_topk(TopkRequest(asked, rows, k, None, None))

    lanes = H100.issue if size == 4 else H100.integer
    bank_bytes = bank * width * size
    cached = bank_bytes <= H100.l2_bytes
    rows, map_words = 128 * tile[2], here * 32
    return Case(
        name=f"search {np.dtype(dtype).name}, Q={queries:,}, B={bank:,}, D={width}",
        kernel=f"masked_topk_kernel<{'FloatRows' if size == 4 else 'Int16Rows'}, false, {tile[0]}>",
        threads=32 * tile[1] * tile[2],
        shared=2 * (rows * (32 * size + 16) + 4 * map_words + 128) + -(-here * tile[2] * k * 8 // 16) * 16,
        blocks=-(-queries // here) * slabs,
        steps=1,
        pairs=here * slab,
        operations=2 * here * slab * width,
        scale=1.0,
        memory=0.0 if cached else bank_bytes,
        floor=max(
            2 * queries * bank * width / (H100.multiprocessors * H100.clock * lanes),
            bank_bytes / (H100.l2 if cached else H100.memory),
        ),
        run=run,
    )


def cases() -> list[Case]:
    """The shapes that the kernels are made for."""
    full = plans.reference(side=16, patch=6, scales=[16])
    searches = [search_case(q, 30_000, 512, 10, dtype) for dtype in (np.float32, np.int16) for q in (16, 4096)]
    return [
        scan_case("codes, N=16, B=30,000", 16, 30_000, full, 16, 256, 4),
        scan_case("codes, N=10,000, B=30,000", 10_000, 30_000, full, 16, 256, 4),
        scan_case("latents C=16, N=16, B=30,000", 16, 30_000, full, 16, 0, 16),
        scan_case("latents C=16, N=10,000, B=30,000", 10_000, 30_000, full, 16, 0, 16),
        scan_case("latents C=16, N=16, B=16, five scales", 16, 16, plans.reference(), 8, 0, 16),
        *searches,
    ]


TARGETS = (*ARCHITECTURES, AMD)


def triton_kernels() -> dict[str, dict[str, Resources]]:
    """Kernel -> target -> resources, of all that lpkernel.triton_kernels.configs ships, for `TARGETS`."""
    found: dict[str, dict[str, Resources]] = {}
    wanted = triton_wanted()
    if not all(kernel.known for _, _, kernel in wanted):
        # processes, since Triton compiles one kernel at a time; each takes every n-th kernel
        with ProcessPoolExecutor(CORES, get_context("spawn")) as pool:
            list(pool.map(_compile_triton, range(CORES)))
    for name, label, kernel in wanted:
        found.setdefault(f"triton {name}", {})[label] = kernel.resources()
    return found


def triton_wanted() -> list[tuple[str, str, TritonKernel]]:
    """(name, target's name, kernel) of all Triton kernels."""
    from lpkernel.triton_kernels.configs import shipped

    return [
        (name, label, TritonKernel(kernel, signature, constexprs, target, warps, stages))
        for target in TARGETS
        for family, label in [("cuda", f"sm_{target}") if isinstance(target, int) else ("hip", str(target))]
        for name, kernel, signature, constexprs, warps, stages in shipped(family)
    ]


def _compile_triton(first: int) -> None:
    for _, _, kernel in triton_wanted()[first::CORES]:
        kernel.resources()


_BYTES = re.compile(r"^(ld|st|atom|red)\b.*?\.(shared|global)\b.*?(?:\.v(\d))?\.[a-z]+(\d+)$")
_INTEGER = re.compile(
    r"^(add|sub|mul|mad|min|max|setp|selp|and|or|xor|not|shl|shr|shf|lop3|prmt|bfe|bfi|popc|dp\da|neg|abs)\b.*\.[subp]\w*$"
)


def traffic(counts: dict[str, int]) -> dict[str, int]:
    """Bytes that the counted instructions move, by kind of memory."""
    moved = {"shared": 0, "global": 0}
    for opcode, count in counts.items():
        match = _BYTES.match(opcode)
        if match:
            moved[match[2]] += count * int(match[3] or 1) * int(match[4]) // 8
        elif opcode.startswith("cp.async.c"):
            moved["global"] += 16 * count
            moved["shared"] += 16 * count
    return moved


@dataclass(frozen=True)
class Estimate:
    """For a case: all threads' instructions per pair and operation; seconds per step by each bound of the roofline."""

    case: str
    kernel: str
    blocks: int
    threads: int
    shared: int
    per_pair: float
    per_operation: float
    shared_bytes_per_pair: float
    global_bytes_per_pair: float
    bounds: dict[str, float]
    floor: float
    top: list[tuple[str, float]]

    @property
    def seconds(self) -> float:
        return max(self.bounds.values())


def estimate(case: Case) -> Estimate:
    """Runs a case and compares its instructions with the peaks."""
    module = translated_kernels(80)
    native = cuda_module(ptx_arch=80)
    before = module.counts()
    case.run(native)
    counts = {opcode: count - before[opcode] for opcode, count in module.counts().items() if count > before[opcode]}
    total, moved = sum(counts.values()), traffic(counts)
    integer = sum(count for opcode, count in counts.items() if _INTEGER.match(opcode))
    waves = -(-case.blocks // H100.multiprocessors)  # blocks that share the busiest multiprocessor
    share = case.scale / case.steps * waves / H100.clock
    bounds = {
        "issue": total * share / H100.issue,
        "integer": integer * share / H100.integer,
        "shared memory": moved["shared"] * share / H100.shared,
        "L2": moved["global"] * case.scale / case.steps * case.blocks / H100.l2,
        "memory": case.memory / H100.memory,
    }
    return Estimate(
        case=case.name,
        kernel=case.kernel,
        blocks=case.blocks,
        threads=case.threads,
        shared=case.shared,
        per_pair=total / case.pairs,
        per_operation=total / case.operations,
        shared_bytes_per_pair=moved["shared"] / case.pairs,
        global_bytes_per_pair=moved["global"] / case.pairs,
        bounds=bounds,
        floor=case.floor,
        top=sorted(((o, c / case.pairs) for o, c in counts.items()), key=lambda item: -item[1])[:8],
    )


def cuda_kernels() -> dict[str, dict[str, Resources]]:
    """Kernel -> target -> resources, of all CUDA kernels."""
    found: dict[str, dict[str, Resources]] = {}
    for arch in ARCHITECTURES:
        for source in kernel_sources():
            for name, one in cuda_resources(source, arch).items():
                found.setdefault(name, {})[f"sm_{arch}"] = one
    return found


def estimates() -> list[Estimate]:
    """Estimates of all cases."""
    return [estimate(case) for case in cases()]


ENTRIES = 16  # loads of four table entries that an iteration of `CodeRows<4>` does: 64 lookups and as many adds


def code_loops() -> dict[str, Counter[str]]:
    """Target -> machine instructions of an iteration over cells in the code kernel with tiles of four images."""
    cubins = {f"sm_{arch}": cubin(CSRC / "cuda" / "scan.cu", arch) for arch in ARCHITECTURES}
    return {target: inner_loop(listing(code), "CodeRowsILi4E", "LDS.128", ENTRIES) for target, code in cubins.items()}


def problems(found: dict[str, dict[str, Resources]], estimates: list[Estimate], budgets: dict[str, Any]) -> list[str]:
    """Where the kernels take more than budgets.json allows, or are not in it."""
    said: list[str] = []
    for name, targets in found.items():
        for target, one in targets.items():
            if one.spilled or one.stack:
                said.append(f"{name} on {target} spills {one.spilled} bytes and has a stack of {one.stack}")
            allowed = budgets["registers"].get(name, {}).get(target)
            if allowed is None or one.registers > allowed:
                said.append(f"{name} on {target} takes {one.registers} registers, budget {allowed}")
    for one_case in estimates:
        allowed = budgets["instructions_per_pair"].get(one_case.case)
        if allowed is None or one_case.per_pair > allowed:
            said.append(f"{one_case.case}: {one_case.per_pair:.2f} instructions a pair, budget {allowed}")
        for arch in ARCHITECTURES:
            blocks = occupancy(one_case, found, arch)
            wanted = budgets["blocks_per_multiprocessor"].get(one_case.case, {}).get(f"sm_{arch}")
            if blocks is not None and (wanted is None or blocks < wanted):
                said.append(f"{one_case.case} on sm_{arch}: {blocks} blocks a multiprocessor, budget {wanted}")
    return said


def occupancy(one: Estimate, found: dict[str, dict[str, Resources]], arch: int) -> int | None:
    """Blocks of a case's launch that a multiprocessor holds; None if the kernel is not there."""
    kernel = found.get(one.kernel, {}).get(f"sm_{arch}")
    if kernel is None:
        return None
    return blocks_per_multiprocessor(arch, kernel.registers, kernel.shared, one.shared, one.threads)


def renewed(found: dict[str, dict[str, Resources]], estimates: list[Estimate]) -> dict[str, Any]:
    """Budgets that allow what was found: registers up to the next multiple of 8, 2 % more instructions."""
    return {
        "registers": {n: {t: -(-r.registers // 8) * 8 for t, r in targets.items()} for n, targets in found.items()},
        "instructions_per_pair": {one.case: math.ceil(one.per_pair * 102) / 100 for one in estimates},
        "blocks_per_multiprocessor": {
            one.case: {f"sm_{arch}": occupancy(one, found, arch) for arch in ARCHITECTURES} for one in estimates
        },
    }


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markdown(found: dict[str, dict[str, Resources]], estimates: list[Estimate], loops: dict[str, Counter[str]]) -> str:
    compiled = [
        [f"`{name}`", target, str(one.registers), str(one.spilled), str(one.stack), str(one.shared)]
        for name, targets in found.items()
        for target, one in targets.items()
    ]
    launches = [
        [one.case, f"`{one.kernel}`", str(one.blocks), str(one.threads), f"{one.shared:,}"]
        + [str(occupancy(one, found, arch)) for arch in ARCHITECTURES]
        for one in estimates
    ]
    work = [
        [
            one.case,
            f"{one.per_pair:.1f}",
            f"{one.per_operation:.2f}",
            f"{one.shared_bytes_per_pair:.0f}",
            f"{one.global_bytes_per_pair:.1f}",
            *(f"{1e6 * bound:.2f}" for bound in one.bounds.values()),
            f"{1e6 * one.seconds:.2f}",
            f"{1e6 * one.floor:.2f}",
        ]
        for one in estimates
    ]
    machine = [
        [
            target,
            str(loop.total()),
            f"{loop.total() / (4 * ENTRIES):.2f}",
            f"{loop.total() / (8 * ENTRIES):.2f}",
            ", ".join(f"{count} {opcode}" for opcode, count in loop.most_common(5)),
        ]
        for target, loop in loops.items()
    ]
    bounds = list(estimates[0].bounds) if estimates else []
    head = ["shape", "instructions a pair", "an operation", "shared bytes a pair", "global bytes a pair", *bounds]
    return f"""# Kernel report

Made by `make kernel-report` without a GPU. **Estimates, not measurements**: registers, spills and occupancy are the
compilers' and NVIDIA's own arithmetic; instructions are those of sm_80 PTX executed on the CPU, of all threads
(machine code differs a little); times are what the peaks of an H100 allow ({H100.multiprocessors} multiprocessors at
{H100.clock / 1e9} GHz, {H100.memory / 1e12} TB/s from memory, {H100.l2 / 1e12} TB/s from L2), without latencies,
bank conflicts, barriers between blocks and the {H100.launch * 1e6:.0f} µs of the one launch.

## Compiled kernels

Registers a thread; spilled, stack and static shared memory in bytes.

{_table(["kernel", "target", "registers", "spilled", "stack", "shared"], compiled)}

## Launches on an H100

As the launch table chooses them; blocks of it that a multiprocessor holds.

{_table(["shape", "kernel", "blocks", "threads", "shared bytes", *(f"sm_{a}" for a in ARCHITECTURES)], launches)}

## Work and roofline, a step

An operation is a lookup or an add (codes), a multiply or an add (latents), a difference or the addition of its square
(searches); the goal for codes with many images is 1.5 instructions an operation. Times in µs; the estimate is the
largest bound, the floor what the shape needs at least (bytes of the bank, lookups at 7.4 × 10¹² a second).

{_table([*head, "estimate", "floor"], work)}

## Machine code of the code kernel's inner loop

What a thread of `scan_kernel<CodeRows<4>>` executes for a cell: {4 * ENTRIES} lookups and as many adds, of 16 bank
images and four queries. Counted in the machine code, unlike the PTX above, and without what is around the loop:
table rows and selection.

{_table(["target", "instructions", "a pair and cell", "an operation", "most frequent"], machine)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write-budgets", action="store_true", help="rewrite budgets.json and triton_resources.json")
    options = parser.parse_args()
    found = {**cuda_kernels(), **triton_kernels()}
    made = estimates()
    if options.write_budgets:
        BUDGETS.write_text(json.dumps(renewed(found, made), indent=1) + "\n", encoding="utf-8")
        record_resources(kernel for _, _, kernel in triton_wanted())
    text = markdown(found, made, code_loops())
    (ROOT / "out").mkdir(exist_ok=True)
    (ROOT / "out" / "kernel-report.md").write_text(text, encoding="utf-8")
    record = {
        "kernels": {name: {t: asdict(one) for t, one in targets.items()} for name, targets in found.items()},
        "cases": [asdict(one) | {"seconds": one.seconds} for one in made],
    }
    (ROOT / "out" / "kernel-report.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(text)
    said = problems(found, made, json.loads(BUDGETS.read_text(encoding="utf-8")))
    if said:
        raise SystemExit("over budget:\n" + "\n".join(said))


if __name__ == "__main__":
    main()
