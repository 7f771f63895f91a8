"""All numbers of one set of pictures compared with the real ones, each with what it was measured on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpkernel.errors import InputError
from lpkernel.metrics import distances, maps, pixels, portraits, samples
from lpkernel.metrics.cache import Cache
from lpkernel.metrics.extractors import Extractor, Spread, mean_of_pairs
from lpkernel.metrics.portraits import Portraits
from lpkernel.metrics.sets import ImageSet
from lpkernel.views import places

SHARD = 64  # pictures between two looks at the cache

Advance = Callable[[int], None]
Numbers = dict[str, Any]  # a value and what it was measured on, ready for JSON


@dataclass(frozen=True)
class Metric:
    """A row of the table. better: which way is better, in words, or "" where neither is."""

    key: str
    title: str
    better: str
    text: str


def feature_metrics(name: str) -> list[Metric]:
    """The rows of an extractor's features."""
    return [
        Metric(
            f"frechet_{name}",
            "FID" if name == "inception" else f"Fréchet distance, {name}",
            "lower",
            "Distance of the normal distributions fitted to the features of both sets. It grows as N falls: compare "
            "columns of equal N only.",
        ),
        Metric(
            f"kid_{name}",
            f"KID, {name}",
            "lower",
            "Kernel distance of both sets' features; its average does not depend on N. ± is a standard error.",
        ),
        Metric(
            f"diversity_{name}",
            f"diversity, {name}",
            "near 1",
            "Mean distance of two pictures of the set over that of two real ones.",
        ),
        Metric(
            f"precision_{name}",
            f"precision, {name}",
            "higher",
            "Share of the pictures that lie where real ones do (within the third nearest of some real one).",
        ),
        Metric(
            f"recall_{name}",
            f"recall, {name}",
            "higher",
            "Share of the real pictures that lie where the set's do.",
        ),
        Metric(
            f"nearest_{name}",
            f"nearest real, {name}",
            "near 1",
            "Median distance to the nearest real picture, over that of real ones to each other; far below 1 is a copy.",
        ),
    ]


LPIPS_METRIC = Metric(
    "diversity_lpips", "diversity, LPIPS", "near 1", "Mean LPIPS of all pairs over that of real ones, as in the paper."
)
MAP_METRICS = [
    Metric("distinct_sources", "distinct sources", "", "Examples that a picture is made of, on average."),
    Metric(
        "copied_area",
        "largest copied area",
        "lower",
        "Largest connected part that comes from one example, mirrored or not, as a share of the picture, on average.",
    ),
    Metric("hub_share", "share of hubs", "lower", "Share of all cells from the most used images (2 % of the bank)."),
    Metric(
        "seam_energy",
        "seam energy",
        "near 1",
        "Squared latent distance of neighbouring cells across borders of sources, over that within a source.",
    ),
]
FACE_METRICS = [
    Metric("faces_found", "faces found", "higher", "Share of the pictures in which dlib's detector finds a face."),
    Metric(
        "landmark_spread",
        "spread of landmarks",
        "near 1",
        "How far the corners of the eyes and the nose lie from their mean places, over that of real pictures.",
    ),
    Metric(
        "eye_difference",
        "difference of the eyes",
        "near 1",
        "1 - correlation of one eye and the other one mirrored, the median over that of real pictures.",
    ),
    Metric(
        "nearest_identity",
        "nearest identity",
        "near 1",
        "Median distance to the most similar real person, over that of real faces to each other; far below 1 is a copy "
        "of a person.",
    ),
]
PAIR_METRICS = [
    Metric("psnr", "PSNR in dB", "higher", "Of each real picture and its reconstruction, averaged."),
    Metric("ssim", "SSIM", "higher", "Structural similarity of luma, of real pictures and their reconstructions."),
    Metric("lpips", "LPIPS", "lower", "Perceptual distance of real pictures and their reconstructions."),
]


def collect(
    images: ImageSet, extractors: Sequence[Extractor], cache: Cache, advance: Advance | None = None
) -> dict[str, NDArray[Any]]:
    """What each extractor gives for the whole set, by its name: rows in the set's order, or their sum.

    Pictures are read shard by shard, and only where the cache lacks something.
    """
    found: dict[str, list[NDArray[Any]]] = {extractor.name: [] for extractor in extractors}
    for numbers in _shards(images.size):
        stamp = images.stamp(numbers)
        kept = {
            one.name: cache.get(
                ["features", one.hash, stamp],
                (1 if one.summed else len(numbers), one.width(images.facts["side"])),
                "f",
            )
            for one in extractors
        }
        missing = [extractor for extractor in extractors if kept[extractor.name] is None]
        pictures = images.read(numbers) if missing else None
        for extractor in missing:
            assert pictures is not None
            kept[extractor.name] = made = extractor(pictures)
            cache.put(["features", extractor.hash, stamp], made)
        for extractor in extractors:
            values, parts = kept[extractor.name], found[extractor.name]
            assert values is not None
            if extractor.summed and parts:
                parts[0] = parts[0] + values
            else:
                parts.append(values)
        if advance is not None:
            advance(len(numbers))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def errors(real: ImageSet, images: ImageSet, spread: Spread | None, cache: Cache) -> NDArray[np.float64]:
    """Squared error, SSIM and, if available, LPIPS of each picture of a reconstruction: (N, 2 or 3)."""
    rows = []
    for numbers in _shards(images.size):
        key = ["errors", spread.hash if spread else "", real.stamp(numbers), images.stamp(numbers)]
        part = cache.get(key, (len(numbers), 3 if spread else 2), "f")
        if part is None:
            a, b = real.read(numbers), images.read(numbers)
            columns = [pixels.squared_errors(a, b), pixels.ssim(a, b)]
            part = np.stack([*columns, *([spread.distances(a, b)] if spread else [])], axis=1)
            cache.put(key, part)
        rows.append(part)
    return np.concatenate(rows)


def _shards(size: int) -> list[range]:
    return [range(start, min(start + SHARD, size)) for start in range(0, size, SHARD)]


class Real:
    """The real pictures, and what every comparison needs of them; computed when first needed."""

    def __init__(self, images: ImageSet, features: dict[str, NDArray[Any]]) -> None:
        self.images, self.features = images, features
        self._known: dict[tuple[str, str], Any] = {}

    def known(self, extractor: str, what: str, compute: Callable[[NDArray[Any]], Any]) -> Any:
        if (extractor, what) not in self._known:
            self._known[extractor, what] = compute(self.features[extractor])
        return self._known[extractor, what]


def by_features(
    real: Real, images: ImageSet, features: NDArray[Any], extractor: Extractor
) -> tuple[Numbers, list[str], NDArray[np.int64], NDArray[np.float64]]:
    """The rows of an extractor, notes on them, and for each picture the nearest real one and its distance."""
    name, base = extractor.name, real.features[extractor.name]
    base_nearest = real.known(name, "nearest", lambda rows: float(np.median(distances.nearest(rows)[0])))
    kid, error = distances.kernel_distance(base, features)
    precision, recall = distances.precision_recall(base, features)
    apart, numbers = distances.nearest(features, base)
    gaussian = real.known(name, "gaussian", distances.Gaussian.of)
    values: dict[str, Numbers] = {
        "frechet": {"value": distances.frechet(gaussian, distances.Gaussian.of(features))},
        "kid": {"value": kid, "error": error},
        "diversity": {
            "value": _ratio(distances.mean_distance(features), real.known(name, "mean", distances.mean_distance))
        },
        "precision": {"value": precision, "k": distances.NEIGHBOURS},
        "recall": {"value": recall, "k": distances.NEIGHBOURS},
        "nearest": {
            "value": _ratio(float(np.median(apart)), base_nearest),
            "median": float(np.median(apart)),
            "least": float(apart.min()),
            "real_median": base_nearest,
        },
    }
    context = {
        **_context(real.images, images),
        "extractor": f"{name} {extractor.hash[:12]}",
        "dimensions": features.shape[1],
        "side": images.facts["side"],
        "extractor_side": extractor.facts["side"],
        "resize_filter": extractor.facts["resize_filter"],
    }
    notes = []
    smaller = min(len(features), len(base))
    if smaller <= features.shape[1]:
        notes.append(
            f"{smaller} pictures are no more than the {features.shape[1]} features of {name}: the covariance is "
            "singular and the Fréchet distance too large; compare columns of equal N only"
        )
    return {f"{key}_{name}": {**value, **context} for key, value in values.items()}, notes, numbers, apart


def by_lpips(real: Real, images: ImageSet, sums: NDArray[Any], spread: Spread) -> Numbers:
    """Diversity by LPIPS over all pairs."""
    own = mean_of_pairs(sums)
    base = real.known(spread.name, "mean", mean_of_pairs)
    value = {"value": _ratio(own, base), "mean": own, "real_mean": base}
    return {"diversity_lpips": {**value, **_context(real.images, images), **_lpips_facts(spread, images)}}


def by_faces(real: Real, images: ImageSet, rows: NDArray[Any], extractor: Portraits) -> Numbers:
    """The rows of the face networks."""
    context = {
        **_context(real.images, images),
        "extractor": f"{extractor.name} {extractor.hash[:12]}",
        "side": images.facts["side"],
        "extractor_side": extractor.facts["side"],
        "resize_filter": extractor.facts["resize_filter"],
    }
    found = portraits.numbers_of(real.features[extractor.name], rows)
    return {key: {**value, **context} for key, value in found.items()}


def by_maps(images: ImageSet) -> Numbers:
    """What the source maps say; nothing for a set that has none."""
    if images.maps is None:
        return {}
    share, hubs = maps.hub_share(images.maps, images.bank_images)
    examples = images.maps if images.bank is None else images.bank.examples_of(images.maps)
    areas = maps.copied_areas(examples)
    context = {"n": len(images.maps), "bank_images": images.bank_images, "seed": images.facts.get("seed")}
    values: Numbers = {
        "distinct_sources": {"value": float(maps.distinct_sources(examples).mean())},
        "copied_area": {"value": float(areas.mean()), "largest_of_all": float(areas.max())},
        "hub_share": {"value": share, "hubs": hubs},
    }
    if images.bank is not None and images.maps.min() >= 0:
        values["seam_energy"] = {"value": _seams(images)}
    return {key: {**value, **context} for key, value in values.items()}


def _seams(images: ImageSet) -> float | None:
    assert images.bank is not None and images.maps is not None
    level = images.bank.level(images.bank.grid)
    if images.shifts is None:
        y, x = np.indices(images.maps.shape[1:])
        return maps.seam_energy(images.maps, level[images.maps, y, x])
    # where one image continues from another place is a seam, too
    views = np.concatenate([images.maps[..., None], images.shifts], axis=-1).reshape(-1, 3)
    one_piece = np.unique(views, axis=0, return_inverse=True)[1].reshape(images.maps.shape)
    return maps.seam_energy(one_piece, level[images.maps, *places(images.shifts)])


def by_pairs(real: ImageSet, images: ImageSet, found: NDArray[np.float64], spread: Spread | None) -> Numbers:
    """How well a reconstruction does."""
    context = {**_context(real, images), "side": images.facts["side"]}
    values: Numbers = {
        "psnr": {"value": float(pixels.psnr(found[:, 0]).mean()), **context},
        "ssim": {"value": float(found[:, 1].mean()), **context},
    }
    if spread is not None:
        values["lpips"] = {"value": float(found[:, 2].mean()), **context, **_lpips_facts(spread, images)}
    return values


def memorisation(training: NDArray[np.float64], held_out: NDArray[np.float64], seed: int) -> dict[str, Any]:
    """Are training pictures reconstructed better than held-out ones? Squared errors of both -> PSNR and p-values."""
    statistic, p = samples.kolmogorov_smirnov(training, held_out)
    rank, p_rank = samples.rank_test(training, held_out, seed)
    medians = [float(np.median(pixels.psnr(sample))) for sample in (training, held_out)]
    return {
        "training_images": len(training),
        "held_out_images": len(held_out),
        "median_psnr_training": medians[0],
        "median_psnr_held_out": medians[1],
        "kolmogorov_smirnov": statistic,
        "p_kolmogorov_smirnov": p,
        "better_in_training": rank,
        "p_rank": p_rank,
        "shuffles": samples.SHUFFLES,
        "seed": seed,
    }


def _context(real: ImageSet, images: ImageSet) -> dict[str, Any]:
    return {"n": images.size, "n_real": real.size, "seed": images.facts.get("seed")}


def _lpips_facts(spread: Spread, images: ImageSet) -> dict[str, Any]:
    return {"extractor": f"{spread.name} {spread.hash[:12]}", "side": images.facts["side"]}


def _ratio(value: float, base: float) -> float:
    if base <= 0:
        raise InputError("all real images are the same, so nothing can be compared with them; give others")
    return value / base
