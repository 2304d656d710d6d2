"""`evaluate_outputs` stopped and resumed, what it refuses to resume, and signs of masked gradients; the eps taken."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.errors import InputError, ModelError, UnboxedWarning
from unboxed.robustness import OutputRobustness, evaluate_outputs
from unboxed.robustness.evaluate_outputs import _OutputEvaluation

PIXELS, N = ub.Pixels((1, 4, 4)), 40
every_kind = pytest.mark.parametrize("kind", ["regression", "multilabel", "map"])
ATTACKS = {"fgsm": ub.adversarial.fgsm, "pgd": ub.adversarial.pgd}
EPS = (0.1, 0.2)


def opened(kind: str, inner: nn.Module | None = None) -> tuple[ub.Box, Tensor, Tensor]:
    torch.manual_seed(0)
    x = 0.3 + 0.4 * torch.rand(N, 1, 4, 4)
    outputs: Any = None if kind == "map" else kind
    head = nn.Conv2d(1, 3, 3, padding=1) if kind == "map" else nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    y = {
        "regression": torch.randn(N, 2),
        "multilabel": torch.randint(0, 2, (N, 2)).float(),
        "map": torch.randint(0, 3, (N, 4, 4)),
    }[kind]
    model = head if inner is None else nn.Sequential(inner, head)
    return ub.Box(model, PIXELS, outputs=outputs), x, y


def evaluated(box: ub.Box, x: Tensor, y: Tensor, attacks: Any = ATTACKS, **settings: Any) -> OutputRobustness:
    return evaluate_outputs(box, (x, y), attacks, eps=EPS, **{"check_masking": False, **settings})


@every_kind
def test_resumed_it_is_as_if_it_had_not_been_stopped(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vars(_OutputEvaluation)["_split_rows"].__globals__, "MAX_EXAMPLES_PER_ATTACK_TASK", 16)
    box, x, y = opened(kind)
    expected, file, n_tasks = evaluated(box, x, y), tmp_path / "run.pt", list[str]()
    run_task = _OutputEvaluation._run_task

    def stopping_run_task(self: _OutputEvaluation, name: str, *rest: Any) -> None:
        n_tasks.append(name)
        if len(n_tasks) == 9:  # of 2 attacks x 2 eps x 3 parts
            raise KeyboardInterrupt
        run_task(self, name, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(_OutputEvaluation, "_run_task", stopping_run_task)
        stopped = evaluated(box, x, y, checkpoint=file)
    assert stopped.interrupted
    assert torch.load(file)["state"]["n_finished"] == 8
    resumed = evaluated(box, x, y, checkpoint=file)
    assert not resumed.interrupted
    assert torch.equal(resumed.example_errors, expected.example_errors)
    assert resumed.to_dict() == expected.to_dict()
    assert (stopped.example_errors <= expected.example_errors).all()


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    box, x, y = opened("regression")
    file, calls = tmp_path / "run.pt", list[float]()
    first = evaluated(box, x, y, checkpoint=file)
    handle = box.model.register_forward_pre_hook(lambda *a: calls.append(1.0))
    again = evaluated(box, x, y, checkpoint=file)
    handle.remove()
    assert len(calls) < 10  # the originals alone
    assert torch.equal(first.example_errors, again.example_errors)


@pytest.mark.parametrize("change", ["labels", "order", "weights", "eps", "attacks", "outputs"])
def test_other_settings_are_not_resumed(change: str, tmp_path: Path) -> None:
    box, x, y = opened("regression")
    file = tmp_path / "run.pt"
    evaluated(box, x, y, {"fgsm": ub.adversarial.fgsm}, checkpoint=file)
    kwargs: dict[str, Any] = {"attacks": {"fgsm": ub.adversarial.fgsm}}
    if change == "labels":
        y = y + 1
    elif change == "order":
        x, y = x.flip(0), y.flip(0)
    elif change == "weights":
        with torch.no_grad():
            box.model[1].weight.add_(1)  # type: ignore[operator, index, union-attr]
    elif change == "outputs":
        box, y = ub.Box(box.model, PIXELS, outputs="multilabel"), (y > 0).float()
    elif change == "attacks":
        kwargs["attacks"] = ATTACKS
    with pytest.raises(ModelError, match="checkpoint of other settings"):
        evaluate_outputs(
            box, (x, y), kwargs["attacks"], eps=[0.3] if change == "eps" else EPS, checkpoint=file, check_masking=False
        )


class Rounded(nn.Module):
    """Without gradients, as quantized inputs are."""

    def forward(self, x: Tensor) -> Tensor:
        return (8 * x).round() / 8


class Jagged(nn.Module):
    """Its gradient points nowhere after the first step."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.01 * (400 * x).sin()


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


@every_kind
@pytest.mark.parametrize(("inner", "name"), [(Rounded(), "no gradient"), (Noise(), "random layers")])
def test_masked_gradients_are_reported(kind: str, inner: nn.Module, name: str) -> None:
    box, x, y = opened(kind, inner)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnboxedWarning)  # FGSM itself says that the gradient is zero
        result = evaluated(box, x, y, {"fgsm": ub.adversarial.fgsm}, check_masking=True)
    assert name in {finding.name for finding in result.masking_findings}
    assert name in repr(result)
    assert name in {finding["name"] for finding in result.to_dict()["gradient_masking"]}


@pytest.mark.parametrize("kind", ["regression", "map"])
def test_a_rough_loss_is_reported_by_its_rise(kind: str) -> None:
    box, x, y = opened(kind, Jagged())
    names = {finding.name: finding for finding in evaluated(box, x, y, check_masking=True).masking_findings}
    found = names.get("iterative weaker than single step") or names["more steps not stronger"]
    assert "the mean rise of the loss is" in found.message
    weaker, stronger = found.fractions.values()
    assert weaker > stronger


@every_kind
def test_a_plain_model_has_no_findings(kind: str) -> None:
    box, x, y = opened(kind)
    assert evaluated(box, x, y, check_masking=True).masking_findings == ()


@pytest.mark.parametrize("eps", [0.1, [0.1], torch.tensor([0.1, 0.2]), (0.1, 0.2)])
def test_eps_in_any_form_of_numbers(eps: Any) -> None:
    box, x, y = opened("regression")
    result = evaluate_outputs(box, (x, y), ATTACKS, eps=eps, check_masking=False)
    assert result.eps == pytest.approx([0.1, 0.2][: len(result.eps)])


@pytest.mark.parametrize(
    ("eps", "message"),
    [(None, "at least one eps"), ([], "at least one eps"), ("0.1", "above 0"), ({"image": 0.1}, "one number per eps")],
)
def test_eps_that_is_none(eps: Any, message: str) -> None:
    box, x, y = opened("regression")
    with pytest.raises(InputError, match=message):
        evaluate_outputs(box, (x, y), ATTACKS, eps=eps)


@pytest.mark.parametrize("eps", [[0.1, 0.2], {"image": 0.1}])
@pytest.mark.parametrize("name", ["deepfool", "fmn", "square", "auto_attack", "universal", "boundary"])
def test_attacks_of_one_eps_say_what_takes_several(name: str, eps: Any) -> None:
    box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), PIXELS, outputs="logits")
    with pytest.raises(InputError, match=r"one number here.*such as pgd and apgd; .*ub\.robustness\.evaluate"):
        getattr(ub.adversarial, name)(box, torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), eps=eps)


def test_a_list_of_eps_for_a_model_of_one_input() -> None:
    box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), PIXELS, outputs="logits")
    with pytest.raises(InputError, match=r"this one takes one; .*ub\.robustness\.evaluate"):
        ub.adversarial.pgd(box, torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), eps=[0.1, 0.2])
