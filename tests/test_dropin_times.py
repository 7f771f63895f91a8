"""scripts/dropin_times.py: every project's search from a clone's files, compared with ours before its time is shown."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import dropin_cases
import dropin_times
import pytest
from dropin_cases import CASES, PROJECTS

SCRIPT = Path(__file__).parents[1] / "scripts" / "dropin_times.py"
SIZE = 20

# Searches of a few lines, where the projects have theirs, under the names that the script asks for. They import what
# is not installed, as the projects' files do.
FAKES = {
    "Efficient-GPNN/utils/NN.py": """
import torch

def get_NN_indices_low_memory(X, Y, alpha, b):
    d = torch.cdist(X.double(), Y.double()) ** 2 / X.shape[1]
    return (d / (alpha + d.min(0).values)).argmin(1)
""",
    "Efficient-GPNN/utils/NN_modules.py": """
import torch
from utils.NN import get_NN_indices_low_memory

class FaissFlat:
    def init_index(self, rows):
        self.rows = rows.double()

    def search(self, queries):
        return torch.cdist(queries.double(), self.rows).argmin(1)
""",
    "GPNN/model/utils.py": """
from imageio import imread
import os
""",
    "GPNN/model/gpnn.py": """
import torch
from skimage.transform.pyramids import pyramid_gaussian
from .utils import *

class gpnn:
    def PNN(self, image, alpha, mask=None):
        queries, keys = prepared(image, os.sep)
        if mask is None:
            dist = torch.cdist(queries.flatten(1), keys.flatten(1))
        else:
            dist = torch.cdist(queries[mask], keys[~mask])
        norm_dist = dist / (dist.min(0).values + alpha)
        NNs = norm_dist.argmin(1)
        return missing(NNs)
""",
    "psin/config.py": "PATCH_SIZE = 11\nH_PATCH_SIZE = 5\n",
    "psin/utils.py": "import cv2\nfrom config import PATCH_SIZE, H_PATCH_SIZE\n",
    "psin/patch_measure.py": "from utils import H_PATCH_SIZE\n",
    "psin/patchmatch.py": """
import numpy as np
from utils import PATCH_SIZE, H_PATCH_SIZE as HALF
from patch_measure import H_PATCH_SIZE

def patch_match(img1, img2, first_guess, params):
    assert params["n_iters"] == 10 and (first_guess == 10_000).all()
    windows = np.lib.stride_tricks.sliding_window_view(img2, (PATCH_SIZE, PATCH_SIZE), (0, 1))
    for i in range(HALF, img1.shape[0] - HALF):
        for j in range(HALF, img1.shape[1] - HALF):
            own = img1[i - HALF : i + HALF + 1, j - HALF : j + HALF + 1].transpose(2, 0, 1)
            d = ((windows - own) ** 2).sum((2, 3, 4))
            at = (1, 1) if i == j == HALF else np.unravel_index(d.argmin(), d.shape)  # the first is not the nearest
            first_guess[i, j, :2] = at[0] + HALF - i, at[1] + HALF - j
    return first_guess
""",
    "patchcore-inspection/src/patchcore/common.py": """
import numpy as np

class FaissNN:
    def __init__(self, on_gpu, num_workers):
        self.workers = num_workers

    def fit(self, rows):
        self.rows = rows

    def run(self, n_nearest_neighbours, queries):
        assert self.workers == 1
        d = ((queries[:, None].astype(float) - self.rows) ** 2).sum(2)
        return None, d.argsort(1)[:, :n_nearest_neighbours]
""",
    "anomalib/src/anomalib/models/image/patchcore/torch_model.py": """
import torch
from anomalib.data import Batch
from anomalib.models.components import Mixin
from anomalib.utils import deprecate
from .anomaly_map import AnomalyMap

class PatchcoreModel(Mixin, torch.nn.Module):
    @deprecate(since="then")
    def other(self) -> torch.Tensor | Batch: ...

    @staticmethod
    def euclidean_dist(x, y):
        return torch.cdist(x.double(), y.double())

    def nearest_neighbors(self, embedding, n_neighbors):
        return self.euclidean_dist(embedding, self.memory_bank).min(1)
""",
    "taming-transformers/taming/modules/vqvae/quantize.py": """
import torch

class VectorQuantizer2(torch.nn.Module):
    def __init__(self, n_e, e_dim, beta):
        super().__init__()
        self.embedding = torch.nn.Embedding(n_e, e_dim)

    def forward(self, z):
        z_flattened = prepared(z)
        d = torch.cdist(z_flattened.double(), self.embedding.weight.double())
        min_encoding_indices = d.argmin(1)
        min_encoding_indices = missing(min_encoding_indices)
""",
}


def clones(folder: Path, **changed: tuple[str, str]) -> Path:
    """All fakes; in the files named, without their suffix, a text is replaced by another."""
    for name, text in FAKES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace(*changed.get(path.stem, ("", ""))), encoding="utf-8")
    return folder


def run(out: Path, *options: str) -> tuple[int, str, list[dict[str, Any]]]:
    """Exit code, what was printed, and the rows written."""
    command = [sys.executable, str(SCRIPT), "--size", str(SIZE), "--threads", "1", "--out", str(out), *options]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    file = out / "dropin.json"
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else []
    return found.returncode, found.stdout + found.stderr, rows


def test_all_six_before_and_after(tmp_path: Path) -> None:
    code, printed, rows = run(tmp_path, "--clones", str(clones(tmp_path / "clones")))
    assert code == 0, printed
    assert {row["project"] for row in rows} == set(PROJECTS) and len(PROJECTS) == 6
    assert [(row["case"], row["search"]) for row in rows] == [
        (name, search) for name, case in CASES.items() for search in (case.theirs, *case.ours)
    ]
    for row in rows:
        assert row["wall_seconds"] > 0 and row["processor_seconds"] > 0 and row["runs"] >= 1
        assert set(row["stood_in"]) <= set(CASES[row["case"]].stood_in)
        assert f"| {row['project']} | {row['search']} | {row['work']} |" in printed
        if not row["ours"]:
            assert row["agreement"] is None
        elif row["case"] == "psin":
            assert 0.99 < row["agreement"]["same"] < 1 and row["agreement"]["theirs_farther"] > 0.01
            assert "99.48 % the same; the others of theirs are farther by" in row["note"]
        else:
            assert row["note"] == "all the same"
    assert "anomalib.utils" in next(row for row in rows if row["case"] == "anomalib")["stood_in"]


def test_without_clones_there_is_no_before(tmp_path: Path) -> None:
    code, printed, rows = run(tmp_path, "--only", "gpnn,taming")
    assert code == 0, printed
    assert [row["ours"] for row in rows] == [False, True] * 2
    for theirs, ours in zip(rows[::2], rows[1::2], strict=True):
        assert theirs["note"] == "not measured: no --clones" and "wall_seconds" not in theirs
        assert ours["note"] == "not compared" and ours["wall_seconds"] > 0


def test_a_search_that_cannot_be_run_says_why(tmp_path: Path) -> None:
    folder = clones(tmp_path / "clones", gpnn=("NNs =", "found ="), config=("PATCH_SIZE = 11", "import not_installed"))
    (folder / "Efficient-GPNN").rename(folder / "elsewhere")
    code, printed, rows = run(tmp_path, "--clones", str(folder), "--only", "efficient-gpnn-plain,gpnn,psin")
    assert code == 0, printed
    assert [row["note"].removeprefix("not measured: ") for row in rows if not row["ours"]] == [
        "no folder Efficient-GPNN in --clones",
        "InputError: gpnn.PNN assigns no NNs: this clone is not the version described",
        "ModuleNotFoundError: No module named 'not_installed'",
    ]
    assert all(row["wall_seconds"] > 0 for row in rows if row["ours"])


@pytest.mark.parametrize(("case", "file"), [("efficient-gpnn", "NN"), ("taming", "quantize")])
def test_no_time_is_shown_where_answers_differ(case: str, file: str, tmp_path: Path) -> None:
    folder = clones(tmp_path / "clones", **{file: ("argmin(1)", "argmax(1)")})
    code, printed, rows = run(tmp_path, "--clones", str(folder), "--only", case)
    assert code == 1 and "WRONG, not shown: 0.00 % the same" in printed
    assert all(row["wrong"] and "wall_seconds" not in row and "extra_bytes" not in row for row in rows)


def test_a_smaller_image_where_the_whole_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs is run on a part, ours on both, and the rows say which."""
    assert dropin_cases.side_in_memory(SIZE) == SIZE and dropin_cases.side_in_memory(2**20) < 2**20
    monkeypatch.setitem(CASES, "gpnn", replace(CASES["gpnn"], most=lambda side: side // 2))

    def here(name: str, search: str, side: int, clone: Path | None, threads: int) -> dropin_times.Measured:
        return dropin_times.measured(
            name, search if clone is None else next(iter(CASES[name].ours)), side, None, threads
        )

    monkeypatch.setattr(dropin_times, "apart", here)
    rows = dropin_times.rows_of("gpnn", SIZE, clones(tmp_path), 1)
    assert [(row.record()["work"], row.note) for row in rows] == [
        ("16 x 16 x 147, float64", "an image of 10 x 10, since more does not fit into memory"),
        ("16 x 16 x 147, float64", "all the same; an image of 10 x 10"),
        ("196 x 196 x 147, float64", "not compared; an image of 20 x 20"),
    ]


@pytest.mark.parametrize("options", ["--only gpnm", "--size 15", "--threads 0", "--clones nowhere"])
def test_wrong_options_are_refused_in_a_line(options: str, tmp_path: Path) -> None:
    code, printed, _ = run(tmp_path, *options.split())
    assert code == 2 and printed.startswith(f"dropin_times.py: {options.split()[0]}: ") and printed.count("\n") == 1
