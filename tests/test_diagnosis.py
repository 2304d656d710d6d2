"""What the doctor says of a model is so: its methods are run again on other images, and compared with what it said."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from contracts.common import CARDS, REFUSED, make_case
from language.attending import TextTransformer, open_texts
from unboxed import diagnosis as diagnosis_module
from unboxed.cards import card, cards
from unboxed.diagnosis import REPORT_BUG_TEXT, Diagnosis, MethodCheck, doctor
from unboxed.engine.read.output_values import predicted_output_values
from unboxed.errors import InputError, UnboxedError
from unboxed.testing import models

OFTEN = ("lstm", "checkpointed_reentrant")
NIGHTLY = (
    *OFTEN, "attention", "plain", "exported_flat", "scripted_part", "batch_gate", "mlp", "parameterless", "transformer",
)  # fmt: skip


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "awkward" in metafunc.fixturenames:
        metafunc.parametrize("awkward", NIGHTLY if metafunc.config.getoption("--all-pairs") else OFTEN)


@cache
def diagnosis_of(model: str) -> Diagnosis:
    """What the doctor says of an awkward model, asked once."""
    return doctor(make_case(model).box)


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


def test_what_is_said_to_work_works_and_what_is_said_not_to_does_not(
    awkward: str, request: pytest.FixtureRequest
) -> None:
    """`REFUSED` is what methods do, by the contract tests; with `--all-pairs` they are run here once more."""
    found = of_ours(diagnosis_of(awkward))
    assert found.keys() == CARDS.keys()
    assert {name for name, works in found.items() if not works} == {name for name, on in REFUSED if on == awkward}
    if request.config.getoption("--all-pairs"):
        assert {name: runs(name, awkward) for name in found} == found


def test_each_refusal_has_a_reason_and_a_remedy_that_works() -> None:
    diagnosis = diagnosis_of("lstm")
    for check in diagnosis.methods:
        assert check.works == (check.reason == "") == (check.remedy == "")
        if check.remedy.startswith(OTHERS):
            others = check.remedy.removeprefix(OTHERS).split(", ")
            assert {*others} <= {*diagnosis.working}
            assert all(CARDS[name].family == check.family for name in others)
    assert "grad_cam" in diagnosis.refused
    assert "others that work: gradient" in diagnosis.refused["grad_cam"]
    json.dumps(diagnosis.to_dict())
    assert "methods work, not " in repr(diagnosis)


# -- models of every kind ----------------------------------------------------------------------------------------------


class PerPosition(nn.Module):
    """A map of four classes, as segmentation gives it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def net(n_out: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, n_out)).eval()


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.row = nn.Linear(64, 4), nn.Linear(3, 4)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        return (self.image(image.flatten(1)) + self.row(row)).relu()


IMAGES, TABLE = ub.Pixels((1, 8, 8)), ub.Features(list("abcde"), 0.0, 1.0)
KINDS: dict[str, tuple[nn.Module, Any, dict[str, Any]]] = {
    "map": (PerPosition(), IMAGES, {"outputs": "logits"}),
    "regression": (net(), IMAGES, {"outputs": "regression"}),
    "multilabel": (net(), IMAGES, {"outputs": "multilabel"}),
    "table": (nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), TABLE, {}),
    "two inputs": (
        TwoInputs(), ub.MultiInput({"image": IMAGES, "row": ub.Features(list("abc"), 0.0, 1.0)}), {}
    ),
}  # fmt: skip
OTHERS = "others that work: "
WITHOUT_EXCLUSIVE_CLASSES = ("map", "regression", "multilabel")


def open_kind(kind: str, **options: Any) -> ub.Box:
    model, inputs, settings = KINDS[kind]
    return ub.Box(model.eval(), inputs, **(settings | options))


@cache
def diagnosis_of_kind(kind: str) -> Diagnosis:
    return doctor(open_kind(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_is_diagnosed_without_a_foreign_error(kind: str) -> None:
    diagnosis = diagnosis_of_kind(kind)
    foreign = {
        check.method: check.reason
        for check in diagnosis.methods
        if check.remedy == REPORT_BUG_TEXT and check.method in CARDS
    }
    assert foreign == {}
    assert "gradient" in diagnosis.working


@pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")
@pytest.mark.parametrize("kind", WITHOUT_EXCLUSIVE_CLASSES)
def test_where_outputs_are_no_classes_the_remedies_work(kind: str) -> None:
    """They are executed as they are written: the objective with the method, or with those that are named instead."""
    box, diagnosis = open_kind(kind), diagnosis_of_kind(kind)
    x, classes = box.noise(3), torch.zeros(3, dtype=torch.long)
    values = predicted_output_values(box, box(x))  # y in the form of the outputs
    attacks = [c for c in diagnosis.methods if c.family == "adversarial" and not c.works]
    assert {"deepfool", "square", "universal", "hop_skip_jump"} <= {c.method for c in attacks if c.objective}
    assert {"pgd", "apgd", "fgsm"} <= {*diagnosis.working}
    remedies = {_named_remedy(check) for check in attacks}  # many have the same
    for name, objective_code in sorted({(name, code) for names, code in remedies for name in names}):
        objective = {"objective": eval(objective_code, {"ub": ub})} if objective_code else {}
        CARDS[name].example(partial(CARDS[name].method, **objective), box, x, classes if objective else values)


def _named_remedy(check: MethodCheck) -> tuple[tuple[str, ...], str]:
    """The methods that a remedy names, and the code of the objective to give them."""
    names, _, objective_code = check.remedy.removesuffix(", it works").partition(" with objective=")
    return (check.method,) if names == "tried" else tuple(names.removeprefix(OTHERS).split(", ")), objective_code


@pytest.mark.parametrize(("kind", "end"), [("map", "), the mean over positions"), ("multilabel", "), or give")])
def test_the_output_that_a_refusal_names_opens_a_box_that_works(kind: str, end: str) -> None:
    reason = diagnosis_of_kind(kind).refused["deepfool"]
    code = reason.partition("Box(..., ")[2].partition(end)[0].replace("[:, k]", "[:, 2]")
    reopened = open_kind(kind, **eval(f"dict({code})"))
    x = reopened.noise(3)
    CARDS["deepfool"].example(CARDS["deepfool"].method, reopened, x, reopened.predict(x))


# -- bounds, methods of one's own, notes -------------------------------------------------------------------------------


@pytest.fixture
def try_only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the doctor try some methods alone."""
    return lambda *names: monkeypatch.setattr(diagnosis_module, "cards", lambda: [CARDS[name] for name in names])


def test_a_large_model_is_tried_within_a_bound_and_left_as_it_was(try_only: Callable[..., None]) -> None:
    try_only(*(name for name, card in CARDS.items() if card.family in ("adversarial", "synthesis", "attribution")))
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


def test_methods_of_your_own_take_part_and_their_bugs_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    @card(name="Broken", family="attribution", source="-", shows="-", does_not_show="-",
          example=lambda method, box, x, y: method(box, x))  # fmt: skip
    def broken_method(box: ub.Box, x: Tensor) -> Tensor:
        raise ValueError("too\nbad")

    few = [c for c in cards() if c.key in ("gradient", "broken_method")]  # it is among all
    monkeypatch.setattr(diagnosis_module, "cards", lambda: few)
    found = {check.method: check for check in doctor(make_case("plain").box, max_flops=1.0).methods}
    assert found["broken_method"].reason == "ValueError: too bad"
    assert found["broken_method"].remedy == REPORT_BUG_TEXT


def test_notes_are_the_warnings_of_methods(try_only: Callable[..., None]) -> None:
    try_only("layer_cam")
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)).eval()
    with torch.no_grad():
        model[3].weight.abs_().neg_()
    (check,) = doctor(ub.Box(model, IMAGES)).methods
    assert any("zero everywhere" in note for note in check.notes)


def test_what_is_found_on_noise_is_said_to_be_of_noise(try_only: Callable[..., None]) -> None:
    from unboxed.cli.parsing import rewrite_advice_for_command_line

    try_only("grad_cam")
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 1, bias=False))
    with torch.no_grad():
        model[3].weight.abs_().neg_()
    box = ub.Box(model, IMAGES, outputs="binary")
    noise, given = doctor(box), doctor(box, torch.rand(2, 1, 8, 8))
    first = next(iter(noise.model.items()))
    assert first == ("tried on", diagnosis_module.TRIED_ON_NOISE_TEXT)
    assert "give --data" in rewrite_advice_for_command_line(first[1])
    assert next(iter(given.model.items())) == ("tried on", "your inputs")
    (of_noise,), (of_given,) = noise.methods, given.methods
    assert of_noise.notes
    assert all(note.startswith("on noise: ") for note in of_noise.notes)
    assert of_given.notes
    assert not any("noise" in note for note in of_given.notes)


def test_the_inputs_to_try_on(try_only: Callable[..., None]) -> None:
    try_only("gradient", "rollout")
    case = make_case("plain")
    assert doctor(case.box, case.x, max_flops=1.0).working == ("gradient",)
    with pytest.raises(InputError, match="wanted images"):
        doctor(case.box, torch.zeros(2, 3))
    with pytest.raises(InputError, match="max_flops"):
        doctor(case.box, max_flops=0)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed and what is JSON are of one diagnosis."""
    from typer.testing import CliRunner

    from unboxed.cli import app
    from unboxed.cli import doctor as command_module

    def doctor_once(box: ub.Box, x: Any, **kwargs: Any) -> Diagnosis:
        assert x is None
        return replace(diagnosis_of("lstm"), model=diagnosis_module._model_facts(box))

    monkeypatch.setattr(command_module, "doctor", doctor_once)
    source = "import torch\nfrom torch import nn\nmodel = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))\n"
    (tmp_path / "mine.py").write_text(source)
    command = ["doctor", "--model", f"{tmp_path}/mine.py:model", "--shape", "1,8,8"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "inputs: Pixels((1, 8, 8))" in text
    assert "no names: pass --classes" in text
    assert re.search(r"language: 0 of \d+ work(?!:)", text)
    assert "guided_backprop," in text.partition("why, and what to do")[2]
    facts = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert {check["method"] for check in facts["methods"]} >= CARDS.keys()
    assert not next(check for check in facts["methods"] if check["method"] == "rollout")["works"]


def test_the_remedy_names_no_method_twice() -> None:
    """A reason may say itself what to use."""
    checks = [
        MethodCheck("gradient", "Gradient", "attribution", True),
        MethodCheck("occlusion", "Occlusion", "attribution", True),
        MethodCheck("guided_backprop", "GBP", "attribution", False, "there is no ReLU: use gradient"),
        MethodCheck("rollout", "Rollout", "attribution", False, "there is no attention"),
    ]
    remedies = [diagnosis_module._with_alternatives_as_remedy(check, checks).remedy for check in checks]
    assert remedies == ["", "", "others that work: occlusion", "others that work: gradient, occlusion"]
    alone = [checks[0], checks[2]]
    assert diagnosis_module._with_alternatives_as_remedy(checks[2], alone).remedy == "others that work: gradient"


@pytest.fixture(scope="module")
def text_box() -> ub.Box:
    return open_texts(TextTransformer())


@pytest.mark.parametrize("texts", [None, ["abcdef gh", "ijkl", "mnopq"]], ids=["noise", "texts"])
def test_a_model_of_texts_is_tried_by_the_methods_that_take_them(text_box: ub.Box, texts: list[str] | None) -> None:
    """All of them work on this transformer, and none that takes no texts is counted."""
    diagnosis = doctor(text_box, texts)
    tried = of_ours(diagnosis)
    assert set(tried) == {name for name, c in CARDS.items() if c.texts}
    assert diagnosis.refused == {}
    n_untried = len([c for c in cards() if not c.texts])
    assert f"{n_untried} that do not are left out" in diagnosis.model["texts"]
    assert f"{len(diagnosis.working)} of {len(diagnosis.methods)} methods that take texts work" in repr(diagnosis)
    assert "texts" not in diagnosis_of("lstm").model


class MeanOfWords(nn.Module):
    """Without a mask: padding changes its answers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(128, 4), nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids).mean(1))  # type: ignore[no-any-return]


def test_texts_of_several_lengths_are_in_no_methods_way() -> None:
    """What is wrong of a method is said, not that padding changes the answers of this model."""
    torch.manual_seed(0)
    box = ub.Box(MeanOfWords(), ub.Tokens(lambda text: [ord(c) for c in text]), outputs="logits")
    found = doctor(box, ["abcd", "ef", "hijk"])
    assert {"ablation", "attn_lrp", "gradient"} <= set(found.working)
    assert "no layer of this model attends" in found.refused["legrad"]
    assert not any("padding" in why for why in found.refused.values())


def test_what_fails_on_texts_is_said(text_box: ub.Box, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise InputError("no words")

    broken = replace(CARDS["gradient"], example=refuse)
    monkeypatch.setattr(diagnosis_module, "cards", lambda: [broken, CARDS["lime"], CARDS["pgd"]])
    diagnosis = doctor(text_box)
    assert diagnosis.refused == {"gradient": "no words; others that work: lime"}
    assert diagnosis.working == ("lime",)


def test_the_command_takes_a_file_of_texts(
    text_box: ub.Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unboxed.cli.doctor import run_doctor

    monkeypatch.setattr(diagnosis_module, "cards", lambda: [CARDS["gradient"], CARDS["pgd"]])
    (tmp_path / "texts.txt").write_text("abcdef gh\nijkl\nmnopq\n")
    assert run_doctor(text_box, ub.data.texts(tmp_path / "texts.txt"), quiet=True).working == ("gradient",)
    assert "attribution: 1 of 1 work: gradient" in capsys.readouterr().out


def test_evaluations_of_label_maps_are_tried_with_label_maps() -> None:
    torch.manual_seed(0)
    label_map = doctor(ub.Box(nn.Conv2d(1, 3, 3, padding=1), ub.Pixels((1, 8, 8))))
    assert {"calibration", "corruptions"} <= {*label_map.working}
    assert "ub.robustness.evaluate_outputs" in label_map.refused["smoothed"]


def test_rows_with_categories_and_one_output_are_tried_by_what_takes_them() -> None:
    torch.manual_seed(0)
    inputs = ub.Features(("age", "sex"), categories={"sex": [0, 1]})
    found = doctor(ub.Box(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)), inputs, outputs="regression"))
    assert {"cka", "ablation"} <= {*found.working}


def test_weights_that_hold_nan_are_named_in_one_line() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    sound = ub.Box(model, ub.Pixels((1, 4, 4)), outputs="logits")
    assert "the weights" not in repr(before := doctor(sound, max_flops=1.0))
    assert before.model["weights"] == "no NaN"
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
        model[2].running_mean[1] = torch.nan
    found = doctor(ub.Box(model, ub.Pixels((1, 4, 4)), outputs="logits"), max_flops=1.0)
    assert found.model["weights"] == "NaN in 1.weight, 2.running_mean"
    assert re.match(
        r"Diagnosis\(\d+ of \d+ methods work; the weights hold NaN in 1\.weight, 2\.running_mean, not ", repr(found)
    )
