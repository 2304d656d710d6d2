"""AutoAttack: its stages, what they hand on, and that a run which ended goes on as if it had not."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from contracts.common import MethodCase, make_case, result_tensors
from contracts.common import result_difference_texts as differences
from unboxed.adversarial.auto_attack import AutoAdversarial, auto_attack
from unboxed.engine.optimize.constraints import L1
from unboxed.errors import InputError, ModelError
from unboxed.objectives import Objective

STAGES = ["apgd-ce", "apgd-t", "fab-t", "square"]
END = frozenset({"logits"})
OWN = Objective(lambda acts: acts["logits"][:, 3] - 100, END, "own")
SMALL: dict[str, Any] = {"eps": 0.02, "steps": 4, "queries": 12}


def wide(n: int = 9, model: str = "plain") -> MethodCase:
    """Some rows near a boundary, some far from it, the last one wrong from the start."""
    c = make_case(model, torch.float64, n=n)
    y = c.box.predict(c.x)
    y[-1] = (y[-1] + 1) % 4
    return MethodCase(c.box, c.x, y)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("linf", 0.08), ("l2", 0.1), ("l2", 0.6)])
def test_stages(norm: str, eps: float) -> None:
    """Each attacks what the last left; an image beyond eps, as FAB finds them too, is no success."""
    c, told = wide(), list[tuple[str, int]]()
    got = auto_attack(c.box, c.x, c.y, **{**SMALL, "eps": eps}, norm=norm, callback=lambda *said: told.append(said))
    assert [name for name, _ in told] == list(got.robust_after) == STAGES
    assert [int(stood.sum()) for stood in got.robust_after.values()] == [n for _, n in told]
    before = torch.ones(9, dtype=torch.bool)
    for stood in got.robust_after.values():
        assert (before | ~stood).all()  # nobody rises again
        before = stood
    assert torch.equal(got.robust_after["square"], ~got.success)
    assert torch.equal(c.box.predict(got.images) != c.y, got.success)
    assert (got.distance <= eps * (1 + 1e-6)).all()
    assert got.images.min() >= 0
    assert got.images.max() <= 1
    assert got.initially_misclassified.tolist() == [False] * 8 + [True]
    assert int(got.queries[-1]) == 1


def test_some_examples_are_robust() -> None:
    """So that what the other tests see is not empty."""
    got = auto_attack(wide().box, wide().x, wide().y, **SMALL)
    left = [int(stood.sum()) for stood in got.robust_after.values()]
    assert 0 < left[-1] <= left[0] < 8


def test_robust_examples_take_the_queries_of_all_four() -> None:
    """The original; APGD's 5 forwards; the ranking and 3 times 5; FAB's own; Square's 12."""
    c = wide(3)
    got = auto_attack(c.box, c.x[:1], c.y[:1], **{**SMALL, "eps": 1e-5})
    alone = ub.adversarial.fab(c.box, c.x[:1], c.y[:1], eps=1e-5, norm="linf", n_targets=9, steps=4)
    assert not got.success.any()
    assert int(got.queries) == 1 + 5 + (1 + 3 * 5) + (int(alone.queries) - 1) + 12


def test_equals_its_attacks_run_separately() -> None:
    """What the first stage leaves is what APGD leaves, and no row is fooled by a part alone that is robust here."""
    c = wide()
    got = auto_attack(c.box, c.x, c.y, **SMALL)
    how = {"eps": 0.02, "norm": "linf", "steps": 4}
    first = ub.adversarial.apgd(c.box, c.x, c.y, **how)
    assert torch.equal(got.robust_after["apgd-ce"], ~first.success)
    fell = [first, ub.adversarial.fab(c.box, c.x, c.y, **how, n_targets=9)]
    fell.append(ub.adversarial.square(c.box, c.x, c.y, eps=0.02, queries=12))
    for alone in fell:
        assert (got.success | ~alone.success).all()


class Dies:
    """The model fails in its k-th forward."""

    def __init__(self, model: nn.Module, error: type[BaseException]) -> None:
        self.calls, self.at, self.error = 0, -1, error
        model.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise self.error("the end")


def test_a_checkpoint_resumes_the_run(tmp_path: Path, monkeypatch: Any) -> None:
    """Ended anywhere, by Ctrl-C or by an error, and called again with its checkpoint: the very same result."""
    monkeypatch.setattr(sys.modules[auto_attack.__module__], "MAX_ROWS_BETWEEN_CHECKPOINTS", 3)
    c = wide(5)
    dies = Dies(c.box.model, ValueError)
    whole = auto_attack(c.box, c.x, c.y, **SMALL)
    total = dies.calls
    for nth, k in enumerate((2, total // 5, total // 2, 3 * total // 4, total)):
        file = tmp_path / f"{k}.pt"
        dies.calls, dies.at, dies.error = 0, k, (KeyboardInterrupt, ValueError)[nth % 2]
        ended = attempted(c, file)
        assert ended is None or ended.interrupted
        dies.at = -1
        dies.calls = 0
        again = auto_attack(c.box, c.x, c.y, **SMALL, checkpoint=file)
        assert differences(result_tensors(again), result_tensors(whole), 0) == [], k
        assert k == 2 or dies.calls < total  # what was done is not done again
    assert [f.name for f in tmp_path.iterdir() if f.name.startswith(".")] == []


@pytest.mark.parametrize("model", ["plain", "batchnorm_without_statistics"])
def test_square_resumes_within_a_chunk(model: str, tmp_path: Path, monkeypatch: Any) -> None:
    """All of its queries are one chunk here; of them, at most those since the last write are asked again."""
    monkeypatch.setattr(sys.modules[auto_attack.__module__], "SQUARE_QUERIES_BETWEEN_CHECKPOINTS", 4)
    settings = {**SMALL, "eps": 0.004, "queries": 30}
    c = wide(5, model)
    dies = Dies(c.box.model, KeyboardInterrupt)
    whole = auto_attack(c.box, c.x, c.y, **settings)
    total = dies.calls
    for before_end in (22, 7):
        file = tmp_path / f"{before_end}.pt"
        dies.calls, dies.at = 0, total - before_end
        assert auto_attack(c.box, c.x, c.y, **settings, checkpoint=file).interrupted
        dies.calls, dies.at = 0, -1
        again = auto_attack(c.box, c.x, c.y, **settings, checkpoint=file)
        assert differences(result_tensors(again), result_tensors(whole), 0) == [], before_end
        assert dies.calls <= before_end + 4 + 6  # what opens and ends a call besides


def test_a_batch_dependent_model_resumes(tmp_path: Path) -> None:
    """Examples that are successes remain in its batches as their attacks left them."""
    settings, model = {**SMALL, "eps": 0.1, "queries": 60}, "batchnorm_without_statistics"
    c, file = wide(model=model), tmp_path / "auto.pt"
    dies = Dies(c.box.model, KeyboardInterrupt)
    whole = auto_attack(c.box, c.x, c.y, **settings)
    dies.calls, dies.at = 0, dies.calls - 2
    assert auto_attack(c.box, c.x, c.y, **settings, checkpoint=file).interrupted
    dies.at = -1
    again = auto_attack(c.box, c.x, c.y, **settings, checkpoint=file)
    assert differences(result_tensors(again), result_tensors(whole), 0) == []


def attempted(c: MethodCase, file: Path) -> AutoAdversarial | None:
    try:
        return auto_attack(c.box, c.x, c.y, **SMALL, checkpoint=file)
    except ValueError:
        return None


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    c, file = wide(), tmp_path / "auto.pt"
    done = auto_attack(c.box, c.x, c.y, **SMALL, checkpoint=file)
    dies = Dies(c.box.model, ValueError)
    again = auto_attack(c.box, c.x, c.y, **SMALL, checkpoint=file)
    assert dies.calls == 1  # it was finished: only what the model says of the originals is compared
    assert differences(result_tensors(again), result_tensors(done), 0) == []
    others: list[tuple[str, dict[str, Any]]] = [
        ("ball", {"eps": 0.03}), ("steps", {"steps": 5}), ("seed", {"seed": 1}), ("queries", {"queries": 13}),
    ]  # fmt: skip
    for said, other in others:
        with pytest.raises(ModelError, match=said):
            auto_attack(c.box, c.x, c.y, **{**SMALL, **other}, checkpoint=file)
    with pytest.raises(ModelError, match="its examples differ"):
        auto_attack(c.box, c.x.flip(0), c.y, **SMALL, checkpoint=file)
    with pytest.raises(ModelError, match="its labels differ"):
        auto_attack(c.box, c.x, c.y.flip(0), **SMALL, checkpoint=file)
    with torch.no_grad():
        c.box.model.fc.bias[0] += 1e-3
    with pytest.raises(ModelError, match="its weights differ"):
        auto_attack(c.box, c.x, c.y, **SMALL, checkpoint=file)
    file.write_bytes(b"no checkpoint")
    with pytest.raises(ModelError, match="checkpoint"):
        auto_attack(c.box, c.x, c.y, **SMALL, checkpoint=file)


class Dense(nn.Module):
    """What a checkpoint can't see in the weights: which function is between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.between = nn.Linear(64, 32), nn.Linear(32, 5), between

    def forward(self, x: Tensor) -> Tensor:
        return 5 * self.b(self.between(self.a(x.flatten(1))))


def dense(between: Callable[[Tensor], Tensor] = torch.relu, **normalization: float) -> ub.Box:
    return ub.Box(Dense(between), ub.Pixels((1, 8, 8), **normalization), outputs="logits")


def beyond(numbers: float) -> Objective:
    return ub.logit(3) - torch.full((6,), numbers)


@pytest.mark.parametrize(
    ("box", "other", "said"),
    [
        (dense(mean=0.9, std=0.5), {"y": 0}, "inputs was .*mean=0.0.*, and is now .*mean=0.9"),
        (dense(torch.sin), {"y": 0}, "the model's answers have changed"),
        (dense(), {"objective": beyond(-100.0)}, "goal"),
        (dense(), {"objective": Objective(lambda acts: acts["logits"][:, 3] + 100, END, "own")}, "goal"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(
    box: ub.Box, other: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """The same weights and the same name of the objective, and another answer."""
    own = other.get("objective")
    goal = {"y": 0} if own is None else {"objective": beyond(30.0) if own.name != "own" else OWN}
    x, more = (
        torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        {**SMALL, "checkpoint": tmp_path / "c"},
    )
    first = auto_attack(dense(), x, **goal, **more)
    assert differences(result_tensors(auto_attack(dense(), x, **goal, **more)), result_tensors(first), 0) == []
    with pytest.raises(ModelError, match=said):
        auto_attack(box, x, **other, **more)


def test_an_objective_that_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    lock = threading.Lock()

    def score(acts: Any) -> Tensor:
        with lock:
            return acts["logits"][:, 3]

    own, x = Objective(score, END, "guarded"), torch.rand(6, 1, 8, 8)
    auto_attack(dense(), x, objective=own, **SMALL)
    with pytest.raises(InputError, match=r"objective=guarded can't go on from a checkpoint: a lock can't be compared"):
        auto_attack(dense(), x, objective=own, **SMALL, checkpoint=tmp_path / "c")


@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_ctrl_c_keeps_what_was_found(share: float) -> None:
    c = wide()
    whole = auto_attack(c.box, c.x, c.y, **SMALL)
    dies = Dies(c.box.model, KeyboardInterrupt)
    auto_attack(c.box, c.x, c.y, **SMALL)
    dies.at, dies.calls = int(share * dies.calls), 0
    got = auto_attack(c.box, c.x, c.y, **SMALL)
    assert got.interrupted
    assert set(got.robust_after) < set(whole.robust_after)
    assert (whole.success | ~got.success).all()
    assert (got.distance <= 0.02 * (1 + 1e-6)).all()
    assert torch.equal(c.box.predict(got.images) != c.y, got.success)


@pytest.mark.parametrize("size", [1, 4])
def test_chunks_and_batches_change_nothing(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    c = wide()
    whole = auto_attack(c.box, c.x, c.y, **SMALL)
    monkeypatch.setattr(sys.modules[auto_attack.__module__], "MAX_ROWS_BETWEEN_CHECKPOINTS", size)
    assert (
        differences(result_tensors(auto_attack(c.box, c.x, c.y, **SMALL, batch_size=size)), result_tensors(whole), 1e-9)
        == []
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(classes: int) -> None:
    """There the targeted DLR is not defined."""
    layer = nn.Linear(16, classes)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, 16, generator=torch.Generator().manual_seed(0)))
    box = ub.Box(nn.Sequential(nn.Flatten(), layer), ub.Pixels((1, 4, 4)), outputs="logits")
    x = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    got = auto_attack(box, x, box.predict(x), eps=0.5, steps=3, queries=5)
    assert list(got.robust_after) == STAGES
    assert got.success.any()
    assert torch.equal(box.predict(got.images) != box.predict(x), got.success)


def test_targeted() -> None:
    c = wide()
    target = (c.box.predict(c.x) + 1) % 4
    got = auto_attack(c.box, c.x, target=target, **{**SMALL, "eps": 0.3, "steps": 20})
    assert list(got.robust_after) == STAGES
    assert got.success.any()
    assert torch.equal(c.box.predict(got.images) == target, got.success)


def test_objective() -> None:
    c = wide()
    got = auto_attack(c.box, c.x, objective=ub.channel("conv2", 1) - 0.3, **{**SMALL, "eps": 0.4})
    assert list(got.robust_after) == ["apgd-ce", "fab-t", "square"]
    score = c.box.read(got.images, "conv2")["conv2"][:, 1].flatten(1).mean(1) - 0.3
    assert torch.equal(got.success, score > 0)


def test_features_are_refused() -> None:
    layer = nn.Linear(5, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)))
    box = ub.Box(layer, ub.Features(names=tuple("abcde")), outputs="logits")
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    got = auto_attack(box, x, box.predict(x), eps=0.5, steps=3)
    assert list(got.robust_after) == STAGES[:3]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"norm": "l1"}, "linf"),
        ({"ball": L1(1.0), "eps": None}, "linf"),
        ({"queries": 0}, "queries"),
        ({"eps": 9.0}, "9/255"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    c = make_case("plain")
    with pytest.raises(InputError, match=said):
        auto_attack(c.box, c.x, c.y, **{**SMALL, **settings})
