"""How the CUDA scan is launched: which form, tile, group and block size for which work, as data and arithmetic.

Results do not depend on it. Every admissible launch is priced by the roofline below, in seconds per step, and the
cheapest is taken; the rates are figures from data sheets and estimates, not measurements.

A step of N images costs, for each block: its lookups (or multiply-adds) at the rate of a multiprocessor; the bytes that
it takes from L2 (its slab of the bank; for table rows V * 4 * tile bytes per cell and chunk of bank images), at the
block's share of the device's L2 rate; and a fixed latency, more if blocks must meet. Hence the three shapes:

- a small bank: the latency dominates, so one block per image and no barrier;
- few images, a large bank: groups of blocks until the device is full; table rows are loaded once per block, so the
  larger tile is worth it only while slabs stay larger than V;
- many images, a large bank: tiles of 4, so that bank bytes serve four images, and no barrier.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

CODE_ROWS, CODE_GATHER, LATENTS = "rows", "gather", "latents"
TILES = {CODE_ROWS: (1, 4), CODE_GATHER: (1,), LATENTS: (1, 4)}  # the kernels that exist
MOST_THREADS = 384
MOST_NEIGHBOURS = 128
MOST_CUT = 32  # patch side of a plan with boundaries
MOST_ROW_CODES = 4096  # whose offsets of 16 bytes fit 16 bits
CODE_SHIFT = 4  # so they are stored
ROW_BYTES = 1 << 16  # shared memory for table rows, if one cell does not need more
SPAN_BYTES = 1 << 15  # shared memory for compared cells
FETCHERS = 64  # threads of a block that only bring table rows
# From these sizes on tensor cores search, judging by sketches: nine launches of a few microseconds each, and the bank
# written once as float16, against 2 instructions per column and pair.
SCREEN_QUERIES, SCREEN_ROWS = 32, 4096
SCREEN_STRIDE = 8
CHUNK = {1: 32, 4: 16}  # bank images that each of the others owns at a time, by tile


@dataclass(frozen=True)
class Rates:
    """Rates of an architecture: lookups and multiplies per clock and multiprocessor; l2 and memory in bytes a second.

    Random lookups in shared memory have bank conflicts: 16-byte ones are served 8 lanes at a time in about 2.6 turns
    each, 4-byte ones 32 lanes in about 3.5 turns. A gather from L1 is worth about 4.
    """

    clock: float
    l2: float
    memory: float
    lookups: dict[tuple[str, int], float]
    multiplies: float = 64.0


_LOOKUPS = {(CODE_ROWS, 4): 12.0, (CODE_ROWS, 1): 9.0, (CODE_GATHER, 1): 4.0}
RATES = {
    80: Rates(1.41e9, 4.0e12, 1.9e12, _LOOKUPS),
    90: Rates(1.75e9, 5.5e12, 3.3e12, _LOOKUPS),
    100: Rates(1.85e9, 9.0e12, 7.7e12, _LOOKUPS),
}
STEP_SECONDS = 2e-6  # per step of one block: staging, merging, copying, each a few round trips to L2
BARRIER_SECONDS = 1.5e-6  # added when blocks meet
REGISTERS_PER_THREAD = 168  # what the kernels are compiled to at most


@dataclass(frozen=True)
class Machine:
    """A device: its multiprocessors, the shared memory a block may have, its capability (80 is 8.0), its memory."""

    multiprocessors: int
    shared: int
    capability: int
    memory: int = 80 << 30


@dataclass(frozen=True)
class Work:
    """A scan: n images, A allowed bank images, the mean and most cells that a step compares, V codes (0: latents).

    cut: the patch side of a plan with boundaries, else 0.
    """

    images: int
    allowed: int
    compared: float
    most: int
    k: int
    codes: int
    width: int
    cut: int = 0


@dataclass(frozen=True)
class Launch:
    """What `ScanShape` of csrc/cuda/scan.h says, before the launch knows how many groups fit the device."""

    form: str
    tile: int
    group: int
    threads: int
    split: int
    span: int
    depth: int


@dataclass(frozen=True)
class StepTile:
    """A tile of a plan that runs step by step: images and bank images of a block (csrc/cuda/steps.h)."""

    images: int
    bank: int


STEP_TILES = (StepTile(64, 128), StepTile(128, 128))
STEP_SHARED = 97 << 10  # bytes of a block of 128 images and 128 bank images
MOST_LISTED = 1024  # bank images that an image lists in a step
# A plan runs step by step from this many images, and pairs of images and bank images. Time of one launch of the whole
# plan / time step by step, on an H100: B = 30,000, N = 16 0.7, 64 1.4, 256 2.2, 4,096 4.3; B = 999, five scales,
# N = 64 0.9, 256 1.5, 4,096 4.1; B = 16, N = 4,096 1.0.
STEP_IMAGES, STEP_PAIRS = 48, 1 << 17


def choose_steps(work: Work, machine: Machine) -> StepTile | None:
    """The tile for a plan that should run step by step, None for others.

    With few images the smaller tile is faster: N = 64, tiles of 64 and 128 images took 2.2 and 3.1 ms on an H100. One
    of 32 images took 2.5 ms and is not among the kernels.
    """
    if work.images < STEP_IMAGES or work.images * work.allowed < STEP_PAIRS:
        return None
    small, large = STEP_TILES
    return small if work.images <= small.images or machine.shared < STEP_SHARED else large


@dataclass(frozen=True)
class Walk:
    """A plan whose images walk through tables of distances (csrc/cuda/walk.h).

    rows: images at a time. begins: see `device_walk.begins`.
    """

    rows: int
    begins: bool


# By arithmetic, not yet timed on a card. A step of an image is a chain: sources and pointers of rows in shared memory
# (some 120 cycles), one load of rows (L2 answers in some 250 ns, memory in 600), sums (60), the keys of K = 3 (150;
# of more than one warp 300), new sources (40): together some 0.5 us from L2 and 1 to 2 us from memory, where one
# launch of the whole plan takes 7 to 25 (measured). It reads 4 bytes per compared cell and bank image: 37 KB a step for
# 16 images from 16; 37 MB, or 11 us of an H100's memory, for 256 from 999, where step by step takes 48 (measured). With
# more pairs of images and bank images tensor cores, which read a bank once for many images, have the edge again, unless
# the tables fit L2.
WALK_L2, WALK_PAIRS = 1 << 25, 1 << 20
WALK_SHARE = 32  # tables may take one part in so many of a device's memory
WALK_ROWS = 1 << 30  # bytes, at a time, of what images start their scales with


def choose_walk(images: int, allowed: int, tables: int, machine: Machine) -> bool:
    """Whether images should walk through tables of so many bytes."""
    return tables <= machine.memory // WALK_SHARE and (tables <= WALK_L2 or images * allowed <= WALK_PAIRS)


# From so many maps on, seams are refined on the device. By arithmetic, not yet timed on a card: a block refines a map
# of side 16 in some 60 us, of which 16 half sweeps that wait for memory twice take 1 to 1.5 us each, and two passes
# over some 20 small parts, one after the other, 0.6 to 1 us a part. As many maps as a device holds at once, some 600 on
# an H100, take no longer than one. The host needs 20 us of a core for a map (measured), so 16 cores are as quick up to
# some 50 maps; the rest is a margin for what arithmetic overlooks.
REFINE_IMAGES = 256
REFINE_SIDE = 64  # the largest side


def refine_bytes(side: int, part: int) -> int:
    """Shared memory of a block that refines a map with moving parts of up to `part` cells: `plan_refine` of
    csrc/cuda/refine.h, which refuses a launch that says otherwise."""
    return sum((4 * count + 15) // 16 * 16 for count in (*6 * (side * side,), part, 4 * part, 4 * part))


def shared_bytes(launch: Launch, work: Work) -> int:
    """Shared memory of a block: `shared_map` of csrc/cuda/scan.h, which refuses a launch that says otherwise."""
    parts = (
        2 * launch.depth * work.codes * launch.tile * 4 if launch.form == CODE_ROWS else 0,
        launch.span * launch.tile * (work.width if launch.form == LATENTS else 1) * 4,
        launch.span * 8,
        launch.tile * (launch.threads // 32) * (work.k | 1) * 8,
        5 * launch.tile * 4,
        2 * launch.tile * work.cut * 4,
        2 * launch.tile * work.cut**2 * 4,
    )
    return sum((part + 15) // 16 * 16 for part in parts)


@lru_cache(4096)  # pricing all launches takes longer than a small scan
def choose(work: Work, machine: Machine, **fixed: int | str | None) -> Launch:
    """The cheapest launch; `fixed` names fields of it that are given. Raises ValueError when none fits the device."""
    wanted = {name: value for name, value in fixed.items() if value is not None}
    best: tuple[float, Launch] | None = None
    for launch in _launches(work, machine, wanted):
        if shared_bytes(launch, work) > machine.shared:
            continue
        cost = seconds(launch, work, machine)
        if best is None or cost < best[0]:
            best = cost, launch
    if best is None:
        raise ValueError(f"no kernel for {work} fits {machine.shared} bytes of shared memory")
    return best[1]


def choose_topk(queries: int, rows: int, k: int, shared: int) -> tuple[int, int, int]:
    """Tile, query warps and bank warps of `TopkShape` (csrc/cuda/topk.h) for a search of Q queries in B rows.

    A bank row in shared memory serves all queries of a block, so there are 8 queries per warp and up to 8 warps, if
    there are that many queries: with 64, a byte from L2 serves 32 multiply-adds, and two blocks of 77 KiB (K = 16) fit
    a multiprocessor of 164 KiB. Few warps share two warps' rows, so that more bytes are in flight. There are fewer
    warps where the lists of a large K would not fit the `shared` bytes of a block.
    """
    tile = 8 if queries > 2 else 2
    query_warps = min(8, -(-queries // tile))
    while query_warps > 1 and topk_bytes(tile, query_warps, 1, k) > shared:
        query_warps = -(-query_warps // 2)
    fits = topk_bytes(tile, query_warps, 2, k) <= shared
    return tile, query_warps, 2 if rows > 128 and query_warps <= 2 and fits else 1


def topk_bytes(tile: int, query_warps: int, bank_warps: int, k: int) -> int:
    """Most shared memory of a block: `topk_map` of csrc/cuda/topk.h for float32 with a mask for each query."""
    bank, queries, lists = 128 * 144 * bank_warps, 32 * 4 * tile * query_warps, 8 * tile * query_warps * bank_warps * k
    return 2 * (bank + 2 * queries) + lists


def choose_slabs(queries: int, rows: int, tile: tuple[int, int, int], blocks: int) -> int:
    """Parts of the bank, so that `blocks` resident blocks are busy, each with a tile of rows or more."""
    tiles = -(-queries // (tile[0] * tile[1]))
    return max(1, min(blocks // tiles, -(-rows // (128 * tile[2]))))


def choose_stride(queries: int, rows: int, k: int) -> int:
    """In a search by tensor cores (csrc/cuda/screen.cuh), one bank row in so many is in its sample; 0 for no sample.

    About stride * K survivors are measured, and 1 / stride of the products is computed twice. The sample must
    have several groups of rows for each of K.
    """
    if queries < SCREEN_QUERIES or rows < SCREEN_ROWS:
        return 0
    return max(2, min(SCREEN_STRIDE, rows // (8 * k)))


def seconds(launch: Launch, work: Work, machine: Machine) -> float:
    """Estimated seconds of a step, for all images."""
    rates = RATES[max((known for known in RATES if known <= machine.capability), default=min(RATES))]
    tiles = -(-work.images // launch.tile)
    resident = _resident(launch, work, machine)
    blocks = min(tiles, max(1, resident * machine.multiprocessors // launch.group)) * launch.group
    waves = -(-tiles * launch.group // blocks)
    slab = -(-work.allowed // launch.group)
    pairs = slab * launch.tile * work.compared
    if launch.form == LATENTS:
        arithmetic = slab * work.compared * work.width * (2 + 1.25 * launch.tile) / rates.multiplies
        row_bytes = 0.0
    else:
        arithmetic = pairs / rates.lookups[launch.form, launch.tile]
        chunks, row = 1, min(slab * 8, work.codes)
        if launch.form == CODE_ROWS:
            chunks, row = -(-slab // ((launch.threads - FETCHERS) * CHUNK[launch.tile])), work.codes
        row_bytes = row * 4.0 * launch.tile * work.compared * chunks
    bank_bytes = slab * work.compared * work.width * 2
    beside = -(-blocks // machine.multiprocessors)  # blocks that share a multiprocessor
    device_bank = work.allowed * work.compared * work.width * 2 / rates.memory if work.codes == 0 else 0.0
    busy = max(arithmetic * beside / rates.clock, (row_bytes + bank_bytes) * blocks / rates.l2, device_bank)
    return waves * (busy + STEP_SECONDS + (BARRIER_SECONDS if launch.group > 1 else 0.0))


def _resident(launch: Launch, work: Work, machine: Machine) -> int:
    by_registers = 65536 // (REGISTERS_PER_THREAD * launch.threads)
    by_shared = machine.shared // shared_bytes(launch, work)
    return max(1, min(by_registers, by_shared))


def _launches(work: Work, machine: Machine, wanted: dict[str, int | str]) -> Iterator[Launch]:
    coded = (CODE_ROWS, CODE_GATHER) if work.codes <= MOST_ROW_CODES else (CODE_GATHER,)
    for form in coded if work.codes else (LATENTS,):
        for tile in TILES[form]:
            tiles = -(-work.images // tile)
            fill = max(1, machine.multiprocessors // tiles)
            groups = {1, fill, *(1 << power for power in range(1, 8))}
            for group in sorted(groups if "group" not in wanted else {int(wanted["group"])}):
                if "group" not in wanted and (group > machine.multiprocessors or group > -(-work.allowed // 32)):
                    continue
                launch = _fill_in(form, tile, group, work, wanted)
                fetches = form != CODE_ROWS or launch.threads > FETCHERS
                if fetches and all(getattr(launch, name) == value for name, value in wanted.items()):
                    yield launch


def _fill_in(form: str, tile: int, group: int, work: Work, wanted: dict[str, int | str]) -> Launch:
    """Block size, split, span and depth for a form, tile and group."""
    slab = -(-work.allowed // group)
    if "threads" in wanted:
        threads = int(wanted["threads"])
    elif form == CODE_ROWS:
        chunks = -(-slab // ((MOST_THREADS - FETCHERS) * CHUNK[tile]))
        threads = FETCHERS + -(-slab // (chunks * CHUNK[tile] * 32)) * 32
    else:
        threads = 128 if slab <= 512 else 256
    split = 1 if form == CODE_ROWS else max(1, min(32, _power(threads // slab + 1) // 2 if slab <= threads else 1))
    per_cell = tile * 4 * (work.width if form == LATENTS else 1)
    span = max(1, min(work.most, SPAN_BYTES // per_cell))
    depth = max(1, min(work.most, ROW_BYTES // (2 * work.codes * tile * 4))) if form == CODE_ROWS else 0
    if form == CODE_ROWS:
        return Launch(form, tile, group, threads, 1, _given(wanted, "span", span), _given(wanted, "depth", depth))
    return Launch(form, tile, group, threads, _given(wanted, "split", split), _given(wanted, "span", span), 0)


def _given(wanted: dict[str, int | str], name: str, otherwise: int) -> int:
    return int(wanted.get(name, otherwise))


def _power(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << max(0, number - 1).bit_length()
