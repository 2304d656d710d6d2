"""What the doctor says of a model is so: its methods are run again on other images, and compared with what it said."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from contracts.common import CARDS, REFUSED, make_case
from unboxed.cards import card
from unboxed.diagnosis import REPORT_BUG_TEXT, Diagnosis, doctor
from unboxed.engine.read.output_values import predicted_output_values
from unboxed.errors import InputError, UnboxedError
from unboxed.testing import models

OFTEN = ("lstm", "attention", "checkpointed_reentrant")
NIGHTLY = (*OFTEN, "plain", "exported_flat", "scripted_part", "batch_gate", "mlp", "parameterless", "transformer")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "awkward" in metafunc.fixturenames:
        metafunc.parametrize("awkward", NIGHTLY if metafunc.config.getoption("--all-pairs") else OFTEN)


def of_ours(diagnosis: Diagnosis) -> dict[str, bool]:
    """{method: whether it works}, without methods that other tests have given cards."""
    return {check.method: check.works for check in diagnosis.methods if check.method in CARDS}


def runs(name: str, model: str) -> bool:
    """Whether the method's example ends without a refusal, on images of another seed."""
    case = make_case(model)
    x = models.get_model(model).images(3, seed=7).to(case.box.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            CARDS[name].example(CARDS[name].method, case.box, x, case.box.predict(x))
        except UnboxedError:
            return False
    return True


def test_what_is_said_to_work_works_and_what_is_said_not_to_does_not(awkward: str) -> None:
    found = of_ours(doctor(make_case(awkward).box))
    assert found.keys() == CARDS.keys()
    assert {name for name, works in found.items() if not works} == {name for name, on in REFUSED if on == awkward}
    assert {name: runs(name, awkward) for name in found} == found


def test_each_refusal_has_a_reason_and_a_remedy_that_works() -> None:
    diagnosis = doctor(make_case("lstm").box)
    for check in diagnosis.methods:
        assert check.works == (check.reason == "") == (check.remedy == "")
        if check.remedy.startswith("or use "):
            others = check.remedy.removeprefix("or use ").split(", ")
            assert {*others} <= {*diagnosis.working}
            assert all(CARDS[name].family == check.family for name in others)
    assert "grad_cam" in diagnosis.refused
    assert "or use gradient" in diagnosis.refused["grad_cam"]
    json.dumps(diagnosis.to_dict())
    assert "methods work, not " in repr(diagnosis)


class PerPosition(nn.Module):
    """A map of four classes, as segmentation gives it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def without_exclusive_classes(kind: str, **options: Any) -> ub.Box:
    """A box of outputs that are not one class per example."""
    model = PerPosition() if kind == "map" else net(4)
    kinds = {"outputs": "logits" if kind == "map" else kind}
    return ub.Box(model, ub.Pixels((1, 8, 8)), **(kinds | options))


@pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")
@pytest.mark.parametrize("kind", ["map", "regression", "multilabel"])
def test_where_outputs_are_no_classes_the_remedies_work(kind: str) -> None:
    """They are executed as they are written: the objective with the method, or with those that are named instead."""
    box = without_exclusive_classes(kind)
    x, classes = box.noise(3), torch.zeros(3, dtype=torch.long)
    values = predicted_output_values(box, box(x))  # y in the form of the outputs
    attacks = [c for c in doctor(box, max_flops=1e7).methods if c.family == "adversarial" and not c.works]
    assert {"deepfool", "square", "universal", "hop_skip_jump"} <= {c.method for c in attacks if c.objective}
    assert {"pgd", "apgd", "fgsm"} <= {*doctor(box, max_flops=1e7).working}
    for check in attacks:
        names, _, objective_code = check.remedy.removesuffix(", it works").partition(" with objective=")
        objective = {"objective": eval(objective_code, {"ub": ub})} if objective_code else {}
        for name in [check.method] if names == "tried" else names.removeprefix("or use ").split(", "):
            CARDS[name].example(partial(CARDS[name].method, **objective), box, x, classes if objective else values)


@pytest.mark.parametrize(("kind", "end"), [("map", "), the mean over positions"), ("multilabel", "), or give")])
def test_the_output_that_a_refusal_names_opens_a_box_that_works(kind: str, end: str) -> None:
    reason = doctor(without_exclusive_classes(kind), max_flops=1e7).refused["deepfool"]
    code = reason.partition("Box(..., ")[2].partition(end)[0].replace("[:, k]", "[:, 2]")
    reopened = without_exclusive_classes(kind, **eval(f"dict({code})"))
    assert "deepfool" in doctor(reopened, max_flops=1e7).working


def net(n_out: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, n_out)).eval()


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.row = nn.Linear(64, 4), nn.Linear(3, 4)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        return (self.image(image.flatten(1)) + self.row(row)).relu()


class MapOfClasses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


KINDS: dict[str, tuple[nn.Module, Any, dict[str, Any]]] = {
    "regression": (net(2), ub.Pixels((1, 8, 8)), {"outputs": "regression"}),
    "multilabel": (net(), ub.Pixels((1, 8, 8)), {"outputs": "multilabel"}),
    "table": (nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), ub.Features(list("abcde"), 0.0, 1.0), {}),
    "two inputs": (
        TwoInputs(), ub.MultiInput({"image": ub.Pixels((1, 8, 8)), "row": ub.Features(list("abc"), 0.0, 1.0)}), {}
    ),
    "segmentation": (MapOfClasses(), ub.Pixels((1, 8, 8)), {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_is_diagnosed_without_a_foreign_error(kind: str) -> None:
    model, inputs, settings = KINDS[kind]
    diagnosis = doctor(ub.Box(model.eval(), inputs, **settings))
    foreign = {
        check.method: check.reason
        for check in diagnosis.methods
        if check.remedy == REPORT_BUG_TEXT and check.method in CARDS
    }
    assert foreign == {}
    assert "gradient" in diagnosis.working


def test_a_large_model_is_tried_within_a_bound_and_left_as_it_was() -> None:
    case = make_case("plain")
    rows: list[int] = []
    handle = case.box.model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    diagnosis = doctor(case.box, max_flops=1.0)
    n_limited = sum(rows)
    doctor(case.box)
    handle.remove()
    stopped = [check for check in diagnosis.methods if not check.is_complete]
    assert len(stopped) > 10
    assert all(check.works for check in stopped)
    assert n_limited < sum(rows) - n_limited
    assert all(not m._forward_pre_hooks and not m._forward_hooks for m in case.box.model.modules())


def test_methods_of_your_own_take_part_and_their_bugs_are_told_apart() -> None:
    @card(name="Broken", family="attribution", source="-", shows="-", does_not_show="-",
          example=lambda method, box, x, y: method(box, x))  # fmt: skip
    def broken_method(box: ub.Box, x: Tensor) -> Tensor:
        raise ValueError("too\nbad")

    found = {check.method: check for check in doctor(make_case("plain").box, max_flops=1.0).methods}
    assert found["broken_method"].reason == "ValueError: too bad"
    assert found["broken_method"].remedy == REPORT_BUG_TEXT


def test_notes_are_the_warnings_of_methods() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)).eval()
    with torch.no_grad():
        model[3].weight.abs_().neg_()
    notes = {check.method: check.notes for check in doctor(ub.Box(model, ub.Pixels((1, 8, 8)))).methods}
    assert any("zero everywhere" in note for note in notes["layer_cam"])


def test_the_inputs_to_try_on() -> None:
    case = make_case("plain")
    assert doctor(case.box, case.x, max_flops=1.0).working
    with pytest.raises(InputError, match="wanted images"):
        doctor(case.box, torch.zeros(2, 3))
    with pytest.raises(InputError, match="max_flops"):
        doctor(case.box, max_flops=0)


def test_the_command(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from unboxed.cli import app

    source = "import torch\nfrom torch import nn\nmodel = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))\n"
    (tmp_path / "mine.py").write_text(source)
    command = ["doctor", "--model", f"{tmp_path}/mine.py:model", "--shape", "1,8,8"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "inputs: Pixels((1, 8, 8))" in text
    assert "guided_backprop," in text.partition("why, and what to do")[2]
    facts = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert {check["method"] for check in facts["methods"]} >= CARDS.keys()
    assert not next(check for check in facts["methods"] if check["method"] == "rollout")["works"]
