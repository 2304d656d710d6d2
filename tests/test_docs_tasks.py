"""The twelve everyday tasks of docs/tasks.md: ours run, take no more lines than the peer's, and give the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import unboxed as ub

PAGE = Path(__file__).parents[1] / "docs" / "tasks.md"
TASK = re.compile(r"^## (\d+)\. .*?\n```python\n(.*?)^```\n\n[^\n]*:\n\n```py\n(.*?)^```", re.DOTALL | re.MULTILINE)
TASKS = {int(number): (ours, theirs) for number, ours, theirs in TASK.findall(PAGE.read_text(encoding="utf-8"))}


def n_lines(code: str) -> int:
    return sum(bool(line.strip()) for line in code.splitlines())


def needs(code: str) -> set[str]:
    return {name.split(".")[0] for name in re.findall(r"^(?:from|import) ([\w.]+)", code, re.MULTILINE)}


installed_packages = cache(packages_distributions)


def is_installed(name: str) -> bool:
    """As a package: benchmarks have files of the same names as peers."""
    return name in installed_packages()


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the page says is given."""
    monkeypatch.chdir(tmp_path)
    module, inputs = ub.zoo.load("digits-cnn")
    mean, std = (float(torch.as_tensor(h).flatten()[0]) for h in (inputs.mean, inputs.std))
    data = ub.data.digits("test")
    x, y = data.first(2)
    for image, label in zip(x, y.tolist(), strict=True):
        folder = tmp_path / "photos" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * image[0]).byte().numpy()).save(folder / f"{len(list(folder.iterdir()))}.png")
    torch.manual_seed(0)
    table = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).eval()

    def normalize(h: Tensor) -> Tensor:
        return (h - mean) / std

    return {
        "torch": torch, "model": module.eval(), "x": x, "y": y, "MEAN": mean, "STD": std, "normalize": normalize,
        "classes": [str(k) for k in range(10)], "table_model": table, "names": tuple("abcde"),
        "rows": torch.randn(3, 5), "background": torch.randn(20, 5),
    }  # fmt: skip


def test_there_are_twelve() -> None:
    assert sorted(TASKS) == list(range(1, 13))


@pytest.mark.parametrize("number", sorted(TASKS))
def test_ours_take_no_more_lines(number: int) -> None:
    ours, theirs = TASKS[number]
    assert n_lines(ours) <= n_lines(theirs)
    assert all(len(line) <= 120 for line in ours.splitlines())


def correlation(a: Any, b: Any) -> float:
    return float(torch.corrcoef(torch.stack([torch.as_tensor(h).double().flatten() for h in (a, b)]))[0, 1])


def same_gradient(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    a, b = ub.attribution.gradient(ours["box"], ours["x"], 3), theirs["map_"]
    assert correlation(a.abs(), b.detach()) > 0.9999


def same_contrast(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert correlation(ours["why"], theirs["why"]) > 0.99


def same_path(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert correlation(ours["complete"], theirs["complete"].detach()) > 0.99


def same_drops(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert correlation(ours["drops"], theirs["drops"]) > 0.9


def same_activations(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert all(torch.allclose(ours["h"][k], theirs["h"][k].detach(), atol=1e-5) for k in ("conv1", "conv2"))


SAME: dict[int, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    1: same_gradient, 3: same_contrast, 4: same_path, 7: same_drops, 12: same_activations,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of the peers
@pytest.mark.parametrize("number", sorted(TASKS))
def test_ours_run_as_theirs_and_give_the_same(number: int, given: dict[str, Any]) -> None:
    ours, theirs = TASKS[number]
    peer = dict(given)
    exec(ours, given)
    for name in ("gradient.png", "grad_cam.png")[number - 1 : number]:
        with Image.open(name) as picture:
            assert picture.width > 28
    if missing := [name for name in needs(theirs) if not is_installed(name)]:
        pytest.skip(f"ours ran; {', '.join(missing)} is not installed")
    exec(theirs, peer)
    if number in SAME:
        SAME[number](given, peer)
