"""A method of a user's own: one file and no other line, and it takes part in everything that is made from cards."""

from __future__ import annotations

import gc
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import unboxed as ub
from unboxed.cards import card, card_of, cards, find_card
from unboxed.checks.ranking import candidates
from unboxed.cli import app
from unboxed.errors import InputError, OutputError
from unboxed.report.attack_budget import default_attacks_in_few_steps as report_attacks
from unboxed.testing import check_method

SOURCE = '''
"""Two methods of one's own."""
from __future__ import annotations
from typing import Annotated
import torch
from torch import Tensor
from unboxed import Box
from unboxed.adversarial.attack_state import AttackState
from unboxed.adversarial.result import Adversarial
from unboxed.cards import card
from unboxed.engine.gradients.score import gradients
from unboxed.engine.optimize.constraints import resolve_ball
from unboxed.parameters import Eps, InputBatch, Labels, Seed, Target
from unboxed.settings import AtLeast, Unit, check_settings


@card(name="Scaled gradient", family="attribution", source="a test", shows="Slopes.", does_not_show="More.",
      example=lambda method, box, x, y: method(box, x, y))
def scaled_gradient(
    box: Box, x: InputBatch, target: Target = None, *,
    factor: Annotated[float, AtLeast(1), Unit("times"), "Factor."] = 2.0,
) -> Tensor:
    """The gradient times a factor."""
    check_settings(scaled_gradient, locals())
    x = box.validate_inputs(x)
    return box.restore_structure(factor * gradients(box, box.objective(target, len(x)), x).map)


@card(name="Random signs", family="adversarial", source="a test", shows="Chance.", does_not_show="Robustness.",
      default_attack={"seed": 3}, gradient_free=True, example=lambda method, box, x, y: method(box, x, y, eps=0.3))
def random_signs(box: Box, x: InputBatch, y: Labels = None, *, eps: Eps = 0.1, seed: Seed = 0) -> Adversarial:
    """One random corner of the L-inf ball."""
    check_settings(random_signs, locals())
    state = AttackState(box, x, y, norm=resolve_ball(eps, "linf", None))
    with state:
        rows = state.find_rows_to_attack()
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randn(state.x.shape, generator=generator).sign().to(state.x)
        z = box.inputs.clip(state.x + eps * signs)[rows]
        state.update_nearest(z, rows, state.success_score(z, rows) > 0)
    return state.to_result()
'''


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A script with two methods, imported as the command line imports it, and forgotten afterwards."""
    path = tmp_path_factory.mktemp("own") / "mine.py"
    path.write_text(SOURCE)
    factories = importlib.import_module("unboxed.loading.factories")
    module = factories.import_methods(str(path))
    yield path
    for name in ("scaled_gradient", "random_signs"):
        delattr(module, name)
    sys.modules.pop(module.__name__)
    del module
    gc.collect()


def test_they_are_listed_in_their_families(source: Path) -> None:
    assert cards("attribution")[-1].key == "scaled_gradient"
    assert cards("adversarial")[-1].key == "random_signs"
    assert find_card("Scaled gradient").settings["factor"].range == "1 or more"


def test_they_run_by_name(source: Path, tmp_path: Path) -> None:
    model = ["--model", "zoo:digits-cnn", "--data", "digits:test", "--n", "2", "-o", str(tmp_path)]
    done = CliRunner().invoke(app, ["--methods-from", str(source), "run", "scaled_gradient", *model, "--factor", "3"])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "result.json").read_text())["method"] == "scaled_gradient"
    refused = CliRunner().invoke(app, ["run", "scaled_gradient", *model, "--factor", "0.5"])
    assert (refused.exit_code, "factor must be a number, 1 or more; got 0.5" in refused.output) == (2, True)
    done = CliRunner().invoke(app, ["run", "random_signs", *model, "--eps", "8/255"])
    assert done.exit_code == 0, done.output


def test_the_attack_evaluates_and_the_attribution_is_ranked(source: Path, tmp_path: Path) -> None:
    model = ["--model", "zoo:digits-cnn", "--data", "digits:test", "--n", "2", "-o", str(tmp_path)]
    done = CliRunner().invoke(app, ["attack", *model, "--attack", "random_signs", "--eps", "0.1", "-q"])
    assert done.exit_code == 0, done.output
    assert "random_signs" in json.loads((tmp_path / "attack.json").read_text())["robust"]
    box = ub.load("zoo:digits-cnn")
    assert "scaled_gradient" in candidates(box)


def test_a_default_attack_takes_part_in_evaluations_and_reports(source: Path) -> None:
    attacks = ub.robustness.default_attacks()
    assert list(attacks) == ["random_signs", "fgsm", "pgd", "square"]  # by their model runs
    assert [attacks[name].keywords for name in ("random_signs", "square")] == [{"seed": 3}, {"queries": 500}]
    box, data = ub.Box(*ub.zoo.load("digits-cnn")), ub.data.digits("test").first(3)
    result = ub.robustness.evaluate(box, data, eps=[0.1], norm="linf", minimal_attack=None, check_masking=False)
    assert result.attacks == (*attacks,)
    assert [*report_attacks()] == ["Random signs", "FGSM", "PGD-20"]


def test_a_gradient_free_attack_is_named_where_there_is_no_gradient(source: Path) -> None:
    box, (x, y) = ub.Box(*ub.zoo.load("digits-cnn")), ub.data.digits("test").first(3)
    box = ub.Box(Detached(box.model), box.inputs, outputs="logits")
    with pytest.raises(OutputError, match="square, hop_skip_jump, boundary and random_signs attack models without"):
        ub.adversarial.pgd(box, x, y, eps=0.1)


class Detached(torch.nn.Module):
    """A model without a gradient of its input."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(x)
        return logits.detach()


def test_they_keep_the_contracts(source: Path) -> None:
    for name in ("scaled_gradient", "random_signs"):
        check_method(find_card(name).method, on=["plain", "dict_output"])


def test_a_method_is_found_by_its_written_name_and_a_wrong_one_gets_the_nearest() -> None:
    assert find_card("Grad-CAM++").key == "grad_cam_plus_plus"
    with pytest.raises(InputError, match="there is no method 'smothgrad'; did you mean 'smoothgrad'"):
        find_card("smothgrad")


def test_what_a_card_names_must_exist() -> None:
    words = {"name": "n", "source": "s", "shows": "s", "does_not_show": "d", "example": lambda *args: None}
    for wrong in ({"needs": ("wings",)}, {"axioms": ("beauty",)}, {"family": "magic"}):
        with pytest.raises(InputError, match="a card's"):
            card(**words, **wrong)  # type: ignore[arg-type]


def test_the_decorator_gives_the_function_back_and_a_forgotten_one_is_listed_no_more() -> None:
    def method(box: ub.Box) -> torch.Tensor:
        return torch.zeros(1)

    words = {"name": "n", "source": "s", "shows": "s", "does_not_show": "d", "example": lambda *args: None}
    assert card(**words)(method) is method  # type: ignore[arg-type]
    assert card_of(method) in cards()
    key = method.card  # type: ignore[attr-defined]
    del method, key
    gc.collect()
    assert "method" not in {c.key for c in cards("own")}
