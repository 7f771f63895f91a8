"""One run by several processes that torchrun starts: each makes a share of the images, the first collects them.

    torchrun --nproc-per-node N -m lpkernel generate ...

Process r of N makes images floor(n r / N) to floor(n (r + 1) / N) - 1, each the same as ever, in the folder
rank-r-of-N of --out, where it goes on after a kill. Then the first process moves all of it to --out, whose files are
those of a run by one process. The processes tell each other only how they ended, through gloo, also where they work on
GPUs: each on that of its number on its machine.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Thread

from lpkernel._startup import INTERRUPTED
from lpkernel.commands.runs import FACTS, PART, SOURCES
from lpkernel.commands.tar_shard import shard_name
from lpkernel.errors import USAGE_ERROR, InputError, LpkernelError, one_line

LONGEST = timedelta(days=30)  # that a process waits for the slowest
_SHARD = re.compile(r"rank-(\d+)-of-(\d+)")


@dataclass(frozen=True)
class Rank:
    """This process among `world` processes."""

    number: int
    world: int

    @staticmethod
    def of_environment() -> Rank | None:
        """The rank that torchrun sets; None where there is only one process."""
        names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        if not all(name in os.environ for name in names):
            return None
        texts = [os.environ[name] for name in names if name != "MASTER_ADDR"]
        if not all(text.isascii() and text.isdecimal() and len(text) < 10 for text in texts):
            raise InputError(f"RANK, WORLD_SIZE, MASTER_PORT: got {', '.join(texts)}, expected the numbers of torchrun")
        number, world, _ = map(int, texts)
        if number >= max(1, world):
            raise InputError(f"RANK: got {number}, expected less than WORLD_SIZE, {world}")
        return Rank(number, world) if world > 1 else None

    def share(self, count: int) -> range:
        """This process's images among `count`."""
        return range(count * self.number // self.world, count * (self.number + 1) // self.world)

    def folder(self, out: Path) -> Path:
        return out / f"rank-{self.number}-of-{self.world}"


def run(args: argparse.Namespace, name: str, make: Callable[[argparse.Namespace, bool, Sequence[Path]], None]) -> None:
    """A run of the command `name` by this process, or by all that torchrun has started.

    make(args, share, shards): make a run's images; a share leaves out what is made from all of them, and the whole run
    takes over what shards, in order, hold already. Raises InputError in the first process for a failure in any.
    """
    rank = Rank.of_environment()
    if rank is None:
        _check_shards(args, name, 1)
        return make(args, False, ())
    import torch.distributed as dist

    _take_gpu(args.device)
    try:
        with _last_words(rank):
            dist.init_process_group("gloo", timeout=LONGEST)
            _together(rank, lambda: _share(args, name, rank, make))
            shards = [Rank(number, rank.world).folder(args.out) for number in range(rank.world)]
            shards = [shard for shard in shards if shard.is_dir() and not shard.is_symlink()]
            _together(rank, lambda: _whole(args, shards, make, rank))
    except RuntimeError as error:  # from gloo, when the other end is gone
        raise InputError(f"another process of this job has ended; {_KEPT}") from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


_KEPT = "what was written is kept, and the same command resumes the run"


@contextmanager
def _last_words(rank: Rank) -> Iterator[None]:
    """torchrun ends all processes by SIGTERM when one has failed: then this one ends at once, with one line.

    Not by a handler in Python, which would not run while the process waits for others. A process forked meanwhile ends
    as it did before.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    own, done = os.getpid(), 0  # a byte that is no signal ends the thread

    def wait() -> None:
        while done not in (signals := os.read(reading, 64)):
            if signal.SIGTERM in signals:
                words = Thread(target=say, daemon=True)
                words.start()
                words.join(1)  # nobody may be reading
                os._exit(INTERRUPTED)

    def say() -> None:
        with suppress(OSError):
            os.write(2, f"lpkernel: process {rank.number}: told to end; {_KEPT}\n".encode())

    def forked() -> None:
        if os.getpid() != own and signal.getsignal(signal.SIGTERM) is ignored:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def ignored(*_: object) -> None:
        """The thread hears of it."""

    os.register_at_fork(after_in_child=forked)
    thread = Thread(target=wait, daemon=True)
    thread.start()
    fd = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = signal.signal(signal.SIGTERM, ignored)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.set_wakeup_fd(fd)
        os.write(writing, bytes([done]))
        thread.join()
        os.close(writing)
        os.close(reading)


def _take_gpu(device: str) -> None:
    """Makes this process's GPU the current one, where the machine has several and none is named."""
    import torch

    local = os.environ.get("LOCAL_RANK", "")
    if device in ("auto", "cuda") and local.isdecimal() and (count := torch.cuda.device_count()) > 1:
        try:
            torch.cuda.set_device(int(local) % count)
        except RuntimeError as error:
            raise InputError(f"GPU {int(local) % count} of {count}: {one_line(error)}") from error


def _check_shards(args: argparse.Namespace, name: str, world: int) -> None:
    """Raises InputError where another number of processes has begun a run that is not complete."""
    if (args.out / f"{name}.json").exists() and not args.overwrite:
        return  # the run is complete, or another run's: the run itself will check
    others = [match for match in map(_SHARD.fullmatch, _names(args.out)) if match and int(match[2]) != world]
    if others:
        count = others[0][2]
        raise InputError(
            f"--out {args.out}: holds what {count} processes made; resume with torchrun --nproc-per-node {count}, or "
            f"remove its folders rank-*-of-{count}"
        )


def _together(rank: Rank, work: Callable[[], None]) -> None:
    """Do this process's work and wait for the others. If any fails, the first process says why and all end."""
    from lpkernel.distributed import told

    failure = None
    try:
        work()
    except (LpkernelError, OSError) as error:
        failure = str(error)
    for number, said in enumerate(told(failure)):
        if said is not None:
            if rank.number == 0:
                raise InputError(said if number == 0 else f"process {number}: {said}")
            raise SystemExit(USAGE_ERROR)


def _share(args: argparse.Namespace, name: str, rank: Rank, make: Callable[..., None]) -> None:
    if len(args.where or []) > 1:
        raise InputError("--where: only a single process makes several groups; give one --where, or leave torchrun out")
    if (args.out / f"{name}.json").exists() and not args.overwrite:
        return  # the first process will check whether it is this run
    _check_shards(args, name, rank.world)
    mine, folder = rank.share(args.n), rank.folder(args.out)
    if folder.is_symlink():
        raise InputError(f"{folder} is a link, which no run makes; remove it")
    if not mine:
        return
    own = vars(args) | {"n": len(mine), "first_image": args.first_image + mine.start, "out": folder}
    make(argparse.Namespace(**own | {"json": False, "quiet": args.quiet or rank.number > 0}), True, ())


def _whole(args: argparse.Namespace, shards: Sequence[Path], make: Callable[..., None], rank: Rank) -> None:
    if rank.number:
        return
    make(args, False, shards)
    for shard in shards:
        for name in (SOURCES + PART, FACTS + PART, *_names(shard)):
            if name in (SOURCES + PART, FACTS + PART) or name.endswith(".unfinished.json"):
                (shard / name).unlink(missing_ok=True)
        if not _names(shard):
            shard.rmdir()


def tar_files(out: Path, shards: Sequence[Path]) -> list[str]:
    """The tar files of a run in `out`: that of one process's share, or those of `shards`."""
    numbers = [_SHARD.fullmatch(folder.name) for folder in shards or [out]]
    return [shard_name(int(match[1]) if match else 0) for match in numbers]


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []
