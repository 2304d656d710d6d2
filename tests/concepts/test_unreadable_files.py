"""Files that cannot be read are left out, and indices stay those of the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import unboxed as ub

N, BROKEN = 60, (0, 1, 2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """60 files, odd ones brighter; the first three are no images."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    paths = [folder / f"{i:03d}.png" for i in range(N)]
    for i, path in enumerate(paths):
        if i in BROKEN:
            path.write_bytes(b"not an image")
        else:
            Image.fromarray((rng.integers(0, 120, (8, 8)) + 120 * (i % 2)).astype(np.uint8)).save(path)
    return paths


@pytest.fixture(scope="module")
def box() -> ub.Box:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
    return ub.Box(model, ub.Pixels((1, 8, 8)), outputs="logits")


def read(path: Path) -> Tensor:
    return torch.tensor(np.asarray(Image.open(path)) / 255, dtype=torch.float32)[None]


@pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")
def test_prototypes_and_members_are_indices_in_the_data(files: list[Path], box: ub.Box) -> None:
    groups = ub.concepts.prototypes(box, files, n_prototypes=3, n_criticisms=2).groups
    chosen = [(torch.cat([g.prototypes, g.criticisms]), g.examples) for g in groups]
    chosen += [(c.members, c.examples) for c in ub.concepts.shortcuts(box, files, n_pastes=5).clusters]
    assert len(chosen) > 1
    for indices, examples in chosen:
        for i, example in zip(indices.tolist(), examples, strict=False):
            torch.testing.assert_close(example, read(files[i]))


@pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")
@pytest.mark.parametrize("max_examples", [None, 50])
def test_a_mask_is_of_the_files(files: list[Path], box: ub.Box, max_examples: int | None) -> None:
    mask = torch.arange(N) % 2 == 1
    n_read = N - len(BROKEN) if max_examples is None else max_examples
    odd = torch.stack([read(files[i]) for i in range(3, 3 + n_read) if i % 2])
    by_mask, by_examples = (
        ub.concepts.concept_vectors(box, files, {"odd": c}, ["3:input"], n_random=5, max_examples=max_examples)
        for c in (mask, odd)
    )
    torch.testing.assert_close(by_mask.vectors[0], by_examples.vectors[0])
    by_mask, by_examples = (
        ub.concepts.tcav(
            box, files, {"odd": c}, None, ["3:input"], n_random=3, control=False, diagnostics=False,
            max_examples=max_examples,
        )
        for c in (mask, odd)
    )  # fmt: skip
    torch.testing.assert_close(by_mask.scores, by_examples.scores)
