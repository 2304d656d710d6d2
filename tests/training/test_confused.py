"""Confused inputs while training: what is picked, the gradients, the sheet, and the published callback's faults."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import awkward
import unboxed as ub
from contracts.trace import changes, snapshot
from unboxed.errors import InputError, OutputError, UnboxedWarning
from unboxed.plots import colors
from unboxed.training import ConfusedInputs, ConfusedLogits, confusion_sheet
from unboxed.training.confused import ConfusionRule

FORCED: dict[str, Any] = {"min_logit_value": -math.inf, "logging_batch_interval": 1, "max_logit_difference": math.inf}
pytestmark = pytest.mark.filterwarnings(
    "ignore:the sheets of confused inputs go nowhere"
)  # here what watch returns is used


def small(channels: int = 1, classes: int = 6, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)
        return nn.Sequential(*head, nn.Flatten(), nn.Linear(8 * 36, classes)).train()


def batch(channels: int = 1, n: int = 7, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, 8, 8, generator=generator), torch.randint(6, (n,), generator=generator)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a.flatten(1), b.flatten(1))


# -- which inputs are picked -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "settings", "want"),
    [
        ([[6.0, 5.95, 0.0], [7.0, 1.0, 0.0]], {}, [0]),
        ([[6.0, 5.95, 0.0], [6.0, 5.99, 0.0], [6.0, 5.97, 0.0]], {"top_k": 2}, [1, 2]),  # the closest calls first
        ([[6.0, 5.9375, 0.0]], {"max_logit_difference": 0.0625}, []),  # less than, not as much as
        ([[5.0, 4.99, 0.0]], {}, []),  # exceeds, not reaches
        ([[5.001, 4.99, 0.0]], {}, [0]),
        ([[1.0, 0.99, 0.0], [9.0, 1.0, 0.0]], {}, [0]),  # the published rule: somebody's logit exceeds
        ([[1.0, 0.99, 0.0], [9.0, 1.0, 0.0]], {"min_logit_scope": "example"}, []),
        ([[5.2, 5.15, 0.0], [9.0, 1.0, 0.0]], {"min_logit_scope": "example"}, [0]),
        ([[0.0, 0.0, 0.0], [9.0, 1.0, 0.0]], {}, []),  # clamped to an equal zero
        ([[0.0, -0.0, -3.0], [9.0, 1.0, 0.0]], {}, []),
        ([[0.05, 0.0, 0.0], [9.0, 1.0, 0.0]], {}, [0]),  # one is above
        ([[6.0, 6.0, 0.0]], {}, [0]),  # an equal six is a confusion
        ([[math.nan, 1.0, 0.0], [6.0, 5.95, 0.0]], {"min_logit_scope": "example"}, [1]),
        ([[math.nan, math.nan, math.nan]], {}, []),
        ([[math.inf, math.inf, 0.0]], {}, []),
        ([[-1.0, -1.05, -9.0]], {"min_probability": 0.4}, [0]),
        ([[-1.0, -1.05, -1.1]], {"min_probability": 0.4}, []),  # three share it
        ([[-1.0, -1.05, -1.1], [9.0, 0.0, 0.0]], {"min_probability": 0.4}, [0]),
        ([[-1.0, -1.05, -1.1], [9.0, 0.0, 0.0]], {"min_probability": 0.4, "min_logit_scope": "example"}, []),
    ],
)
def test_thresholds(logits: list[list[float]], settings: dict[str, Any], want: list[int]) -> None:
    assert ConfusionRule(**settings).find_confused_rows(torch.tensor(logits)).tolist() == want


def test_the_published_rule_by_its_own_words() -> None:
    """The mask of the published callback, literally, on many batches; but for rows that are all clamped."""
    generator = torch.Generator().manual_seed(0)
    picked = 0
    for _ in range(300):
        logits = (3 * torch.randn(8, 5, generator=generator)).clamp(min=0)
        values, _ = torch.topk(logits, k=2, dim=1)
        mask = (values[:, 0] - values[:, 1]).abs() < 0.1
        want = (mask & (values[:, 0] > 0)).nonzero().flatten().tolist() if logits.max() > 5.0 else []
        assert sorted(ConfusionRule(top_k=8).find_confused_rows(logits).tolist()) == want
        picked += len(want)
    assert picked > 20


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"top_k": 0}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"logging_batch_interval": 0}, "1 or more; got 0"),
        ({"logging_batch_interval": 2.5}, "whole number, 1 or more; got 2.5"),
        ({"max_logit_difference": 0.0}, "above 0"),
        ({"max_logit_difference": math.nan}, "above 0"),
        ({"min_logit_scope": "model"}, '"batch" or "example"'),
        ({"min_probability": 1.0}, "min_probability"),
        ({"min_probability": 0.6, "min_logit_scope": "example"}, "above 0.525"),
    ],
)
def test_settings_that_cannot_be_right(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ConfusedLogits(**settings)


def test_the_interval_and_the_defaults() -> None:
    model, (x, y) = small(), batch()
    confused = ConfusedLogits(min_logit_value=-math.inf, max_logit_difference=math.inf)
    assert [s for s in range(60) if confused.watch(model, x, y, s) is not None] == [19, 39, 59]
    rule = ConfusedLogits().rule
    assert (rule.top_k, rule.max_logit_difference, rule.min_logit_value, rule.min_logit_scope) == (1, 0.1, 5.0, "batch")
    assert (ConfusedLogits().interval, ConfusedLogits().projection_factor) == (20, 3)


def test_nothing_confused_nothing_plotted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ConfusedLogits, "draw", lambda *args: pytest.fail("drawn"))
    model, (x, y) = small(), batch()
    confused = ConfusedLogits(logging_batch_interval=1, max_logit_difference=1e-9, to=tmp_path / "sheets")
    assert confused.watch(model, x, y, 0) is None
    assert confused.last_confused is None
    assert not (tmp_path / "sheets").exists()


# -- logits and gradients --------------------------------------------------------------------------------------------


def check_against_twin(model: nn.Module, x: Tensor, found: ConfusedInputs) -> None:
    """Each gradient alone, by autograd, from a forward in eval."""
    before = [m.training for m in model.modules()]
    model.eval()
    for i, row in enumerate(found.batch_index.tolist()):
        for j, k in enumerate(found.classes[i].tolist()):
            one = x[row : row + 1].clone().requires_grad_()
            logits = model(one)
            (grad,) = torch.autograd.grad(logits[0, k], one)
            torch.testing.assert_close(found.gradients[i, j], grad[0])
            torch.testing.assert_close(found.logits[i], logits[0].detach())
        assert found.classes[i].tolist() == found.logits[i].topk(2).indices.tolist()
    for m, training in zip(model.modules(), before, strict=True):
        m.training = training


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_gradients_against_one_at_a_time(channels: int) -> None:
    model, (x, y) = small(channels), batch(channels)
    found = ConfusedLogits(4, **FORCED).watch(model, x, y, 0)
    assert found is not None
    assert len(found) == 4
    assert found.gradients.shape == (4, 2, channels, 8, 8)
    assert torch.equal(found.inputs, x[found.batch_index])
    assert torch.equal(found.labels, y[found.batch_index])
    assert not found.is_clamped.any()
    check_against_twin(model, x, found)


def test_weights_that_change_are_seen_by_the_same_object() -> None:
    model, (x, y) = small(), batch()
    confused = ConfusedLogits(3, **FORCED)
    confused.watch(model, x, y, 0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
    check_against_twin(model, x, confused.watch(model, x, y, 1))
    model[5] = nn.Linear(8 * 36, 6)
    check_against_twin(model, x, confused.watch(model, x, y, 2))
    wide = torch.randn(5, 1, 8, 8).double()
    check_against_twin(model.double(), wide, confused.watch(model, wide, y[:5], 3))


def test_a_shape_of_its_own_each_batch() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    confused = ConfusedLogits(**FORCED)
    for step, side in enumerate((8, 10, 8)):
        x = torch.randn(4, 1, side, side, generator=torch.Generator().manual_seed(step))
        check_against_twin(model, x, confused.watch(model, x, None, step))


def test_rows_that_depend_on_one_another() -> None:
    """BatchNorm without running statistics: the gradient in the batch that the confusion was found in."""
    model, (x, y) = small(), batch()
    model[1] = nn.BatchNorm2d(8, track_running_stats=False)
    found = ConfusedLogits(3, **FORCED).watch(model, x, y, 0)
    model.eval()
    for i, row in enumerate(found.batch_index.tolist()):
        for j, k in enumerate(found.classes[i].tolist()):
            all_ = x.clone().requires_grad_()
            (grad,) = torch.autograd.grad(model(all_)[row, k], all_)
            torch.testing.assert_close(found.gradients[i, j], grad[row])


def test_a_clamped_logit_is_explained_before_its_clamp() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.ReLU())
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([0.05, -1.0, -2.0]))
        model[1].weight.mul_(1e-3)
    x, y = batch(n=4)
    found = ConfusedLogits(1, logging_batch_interval=1, min_logit_value=0.0).watch(model, x, y, 0)
    assert found.is_clamped.tolist() == [[False, True]]
    assert found.logits[0, found.classes[0, 1]] == 0
    torch.testing.assert_close(found.gradients[0].flatten(1), model[1].weight[found.classes[0]])


def test_float32_in_the_middle_of_autocast() -> None:
    model, (x, y) = small(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        found = ConfusedLogits(3, **FORCED).watch(model, x, y, 0)
    check_against_twin(model, x, found)  # to float32's tolerance: bfloat16 would be off by 1e-2


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients(caller: Callable[[], Any]) -> None:
    model, (x, y) = small(), batch()
    with caller():
        found = ConfusedLogits(3, **FORCED).watch(model, x.clone(), y, 0)
    check_against_twin(model, x, found)


# -- what the published callback got wrong ---------------------------------------------------------------------------


def published(model: nn.Module, x: Tensor, mask_idxs: Tensor) -> tuple[Tensor, Tensor]:
    """Its gradients, by its own lines."""
    x_param_a = nn.Parameter(x)
    x_param_b = nn.Parameter(x)
    for logit_i, x_param in enumerate((x_param_a, x_param_b)):
        logits = model(x_param)
        logits[:, mask_idxs[:, logit_i]].sum().backward()
    return x_param_a.grad, x_param_b.grad


def test_its_gradients_mix_the_classes_of_all_inputs() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))  # the article's, but for its clamp
    w = model[1].weight.detach()
    x = 9 * (w[0::2] + w[1::2]).view(5, 1, 8, 8)  # each between two classes of its own
    found = ConfusedLogits(5, **FORCED).watch(model, x, None, 0)
    right = w[found.classes].view(5, 2, 1, 8, 8)  # d logit_k / dx is row k of W
    theirs = torch.stack(published(model, found.inputs, found.classes), 1)
    assert len(found.classes.unique()) == 10
    for j in (0, 1):
        assert cosine(theirs[:, j], right[:, j]).max() < 0.7
        torch.testing.assert_close(cosine(found.gradients[:, j], right[:, j]), torch.ones(5))
    alone = published(model, found.inputs[:1], found.classes[:1])  # with one input it is right
    torch.testing.assert_close(alone[0], right[:1, 0])


def test_its_traces_in_the_model() -> None:
    """.grad left, frozen parts unfrozen, dropout and BatchNorm run: none of it here."""
    model, (x, y) = small(), batch()
    model[1].eval()
    before = snapshot(model, x, y)
    ConfusedLogits(3, **FORCED, inputs=ub.Pixels((1, 8, 8)), to=lambda sheet, step: None).watch(model, x, y, 0)
    assert changes(before, snapshot(model, x, y)) == []
    published(model.eval(), x, torch.zeros(len(x), 2, dtype=torch.long))
    model.train()
    assert any("grad" in c for c in changes(before, snapshot(model, x, y)))
    assert model[1].training


@pytest.mark.parametrize("name", awkward.MODELS)
def test_nothing_is_left_in_any_model(name: str) -> None:
    entry = awkward.get_model(name)
    z = entry.inputs.encode(entry.images(4)).to(next((p.dtype for p in entry.model.parameters()), torch.float32))
    confused = ConfusedLogits(2, **FORCED, min_probability=0.0, **entry.box_settings, to=lambda sheet, step: None)
    y = torch.zeros(4, dtype=torch.long)
    before = snapshot(entry.model, z, y)
    if name == "checkpointed_reentrant":  # torch has no gradient in the input there
        with pytest.raises(OutputError):
            confused.watch(entry.model, z, y, 0)
    else:
        assert len(confused.watch(entry.model, z, y, 0)) == 2
    assert changes(before, snapshot(entry.model, z, y)) == []


# -- what can't be watched -------------------------------------------------------------------------------------------


def with_end(end: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), end)


@pytest.mark.parametrize(("end", "said"), [(nn.LogSoftmax(1), "exceed 0"), (nn.Softmax(1), "exceed 1")])
def test_probabilities_are_refused_with_the_way_out(end: nn.Module, said: str) -> None:
    model, (x, y) = with_end(end), batch()
    with pytest.raises(OutputError, match=f"never {said}.*min_logit_value=5.*min_probability"):
        ConfusedLogits().watch(model, x, y, 0)  # at the first step, not at the first look
    found = ConfusedLogits(3, 3, math.inf, 1, math.inf, min_probability=0.01).watch(model, x, y, 0)
    check_against_twin(model[:2], x, found)  # the logits are those before the softmax


@pytest.mark.parametrize(
    ("model", "settings", "error", "said"),
    [
        (with_end(nn.Identity()), {"outputs": "multilabel"}, OutputError, "exclude each other"),
        (with_end(nn.Identity()), {"outputs": "regression"}, OutputError, "exclude each other"),
        (with_end(nn.Linear(6, 1)), {}, OutputError, "one output"),
        (with_end(nn.Identity()), {"classes": ["a", "b"]}, InputError, "6 outputs; got 2 class names"),
        (nn.Conv2d(1, 5, 3), {"logging_batch_interval": 1}, OutputError, r"one class an input.*\(7, 5, 6, 6\)"),
    ],
)
def test_models_that_cannot_be_watched(model: nn.Module, settings: Any, error: type[Exception], said: str) -> None:
    x, y = batch()
    with pytest.raises(error, match=said):
        ConfusedLogits(**settings).watch(model, x, y, 0)


def test_batches_that_cannot_be_watched() -> None:
    model, (x, y) = small(), batch()
    some = "a batch of inputs"
    for bad, said in ((x.long(), "token ids"), (x[0, 0, 0], some), ([1, 2], "got list"), (x[:0], some)):
        with pytest.raises(InputError, match=said):
            ConfusedLogits().watch(model, bad, y, 0)
    with pytest.raises(InputError, match="one label an input; got 3 for 7"):
        ConfusedLogits().watch(model, x, y[:3], 0)


def test_a_model_without_a_gradient_is_refused_at_once() -> None:
    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().flatten(1)[:, :4]

    with pytest.raises(OutputError, match="does not depend on the input"):
        ConfusedLogits().watch(Detached(), *batch(), 0)


def test_a_model_spread_over_devices_is_refused() -> None:
    class FullyShardedDataParallel(nn.Sequential):
        pass

    with pytest.raises(InputError, match="FullyShardedDataParallel"):
        ConfusedLogits().watch(FullyShardedDataParallel(small()), *batch(), 0)


def test_the_model_inside_of_data_parallelism_is_watched() -> None:
    model, (x, y) = small(), batch()
    found = ConfusedLogits(2, **FORCED).watch(nn.DataParallel(model), x, y, 0)
    check_against_twin(model, x, found)


# -- the sheet -------------------------------------------------------------------------------------------------------


class Drawn:
    """The tiles of each block, caught where the block is laid out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.blocks: list[dict[str, Any]] = []
        self._sheet = confusion_sheet.contact_sheet
        monkeypatch.setattr(confusion_sheet, "contact_sheet", self)

    def __call__(self, rows: Any, **more: Any) -> Image.Image:
        self.blocks.append({"rows": rows, **more})
        return self._sheet(rows, **more)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    return Drawn(monkeypatch)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("factor", [3.0, 40.0])
def test_the_block_of_an_input(drawn: Drawn, channels: int, factor: float) -> None:
    inputs = ub.Pixels((channels, 8, 8), mean=0.4, std=0.25)
    model, (z, y) = small(channels), batch(channels)
    names = ["ant", "bee", "cat", "dog", "eel", "fox"]
    confused = ConfusedLogits(1, factor, inputs=inputs, classes=names, **FORCED)
    found = confused.watch(model, z, y, 7)
    image = confused.draw(found)
    assert isinstance(image, Image.Image)
    (block,) = drawn.blocks
    (x, up_a, up_b), (free, plus_a, plus_b) = block["rows"]
    assert free is None
    a, b = (names[k] for k in found.classes[0].tolist())
    assert block["title"] == f"step 7: {a} or {b}?"
    assert x.caption == f"input, label {names[found.labels[0]]}"
    assert np.array_equal(x.image, colors.image_to_rgb(inputs.decode(found.inputs[0])))
    for tile, moved, grad, name in ((up_a, plus_a, found.gradients[0, 0], a), (up_b, plus_b, found.gradients[0, 1], b)):
        value = found.logits[0, names.index(name)].item()
        assert tile.caption == f"d logit {name} / dx\nlogit {value:.3f}"
        assert moved.caption == f"input\n+ {factor:g} × d logit {name} / dx"
        (bar,) = block["bars"]  # one scale for both
        assert np.array_equal(tile.image, colors.signed_to_rgb(grad.sum(0), bar.vmax))
        assert np.array_equal(moved.image, colors.image_to_rgb(inputs.decode(found.inputs[0] + factor * grad)))


def test_the_projection_factor_shows() -> None:
    model, (x, y) = small(), batch()
    sheets = [np.asarray(c.draw(c.watch(model, x, y, 0))) for c in (ConfusedLogits(1, f, **FORCED) for f in (3, 3, 30))]
    assert np.array_equal(sheets[0], sheets[1])
    assert not np.array_equal(sheets[0], sheets[2])


def test_maps_before_a_clamp_are_named_so(drawn: Drawn) -> None:
    model, (x, y) = small(), batch()
    found = ConfusedLogits(1, **FORCED).watch(model, x, y, 0)
    confused = ConfusedLogits()
    clamped = ConfusedInputs(**{**vars(found), "is_clamped": torch.tensor([[False, True]])})
    confused.draw(clamped)
    (_, up_a, up_b), _ = drawn.blocks[0]["rows"]
    assert "clamp" not in up_a.caption
    assert up_b.caption.endswith("before the clamp")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (None, "input"),
        (torch.tensor([2, 2, 2]), "input, label 2"),
        ([2, 2, 2], "input, label 2"),
        (torch.eye(6)[[4, 4, 4]], "input, label 4"),
        (torch.tensor([0.5, 0.5, 0.5]), "input, label 0.5"),
        (torch.tensor([-1, -1, -1]), "input, label -1"),
    ],
)
def test_labels_of_every_kind(drawn: Drawn, labels: Any, said: str) -> None:
    confused = ConfusedLogits(**FORCED)
    confused.draw(confused.watch(small(), batch(n=3)[0].sigmoid(), labels, 0))
    assert drawn.blocks[0]["rows"][0][0].caption == said


def test_one_sheet_per_step_whatever_is_confused(tmp_path: Path) -> None:
    model, (x, y) = small(2), batch(2, n=9)
    ConfusedLogits(5, to=tmp_path / "deep" / "er", **FORCED).watch(model, x, y, 3)
    (path,) = (tmp_path / "deep" / "er").iterdir()
    assert path.name == "confused-000003.png"
    one = ConfusedLogits(1, **FORCED)
    alone = one.draw(one.watch(model, x, y, 3))
    with Image.open(path) as sheet:
        assert sheet.width == 3 * alone.width
        assert sheet.height > 1.5 * alone.height


def test_without_inputs_the_range_that_is_plotted_is_printed(drawn: Drawn) -> None:
    confused = ConfusedLogits(**FORCED)
    found = confused.watch(small(2), batch(2)[0], None, 0)
    confused.draw(found)
    low, high = found.inputs.min().item(), found.inputs.max().item()
    x = drawn.blocks[0]["rows"][0][0]
    assert x.caption == f"input\nblack {low:.3g}, white {high:.3g}\nmean of 2 channels"
    assert np.array_equal(x.image, colors.image_to_rgb((found.inputs[0] - low) / (high - low)))


def test_inputs_that_are_no_images_say_so() -> None:
    model = nn.Linear(20, 4)
    x = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    confused = ConfusedLogits(2, to=lambda sheet, step: pytest.fail("drawn"), **FORCED)
    with pytest.warns(UnboxedWarning, match=r"shape \(20,\) are no images"):
        found = confused.watch(model, x, None, 0)
    assert torch.equal(found.gradients[0], model.weight.detach()[found.classes[0]])
    assert len(confused.watch(model, x, None, 1)) == 2  # said once
    with pytest.raises(InputError, match="no images"):
        confused.draw(found)


def test_flattened_images_are_plotted_by_their_inputs(drawn: Drawn) -> None:
    confused = ConfusedLogits(inputs=ub.Pixels((1, 4, 5)), **FORCED)
    x = torch.rand(6, 20, generator=torch.Generator().manual_seed(0))
    confused.draw(confused.watch(nn.Linear(20, 4), x, None, 0))
    assert drawn.blocks[0]["rows"][0][0].image.shape == (4, 5, 3)


def test_a_folder_that_cannot_be_written_does_not_end_the_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    confused = ConfusedLogits(to=tmp_path / "file" / "sheets", **FORCED)
    with pytest.warns(UnboxedWarning, match="the sheet of step 4 is lost"):
        found = confused.watch(small(), *batch(), 4)
    assert len(found) == 1


def test_it_fits_the_hand_written_loop_of_the_library(tmp_path: Path) -> None:
    """`training.fit(watch=...)` calls with what `watch` wants."""
    from unboxed import data, training, zoo

    model, inputs = zoo.load("digits-cnn", weights=None)
    confused = ConfusedLogits(2, inputs=inputs, to=tmp_path, **{**FORCED, "logging_batch_interval": 2})
    some = data.digits().tensors()
    few = torch.utils.data.TensorDataset(some.x[:64], some.y[:64])
    training.fit(model, inputs, few, None, epochs=1, batch_size=16, lr=1e-3, quiet=True, watch=confused.watch)
    assert len(list(tmp_path.iterdir())) == 2
    assert len(confused.last_confused) == 2


# -- what it says of itself --------------------------------------------------------------------------------------------


def test_a_loop_without_a_place_for_the_sheets_is_reported_once(tmp_path: Path) -> None:
    model, (x, y) = small(), batch()
    lost = ConfusedLogits(**FORCED)
    with pytest.warns(UnboxedWarning, match=r"go nowhere.*to=") as caught:
        lost.watch(model, x, y, 0)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lost.watch(model, x, y, 1)
        ConfusedLogits(to=tmp_path, **FORCED).watch(model, x, y, 0)
        ConfusedLogits(**FORCED).watch(model, x, y, 0, to=lambda sheet, step: None)


def test_it_says_how_often_it_ran_and_how_large_the_logits_were(tmp_path: Path) -> None:
    model, (x, y) = small(), batch()
    confused = ConfusedLogits(logging_batch_interval=2, min_logit_value=100.0, to=tmp_path)
    assert repr(confused) == "ConfusedLogits(looked 0 times, found confused inputs 0 times, min_logit_value=100)"
    for step in range(4):
        confused.watch(model, x, y, step)
    largest = model.eval()(x).max().item()
    assert (confused.n_checks, confused.n_found) == (2, 0)
    assert confused.largest_logit == pytest.approx(largest, rel=1e-5)
    assert f"looked 2 times, found confused inputs 0 times, largest logit {largest:.3g} <= min_logit_value=100" in repr(
        confused
    )
    sure = ConfusedLogits(to=tmp_path, **FORCED)
    sure.watch(model, x, y, 0)
    assert "found confused inputs 1 times" in repr(sure)
    assert "> min_logit_value=-inf" in repr(sure)
