"""The store of training gradients: what gradient_dot gives, resumed without loss or doubling, wrong data refused."""

from __future__ import annotations

import logging
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import unboxed as ub
from unboxed.errors import DataError, InputError, ModelError, NaNError, WriteError
from unboxed.influence import _parts, gradient_dot, gradient_store
from unboxed.influence import store as store_module
from unboxed.influence.result import NATS_PER_EXAMPLE_UNIT_TEXT, SIMILARITY_UNIT_TEXT
from unboxed.testing.models import GRAY_INPUTS, N_CLASSES, PlainCNN

N, PART = 22, 5


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_STORE_PART_ROWS", PART)


@pytest.fixture
def box() -> ub.Box:
    return open_box(0)


def open_box(seed: int) -> ub.Box:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ub.Box(PlainCNN(), GRAY_INPUTS, outputs="logits")


@pytest.fixture
def train() -> tuple[Tensor, Tensor]:
    return torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(N) % N_CLASSES


@pytest.fixture
def queries() -> tuple[Tensor, Tensor]:
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 2, 1])


def relative_error(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_scores_are_those_of_gradient_dot(box: ub.Box, train: Any, queries: Any, tmp_path: Path) -> None:
    for dtype, tolerance in (("float32", 1e-6), ("float16", 2e-3)):
        store = gradient_store(box, train, tmp_path / dtype, dim=None, dtype=dtype)  # type: ignore[arg-type]
        for settings in ({}, {"lr": 0.1}, {"metric": "cosine"}):
            expected, result = gradient_dot(box, *queries, train, **settings), store.scores(*queries, **settings)  # type: ignore[arg-type]
            assert relative_error(result.scores, expected.scores) < tolerance
            assert (result.unit, result.truth) == (expected.unit, expected.truth)
            assert torch.equal(result.train_labels, train[1])  # type: ignore[arg-type]
        assert store.n_train == N
        assert relative_error(store.norms, torch.cat([gradient_norms(box, train)])) < 1e-6
    assert store.scores(*queries).unit == SIMILARITY_UNIT_TEXT
    assert store.scores(*queries, lr=1.0).unit == NATS_PER_EXAMPLE_UNIT_TEXT


def gradient_norms(box: ub.Box, train: Any) -> Tensor:
    from unboxed.engine.example_gradients.gradients import ExampleGradients

    return ExampleGradients(box).norms(*train)


def test_a_projection_keeps_inner_products_about(box: ub.Box, train: Any, queries: Any, tmp_path: Path) -> None:
    exact = gradient_dot(box, *queries, train, metric="cosine").scores
    few = gradient_store(box, train, tmp_path / "few", dim=200)
    assert few.width == 200
    assert (few.scores(*queries, metric="cosine").scores - exact).abs().max() < 3 * 3 / 200**0.5
    assert torch.corrcoef(torch.stack([few.scores(*queries).scores.flatten(), exact.flatten()]))[0, 1] > 0.7
    other = gradient_store(box, train, tmp_path / "other", dim=200, seed=1)
    assert not torch.equal(other.scores(*queries).scores, few.scores(*queries).scores)
    assert gradient_store(box, train, tmp_path / "all", dim=10_000).width == 448


def test_top_and_bottom(box: ub.Box, train: Any, queries: Any, tmp_path: Path) -> None:
    store = gradient_store(box, train, tmp_path)
    for settings in ({}, {"metric": "cosine"}, {"lr": 0.5}):
        result = store.scores(*queries, **settings)  # type: ignore[arg-type]
        for found, expected in (
            (store.top(*queries, k=7, **settings), result.top(7)),  # type: ignore[arg-type]
            (store.bottom(*queries, k=7, **settings), result.bottom(7)),  # type: ignore[arg-type]
        ):
            assert torch.equal(found.indices, expected)
            assert torch.equal(found.scores, result.scores.gather(1, expected))
    assert store.top(*queries, k=100).indices.shape == (3, N)
    with pytest.raises(InputError):
        store.top(*queries, k=0)


@pytest.mark.parametrize("stop_at", [0, 2, 4])
def test_a_run_that_was_stopped_goes_on(
    box: ub.Box, train: Any, tmp_path: Path, stop_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without loss or doubling: the files are those of a run in one go, and no part is computed twice."""
    gradient_store(box, train, tmp_path / "whole")
    written: list[int] = []
    write = _parts.GradientStoreFiles.write

    def stopping(self: Any, k: int, *args: Any) -> None:
        if k == stop_at and k not in written:
            written.append(k)
            raise KeyboardInterrupt
        written.append(k)
        write(self, k, *args)

    monkeypatch.setattr(_parts.GradientStoreFiles, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        gradient_store(box, train, tmp_path / "stopped")
    with pytest.raises(DataError, match="no complete store"):
        gradient_store(box, None, tmp_path / "stopped")
    gradient_store(box, train, tmp_path / "stopped")
    assert written == [*range(stop_at + 1), *range(stop_at, 5)]
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    gradient_store(box, train, tmp_path / "stopped")
    assert len(written) == 6  # a complete store is only opened


def test_a_run_that_was_stopped_before_the_manifest_goes_on(box: ub.Box, train: Any, tmp_path: Path) -> None:
    gradient_store(box, train, tmp_path)
    before = contents(tmp_path)
    (tmp_path / "manifest.json").unlink()
    gradient_store(box, train, tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("complete", [True, False])
def test_other_data_are_refused(box: ub.Box, train: Any, tmp_path: Path, complete: bool) -> None:
    x, y = train
    gradient_store(box, train, tmp_path)
    if not complete:
        (tmp_path / "manifest.json").unlink()
        (tmp_path / "part-00004.safetensors").unlink()
    before = contents(tmp_path)
    order = torch.arange(N)
    order[[6, 7]] = order[[7, 6]]
    relabeled = y.clone()
    relabeled[12] = (y[12] + 1) % N_CLASSES
    for other, rows in (((x[order], y[order]), "5 to 9"), ((x, relabeled), "10 to 14")):
        with pytest.raises(DataError, match=f"training examples {rows} are not those"):
            gradient_store(box, other, tmp_path)
    with pytest.raises(DataError, match="more training examples" if complete else "are not those"):
        gradient_store(box, (x[:20] if complete else x[:12], y[:20] if complete else y[:12]), tmp_path)
    assert contents(tmp_path) == before


def test_more_data_are_refused(box: ub.Box, train: Any, tmp_path: Path) -> None:
    x, y = train
    gradient_store(box, (x[:20], y[:20]), tmp_path)
    with pytest.raises(DataError, match="fewer training examples"):
        gradient_store(box, train, tmp_path)


def test_a_loader_that_shuffles_is_refused(box: ub.Box, train: Any, tmp_path: Path) -> None:
    """Nobody could say which example a score is of, and a second pass would find others."""
    loader = DataLoader(TensorDataset(*train), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0))
    with pytest.raises(DataError, match="another order at each pass"):
        gradient_store(box, loader, tmp_path)
    with pytest.raises(DataError, match="another order at each pass"):
        gradient_dot(box, *train, loader)


def test_a_store_of_another_model_or_other_settings_is_refused(box: ub.Box, train: Any, tmp_path: Path) -> None:
    gradient_store(box, train, tmp_path, dim=100)
    with pytest.raises(ModelError, match="its weights are others"):
        gradient_store(open_box(1), train, tmp_path, dim=100)
    for settings, message in (
        ({"dim": 50}, "dim 100, this is 50"), ({"dim": 100, "layers": "fc"}, "parameters conv1.weight to fc.bias"),
        ({"dim": 100, "dtype": "float32"}, "dtype float16"), ({"dim": 100, "seed": 5}, "seed 0, this is 5"),
        ({"dim": 100, "loss": own_loss}, "loss of the outputs, this is .*own_loss"),
    ):  # fmt: skip
        for data in (train, None):
            with pytest.raises(ModelError, match=message):
                gradient_store(box, data, tmp_path, **settings)  # type: ignore[arg-type]
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ModelError, match="its weights are others"):
        gradient_store(open_box(1), train, tmp_path, dim=100)


def own_loss(z: Tensor, y: Tensor) -> Tensor:
    return z[:, 0]


def test_broken_files_are_refused(box: ub.Box, train: Any, tmp_path: Path) -> None:
    gradient_store(box, train, tmp_path)
    manifest = (tmp_path / "manifest.json").read_bytes()
    for broken in (b"", b"{}", b"[1]"):
        (tmp_path / "manifest.json").write_bytes(broken)
        with pytest.raises(ModelError, match="no manifest"):
            gradient_store(box, None, tmp_path)
    (tmp_path / "manifest.json").write_bytes(manifest)
    (tmp_path / "part-00001.safetensors").write_bytes(b"half")
    with pytest.raises(ModelError, match=r"can't read .*part-00001"):
        gradient_store(box, train, tmp_path)


def test_examples_come_in_any_form(box: ub.Box, train: Any, queries: Any, tmp_path: Path) -> None:
    expected = contents_of(gradient_store(box, train, tmp_path / "tensors"))
    dataset = TensorDataset(*train)
    forms = {"dataset": dataset, "loader": DataLoader(dataset, batch_size=4), "list": [(x, int(y)) for x, y in dataset]}
    for name, data in forms.items():
        assert contents_of(gradient_store(box, data, tmp_path / name)) == expected
        assert gradient_store(box, None, tmp_path / name).n_train == N
    for unlabeled in (train[0], [x for x, _ in dataset]):
        with pytest.raises(DataError, match="no labels"):
            gradient_store(box, unlabeled, tmp_path / "unlabeled")


def contents_of(store: Any) -> dict[str, bytes]:
    return contents(store.folder)


def test_nan_names_its_example(box: ub.Box, train: Any, tmp_path: Path) -> None:
    with pytest.raises(NaNError, match="row 13"):
        gradient_store(
            box, train, tmp_path, loss=lambda z, y: z[:, 0] * torch.where(z[:, 0] == logit_of(box, train), torch.nan, 1)
        )


def logit_of(box: ub.Box, train: Any) -> Tensor:
    return box.read(train[0][10:15], "logits")["logits"][3, 0]


def test_the_size_is_stated_first(
    box: ub.Box, train: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO, "unboxed"):
        store = gradient_store(box, train, tmp_path / "one", dim=None)
    size = N * (2 * 448 + 16)
    assert f"{N} training examples: {size / 1e6:.1f} MB" in caplog.text
    on_disk = sum(p.stat().st_size for p in (tmp_path / "one").glob("part-*"))
    assert store.n_bytes == size <= on_disk < 1.5 * size + 5 * 1000
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000))
    with pytest.raises(WriteError, match=r"needs 0.0 MB|smaller dim"):
        gradient_store(box, train, tmp_path / "two")
    assert not (tmp_path / "two").exists()
    gradient_store(box, train, tmp_path / "one", dim=None)  # nothing to write
    assert "GradientStore(" in repr(store)
    assert f"{N} examples" in repr(store)


def smoothed(amount: float) -> Any:
    return lambda z, y: nn.functional.cross_entropy(z, y, reduction="none", label_smoothing=amount)


def perceptron(activation: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    hidden = nn.Linear(64, 4), activation or nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(4, N_CLASSES))


def test_what_weights_do_not_say_is_part_of_a_store(train: Any, tmp_path: Path) -> None:
    """The same weights under another normalization, activation or loss of the same name have other gradients."""
    box = ub.Box(perceptron(), GRAY_INPUTS)
    gradient_store(box, train, tmp_path / "own")
    gradient_store(box, train, tmp_path / "loss", loss=smoothed(0.0))
    others: tuple[tuple[ub.Box, str, dict[str, Any]], ...] = (
        (ub.Box(perceptron(), ub.Pixels((1, 8, 8), mean=0.2)), "own", {}),
        (ub.Box(perceptron(nn.GELU()), GRAY_INPUTS), "own", {}),
        (box, "loss", {"loss": smoothed(0.3)}),
    )
    for changed, folder, settings in others:
        for data in (train, None):
            with pytest.raises(ModelError, match="with the same weights its losses are others"):
                gradient_store(changed, data, tmp_path / folder, **settings)
    assert gradient_store(box, None, tmp_path / "loss", loss=smoothed(0.0)).n_train == N


def test_layers_of_one_size_are_told_apart(train: Any, tmp_path: Path) -> None:
    box = ub.Box(perceptron(), GRAY_INPUTS)
    gradient_store(box, train, tmp_path, layers=["1", "3", "6"])
    with pytest.raises(ModelError, match="it is of other layers"):
        gradient_store(box, train, tmp_path, layers=["1", "5", "6"])


@pytest.mark.parametrize("as_labels", [torch.Tensor.numpy, torch.Tensor.tolist])
def test_labels_of_several_inputs_come_in_any_form(as_labels: Any, tmp_path: Path) -> None:
    inputs = ub.MultiInput((ub.Features(("a", "b")), ub.Features(("c", "d"))))
    box, y = ub.Box(nn.Bilinear(2, 2, 3), inputs, outputs="logits"), torch.arange(N) % 3
    parts = torch.rand(N, 2), torch.rand(N, 2)
    assert torch.equal(gradient_store(box, (parts, as_labels(y)), tmp_path).labels, y)
