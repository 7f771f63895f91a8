"""Train the embedded VQ autoencoder on real faces and CC0 avatars.

    python scripts/train_autoencoder.py --out model.safetensors        # 2 cores: see the model card

Data: photographs 1-899 of scripts/packages.py (900-999 are held out) with flips and jittered crops,
and avatars drawn by scripts/avatars.py. Loss: L1 + LPIPS + commitment. The codebook is an
exponential moving average of its members (van den Oord et al. 2017, appendix A.1), started by k-means
after a warm-up without quantisation; entries that nothing chooses restart at encoder outputs of the
current batch. The weights saved are an average over the last steps. `--resume` continues a killed run,
`--evaluate FILE` measures a saved model.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import avatars
import numpy as np
import packages
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from lpkernel.autoencoder.compact import CompactConfig, CompactVQ
from lpkernel.autoencoder.embedded import load_compact
from lpkernel.autoencoder.safe_pickle import load_checkpoint
from lpkernel.files import atomic_path
from lpkernel.metrics.lpips import LPIPS
from lpkernel.pictures.images import load_pixels

TRAIN_FACES = 899
AVATARS_SHARE = 0.25
HELD_OUT_AVATARS = range(100)  # drawn from seeds 0..99; training uses later ones


class Data:
    """Random training batches and the two held-out sets, as (N, 3, 128, 128) in [-1, 1]."""

    def __init__(self, seed: int, avatar_count: int) -> None:
        photographs = [Image.fromarray(load_pixels(path)) for path in packages.face_files()]
        self.photographs = photographs[:TRAIN_FACES]
        tight = [photograph.crop(packages.FACE_CROP) for photograph in photographs[TRAIN_FACES:]]
        self.held_out = _batch([face.resize((128, 128), Image.Resampling.BICUBIC) for face in tight])
        first = HELD_OUT_AVATARS.stop + 10_000
        self.avatars = [Image.fromarray(avatars.draw(i)[0]) for i in range(first, first + avatar_count)]
        self.held_out_avatars = _batch([Image.fromarray(avatars.draw(i)[0]) for i in HELD_OUT_AVATARS])
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


class Codebook:
    """The codebook as running sums of the vectors assigned to each row."""

    def __init__(self, model: CompactVQ, decay: float = 0.99, dead_below: float = 0.03) -> None:
        self.model, self.decay, self.dead_below = model, decay, dead_below
        self.counts = torch.ones(model.config.codebook_size)
        self.sums = model.codebook.clone()

    def start(self, vectors: Tensor, rounds: int = 12) -> None:
        """k-means on `vectors` (n, L)."""
        book = vectors[torch.randperm(len(vectors))[: len(self.counts)]].clone()
        for _ in range(rounds):
            self.model.codebook.copy_(book)
            codes = self.model.nearest(vectors)
            counts = torch.bincount(codes, minlength=len(book)).float()
            sums = torch.zeros_like(book).index_add_(0, codes, vectors)
            empty = counts == 0
            strays = vectors[torch.randint(len(vectors), (len(book),))]
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
            picks = vectors[torch.randint(len(vectors), (int(dead.sum()),))]
            self.counts[dead] = 1
            self.sums[dead] = picks
        self.model.codebook.copy_(self.sums / self.counts[:, None])


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over images, of [-1, 1] tensors rounded to 8 bits as a decoder would."""
    a8, b8 = ((x.clamp(-1, 1) * 127.5 + 127.5).round() for x in (a, b))
    return float((10 * torch.log10(255**2 / (a8 - b8).square().mean((1, 2, 3)))).mean())


@torch.inference_mode()
def evaluate(model: CompactVQ, images: Tensor, lpips: LPIPS) -> tuple[float, float]:
    """(PSNR, LPIPS), means over the images, through the codes."""
    outputs = [model.decode(model.codebook[model.nearest(model.encode(part))]) for part in images.split(25)]
    decoded = torch.cat(outputs).clamp(-1, 1)
    distances = [lpips(a, b) for a, b in zip(decoded.split(25), images.split(25), strict=True)]
    return psnr(decoded, images), float(torch.cat(distances).mean())


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
    faces, drawn = (evaluate(model, images, lpips) for images in (data.held_out, data.held_out_avatars))
    names = ("faces_psnr", "faces_lpips", "avatars_psnr", "avatars_lpips")
    return {name: round(value, 4) for name, value in zip(names, (*faces, *drawn), strict=True)}


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    data = Data(args.seed, args.avatars)
    model = CompactVQ(CompactConfig()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = CompactVQ(model.config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average.load_state_dict(model.state_dict())
    lpips = LPIPS(packages.lpips_weights())
    optimiser = torch.optim.AdamW(model.parameters(), args.rate, (0.9, 0.99), weight_decay=0.01, fused=True)
    book = Codebook(model)
    checkpoint = args.out.with_suffix(".resume.pt")
    first = 0
    if args.resume and checkpoint.exists():
        state = load_checkpoint(checkpoint)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        book.counts, book.sums, first = state["counts"], state["sums"], state["step"]
        data.random = np.random.default_rng(args.seed + first)
    started = time.time()
    for step in range(first, args.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.rate)
        images = data.sample(args.batch)
        if step == args.warm_up:
            with torch.inference_mode():
                book.start(torch.cat([model.encode(data.sample(64)).flatten(0, 2) for _ in range(8)]))
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.encode(images)
        if step < args.warm_up:
            quantised, commitment = latents, latents.square().mean() * 1e-3
        else:
            flat = latents.detach().flatten(0, 2)
            codes = model.nearest(flat)
            nearest = model.codebook[codes].view_as(latents)
            commitment = F.mse_loss(latents, nearest)
            quantised = latents + (nearest - latents).detach()  # straight-through
            book.update(flat, codes)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = model.decode(quantised)
            perceptual = lpips(decoded, images).mean()
        l1 = (decoded.float() - images).abs().mean()
        loss = l1 + args.perceptual * perceptual + 0.25 * commitment
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            decay = min(0.999, (step + 1) / (step + 10))
            for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
                mine.lerp_(theirs, 1 - decay)
            average.codebook.copy_(model.codebook)
        if (step + 1) % args.report == 0 or step + 1 == args.steps:
            faces = evaluate(average, data.held_out, lpips)
            drawn = evaluate(average, data.held_out_avatars, lpips)
            used = int((book.counts > book.dead_below).sum())
            row = {
                "step": step + 1,
                "seconds": round(time.time() - started),
                "train_l1": float(l1.detach()),
                "train_lpips": float(perceptual.detach()),
                "faces_psnr": faces[0],
                "faces_lpips": faces[1],
                "avatars_psnr": drawn[0],
                "avatars_lpips": drawn[1],
                "codes_used": used,
            }
            print(json.dumps({k: round(v, 4) for k, v in row.items()}), flush=True)
            save(average, args.out, {"steps": step + 1, "batch": args.batch, **row})
            state = {"model": model.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict()}
            torch.save({**state, "counts": book.counts, "sums": book.sums, "step": step + 1}, checkpoint)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/autoencoder.safetensors"))
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--perceptual", type=float, default=1.0, help="weight of LPIPS")
    parser.add_argument("--warm-up", type=int, default=400, help="steps without quantisation")
    parser.add_argument("--avatars", type=int, default=3000)
    parser.add_argument("--report", type=int, default=250, help="steps between evaluations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument(
        "--evaluate", type=Path, metavar="FILE", help="only measure a saved model on the held-out images"
    )
    args = parser.parse_args()
    if args.evaluate:
        print(json.dumps(report(args.evaluate, Data(args.seed, avatar_count=0), LPIPS(packages.lpips_weights()))))
        return 0
    args.out.parent.mkdir(parents=True, exist_ok=True)
    train(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
