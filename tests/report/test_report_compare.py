"""The page's section on another model: for every kind of model there is something to report, or a sentence why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.report import report
from unboxed.report.compare import SECTION

GRAY = ub.Pixels((1, 8, 8))


def model(seed: int = 0, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 12), nn.ReLU(), nn.Linear(12, classes)
    )


def images(n: int = 30) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def page(box: ub.Box, data: Any, out: Path, **more: Any) -> tuple[str, dict[str, Any]]:
    made = report(box, data, out, sections=[SECTION], quiet=True, **more)
    assert made.failures == {}
    return made.path.read_text(encoding="utf-8"), json.loads((out / "report.json").read_text(encoding="utf-8"))


def test_a_model_with_its_untrained_copy_and_a_judge(tmp_path: Path) -> None:
    box, judge = ub.Box(model(), GRAY), ub.Box(model(1), GRAY)
    x = images()
    text, facts = page(box, (x, box.predict(x)), tmp_path / "out", judge=judge)
    for words in ("this model and the untrained model", "this model and the judge", "First-layer filters",
                  "Activations of layer 1 for one example", "each of the 12 units of layer 4",
                  "accuracy without it"):  # fmt: skip
        assert words in text, words
    assert set(facts["findings"]["compare"]["untrained"]) == {"0", "3", "5"}
    assert len(facts["findings"]["compare"]["units"]["units"]) == 10
    assert {f.name for f in (tmp_path / "out" / "pictures").iterdir()} >= {"similarity-untrained.png"}


def test_the_unit_that_is_needed_comes_first(tmp_path: Path) -> None:
    """Unit 5 alone carries the second class."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[5] = 1 / 32
        model[3].weight.zero_()
        model[3].weight[1, 5] = 10.0
        model[3].bias.copy_(torch.tensor([8.0, 0.0]))
    box, x = ub.Box(model, GRAY), images(40) ** torch.linspace(0.3, 3, 40).view(-1, 1, 1, 1)
    text, facts = page(box, (x, box.predict(x)), tmp_path)
    assert facts["findings"]["compare"]["units"]["units"][0][0] == "5"
    assert "Unit 5 is needed most" in text


@pytest.mark.parametrize("outputs", ["regression", "logits", "multilabel"])
def test_tables_of_features(tmp_path: Path, outputs: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1 if outputs == "regression" else 4))
    box = ub.Box(model, ub.Features(("a", "b", "c")), outputs=outputs)
    data = torch.randn(40, 3) if outputs == "regression" else (torch.randn(40, 3), torch.arange(40) % 4)
    text, _ = page(box, data, tmp_path)
    assert "this model and the untrained model" in text
    assert "each of the 6 units" in text
    assert "filters" not in text


class Alone(nn.Module):
    """Can't be copied, and has no layers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3]

    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("no copies")


def test_a_model_that_can_not_be_copied_is_reported(tmp_path: Path) -> None:
    text, _ = page(ub.Box(Alone(), GRAY, outputs="logits"), (images(), torch.arange(30) % 3), tmp_path)
    assert "No untrained copy of this model" in text
    assert "No unit to remove" in text


def test_few_examples(tmp_path: Path) -> None:
    text, _ = page(ub.Box(model(), GRAY), images(2), tmp_path)
    assert "at least 4 examples" in text
    assert "each of the 12 units" in text


def test_a_judge_of_other_inputs_is_left_out(tmp_path: Path) -> None:
    judge = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(100, 3)), ub.Pixels((1, 10, 10)))
    text, _ = page(ub.Box(model(), GRAY), images(), tmp_path, judge=judge)
    assert "and the judge" not in text
