"""The part that every torch network shares.

A network works on float images (N, 3, H, W) in [-1, 1] and latents (N, L, M, M); the engine works on
NumPy uint8 images (N, H, W, 3) and on codes (N, M, M) or latents (N, M, M, L). `TorchAutoencoder`
stands between them: checks, batches, device, dtype, memory layout and quantisation.
"""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lpkernel import checks
from lpkernel.autoencoder.device_decoder import NOT_ASKED, Choice, Graph, Pipeline, Step, choose, compiled, on_device
from lpkernel.autoencoder.fused import fuse
from lpkernel.autoencoder.layers import settle
from lpkernel.autoencoder.partial import Box, Parts, Record, Stage
from lpkernel.autoencoder.quantise import nearest_rows
from lpkernel.autoencoder.side_by_side import side_by_side
from lpkernel.autoencoder.upsampling import fold
from lpkernel.checks import check_codes
from lpkernel.errors import InputError, short

FLOAT16_END, HEADROOM = 65504.0, 16
PROBED = 4  # images decoded to see how large numbers become
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PIXELS_ON_GPU = 1 << 20  # in one batch: 16 images of 256x256, enough to fill a GPU
PIXELS_ON_CPU = 1 << 19  # at a time, each image by itself, to limit memory: 8 of 256x256

_OWN_LAYERS: ContextVar[bool] = ContextVar("own_layers", default=False)


@contextmanager
def own_layers() -> Iterator[None]:
    """Networks that this thread loads within it keep the layers they come with, for comparisons."""
    token = _OWN_LAYERS.set(True)
    try:
        yield
    finally:
        _OWN_LAYERS.reset(token)


def choose_device(device: str) -> torch.device:
    """The device of a name; "auto" is cuda if there is one, else cpu. Raises InputError on an unusable one."""
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.ones(1, device=chosen).item()  # "meta" has no numbers
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        got, reason = short(repr(device)), short(str(error).split("\n")[0])
        raise InputError(f'device {got} cannot be used ({reason}); use "auto", "cpu" or a GPU of torch') from error
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype of a name; "auto" is bfloat16 where the device multiplies it natively, else float32.

    Raises InputError on other names.
    """
    if checks.text("dtype", dtype) == "auto":
        return torch.bfloat16 if _fast_bfloat16(device) else torch.float32
    if dtype not in DTYPES:
        raise InputError(f'dtype {dtype!r} is not known; expected "auto", {", ".join(map(repr, DTYPES))}')
    return DTYPES[dtype]


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    # These two are private and may move; without them float32 is the safe answer.
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and check() for check in checks)


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Within it float32 convolutions stay float32: by default cuDNN rounds their operands to TF32."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def fingerprint(state: dict[str, Tensor]) -> str:
    """SHA-256 (hex) over names, shapes and float32 values of a state dict, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].detach().to("cpu", torch.float32).contiguous().numpy()
        digest.update(f"{name} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def largest_number(network: nn.Module, run: Callable[[], object]) -> float:
    """The largest magnitude in the input or output of any leaf layer while `run` runs; infinity for NaN."""
    largest = 0.0

    def note(module: nn.Module, given: tuple[object, ...], found: object) -> None:
        nonlocal largest
        for tensor in (*given, found):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                most = float(tensor.abs().amax())
                largest = max(largest, most if most < float("inf") else float("inf"))

    leaves = [part for part in network.modules() if next(part.children(), None) is None]
    hooks = [leaf.register_forward_hook(note) for leaf in leaves]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return largest


def levels(pixels: Tensor) -> Tensor:
    """(n, 3, h, w) float32 in [-1, 1] -> (n, h, w, 3) uint8."""
    return (pixels.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def _layers(network: Any) -> Iterator[nn.Module]:
    return network.modules() if isinstance(network, nn.Module) else iter(())


def _lacking(part: object) -> list[str]:
    """What lpkernel's classes of an object say that it has, and it has not."""
    own = [kind for kind in type(part).__mro__ if kind.__module__.startswith("lpkernel.")]
    return [name for kind in own for name in inspect.get_annotations(kind) if not hasattr(part, name)]


class TorchAutoencoder(ABC):
    """An `Autoencoder` on a torch network; a subclass says how the network encodes and decodes tensors.

    `network` holds float32 weights (the fingerprint is taken from them) and is moved to the device,
    dtype and channels-last layout. `width` is L. `codebook` (V, L) makes it discrete.

    An image's result does not depend on the others of the call: a CPU works on each image by itself, as many side by
    side as torch has threads; other devices work on batches of one fixed size, the last one padded. The last bits of a
    convolution differ between devices, dtypes, and compiled and plain decoders, so a vector that lies between two rows
    may change its code; with dtype "auto" encoders are float32 everywhere, to make that rare.
    """

    # The children of the network that only `encode_tensor` uses: float32 with dtype "auto".
    encoder_parts: ClassVar[tuple[str, ...]] = ()
    # Whether dtype "auto" on a GPU is float16 where the decoder's numbers stay small: as fast as bfloat16, 8 times as
    # precise, but it ends at 65504. For codes alone, whose vectors are known; `decode_tensor` may then use only the
    # network.
    float16_where_small: ClassVar[bool] = False

    # All that is pickled is declared, here and in subclasses, so that `__setstate__` knows it.
    name: str
    image_size: int
    grid: int
    width: int
    fingerprint: str
    device: torch.device
    dtype: torch.dtype
    encoder_dtype: torch.dtype
    codebook: np.ndarray | None
    network: Any
    batch: int
    compiling: Choice
    _codebook: Tensor | None
    _fused: int
    _together: int

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        image_size: int,
        grid: int,
        width: int,
        codebook: Tensor | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        self.name = name
        self.image_size = image_size
        self.grid = grid
        self.width = width
        self.fingerprint = fingerprint(network.state_dict())
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        rows = None if codebook is None else codebook.detach().to("cpu", torch.float32, copy=True)
        self.codebook = None if rows is None else rows.numpy()
        self._codebook = None if rows is None else rows.to(self.device)
        self.network = network.eval().requires_grad_(False)
        replaced = not _OWN_LAYERS.get()
        if replaced:
            fold(network)
        # not the class's own `to`: that of diffusers prints notices meant for training
        nn.Module.to(network, self.device)
        half = dtype == "auto" and self.device.type == "cuda" and self.dtype == torch.bfloat16
        if half and self.float16_where_small and self.stays_small():
            self.dtype = torch.float16
        self.encoder_dtype = torch.float32 if dtype == "auto" and self.encoder_parts else self.dtype
        for part, module in network.named_children() if self.encoder_dtype != self.dtype else [("", network)]:
            if part not in self.encoder_parts:
                nn.Module.to(module, self.dtype)
        nn.Module.to(network, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._fused = 0
        if replaced:
            settle(network, grid)
            self._fused = fuse(network)
        self.batch = max(1, PIXELS_ON_GPU // image_size**2) if self.device.type == "cuda" else 1
        self._together = max(1, PIXELS_ON_CPU // image_size**2) if self.device.type == "cpu" else 1
        self.compiling = NOT_ASKED

    def __repr__(self) -> str:
        codes = "latents" if self.codebook is None else f"codes of {len(self.codebook)}"
        grid = f"{self.grid}x{self.grid} {codes}"
        return f"{type(self).__name__}({self.name}, {self.image_size} pixels, {grid}, {self.device})"

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: all but what is made at the first use, such as graphs of a GPU."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_compiled", "pipeline", "_parts")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Raises InputError for what an lpkernel with other classes has pickled."""
        self.__dict__.update(state)
        lacking = [name for part in (self, *_layers(state.get("network"))) for name in _lacking(part)]
        if lacking:
            raise InputError(
                f"autoencoder {state.get('name', '')!r}: pickled by another version of lpkernel (it lacks "
                f"{', '.join(sorted(set(lacking)))}); load it from its files again"
            )

    @abstractmethod
    def encode_tensor(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) in [-1, 1] -> latents (n, L, M, M) before quantisation, with the same device and dtype."""

    @abstractmethod
    def decode_tensor(self, latents: Tensor) -> Tensor:
        """Latents (n, L, M, M) (codebook rows if discrete) -> (n, 3, H, W) in [-1, 1]."""

    @torch.inference_mode()
    def stays_small(self) -> bool:
        """Whether, for some random code maps, no layer of the decoder meets numbers near float16's limit."""
        assert self._codebook is not None
        random = torch.Generator().manual_seed(0)
        codes = torch.randint(len(self._codebook), (PROBED, self.grid, self.grid), generator=random)
        vectors = self._codebook[codes.to(self.device)].permute(0, 3, 1, 2)
        with on_device(self.device):
            return largest_number(self.network, lambda: self.decode_tensor(vectors)) < FLOAT16_END / HEADROOM

    def stages(self) -> list[Stage] | None:
        """`decode_tensor`, split so that parts of an image can be decoded; None where it cannot be."""
        return None

    def compile_decoder(self, asked: str, images: int | None = None) -> None:
        """Decide, before the first image, whether torch.compile compiles the decoder: "auto", "never" or "always".

        images: how many will be decoded, for "auto". Raises InputError for other words, and where "always" cannot be.
        """
        self.compiling = choose(asked, self.device, images, self.image_size, self._fused > 0)

    def _bytes(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Codes or latents on the device -> bytes there, and whether all numbers were finite."""
        pixels = self.decode_tensor(self._vectors(values)).float()
        return levels(pixels), pixels.isfinite().all()

    @cached_property
    def _compiled(self) -> Step:
        return compiled(self._bytes)

    @property
    def _step(self) -> Step:
        return self._compiled if self.compiling.compiled else self._bytes

    @cached_property
    def pipeline(self) -> Pipeline | None:
        """What decodes on a GPU; None on a CPU."""
        if self.device.type != "cuda":
            return None
        return Pipeline(self._step, self.device, None if self.codebook is None else len(self.codebook), Graph)

    @property
    def at_a_time(self) -> int:
        """Images that a CPU works on side by side, each by itself, with the threads that torch has now."""
        return min(torch.get_num_threads(), self._together)

    @cached_property
    def _parts(self) -> Parts | None:
        stages = self.stages() if self.device.type == "cpu" else None
        return None if stages is None else Parts(stages, self.grid)

    @torch.inference_mode()
    def encode(self, images: np.ndarray) -> np.ndarray:
        """(N, H, W, 3) uint8 -> codes (N, M, M) int64, or latents (N, M, M, L) float32 if continuous.

        Raises InputError on other shapes or dtypes.
        """
        self._check_images(images)
        shape = (len(images), self.grid, self.grid)
        out = np.empty(shape, np.int64) if self._codebook is not None else np.empty((*shape, self.width), np.float32)
        self._each(images, self._encoded, out)
        return out

    def _encoded(self, images: np.ndarray) -> np.ndarray:
        part = torch.from_numpy(images).to(self.device)
        pixels = part.permute(0, 3, 1, 2).float() / 127.5 - 1  # the strides are channels-last already
        with on_device(self.device), full_precision(self.device):
            latents = self._finite(self.encode_tensor(pixels.to(self.encoder_dtype))).permute(0, 2, 3, 1)
        if latents.shape[1:] != (self.grid, self.grid, self.width):
            raise InputError(
                f"autoencoder {self.name}: its network gives latents of shape {tuple(latents.shape[1:])}, "
                f"expected {(self.grid, self.grid, self.width)}; check image_size, grid and width"
            )
        result = latents if self._codebook is None else nearest_rows(latents, self._codebook)
        return result.cpu().numpy()

    @torch.inference_mode()
    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Codes (N, M, M) of any integer dtype, or latents (N, M, M, L) float if continuous -> (N, H, W, 3) uint8.

        Values are rounded to the nearest of 0..255. Raises InputError on other shapes or dtypes and on
        codes outside the codebook.
        """
        self._check_latents(latents)
        out = np.empty((len(latents), self.image_size, self.image_size, 3), np.uint8)
        if self.pipeline is not None:
            self._check_finite(self.pipeline.run(latents, self.batch, out))
        else:
            self._each(latents, self._decoded, out)
        return out

    def _decoded(self, latents: np.ndarray) -> np.ndarray:
        found, finite = self._step(self._sent(latents))
        self._check_finite(bool(finite))
        return found.cpu().numpy()

    @torch.inference_mode()
    def decode_recorded(self, latents: np.ndarray) -> tuple[np.ndarray, Record | None]:
        """Codes (M, M) or latents (M, M, L) -> the image (H, W, 3) uint8, and the record that `decode_cells` needs.

        The record is None where `stages` is, and on devices other than a CPU. Raises as `decode`.
        """
        if self._parts is None:
            return self.decode(latents[None])[0], None
        self._check_latents(latents[None])
        pixels, record = self._parts.record(self._vectors(self._sent(latents[None])))
        return self._levels(pixels)[0], record

    @torch.inference_mode()
    def decode_cells(self, latents: np.ndarray, record: Record, cells: Box) -> np.ndarray:
        """A box of cells (top, left, bottom, right) of images that differ from a recorded one inside it.

        latents: as `decode` takes them. Returns (N, h, w, 3) uint8: what `decode` gives there, except for some
        statistics; see `lpkernel.autoencoder.partial`.
        """
        self._check_latents(latents)
        parts, cell = self._parts, self.image_size // self.grid
        assert parts is not None
        out = np.empty((len(latents), (cells[2] - cells[0]) * cell, (cells[3] - cells[1]) * cell, 3), np.uint8)
        self._each(latents, lambda one: self._levels(parts.window(self._vectors(self._sent(one)), record, cells)), out)
        return out

    def _sent(self, latents: np.ndarray) -> Tensor:
        """Codes as int64, or latents as float32, on the device."""
        kind = np.int64 if self._codebook is not None else np.float32
        return torch.from_numpy(latents.astype(kind)).to(self.device)

    def _vectors(self, values: Tensor) -> Tensor:
        """Codes or latents (n, M, M ...) on the device -> (n, L, M, M) for `decode_tensor`."""
        vectors = values if self._codebook is None else self._codebook[values.long()]
        return vectors.permute(0, 3, 1, 2).to(self.dtype)

    def _levels(self, pixels: Tensor) -> np.ndarray:
        """(n, 3, h, w) in [-1, 1] -> (n, h, w, 3) uint8."""
        return levels(self._finite(pixels)).cpu().numpy()

    def _each(self, values: np.ndarray, work: Callable[[np.ndarray], np.ndarray], out: np.ndarray) -> None:
        """Write `work` of each batch of exactly `batch` values to `out`; the last is padded with its own last value."""

        @torch.inference_mode()  # which is per thread
        def one(number: int) -> None:
            start = number * self.batch
            rows = np.minimum(np.arange(start, start + self.batch), len(values) - 1)
            out[start : start + self.batch] = work(values[rows])[: len(out) - start]

        side_by_side(one, -(-len(values) // self.batch), self._together)

    def _check_images(self, images: np.ndarray) -> None:
        expected = f"(N, {self.image_size}, {self.image_size}, 3) uint8"
        if not isinstance(images, np.ndarray):
            raise InputError(f"images to encode are a {type(images).__name__}, expected a NumPy array {expected}")
        if images.dtype != np.uint8 or images.shape[1:] != (self.image_size, self.image_size, 3):
            got = f"{images.shape} {images.dtype}"
            raise InputError(f"images to encode are {got}, autoencoder {self.name} expects {expected}; resize them")

    def _check_latents(self, latents: np.ndarray) -> None:
        kind, shape, word = np.floating, f"(N, {self.grid}, {self.grid}, {self.width})", "float latents"
        tail: tuple[int, ...] = (self.grid, self.grid, self.width)
        if self.codebook is not None:
            kind, shape, word = np.integer, f"(N, {self.grid}, {self.grid})", "integer codes"  # type: ignore[assignment]
            tail = (self.grid, self.grid)
        expected = f"autoencoder {self.name} expects {word} {shape}"
        if not isinstance(latents, np.ndarray):
            raise InputError(f"decode got a {type(latents).__name__}; {expected} in a NumPy array")
        if not np.issubdtype(latents.dtype, kind) or latents.ndim != len(tail) + 1 or latents.shape[1:] != tail:
            raise InputError(f"decode got {latents.shape} {latents.dtype}; {expected}")
        if self.codebook is not None:
            check_codes(latents, len(self.codebook), f" ({self.name})")

    def _finite(self, values: Tensor) -> Tensor:
        values = values.float()
        self._check_finite(bool(values.isfinite().all()))
        return values

    def _check_finite(self, finite: bool) -> None:
        if not finite:
            fix = "check its weights" if self.dtype == torch.float32 else 'load it with dtype="float32"'
            raise InputError(f"autoencoder {self.name} gave infinite or undefined values in {self.dtype}; {fix}")
