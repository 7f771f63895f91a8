"""Train the embedded VQ autoencoder on real faces and CC0 avatars.

    python scripts/train_autoencoder.py --out model.safetensors        # 2 cores: see the model card
    python scripts/train_autoencoder.py --out model.safetensors --device cuda --batch 96

Data: photographs 1-899 of scripts/packages.py (900-999 are held out) with flips and jittered crops, and avatars drawn
by scripts/avatars.py. Loss: L1 + mean square + LPIPS (both pictures cropped alike at random, or the pattern of
AlexNet's strides is learnt) + commitment; with --spectrum also the powers in BANDS, which a mean square alone leaves
too low; in the last part of the steps also a patch discriminator (Isola et al. 2017, hinge loss, weighted by
gradients as in Esser et al. 2021). The codebook is an exponential moving average of its members (van den Oord et al.
2017, appendix A.1), started by k-means after a warm-up without quantisation; entries that nothing chooses restart at
encoder outputs of the current batch. The weights saved are an average over the last steps. `--start FILE` begins with
a smaller model, widened (Chen et al. 2016), `--resume` continues a killed run, on any device, `--evaluate FILE`
measures a saved model. On a GPU the networks are compiled, since layer by layer it waits for launches most of the time.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import avatars
import console
import numpy as np
import packages
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from lpkernel.autoencoder.base import choose_device
from lpkernel.autoencoder.compact import CompactConfig, CompactVQ, ResBlock
from lpkernel.autoencoder.embedded import load_compact
from lpkernel.autoencoder.safe_pickle import load_checkpoint
from lpkernel.errors import InputError
from lpkernel.files import atomic_path
from lpkernel.metrics.lpips import LPIPS
from lpkernel.pictures.images import load_pixels

TRAIN_FACES = 899
AVATARS_SHARE = 0.25
HELD_OUT_AVATARS = range(100)  # drawn from seeds 0..99; training uses later ones
RAMP = 300  # steps over which the discriminator's weight grows: at once, a weight of 0.6 ruined a network
BANDS = ((16, 32), (32, 64))  # cycles an image, of the powers that are reported


class Data:
    """Random training batches and the two held-out sets, as (N, 3, 128, 128) in [-1, 1]."""

    def __init__(self, seed: int, avatar_count: int) -> None:
        photographs = [Image.fromarray(load_pixels(path)) for path in packages.face_files()]
        self.photographs = photographs[:TRAIN_FACES]
        tight = [photograph.crop(packages.FACE_CROP) for photograph in photographs[TRAIN_FACES:]]
        held_out = _batch([face.resize((128, 128), Image.Resampling.BICUBIC) for face in tight])
        first = HELD_OUT_AVATARS.stop + 10_000
        self.avatars = [Image.fromarray(avatars.draw(i)[0]) for i in range(first, first + avatar_count)]
        self.sets = held_out, _batch([Image.fromarray(avatars.draw(i)[0]) for i in HELD_OUT_AVATARS])
        self.random = np.random.default_rng(seed)

    def _photograph(self) -> Image.Image:
        image = self.photographs[self.random.integers(len(self.photographs))]
        side = self.random.uniform(126, 170)
        cx, cy = 89 + self.random.uniform(-4, 4), 110 + self.random.uniform(-6, 6)
        x, y = min(max(cx - side / 2, 0), 178 - side), min(max(cy - side / 2, 0), 218 - side)
        return image.resize((128, 128), Image.Resampling.BICUBIC, (x, y, x + side, y + side))

    def sample(self, count: int) -> Tensor:
        images = []
        for _ in range(count):
            if self.random.random() < AVATARS_SHARE:
                image = self.avatars[self.random.integers(len(self.avatars))]
            else:
                image = self._photograph()
            flip = self.random.random() < 0.5
            images.append(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image)
        return _batch(images)


def _batch(images: list[Image.Image]) -> Tensor:
    stack = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return stack.permute(0, 3, 1, 2).float() / 127.5 - 1  # channels-last strides


def discriminator() -> nn.Sequential:
    """Scores patches of 45 pixels, positive where they look real: (N, 3, H, W) -> (N, 1, H / 4, W / 4)."""
    widths = (48, 96, 128)
    layers: list[nn.Module] = []
    for before, after, stride in zip((3, *widths), widths, (2, 2, 1), strict=False):
        norm = [nn.GroupNorm(8, after)] if layers else []
        layers += [nn.Conv2d(before, after, 5, stride, padding=2), *norm, nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 5, padding=2))


@torch.no_grad()
def widen(model: CompactVQ, start: CompactVQ, noise: float = 0.05) -> None:
    """Give `model` the function of `start`, whose layers are no wider and whose stages are no longer, almost.

    An added channel is a copy of one in the same group of its norm, and the weights that read both are halved; an
    added block does nothing yet. `noise`, a share of the weights' deviation, lets the copies part; norms also see
    some channels more often than others. A longer codebook is left to be found. Raises InputError for a start that is
    not smaller.
    """
    room = model.state_dict()
    for name, value in start.state_dict().items():
        if name not in room or any(new < old for new, old in zip(room[name].shape, value.shape, strict=True)):
            raise InputError(
                f"--start: its {name} has no place in the model; give a model that is no wider and no deeper"
            )
    for part in ("encoder", "decoder"):
        news, olds = list(getattr(model, part)), list(getattr(start, part))
        copies = torch.arange(next(layer.in_channels for layer in olds if isinstance(layer, nn.Conv2d)))
        for i, (new, old) in enumerate(zip(news, olds, strict=True)):
            if isinstance(new, nn.Conv2d):
                shuffle = news[i + 1] if i + 1 < len(news) else None
                fold = shuffle.upscale_factor**2 if isinstance(shuffle, nn.PixelShuffle) else 1
                rows = _copies(old.out_channels // fold, new.out_channels // fold)
                _widen_conv(new, old, (rows[:, None] * fold + torch.arange(fold)).flatten(), copies, noise)
                copies = rows
            elif isinstance(new, nn.GroupNorm):
                _widen_norm(new, old, copies)
            elif isinstance(new, nn.Sequential):
                for block, begun in zip(new, old, strict=False):
                    assert isinstance(block, ResBlock) and isinstance(begun, ResBlock)
                    _widen_norm(block.norm, begun.norm, copies)
                    _widen_conv(block.conv1, begun.conv1, copies, copies, noise)
                    _widen_conv(block.conv2, begun.conv2, copies, copies, noise)
    if model.codebook.shape == start.codebook.shape:
        model.codebook.copy_(start.codebook)


def _copies(old: int, new: int, groups: int = 8) -> Tensor:
    """Which of `old` channels each of `new` is a copy of, group by group: (new,)."""
    if old == new:
        return torch.arange(old)
    of_group = torch.arange(new // groups) % (old // groups)
    return (torch.arange(groups)[:, None] * (old // groups) + of_group).flatten()


def _widen_conv(new: nn.Conv2d, old: nn.Conv2d, rows: Tensor, columns: Tensor, noise: float) -> None:
    copies = torch.bincount(columns, minlength=old.in_channels)[columns]
    weight = old.weight[rows][:, columns] / copies.view(1, -1, 1, 1)
    if weight.shape != old.weight.shape:
        weight = weight + noise * weight.std() * torch.randn_like(weight)
    new.weight.copy_(weight)
    new.bias.copy_(old.bias[rows])  # type: ignore[union-attr,index]


def _widen_norm(new: nn.GroupNorm, old: nn.GroupNorm, copies: Tensor) -> None:
    new.weight.copy_(old.weight[copies])
    new.bias.copy_(old.bias[copies])


class Codebook:
    """The codebook as running sums of the vectors assigned to each row."""

    def __init__(self, model: CompactVQ, decay: float = 0.99, dead_below: float = 0.03) -> None:
        self.model, self.decay, self.dead_below = model, decay, dead_below
        self.counts = torch.ones(model.config.codebook_size, device=model.codebook.device)
        self.sums = model.codebook.clone()

    def start(self, vectors: Tensor, rounds: int = 12) -> None:
        """k-means on `vectors` (n, L)."""
        book = vectors[torch.randperm(len(vectors), device=vectors.device)[: len(self.counts)]].clone()
        for _ in range(rounds):
            self.model.codebook.copy_(book)
            codes = self.model.nearest(vectors)
            counts = torch.bincount(codes, minlength=len(book)).float()
            sums = torch.zeros_like(book).index_add_(0, codes, vectors)
            empty = counts == 0
            strays = vectors[torch.randint(len(vectors), (len(book),), device=vectors.device)]
            book = torch.where(empty[:, None], strays, sums / counts.clamp(min=1)[:, None])
        self.model.codebook.copy_(book)
        self.counts.fill_(1)
        self.sums.copy_(book)

    def update(self, vectors: Tensor, codes: Tensor) -> None:
        counts = torch.bincount(codes, minlength=len(self.counts)).float()
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, codes, vectors), 1 - self.decay)
        dead = self.counts < self.dead_below
        if dead.any():
            picks = vectors[torch.randint(len(vectors), (int(dead.sum()),), device=vectors.device)]
            self.counts[dead] = 1
            self.sums[dead] = picks
        self.model.codebook.copy_(self.sums / self.counts[:, None])


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over images, of [-1, 1] tensors rounded to 8 bits as a decoder would."""
    a8, b8 = ((x.clamp(-1, 1) * 127.5 + 127.5).round() for x in (a, b))
    return float((10 * torch.log10(255**2 / (a8 - b8).square().mean((1, 2, 3)))).mean())


@torch.inference_mode()
def evaluate(model: CompactVQ, images: Tensor, lpips: LPIPS) -> tuple[float, float, float, float]:
    """(PSNR, LPIPS), means over the images, and the share of the power kept in each of BANDS, through the codes."""
    outputs = [model.decode(model.codebook[model.nearest(model.encode(part))]) for part in images.split(25)]
    decoded = torch.cat(outputs).clamp(-1, 1)
    distances = [lpips(a, b) for a, b in zip(decoded.split(25), images.split(25), strict=True)]
    return psnr(decoded, images), float(torch.cat(distances).mean()), *(powers(decoded) / powers(images)).tolist()


def powers(images: Tensor) -> Tensor:
    """Power of grey (N, 3, M, M) images in each of BANDS, summed over the images."""
    cycles = torch.fft.fftfreq(images.shape[-1], 1 / images.shape[-1], device=images.device)
    radius = torch.hypot(cycles[:, None], cycles)
    power = torch.fft.fft2(images.mean(1)).abs().square().sum(0)
    return torch.stack([power[(radius >= low) & (radius < high)].sum() for low, high in BANDS])


def unlike_powers(decoded: Tensor, images: Tensor, weights: Sequence[float]) -> Tensor:
    """Weighted sum over BANDS of the squared logarithm of the ratio of the two batches' powers."""
    return (torch.tensor(weights, device=images.device) * (powers(decoded) / powers(images)).log().square()).sum()


def learning_rate(step: int, steps: int, peak: float) -> float:
    warm_up = min(1.0, (step + 1) / 200)
    return peak * warm_up * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def save(model: CompactVQ, path: Path, notes: dict[str, object]) -> None:
    """Weights and codebook in float16, the config in the header."""
    tensors = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    metadata = {"config": json.dumps(model.config.to_json()), "notes": json.dumps(notes)}
    with atomic_path(path) as partial:
        save_file(tensors, partial, metadata)


def report(path: Path, data: Data, lpips: LPIPS) -> dict[str, float]:
    """Held-out PSNR and LPIPS of a saved model, in float32."""
    model = load_compact(path, path.stem, "cpu", "float32").network
    faces, drawn = (evaluate(model, images, lpips) for images in data.sets)
    return measured(faces, drawn)


def measured(faces: tuple[float, ...], drawn: tuple[float, ...]) -> dict[str, float]:
    """Two answers of `evaluate` by name."""
    kinds = ("psnr", "lpips", *(f"power_{low}_{high}" for low, high in BANDS))
    names = (f"{images}_{kind}" for images in ("faces", "avatars") for kind in kinds)
    return {name: round(value, 4) for name, value in zip(names, (*faces, *drawn), strict=True)}


def half(images: Tensor) -> torch.autocast:
    """Networks in bfloat16, where these images are."""
    return torch.autocast(images.device.type, torch.bfloat16)


class Adversary:
    """The discriminator and its steps."""

    def __init__(self, rate: float, device: str = "cpu") -> None:
        self.network = discriminator().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = torch.optim.AdamW(self.network.parameters(), rate, (0.5, 0.99), fused=True)

    def gradient(self, decoded: Tensor) -> Tensor:
        """What makes decoded images look more real: (N, 3, H, W), to be subtracted."""
        self.network.requires_grad_(False)
        with half(decoded):
            loss = -self.network(decoded).float().mean()
        self.network.requires_grad_(True)
        return torch.autograd.grad(loss, decoded)[0]

    def step(self, images: Tensor, decoded: Tensor, share: float) -> None:
        """Learns to tell images from decoded ones, at `share` of its rate."""
        for group in self.optimiser.param_groups:
            group["lr"] = group.setdefault("peak", group["lr"]) * share
        with half(images):
            real, made = self.network(torch.cat([images, decoded])).float().chunk(2)
        self.optimiser.zero_grad(set_to_none=True)
        (F.relu(1 - real).mean() + F.relu(1 + made).mean()).backward()
        self.optimiser.step()


def backward(loss: Tensor, decoded: Tensor, adversary: Adversary | None, weight: float) -> None:
    """loss.backward(), with the adversary's gradient at the pixels added, scaled to `weight` times loss's there."""
    if adversary is None:
        loss.backward()
        return
    pixels = decoded.detach().requires_grad_()
    more = adversary.gradient(pixels)
    decoded.register_hook(lambda mine: mine + more * (weight * mine.norm() / more.norm().clamp(min=1e-12)))
    loss.backward()


def compiled(function: Callable[..., Tensor], device: str) -> Callable[..., Tensor]:
    """The function as a GPU runs it fastest: by fused kernels; as it is on a CPU."""
    return function if torch.device(device).type == "cpu" else torch.compile(function)


class Training:
    """A network in training: `step` by step, with a `report` now and then, from which a killed run goes on."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.data = Data(args.seed, args.avatars)
        place: dict[str, Any] = {"device": args.device, "memory_format": torch.channels_last}
        self.model, self.average = (CompactVQ(CompactConfig()).to(**place) for _ in range(2))
        self.book_starts = args.warm_up  # the step that finds the codebook by k-means
        if args.start:
            start = load_compact(args.start, "--start", "cpu", "float32").network
            widen(self.model, start.to(args.device))
            self.book_starts = -1 if start.codebook.shape == self.model.codebook.shape else 0
        self.average.load_state_dict(self.model.state_dict())
        self.lpips = LPIPS(packages.lpips_weights()).to(args.device)
        parts = self.model.encode, self.model.decode, self.lpips
        self.encode, self.decode, self.unlike = (compiled(part, args.device) for part in parts)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), args.rate, (0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.adversary = Adversary(args.rate, args.device)
        self.book = Codebook(self.model)
        self.kept: dict[str, Any] = {"model": self.model, "average": self.average, "optimiser": self.optimiser}
        self.kept |= {"adversary": self.adversary.network, "adversary_optimiser": self.adversary.optimiser}
        self.checkpoint = args.out.with_suffix(".resume.pt")
        self.started = time.time()

    def resumed(self) -> int:
        """The step to begin with: after those of the last report."""
        if not (self.args.resume and self.checkpoint.exists()):
            return 0
        state = load_checkpoint(self.checkpoint)
        for name, part in self.kept.items():
            part.load_state_dict(state[name])
        self.book.counts, self.book.sums = (state[name].to(self.args.device) for name in ("counts", "sums"))
        self.data.random = np.random.default_rng(self.args.seed + state["step"])
        return int(state["step"])

    def step(self, number: int) -> tuple[Tensor, Tensor]:
        """One step; returns the batch's mean absolute difference and LPIPS."""
        args = self.args
        rate = learning_rate(number, args.steps, args.rate)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        images = self.sample(args.batch)
        if number == self.book_starts:
            with torch.inference_mode():
                self.book.start(torch.cat([self.model.encode(self.sample(64)).flatten(0, 2) for _ in range(8)]))
        with half(images):
            latents = self.encode(images)
        quantised, commitment = self.quantised(latents) if number >= self.book_starts else unquantised(latents)
        x, y = (int(corner) for corner in self.data.random.integers(0, 8, 2))
        with half(images):
            decoded = self.decode(quantised).float()
            cut = slice(None), slice(None), slice(y, y + 120), slice(x, x + 120)
            perceptual = self.unlike(decoded[cut], images[cut]).mean()
        l1, square = (decoded - images).abs().mean(), (decoded - images).square().mean()
        loss = l1 + args.square * square + args.perceptual * perceptual + 0.25 * commitment
        if any(args.spectrum):
            loss = loss + unlike_powers(decoded, images, args.spectrum)
        self.optimiser.zero_grad(set_to_none=True)
        opposed = number - round(args.adversary_from * args.steps)
        weight = args.adversary * min(1.0, opposed / RAMP)
        backward(loss, decoded, self.adversary if opposed >= 0 else None, weight)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        if opposed >= 0:
            self.adversary.step(images, decoded.detach(), rate / args.rate)
        self.follow(min(0.999, (number + 1) / (number + 10)))
        return l1.detach(), perceptual.detach()

    def sample(self, count: int) -> Tensor:
        return self.data.sample(count).to(self.args.device)

    def quantised(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents as their codes, passing gradients straight through, and how far they were; moves the codebook."""
        flat = latents.detach().flatten(0, 2)
        codes = self.model.nearest(flat)
        nearest = self.model.codebook[codes].view_as(latents)
        commitment = F.mse_loss(latents, nearest)
        self.book.update(flat, codes)
        return latents + (nearest - latents).detach(), commitment

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Moves the average towards the model."""
        for mine, theirs in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mine.lerp_(theirs, 1 - decay)
        self.average.codebook.copy_(self.model.codebook)

    def report(self, steps: int, l1: Tensor, perceptual: Tensor) -> None:
        """Prints what `steps` steps have come to, and saves the average and all that is needed to go on."""
        row = {
            "step": steps,
            "seconds": round(time.time() - self.started),
            "train_l1": round(float(l1), 4),
            "train_lpips": round(float(perceptual), 4),
            "codes_used": int((self.book.counts > self.book.dead_below).sum()),
            **measured(*(evaluate(self.average, part.to(self.args.device), self.lpips) for part in self.data.sets)),
        }
        print(json.dumps(row), flush=True)
        save(self.average, self.args.out, {"steps": steps, "batch": self.args.batch, **row})
        state = {name: part.state_dict() for name, part in self.kept.items()}
        with atomic_path(self.checkpoint) as partial:
            torch.save({**state, "counts": self.book.counts, "sums": self.book.sums, "step": steps}, partial)


def unquantised(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Latents as they are, held near 0, before there is a codebook."""
    return latents, latents.square().mean() * 1e-3


def train(args: argparse.Namespace) -> None:
    training = Training(args)
    for number in range(training.resumed(), args.steps):
        found = training.step(number)
        if (number + 1) % args.report == 0 or number + 1 == args.steps:
            training.report(number + 1, *found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/autoencoder.safetensors"))
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--square", type=float, default=2.0, help="weight of the mean square")
    parser.add_argument("--perceptual", type=float, default=1.0, help="weight of LPIPS")
    parser.add_argument(
        "--spectrum",
        type=float,
        nargs=len(BANDS),
        default=[0.0] * len(BANDS),
        metavar="W",
        help="weights of the squared log ratios of the powers in BANDS",
    )
    parser.add_argument("--adversary", type=float, default=0.3, help="weight of the discriminator's gradient")
    parser.add_argument("--adversary-from", type=float, default=0.6, help="share of the steps before it")
    parser.add_argument("--start", type=Path, metavar="FILE", help="a model no wider, to begin with")
    parser.add_argument("--warm-up", type=int, default=400, help="steps without quantisation")
    parser.add_argument("--avatars", type=int, default=3000)
    parser.add_argument("--report", type=int, default=250, help="steps between evaluations")
    parser.add_argument("--device", default="cpu", help="of training: cpu (default), cuda or cuda:N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument(
        "--evaluate", type=Path, metavar="FILE", help="only measure a saved model on the held-out images"
    )
    args = parser.parse_args()
    args.device = str(choose_device(args.device))
    if args.evaluate:
        print(json.dumps(report(args.evaluate, Data(args.seed, avatar_count=0), LPIPS(packages.lpips_weights()))))
        return 0
    args.out.parent.mkdir(parents=True, exist_ok=True)
    train(args)
    return 0


if __name__ == "__main__":
    console.run(main)
