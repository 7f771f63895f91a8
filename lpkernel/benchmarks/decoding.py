"""Decoding: an autoencoder as lpkernel runs it, beside the same network with torch's own layers, as torch users run it.

Times are from codes or latents in NumPy to uint8 images in NumPy, copies included. Before any timing, the pixels of
every way are compared with those of the network in float32.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lpkernel import synthesis
from lpkernel.autoencoder import TorchAutoencoder, load_autoencoder
from lpkernel.autoencoder.base import own_layers
from lpkernel.autoencoder.device_decoder import no_compiler
from lpkernel.autoencoder.taming import decoder_of
from lpkernel.autoencoder.vqmodel import VQModelAutoencoder
from lpkernel.bank import Bank
from lpkernel.bank.ingest import latent_width
from lpkernel.benchmarks import machine, measure
from lpkernel.benchmarks.checks import WrongAnswer
from lpkernel.benchmarks.peers import Variants, missing
from lpkernel.benchmarks.points import Entrant, Point
from lpkernel.errors import InputError

PEERS = ("module", "module-tf32", "module-bfloat16", "module-compiled", "taming")
CHECKED_IMAGES = 4
PATCH = 6  # of what is made and decoded
# The largest and the mean difference of a pixel from float32's, in levels of 256; for float32, that of other rounding.
TOLERANCES = {torch.float32: (1, 0.01), torch.bfloat16: (64, 2.0), torch.float16: (16, 0.5)}
TF32_TOLERANCE = TOLERANCES[torch.float16]  # which has as many mantissa bits
PIXELS_AT_ONCE = {"cpu": 1 << 19, "cuda": 1 << 21}  # of the peers' batches: 8 and 32 images of 256x256

Content = NDArray[Any]
Images = NDArray[np.uint8]


class Plain:
    """The network of an autoencoder by torch's own layers (diffusers' for a folder), on a device, in a dtype.

    taming: by taming-transformers' own decoder with the same weights. Raises InputError for a plug-in that is not a
    `TorchAutoencoder`.
    """

    def __init__(
        self,
        source: str,
        device: str,
        dtype: torch.dtype,
        channels_last: bool = False,
        compiled: bool = False,
        tf32: bool = False,
        taming: bool = False,
    ) -> None:
        with own_layers():
            inner = load_autoencoder(source, "cpu", "float32")
        if not isinstance(inner, TorchAutoencoder):
            raise InputError(f"--autoencoder: {source} is not a TorchAutoencoder, so its network is not known")
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        network = taming_decoder(inner.network) if taming else inner.network
        nn.Module.to(network, torch.device(device), dtype)
        nn.Module.to(network, memory_format=self.layout)  # type: ignore[call-overload]
        self.device, self.dtype, self.tf32 = device, dtype, tf32
        self.book = None if inner.codebook is None else torch.from_numpy(inner.codebook).to(device)
        self.run: Callable[[Tensor], Tensor] = network if taming else inner.decode_tensor
        if compiled:
            self.run = torch.compile(inner.decode_tensor, dynamic=False)

    @torch.inference_mode()
    def decode(self, content: Content, batch: int) -> Images:
        """Codes (N, M, M) or latents (N, M, M, L) -> (N, H, W, 3), `batch` at a time."""
        with machine.tf32(self.tf32):
            levels = [self._levels(content[i : i + batch]) for i in range(0, len(content), batch)]
        return torch.cat(levels).permute(0, 2, 3, 1).cpu().numpy()

    def _levels(self, content: Content) -> Tensor:
        return (self.run(self.vectors(content)).float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)

    def vectors(self, content: Content) -> Tensor:
        """What the decoder takes, (n, L, M, M)."""
        given = torch.from_numpy(np.ascontiguousarray(content)).to(self.device)
        vectors = given if self.book is None else self.book[given.long()]
        return vectors.permute(0, 3, 1, 2).to(self.dtype).contiguous(memory_format=self.layout)

    def flops(self, content: Content) -> int:
        """Operations of one image: two for each multiply-add of convolutions and products."""
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            self.run(self.vectors(content[:1]))
        return int(counter.get_total_flops())


def taming_decoder(network: Any) -> nn.Module:
    """taming-transformers' own post_quant_conv and decoder, with the weights of a `VQModel`."""
    from taming.modules.diffusionmodules.model import Decoder

    arguments, state = decoder_of(network)
    with redirect_stdout(sys.stderr):  # it prints the shape of its input
        decoder = Decoder(**arguments)
    after = nn.ModuleDict({"post_quant_conv": network.post_quant_conv, "decoder": decoder})
    after.load_state_dict(state)
    return nn.Sequential(*after.values()).eval().requires_grad_(False)


class Difference:
    """Compares pixels with those of the float32 network, and records the difference in `facts`."""

    def __init__(self, want: Images) -> None:
        self.want = want

    def checker(self, tolerance: tuple[float, float], facts: dict[str, Any]) -> Callable[[Images, int], None]:
        most, mean_most = tolerance

        def check(images: Images, batch: int) -> None:
            count = min(len(images), len(self.want))
            apart = np.abs(images[:count].astype(np.int64) - self.want[:count])
            largest, mean = int(apart.max(initial=0)), float(apart.mean())
            if images.shape[1:] != self.want.shape[1:] or largest > most or mean > mean_most:
                raise WrongAnswer(
                    f"pixels differ by up to {largest}, {mean:.3g} on average; allowed {most}, {mean_most}"
                )
            near = float((apart <= 1).mean())
            facts.update(largest_difference=largest, mean_difference=mean, within_one_level=near)
            facts["pixels"] = f"pixels within {largest}, mean {mean:.2g}, {near:.2%} within 1"

        return check


@dataclass(frozen=True)
class Module:
    """A way to run the network itself. layouts: each whether channels-last; the faster one counts."""

    name: str
    dtype: torch.dtype
    layouts: tuple[bool, ...]
    compiled: bool = False
    tf32: bool = False
    taming: bool = False

    @property
    def tolerance(self) -> tuple[float, float]:
        return TF32_TOLERANCE if self.tf32 else TOLERANCES[self.dtype]

    def missing(self, device: str) -> str:
        """Why it cannot run on a device here; "" if it can."""
        if self.taming and importlib.util.find_spec("taming") is None:
            return "the package taming-transformers is not installed: pip install taming-transformers-rom1504"
        return no_compiler(torch.device(device).type) if self.compiled else missing(device, self.tf32, False)


def random_bank(autoencoder: Any, size: int, seed: int) -> Bank:
    """Random codes or latents of an autoencoder."""
    random, book = np.random.default_rng((seed, 5)), autoencoder.codebook
    shape = (size, autoencoder.grid, autoencoder.grid)
    if book is not None:
        return Bank.from_codes(random.integers(0, len(book), shape), book)
    return Bank.from_latents(random.standard_normal((*shape, latent_width(autoencoder)), np.float32))


def _check_alone(autoencoder: Any, content: Content, images: Images) -> None:
    """Check that the first and the last image have the same bits as when decoded alone."""
    for i in {0, len(content) - 1}:
        if not np.array_equal(autoencoder.decode(content[i : i + 1])[0], images[i]):
            raise WrongAnswer(f"image {i} decoded with {len(content) - 1} others differs from it decoded alone")


class Decoding:
    """The points of the case: decoding N images, and making and decoding them."""

    def __init__(self, source: str, device: str, bank: Bank, others: Sequence[str], seed: int) -> None:
        self.source, self.device, self.others, self.seed = source, device, others, seed
        self.autoencoder: Any = load_autoencoder(source, device, compile="never")
        self.ours = {"lpkernel": self.autoencoder}
        if measure.on_gpu(device) and isinstance(self.autoencoder, TorchAutoencoder):
            self.ours["lpkernel by torch.compile"] = load_autoencoder(source, device, compile="always")
        self.dtype: torch.dtype = getattr(self.autoencoder, "dtype", torch.float32)
        self.reason = ""  # why something else than the bank's images is decoded
        try:
            bank.check_autoencoder(self.autoencoder)
        except InputError as error:
            self.reason = str(error)
            bank = random_bank(self.autoencoder, bank.size, seed)
        self.bank = bank

    def content(self, n: int) -> Content:
        """The content of n images: the bank's, repeated."""
        return self.bank.whole(np.arange(n) % self.bank.size)

    def decode(self, n: int) -> Point:
        """`decode` of N images."""
        content = self.content(n)
        compared, config = self._truth(content[:CHECKED_IMAGES])

        def entrant(name: str, ours: Any, peer: Module | None, prepare: Callable[[], Variants], reason: str) -> Entrant:
            facts = {**config, "dtype": str(self.dtype if peer is None else peer.dtype).removeprefix("torch.")}
            within = compared.checker(TOLERANCES[self.dtype] if peer is None else peer.tolerance, facts)

            def check(images: Images, batch: int) -> None:
                within(images, batch)
                if ours is not None:
                    _check_alone(ours, content, images)

            return Entrant(name, ours is not None, prepare, check, reason, facts=facts)

        def way(ours: Any) -> Callable[[], Variants]:
            return lambda: {"": lambda _: ours.decode(content)}

        entrants = [entrant(name, ours, None, way(ours), "") for name, ours in self.ours.items()]
        unknown = "" if config else f"the network of {self.source} is not known: it is not a TorchAutoencoder"
        for peer in self._peers():
            reason = unknown or peer.missing(self.device) or (self._unlike_taming() if peer.taming else "")
            entrants.append(entrant(peer.name, None, peer, partial(self._ways, content, peer), reason))
        bounds = {}
        if config:
            rates = machine.peaks(self.device, self.dtype)
            bounds = {f"at the rate of a {name}": n * config["flop"] / rate for name, rate in rates.items()}
        return self._point(self.autoencoder.name, n, entrants, bounds)

    def whole(self, n: int) -> Point:
        """`generate` of N images by the default preset, and `decode`."""

        def making(decode: Callable[[Content], Images], facts: dict[str, Any]) -> Variants:
            def call(count: int) -> Images:
                made = measure.timed(lambda: self._made(count), self.device)
                images = measure.timed(lambda: decode(made[1]), self.device)
                facts["parts"] = (
                    f"{made[0] / count * 1e3:.2g} ms an image to make, {images[0] / count * 1e3:.3g} to decode"
                )
                return images[1]

            return {"": call}

        compared, _ = self._truth(self._made(min(n, CHECKED_IMAGES)))
        entrants = []
        for name, ours in self.ours.items():
            facts: dict[str, Any] = {}
            prepare = partial(making, ours.decode, facts)
            check = compared.checker(TOLERANCES[self.dtype], facts)
            entrants.append(Entrant(name, True, prepare, check, by_images=True, facts=facts))
        if "module" in self.others and isinstance(self.autoencoder, TorchAutoencoder):
            told: dict[str, Any] = {}

            def module() -> Variants:
                plain = Plain(self.source, self.device, torch.float32)
                return making(lambda content: plain.decode(content, self._most(len(content))), told)

            check = compared.checker(TOLERANCES[torch.float32], told)
            entrants.append(Entrant("module float32", False, module, check, by_images=True, facts=told))
        return self._point(f"{self.autoencoder.name}, made and decoded", n, entrants, {})

    def _point(self, data: str, n: int, entrants: list[Entrant], bounds: dict[str, float]) -> Point:
        return Point(
            "decode", data, {"N": n, "S": self.autoencoder.image_size}, n, 1, entrants, bounds, device=self.device
        )

    def _made(self, n: int) -> Content:
        made = synthesis.generate(self.bank, n, PATCH, seed=self.seed, device=self.device)
        content = made.codes if made.codes is not None else made.latents
        assert content is not None
        return content

    def _truth(self, content: Content) -> tuple[Difference, dict[str, Any]]:
        """What pixels are compared with (lpkernel's own, without a torch network), and the operations of an image."""
        if not isinstance(self.autoencoder, TorchAutoencoder):
            return Difference(self.autoencoder.decode(content)), {}
        plain = Plain(self.source, self.device, torch.float32)
        config = {"flop": plain.flops(content), "peak": max(machine.peaks(self.device, self.dtype).values())}
        return Difference(plain.decode(content, 1)), config

    def _peers(self) -> list[Module]:
        found = []
        if "module" in self.others:
            found.append(Module("module float32", torch.float32, (False, True)))
        if "module-tf32" in self.others:
            found.append(Module("module float32 in TF32, not exact", torch.float32, (False, True), tf32=True))
        if "module-bfloat16" in self.others:
            found += [
                Module("module bfloat16", torch.bfloat16, (False,)),
                Module("module bfloat16 channels-last", torch.bfloat16, (True,)),
            ]
        if "taming" in self.others and isinstance(self.autoencoder, VQModelAutoencoder):
            found.append(Module("taming-transformers float32", torch.float32, (False, True), taming=True))
        if "module-compiled" in self.others:
            name = f"torch.compile {str(self.dtype).removeprefix('torch.')}"
            found.append(Module(name, self.dtype, (True,), compiled=True))
        return found

    def _unlike_taming(self) -> str:
        """Why taming-transformers has no such decoder; "" if it has."""
        try:
            decoder_of(self.autoencoder.network)
        except ValueError as error:
            return f"taming-transformers has no such decoder: {error}"
        return ""

    def _ways(self, content: Content, peer: Module) -> Variants:
        """The ways to run a peer: each layout, one image or many at a time; a compiled network with one batch size."""

        def way(plain: Plain, batch: int) -> Callable[[int], Images]:
            return lambda _: plain.decode(content, batch)

        many, ways = self._most(len(content)), {}
        for channels_last in peer.layouts:
            plain = Plain(self.source, self.device, peer.dtype, channels_last, peer.compiled, peer.tf32, peer.taming)
            for batch in sorted({many} if peer.compiled else {1, many}):
                name = f"{'channels-last' if channels_last else 'contiguous'}, {batch} at a time"
                ways[name] = way(plain, batch)
        return ways

    def _most(self, n: int) -> int:
        """The largest batch for peers that divides n."""
        most = max(1, PIXELS_AT_ONCE[torch.device(self.device).type] // self.autoencoder.image_size**2)
        return next(batch for batch in range(min(n, most), 0, -1) if n % batch == 0)
