"""Decoding only the cells that an edit changes: windows, statistics, and how close it is to decoding everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_same_bits import MODELS
from torch import nn

import lpkernel as lp
from lpkernel.autoencoder import TorchAutoencoder, load_autoencoder
from lpkernel.autoencoder.partial import Box, Original

KINDS = ["embedded", *MODELS]


def _load(kind: str, folder: Path) -> Any:
    if kind == "embedded":
        return load_autoencoder(device="cpu", dtype="float32")
    torch.manual_seed(0)
    MODELS[kind]().save_pretrained(folder)
    return load_autoencoder(f"{folder}?image_size=64", device="cpu", dtype="float32")


@pytest.fixture(scope="module", params=KINDS)
def autoencoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TorchAutoencoder:
    found: TorchAutoencoder = _load(request.param, tmp_path_factory.mktemp("model"))
    return found


def _content(autoencoder: TorchAutoencoder, count: int) -> np.ndarray:
    random, side = np.random.default_rng(0), autoencoder.grid
    if autoencoder.codebook is not None:
        return random.integers(0, len(autoencoder.codebook), (count, side, side))
    return random.normal(size=(count, side, side, autoencoder.width)).astype(np.float32)


def _middle(grid: int) -> Box:
    """A fourth of the cells."""
    return grid // 4, grid // 4, grid // 4 + grid // 2, grid // 4 + grid // 2


def test_the_stages_are_the_decoder(autoencoder: TorchAutoencoder) -> None:
    content = _content(autoencoder, 1)
    pixels, record = autoencoder.decode_recorded(content[0])
    assert record is not None
    np.testing.assert_array_equal(pixels, autoencoder.decode(content)[0])


def test_a_window_of_the_original_is_the_original_s(autoencoder: TorchAutoencoder) -> None:
    """A window's edges do not show, and the statistics are those of the whole image."""
    content = _content(autoencoder, 1)
    pixels, record = autoencoder.decode_recorded(content[0])
    assert record is not None
    size = autoencoder.image_size // autoencoder.grid
    for cells in (_middle(autoencoder.grid), (0, 1, 2, 3), (autoencoder.grid - 1, 0, autoencoder.grid, 2)):
        top, left, bottom, right = (edge * size for edge in cells)
        part = autoencoder.decode_cells(content, record, cells)[0]
        # sums in another order: a value between two levels may round to the other
        assert np.abs(part.astype(int) - pixels[top:bottom, left:right]).max() <= 1
        assert (part == pixels[top:bottom, left:right]).mean() > 0.999


def test_a_decoder_without_statistics_is_cut_exactly(tmp_path: Path) -> None:
    tiny = _load("Tiny", tmp_path)
    before, after = _content(tiny, 2)
    top, left, bottom, right = cells = _middle(tiny.grid)
    variant = before.copy()
    variant[top:bottom, left:right] = after[top:bottom, left:right]
    _, record = tiny.decode_recorded(before)
    size = tiny.image_size // tiny.grid
    whole = tiny.decode(variant[None])[0, top * size : bottom * size, left * size : right * size]
    np.testing.assert_array_equal(tiny.decode_cells(variant[None], record, cells)[0], whole)


def test_the_reach_of_a_stage_is_the_network_s(autoencoder: TorchAutoencoder) -> None:
    """With the statistics fixed, the influence of a pixel reaches exactly as far as the stage says."""
    stages = autoencoder.stages()
    assert stages is not None
    layers: list[Any] = [module for module in autoencoder.network.modules() if isinstance(module, nn.GroupNorm)]
    kinds = [layer.__class__ for layer in layers]
    far = 0
    try:
        for layer in layers:
            layer.__class__ = _Still
        x = torch.zeros_like(autoencoder._vectors(autoencoder._sent(_content(autoencoder, 1))))
        for stage in stages:
            with torch.inference_mode():
                spoilt, place, side = x.clone(), x.shape[-1] // 2, x.shape[-1] * stage.factor
                spoilt[0, :, place, place] = torch.nan
                rows = torch.nonzero(stage.run(spoilt).isnan().any(1)[0].any(1)).flatten().tolist()
                x = torch.zeros_like(stage.run(x))
            if stage.reach is not None:
                first, last = place * stage.factor - stage.reach, (place + 1) * stage.factor - 1 + stage.reach
                assert rows == list(range(max(0, first), min(side, last + 1)))
                assert stage.wants((last, last, last + 1, last + 1), side // stage.factor)[0] == place
                far += stage.reach > 0
    finally:
        for layer, kind in zip(layers, kinds, strict=True):
            layer.__class__ = kind
    assert far > 2


class _Still(nn.GroupNorm):
    def forward(self, x: torch.Tensor, in_place: bool = False) -> torch.Tensor:
        return x


@pytest.fixture(scope="module")
def edited() -> tuple[lp.Synthesis, Any]:
    embedded: Any = load_autoencoder(device="cpu", dtype="float32")
    bank = lp.Bank.load(lp.bank.DEFAULT_BANK)
    picture = embedded.decode(bank.whole(np.array([5])))[0]
    return lp.edit(bank, picture, embedded, region="eyes", n=3), embedded


def test_an_edit_decodes_its_region_only(edited: tuple[lp.Synthesis, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made, embedded = edited
    assert made.composite is not None and made.codes is not None
    whole = made.composite.apply(embedded.decode(made.codes)).astype(int)
    monkeypatch.setattr(embedded, "decode", lambda *_: pytest.fail("everything was decoded"))
    images = made.decode(embedded)
    changed = made.composite.weight > 0
    assert np.array_equal(images[:, ~changed], whole[:, ~changed])
    difference = np.abs(images - whole)[:, changed]
    assert difference.max() <= 3 and (difference <= 1).mean() >= 0.99
    np.testing.assert_array_equal(np.concatenate([one.decode(embedded) for one in made]), images)


def test_what_cannot_be_decoded_in_parts_is_decoded_whole(edited: tuple[lp.Synthesis, Any]) -> None:
    made, embedded = edited
    assert made.codes is not None
    original = Original(made.codes[0])
    everything = np.ones((128, 128), bool)
    np.testing.assert_array_equal(
        original.variants(embedded, made.codes[1:], everything), embedded.decode(made.codes[1:])
    )

    class Plain:
        grid, image_size = embedded.grid, embedded.image_size
        decode = staticmethod(embedded.decode)

    few = np.zeros((128, 128), bool)
    few[40:60, 40:60] = True
    plain: Any = Plain()
    np.testing.assert_array_equal(original.variants(plain, made.codes[1:], few), embedded.decode(made.codes[1:]))
    np.testing.assert_array_equal(original.pixels(plain), embedded.decode(made.codes[:1])[0])


def test_a_spatial_norm_is_not_taken_apart(tmp_path: Path) -> None:
    from test_same_bits import _vq

    _vq((32, 64), False, sample_size=24, norm_type="spatial").save_pretrained(tmp_path)
    ae: Any = load_autoencoder(tmp_path, device="cpu", dtype="float32")
    content = _content(ae, 2)
    assert ae.stages() is None and ae.decode_recorded(content[0])[1] is None
    few = np.zeros((24, 24), bool)
    few[3:6, 3:6] = True
    np.testing.assert_array_equal(Original(content[0]).variants(ae, content, few), ae.decode(content))
