"""Robust accuracy, its alarms, and what of it reaches the command line and the page."""

from __future__ import annotations

import json
import os
import re
import threading
import warnings
from collections.abc import Callable
from functools import partial
from inspect import unwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import unboxed as ub
from unboxed import adversarial, cli
from unboxed.adversarial.changes import prediction_changes
from unboxed.cli.attack import run_attack
from unboxed.engine.proportion import Proportion
from unboxed.errors import DataError, InputError, ModelError, UnboxedWarning
from unboxed.inputs.labels import unique_class_names
from unboxed.plots import attack_sheet, colors, save
from unboxed.plots.sheet import Tile, contact_sheet
from unboxed.robustness.evaluate import Robustness, evaluate
from unboxed.robustness.gradient_masking import check_gradient_masking

SHAPE = (1, 6, 6)
ATTACKS = {"fgsm": adversarial.fgsm, "pgd": partial(adversarial.pgd, steps=5)}


class Linear(nn.Module):
    """Two classes; `w` (36,) points from the first to the second."""

    def __init__(self, seed: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(36, generator=g) * scale)

    def forward(self, x: Tensor) -> Tensor:
        z = (x.flatten(1) - 0.5) @ self.w
        return torch.stack([-z, z], 1) / 2


def box_of(model: nn.Module) -> ub.Box:
    return ub.Box(model, ub.Pixels(SHAPE), outputs="logits")


def middling(n: int = 40, seed: int = 1) -> Tensor:
    """Images so far from black and white that small changes are not cut off."""
    g = torch.Generator().manual_seed(seed)
    return 0.5 + 0.2 * (torch.rand(n, *SHAPE, generator=g) - 0.5)


def labeled(box: ub.Box, wrong: int = 3) -> tuple[Tensor, Tensor]:
    x = middling()
    y = box.predict(x)
    y[:wrong] = 1 - y[:wrong]
    return x, y


# -- what is exactly known: a linear model -----------------------------------------------------------------------------


def test_on_a_linear_model_robust_accuracy_is_the_proportion_farther_than_eps() -> None:
    model = Linear()
    box = box_of(model)
    x, y = labeled(box)
    margin = ((x.flatten(1) - 0.5) @ model.w.detach()).abs()
    reach = margin / model.w.detach().abs().sum()  # (N,) in the largest change
    eps = [float(reach.quantile(q)) for q in (0.3, 0.6)]
    found = evaluate(box, (x, y), ATTACKS, eps=eps, check_masking=False)
    assert found.clean_accuracy == Proportion(37, 40)
    for e in eps:
        stands = (reach > e) & found.is_correct
        assert found.robust_accuracy(e, "pgd").count == int(stands.sum())
        assert found.robust_accuracy(e).count == int(stands.sum())
    own = reach[found.is_correct].sort().values
    assert found.median_distance == pytest.approx(float(own[(len(own) - 1) // 2]), rel=0.03)
    assert (found.min_distance[~found.is_correct] == 0).all()


def test_figures_are_consistent() -> None:
    torch.manual_seed(0)
    box = box_of(nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 3)))
    x = middling()
    y = box.predict(x)
    found = evaluate(box, (x, y), ATTACKS, eps=[0.02, 0.05, 0.2], check_masking=False)
    curve = [found.robust_accuracy(e).count for e in found.eps]
    assert curve == sorted(curve, reverse=True)
    assert curve[0] > curve[-1]
    assert all(
        found.robust_accuracy(e).count <= found.robust_accuracy(e, a).count for e in found.eps for a in found.attacks
    )
    classes = found.accuracy_by_class()
    assert sum(clean.n for clean, _ in classes.values()) == 40
    assert sum(robust.count for _, robust in classes.values()) == found.robust_accuracy().count
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["all"][1]["count"] == curve[1]


class Band(nn.Module):
    """Class 1 in a narrow band of brightness, from .55 to .65: one large step jumps over it."""

    def forward(self, x: Tensor) -> Tensor:
        z = 0.05 - (x.flatten(1)[:, :1] - 0.6).abs()
        return 10 * torch.cat([-z, z], 1)


def band() -> tuple[ub.Box, Tensor, Tensor]:
    x = torch.tensor([0.5, 0.52, 0.2]).view(3, 1, 1, 1)
    return ub.Box(Band(), ub.Pixels((1, 1, 1)), outputs="logits"), x, torch.zeros(3, dtype=torch.long)


def test_the_smallest_change_counts_within_eps() -> None:
    box, x, y = band()
    found = evaluate(box, (x, y), {"fgsm": adversarial.fgsm}, eps=[0.02, 0.3], check_masking=False)
    assert found.robust_accuracy(0.3, "fgsm").count == 3
    assert [found.robust_accuracy(e).count for e in (0.02, 0.3)] == [3, 1]
    assert found.robust_examples(0.3).tolist() == (found.min_distance > 0.3).tolist() == [False, False, True]
    assert found.accuracy_by_class(0.3)["0"][1] == Proportion(1, 3)
    assert found.minimal_attack == "deepfool"
    assert "deepfool" in repr(found)
    alone = evaluate(box, (x, y), {"fgsm": adversarial.fgsm}, eps=[0.3], minimal_attack=None, check_masking=False)
    assert alone.robust_accuracy().count == 3
    assert "deepfool" not in repr(alone)


def test_a_change_found_at_a_larger_eps_counts_at_the_smaller() -> None:
    def half_a_step(box: ub.Box, x: Tensor, y: Tensor, eps: float, **more: object) -> adversarial.Adversarial:
        return adversarial.fgsm(box, x, y, eps=eps / 5)

    box, x, y = band()
    found = evaluate(box, (x[:2], y[:2]), {"a": half_a_step}, eps=[0.07, 0.3], minimal_attack=None, check_masking=False)
    assert found.robust_accuracy(0.07, "a").count == 2
    assert found.robust_accuracy(0.07).count == 0


@pytest.mark.usefixtures("_no_alarms")
def test_the_command_agrees_with_the_smallest_change(tmp_path, capsys) -> None:
    box, x, y = band()
    run_attack(box, (x[:1], y[:1]), tmp_path, attacks=["fgsm"], eps=[0.3], quiet=True)
    said = capsys.readouterr().out
    assert re.search(r"fgsm +100.0%", said)
    assert re.search(r"all, with deepfool +0.0%", said)
    assert "distance 0.05" in said
    assert (tmp_path / "attacked.png").is_file()
    assert "no figure" not in said


def test_classes_of_one_name_are_kept_apart() -> None:
    with pytest.warns(UnboxedWarning, match=r"several classes have one name: 'a' is the name of 0, 1\. .*its own"):
        box = ub.Box(Linear(), ub.Pixels(SHAPE), classes=["a", "a"], outputs="logits")
    x, y = labeled(box)
    found = evaluate(box, (x, y), ATTACKS, eps=[0.02], minimal_attack=None, check_masking=False)
    assert {name: clean.n for name, (clean, _) in found.accuracy_by_class().items()} == {
        f"a ({k})": int((y == k).sum()) for k in (0, 1)
    }
    assert unique_class_names(["crane", "a", "crane"]) == ("crane (0)", "a", "crane (2)")


def test_a_dataset_equals_tensors() -> None:
    box = box_of(Linear())
    x, y = labeled(box)
    both = [evaluate(box, d, ATTACKS, eps=[0.02], check_masking=False) for d in ((x, y), list(zip(x, y.tolist())))]  # noqa: B905
    assert torch.equal(both[0].is_robust, both[1].is_robust)
    assert len(evaluate(box, (x, y), ATTACKS, eps=0.02, max_examples=7, check_masking=False).is_correct) == 7


def test_fooled_examples_are_not_attacked_at_a_larger_eps() -> None:
    asked = list[int]()

    def counting(box: ub.Box, x: Tensor, y: Tensor, **more: object) -> adversarial.Adversarial:
        asked.append(len(x))
        return adversarial.pgd(box, x, y, steps=5, **more)  # type: ignore[arg-type]

    box = box_of(Linear())
    found = evaluate(
        box, labeled(box), {"pgd": counting}, eps=[0.003, 0.01, 0.5], check_masking=False, minimal_attack=None
    )
    assert asked == [37, found.robust_accuracy(0.003).count, found.robust_accuracy(0.01).count]
    assert asked[1] > asked[2] > 0


def test_resumes_from_a_checkpoint(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(unwrap(evaluate).__globals__, "MAX_EXAMPLES_PER_ATTACK_TASK", 10)
    box = box_of(Linear())
    data, calls = labeled(box), list[int]()

    def called(*_: object, **more: object) -> tuple[()]:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return ()

    def stopping(box: ub.Box, x: Tensor, y: Tensor, **more: object) -> adversarial.Adversarial:
        warnings.warn("called", stacklevel=1)
        return adversarial.pgd(box, x, y, steps=5, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(warnings, "warn", called)
    settings = {"eps": [0.003, 0.01], "check_masking": False, "checkpoint": tmp_path / "state.pt"}
    whole = evaluate(box, data, {"stopping": partial(adversarial.pgd, steps=5)}, eps=[0.003, 0.01], check_masking=False)
    part = evaluate(box, data, {"stopping": stopping}, **settings)
    assert part.interrupted
    assert len(calls) == 4
    gone_on = evaluate(box, data, {"stopping": stopping}, **settings)
    assert not gone_on.interrupted
    assert len(calls) == 4 + 5  # eight parts, of which three were done
    assert torch.equal(gone_on.is_robust, whole.is_robust)
    assert torch.equal(gone_on.min_distance, whole.min_distance)
    with pytest.raises(ModelError, match="other settings"):
        evaluate(box, data, {"stopping": stopping}, **{**settings, "eps": [0.01]})


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"eps": []}, InputError, "at least one eps"),
        ({"eps": [-0.1]}, InputError, "above 0"),
        ({"eps": [8]}, InputError, "8/255"),
        ({"eps": [0.1], "attacks": {}}, InputError, "at least one attack"),
        ({"eps": [0.1], "norm": "l7"}, InputError, "norm must be"),
    ],
)
def test_bad_settings_are_refused(more, error, said) -> None:
    box = box_of(Linear())
    with pytest.raises(error, match=said):
        evaluate(box, labeled(box), **{"attacks": ATTACKS, **more})


def test_data_without_labels_are_refused() -> None:
    box = box_of(Linear())
    with pytest.raises(DataError, match="labels"):
        evaluate(box, list(middling(3)), eps=[0.1])
    with pytest.raises(InputError, match="classes 0 to 1"):
        evaluate(box, (middling(3), torch.tensor([0, 1, 5])), eps=[0.1])


# -- alarms: each by a model that deserves it --------------------------------------------------------------------------


class Around(nn.Module):
    """A model whose input is spoiled first."""

    def __init__(self, spoil) -> None:
        super().__init__()
        self.spoil, self.model = spoil, Linear(scale=4.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.spoil(x))


class Rounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 20).round() / 20


class Jagged(nn.Module):
    """The same values but for a ripple, whose slope masks the model's own."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.004 * torch.sin(x * 3000)


class Noise(nn.Module):
    """Noise by any function."""

    def __init__(self, sample: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.sample = sample

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * self.sample(x)


class Saturated(nn.Module):
    """Logits so large that the softmax is exactly one: the cross-entropy has no slope."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Linear(scale=2000.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def alarmed(model: nn.Module, eps: float = 0.3) -> set[str]:
    torch.manual_seed(0)
    box = box_of(model)
    x = middling()
    y = box.predict(x)
    return {a.name for a in check_gradient_masking(box, x, y, torch.ones(len(x), dtype=torch.bool), eps)}


def test_a_plain_model_has_no_masking_findings() -> None:
    assert [alarmed(Linear(), eps=eps) for eps in (0.3, 0.02)] == [set(), set()]


def test_a_model_with_zero_gradients() -> None:
    found = alarmed(Around(Rounded()))
    assert "no gradient" in found
    assert "unbounded eps does not reach 0" in found
    assert "black box stronger than white box" in found


def test_a_model_with_a_rough_loss_surface() -> None:
    assert alarmed(Around(Jagged())) & {"black box stronger than white box", "unbounded eps does not reach 0"}


@pytest.mark.parametrize(
    "sample",
    [
        torch.randn_like,
        lambda x: x.new_empty(len(x), 1, 1, 1).bernoulli_(),
        lambda x: x.new_tensor(np.random.rand(*x.shape)),
    ],
    ids=["like", "gates", "numpy"],
)
def test_a_stochastic_model(sample: Callable[[Tensor], Tensor]) -> None:
    assert "random layers" in alarmed(Around(Noise(sample)))


def test_a_saturated_model() -> None:
    assert alarmed(Saturated()) & {"loss saturates", "no gradient"}


def test_a_model_without_gradients() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Linear()

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x.detach())

    box = box_of(Detached())
    x = middling()
    (found,) = check_gradient_masking(box, x, box.predict(x), torch.ones(len(x), dtype=torch.bool), 0.1)
    assert found.name == "no gradient"
    assert "square" in found.message


# -- pictures, command line, page --------------------------------------------------------------------------------------


def test_changes_hold_the_models_predictions() -> None:
    box = box_of(Linear())
    x, y = labeled(box)
    found = adversarial.pgd(box, x, y, eps=0.1, steps=5)
    for c in prediction_changes(box, x, found, [5, 9]):
        assert c.class_before == int(box.predict(x[c.row : c.row + 1]))
        assert c.class_after == int(box.predict(found.images[c.row : c.row + 1]))
        assert c.probs_after[1] == pytest.approx(float(box.probs(found.images)[c.row, c.class_after]), abs=1e-6)
        assert c.distance == pytest.approx(float(c.delta.abs().max()), abs=1e-6)


@pytest.mark.parametrize(("reach", "factor"), [(0.3, 2), (0.1, 10), (0.004, 200), (1.0, 1), (0.0, 1)])
def test_changes_are_enlarged_by_round_factors(reach: float, factor: float) -> None:
    assert attack_sheet.largest_round_magnification(reach) == pytest.approx(factor)


@pytest.mark.parametrize("channels", [1, 3])
def test_figure_of_an_attack(channels: int) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(channels * 36, 3))
    box = ub.Box(model, ub.Pixels((channels, 6, 6)), outputs="logits")
    x = torch.rand(2, channels, 6, 6, generator=torch.Generator().manual_seed(0))
    found = adversarial.pgd(box, x, box.predict(x), eps=0.3, steps=5)
    sheet = attack_sheet.attack_sheet(prediction_changes(box, x, found), box.classes)
    assert sheet.width > 3 * 100
    assert sheet.height > 2 * 100
    with pytest.raises(InputError, match="no example"):
        attack_sheet.attack_sheet([], box.classes)


def run(*words: object):
    return CliRunner().invoke(cli.app, ["attack", *map(str, words), "-q"])


def test_the_command(tmp_path) -> None:
    asked = ("--model", "zoo:digits-cnn", "--data", "digits", "--eps", 0.1, "--eps", 0.3, "--n", 2, "--attack", "PGD")
    made = run(*asked, "-o", tmp_path)
    assert made.exit_code == 0, made.output
    assert "robust accuracy under" in made.output
    told = json.loads((tmp_path / "attack.json").read_text())
    assert told["n"] == 2
    assert told["eps"] == [0.1, 0.3]
    assert (tmp_path / "attacked.png").stat().st_size > 1000
    again = run(*asked, "-o", tmp_path)  # all of it from the checkpoint
    assert json.loads((tmp_path / "attack.json").read_text()) == told
    assert again.exit_code == 0


@pytest.mark.usefixtures("_no_alarms")
def test_the_command_takes_a_fraction(tmp_path) -> None:
    made = run("--model", "zoo:digits-cnn", "--data", "digits", "--eps", "8/255", "--eps", "0.3", "--n", 8,
               "--attack", "fgsm", "-o", tmp_path)  # fmt: skip
    assert made.exit_code == 0, made.output
    assert "eps 8/255" in made.output
    assert json.loads((tmp_path / "attack.json").read_text())["eps"] == [8 / 255, 0.3]


@pytest.mark.usefixtures("_no_alarms")
@pytest.mark.parametrize(
    ("attacks", "norm", "measured"),
    [(["fgsm"], None, "linf"), (["ddn", "fgsm"], None, "l2"), (["fgsm"], "l1", "l1")],
)
def test_default_norm_of_the_attacks(tmp_path, attacks, norm, measured, capsys) -> None:
    box = box_of(Linear())
    data = middling(2), box.predict(middling(2))
    found = run_attack(box, data, tmp_path, attacks=attacks, eps=[0.1], norm=norm, quiet=True)
    assert found.norm == measured
    assert f"robust accuracy under ({measured})" in capsys.readouterr().out


def test_features_get_the_attacks_that_take_them() -> None:
    torch.manual_seed(0)
    box = ub.Box(nn.Linear(2, 2), ub.Features(("a", "b")), outputs="logits")
    x = torch.randn(10, 2)
    y = box.predict(x)
    found = evaluate(box, (x, y), eps=[0.1, 1.0])
    assert found.attacks == ("fgsm", "pgd")
    with pytest.raises(InputError, match="the attack mine needs a model that takes images alone"):
        evaluate(box, (x, y), {"mine": partial(adversarial.square, queries=5)}, eps=[0.1])


def test_default_attacks_on_a_table_from_the_command(tmp_path) -> None:
    torch.manual_seed(0)
    box = ub.Box(nn.Linear(2, 2), ub.Features(("a", "b")), outputs="logits")
    x = torch.randn(10, 2)
    assert run_attack(box, (x, box.predict(x)), tmp_path, eps=[0.1], quiet=True).attacks == ("fgsm", "pgd")


def test_the_figure_of_a_table_names_the_rows_of_the_data(tmp_path, monkeypatch, capsys) -> None:
    from unboxed.plots.results import adversarial as plots

    torch.manual_seed(0)
    box = ub.Box(nn.Linear(2, 2), ub.Features(("a", "b"), std=(2.0, 3.0)), outputs="logits")
    x = torch.randn(12, 2)
    y = box.predict(x)
    y[:3] = 1 - y[:3]  # misclassified as they are: not attacked
    y[5] = -1
    titles: list[str] = []
    bars = plots.column_change_bars
    monkeypatch.setattr(plots, "column_change_bars", lambda c, title: (titles.append(title), bars(c, title=title))[1])
    with pytest.warns(UnboxedWarning, match="row 5"):
        run_attack(box, (x, y), tmp_path, eps=[5.0], attacks=["fgsm"], quiet=True)
    named = [int(title.split(",")[0].removeprefix("example ")) for title in titles]
    assert named == [3, 4, 6, 7]
    assert "eps 5 is 5 standard deviations of its column" in capsys.readouterr().out


def test_no_internal_name_in_what_a_table_is_refused(tmp_path) -> None:
    box = ub.Box(nn.Linear(2, 2), ub.Features(("a", "b"), std=(2.0, 3.0)), outputs="logits")
    with pytest.raises(InputError, match=r"this one takes Features$"):
        adversarial.pgd(box, torch.randn(4, 2), torch.zeros(4, dtype=torch.long), eps=0.1, bits=8)


def test_attacks_without_gradients_that_are_advised_take_the_inputs() -> None:
    dead = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    nn.init.constant_(dead[0].bias, -1e6)
    for inputs, n_named in ((ub.Features(("a", "b"), std=2.0), 0), (ub.Pixels((2, 1, 1)), 1)):
        model = dead if n_named == 0 else nn.Sequential(nn.Flatten(), dead)
        x = torch.rand(2, *inputs.shape)
        with pytest.warns(UnboxedWarning, match="hop_skip_jump") as said:
            adversarial.pgd(ub.Box(model, inputs, outputs="logits"), x, [0, 1], eps=0.1, steps=1)
        assert str(said[0].message).count("square") == n_named


def folder_of(root: Path) -> Path:
    """Twenty digits as images in folders of their classes."""
    x, y = ub.data.digits("test").first(20)
    for i, (image, k) in enumerate(zip(x, y.tolist(), strict=True)):
        save(colors.image_to_rgb(image), root / str(k) / f"{i}.png")
    return root


@pytest.mark.usefixtures("_no_alarms")
@pytest.mark.filterwarnings("default::unboxed.errors.UnboxedWarning")
def test_the_command_lists_skipped_files(tmp_path) -> None:
    """Broken images, and files whose names are no UTF-8, which no output can hold as they are."""
    root, out = folder_of(tmp_path / "in"), Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    broken = next(root.glob("*/0.png"))
    broken.write_bytes(broken.read_bytes()[:-60])
    (Path(os.fsdecode(os.fsencode(root / "3") + b"/caf\xe9.png"))).write_bytes(b"none")
    made = run("--model", "zoo:digits-cnn", "--data", root, "--eps", 0.3, "--attack", "fgsm", "--bits", 8, "-o", out)
    assert made.exit_code == 0, made.output
    told = json.loads((out / "attack.json").read_bytes())
    assert told["n"] == 19
    assert {Path(one["file"]).name for one in told["skipped"]} == {"0.png", os.fsdecode(b"caf\xe9.png")}
    assert {one["why"] for one in told["skipped"]} >= {"not an image"}
    assert list((out / "images").glob("*.png"))


@pytest.mark.usefixtures("_no_alarms")
def test_a_class_name_that_is_not_utf8(tmp_path) -> None:
    name = os.fsdecode(b"caf\xe9")
    box = ub.Box(*ub.zoo.load("digits-cnn"), classes=[f"{name} {k}" for k in range(10)])
    run_attack(box, ub.data.digits("test").first(8), tmp_path, attacks=["fgsm"], eps=[0.3], bits=8, quiet=True)
    assert f"{name} 2" in json.loads((tmp_path / "attack.json").read_bytes())["classes"]
    assert all(b"\xe9" not in os.fsencode(f) and b"caf" in os.fsencode(f) for f in (tmp_path / "images").iterdir())
    page = contact_sheet([[Tile(np.zeros((8, 8, 3), np.uint8), name)]], title=name, columns=[name], names=[name])
    again = contact_sheet(
        [[Tile(np.zeros((8, 8, 3), np.uint8), "caf\\udce9")]],
        title="caf\\udce9",
        columns=["caf\\udce9"],
        names=["caf\\udce9"],
    )
    assert page.tobytes() == again.tobytes()


def wrongly(n: int) -> tuple[Tensor, Tensor]:
    x, _ = ub.data.digits("test").first(n)
    return x, (ub.load("zoo:digits-cnn").predict(x) + 1) % 10


def test_the_command_at_zero_clean_accuracy(tmp_path, capsys) -> None:
    found = run_attack(ub.load("zoo:digits-cnn"), wrongly(8), tmp_path, attacks=["fgsm"], eps=[0.1], quiet=True)
    assert found.clean_accuracy.count == 0
    said = capsys.readouterr().out
    assert "clean accuracy is 0" in said.replace("\n", " ")
    assert "nan" not in said
    assert json.loads((tmp_path / "attack.json").read_text())["median_distance"] is None


def test_the_section_at_zero_clean_accuracy(tmp_path) -> None:
    made = ub.report(ub.load("zoo:digits-cnn"), wrongly(10), tmp_path, sections=["attacks"], quiet=True)
    assert not made.failures
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "The clean accuracy is 0" in page
    assert "no correct example" in page
    assert "0 of these 10 examples" in page
    assert re.search(r"before: \d", page)
    assert re.search(r"after: \d", page)  # the images are changed until the prediction is another one, correct or not
    assert not re.search(r"\bnan\b", re.sub(r"base64,[^\"]*", "", page))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--attack", "pdg"), "did you mean"),
        (("--attack", "xyz"), "there are"),
        (("--norm", "l9"), "norm is one of"),
        (("--n", 0), "--n must be a whole number, 1 or more"),
        (("--attack", "ddn", "--norm", "linf"), "ddn takes --norm l2"),
        (("--data", "no/such/folder"), "no/such/folder"),
    ],
)
def test_the_command_refuses(tmp_path, words, said) -> None:
    made = run("--model", "zoo:digits-cnn", "--data", "digits", "--eps", 0.1, "-o", tmp_path, *words)
    assert made.exit_code == 2
    assert said in made.output


def test_the_section(tmp_path) -> None:
    box, data = ub.load("zoo:digits-cnn"), ub.data.digits("test").first(16)
    made = ub.report(box, data, tmp_path, judge=ub.load("zoo:digits-judge"), sections=["attacks"], quiet=True)
    assert not made.failures
    page = (tmp_path / "index.html").read_text()
    assert "What fools it?" in page
    assert re.search(r"<b>after: \d</b><span>the second model</span>", page)
    facts = json.loads((tmp_path / "report.json").read_text())["findings"]["attacks"]["robustness"]
    assert facts["this model"]["all"][-1]["share"] < facts["the second model"]["all"][-1]["share"]


# -- models that a stranger brought ------------------------------------------------------------------------------------


class InCompany(nn.Module):
    """Batch norm on the batch's own statistics: rows change one another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def in_the_batch() -> tuple[ub.Box, Tensor, Tensor]:
    box = ub.Box(InCompany().train(), ub.Pixels(SHAPE), outputs="logits", mode="as-is")
    x = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(3))
    y = box.predict(x)
    y[:3] = (y[:3] + 1) % 3
    return box, x, y


@pytest.mark.parametrize(
    "attack",
    [
        adversarial.pgd,
        adversarial.deepfool,
        adversarial.fab,
        partial(adversarial.apgd, steps=10),
        partial(adversarial.square, queries=20),
        partial(adversarial.carlini_wagner, steps=20),
        partial(adversarial.lbfgs, steps=10),
    ],
)
def test_success_of_a_batch_dependent_model(attack) -> None:
    box, x, y = in_the_batch()
    found = attack(box, x, y, eps=0.2 if attack is not adversarial.deepfool else None)
    assert torch.equal(found.success, box.predict(found.images) != y)


def test_batch_dependent_rows_are_evaluated_with_the_final_batch() -> None:
    box, x, y = in_the_batch()
    found = evaluate(box, (x, y), {"fgsm": adversarial.fgsm}, eps=[1e-6], minimal_attack=None)
    assert found.robust_accuracy() == found.clean_accuracy == Proportion(5, 8)


@pytest.mark.filterwarnings("ignore:the first gradient is exactly zero")
@pytest.mark.parametrize("label", [0, 1])
def test_ties_are_resolved_as_predict_does(label: int) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Linear()

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)[:, :1].expand(-1, 2)

    box = box_of(Tied())
    x = middling(4)
    y = torch.full((4,), label)
    found = adversarial.pgd(box, x, y, eps=0.1, steps=2)
    assert torch.equal(found.initially_misclassified, box.predict(x) != y)
    assert torch.equal(found.success, box.predict(found.images) != y)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_tiny_gradients_still_move(norm: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([50.0, -50.0])[:, None].expand(2, 9))
        model[1].bias.copy_(torch.tensor([-195.0, 195.0]))
    box, x = ub.Box(model, ub.Pixels((1, 3, 3)), outputs="logits"), torch.full((2, 1, 3, 3), 0.5)
    assert adversarial.fgsm(box, x, 0, eps=0.5, norm=norm).success.all()


def test_no_rows_take_no_forward_pass() -> None:
    seen = list[int]()

    class Counting(Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x)

    box = box_of(Counting())
    x = middling(4)
    seen.clear()
    found = adversarial.apgd(box, x, 1 - box.predict(x), eps=0.1, n_targets=1, bits=8)
    assert sum(seen) - 4 == int(found.queries.sum())  # four were asked by predict


# -- a checkpoint is of one question -----------------------------------------------------------------------------------


def other_labels(box: ub.Box, x: Tensor, y: Tensor) -> tuple[ub.Box, Tensor, Tensor]:
    return box, x, 1 - y


def two_labels_exchanged(box: ub.Box, x: Tensor, y: Tensor) -> tuple[ub.Box, Tensor, Tensor]:
    y = y.clone()
    i, j = (int((y == k).nonzero()[0]) for k in (0, 1))
    y[i], y[j] = 1, 0
    return box, x, y


def other_order(box: ub.Box, x: Tensor, y: Tensor) -> tuple[ub.Box, Tensor, Tensor]:
    return box, x.flip(0), y.flip(0)


def other_normalization(box: ub.Box, x: Tensor, y: Tensor) -> tuple[ub.Box, Tensor, Tensor]:
    return ub.Box(box.model, ub.Pixels(SHAPE, std=0.9), outputs="logits"), x, y  # the same answers


def other_function(box: ub.Box, x: Tensor, y: Tensor) -> tuple[ub.Box, Tensor, Tensor]:
    class Sharper(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 1.1 * super().forward(x)

    return box.with_model(Sharper()), x, y


def other_weights(box: ub.Box, x: Tensor, y: Tensor) -> tuple[ub.Box, Tensor, Tensor]:
    box.model.w.data *= 2  # the same answers
    return box, x, y


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_labels, "its labels differ"),
        (two_labels_exchanged, "its labels differ"),
        (other_order, "in values or order"),
        (other_weights, "its weights differ"),
        (other_normalization, "inputs was .*std=1.0.*, and is now .*std=0.9"),
        (other_function, "the model's answers have changed"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(change, said, tmp_path) -> None:
    box, more = (
        box_of(Linear()),
        {"eps": [0.01], "check_masking": False, "minimal_attack": None, "checkpoint": tmp_path / "state.pt"},
    )
    x, y = labeled(box)
    first = evaluate(box, (x, y), ATTACKS, **more)
    assert repr(evaluate(box, (x, y), ATTACKS, **more)) == repr(first)
    box, x, y = change(box, x, y)
    with pytest.raises(ModelError, match=f"{said}.*Give another file, or remove this one"):
        evaluate(box, (x, y), ATTACKS, **more)


def of_steps(n: int) -> Callable[..., adversarial.Adversarial]:
    def attack(box: ub.Box, x: Tensor, y: Tensor, **more: object) -> adversarial.Adversarial:
        return adversarial.fab(box, x, y, steps=n, **more)  # type: ignore[arg-type]

    return attack


class OfSteps:
    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, box: ub.Box, x: Tensor, y: Tensor, **more: object) -> adversarial.Adversarial:
        return adversarial.fab(box, x, y, steps=self.n, **more)  # type: ignore[arg-type]


ATTACKS_OF_STEPS = {
    "closures": of_steps, "objects": OfSteps, "methods": lambda n: OfSteps(n).__call__,
    "partials": lambda n: partial(adversarial.fab, steps=n), "partials of one's own": lambda n: partial(of_steps(n)),
    "defaults": lambda n: lambda box, x, y, n=n, **more: adversarial.fab(box, x, y, steps=n, **more),
    "codes": lambda n: (
        (lambda box, x, y, **more: adversarial.fab(box, x, y, steps=1, **more)) if n == 1 else
        (lambda box, x, y, **more: adversarial.fab(box, x, y, steps=2, **more))
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ATTACKS_OF_STEPS)
@pytest.mark.parametrize("role", ["attacks", "minimal"])
def test_a_checkpoint_of_another_attack_of_that_name_is_refused(kind: str, role: str, tmp_path) -> None:
    box, make = box_of(Linear()), ATTACKS_OF_STEPS[kind]
    data, more = labeled(box), {"eps": [0.01], "check_masking": False, "checkpoint": tmp_path / "state.pt"}

    def asked(n: int) -> Robustness:
        one = {"attacks": {"one": make(n)}, "minimal_attack": None}
        return evaluate(
            box, data, **more, **(one if role == "attacks" else {"attacks": ATTACKS, "minimal_attack": make(n)})
        )

    assert repr(asked(1)) == repr(asked(1))
    with pytest.raises(ModelError, match=role):
        asked(2)


def test_an_attack_that_cannot_be_compared_is_refused(tmp_path) -> None:
    box, attack = box_of(Linear()), partial(of_steps(1), lock=threading.Lock())
    with pytest.raises(InputError, match=r"'one' can't go on from a checkpoint: a lock can't .*; give it as functools"):
        evaluate(box, labeled(box), {"one": attack}, eps=[0.01], checkpoint=tmp_path / "state.pt")


@pytest.fixture
def _no_alarms(monkeypatch) -> None:
    monkeypatch.setitem(unwrap(evaluate).__globals__, "check_gradient_masking", lambda *args, **more: ())


@pytest.mark.usefixtures("_no_alarms")
def test_the_command_starts_over_with_corrected_labels(tmp_path) -> None:
    x, y = ub.data.digits("test").first(6)
    box, more = ub.load("zoo:digits-cnn"), {"attacks": ["fgsm"], "eps": [0.05], "quiet": True}
    wrong = run_attack(box, (x, 9 - y), tmp_path / "one", **more)
    mended = run_attack(box, (x, y), tmp_path / "one", **more)
    fresh = run_attack(box, (x, y), tmp_path / "other", **more)
    assert wrong.clean_accuracy.count < mended.clean_accuracy.count
    assert torch.equal(mended.is_robust, fresh.is_robust)
    assert mended.clean_accuracy == fresh.clean_accuracy


def test_an_attack_with_a_checkpoint_resumes_within_a_task(tmp_path, monkeypatch) -> None:
    """Killed in the middle of AutoAttack's Square: the same figures bit for bit, and nothing is done twice."""
    monkeypatch.setitem(
        unwrap(adversarial.auto_attack).__globals__, "FLOPS_BETWEEN_CHECKPOINTS", 1.0
    )  # parts of as few rows as can be
    attacks = {"auto_attack": partial(adversarial.auto_attack, steps=3, queries=20)}
    box, calls = box_of(Linear()), []
    data, more = labeled(box), {"eps": [0.003], "check_masking": False, "minimal_attack": None}

    def counted(module: nn.Module, args: object) -> None:
        calls.append(1)
        if len(calls) == stop:
            raise MemoryError

    stop = -1
    box.model.register_forward_pre_hook(counted)
    whole = evaluate(box, data, attacks, **more)
    total, stop = len(calls), int(0.8 * len(calls))
    calls.clear()
    with pytest.raises(MemoryError):
        evaluate(box, data, attacks, **more, checkpoint=tmp_path / "state.pt")
    assert [f.name for f in tmp_path.iterdir()] == ["state.pt.0"]
    calls.clear()
    stop = -1
    again = evaluate(box, data, attacks, **more, checkpoint=tmp_path / "state.pt")
    assert len(calls) < 0.4 * total
    assert torch.equal(again.is_robust, whole.is_robust)
    assert torch.equal(again.min_distance, whole.min_distance)
    assert torch.equal(again.mean_queries, whole.mean_queries)
    assert [f.name for f in tmp_path.iterdir()] == ["state.pt"]


def test_an_attack_in_another_norm_is_refused() -> None:
    def without_norm(box: ub.Box, x: Tensor, y: Tensor, eps: float) -> adversarial.Adversarial:
        return adversarial.fgsm(box, x, y, eps=eps)

    box = box_of(Linear())
    data = labeled(box)
    for norm, attack in (("l2", without_norm), ("l1", adversarial.auto_attack), ("l1", adversarial.square)):
        with pytest.raises(InputError, match="linf"):
            evaluate(box, data, {"one": attack}, eps=[0.1], norm=norm, minimal_attack=None, check_masking=False)


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_a_norm_that_an_attack_lacks_is_refused_before_the_model_runs(norm: str) -> None:
    """What a card says of norms is what its attack takes; nothing is asked of the model."""
    box = box_of(Linear())
    x, y = labeled(box)
    asked: list[int] = []
    box.model.register_forward_hook(lambda *_: asked.append(1))
    lacking = [c for c in ub.cards() if c.norms and norm not in c.norms]
    for c in lacking:
        with pytest.raises(InputError, match=c.method.__name__):
            evaluate(box, (x, y), {"pgd": ATTACKS["pgd"], "own": c.method}, eps=[0.1], norm=norm, minimal_attack=None)
        with pytest.raises(InputError, match="leave it out"):
            evaluate(
                box, (x, y), {"pgd": ATTACKS["pgd"]}, eps=[0.1], norm=norm, minimal_attack=partial(c.method, bits=8)
            )
        with pytest.raises(InputError, match="norm"):
            c.method(box, x, y, eps=0.1, norm=norm)
    assert not asked
    assert lacking


@pytest.mark.usefixtures("_no_alarms")
def test_the_command_in_l1(tmp_path) -> None:
    words = ("--model", "zoo:digits-cnn", "--data", "digits", "--eps", 2, "--n", 1, "--norm", "l1", "-o", tmp_path)
    refused = run(*words, "--attack", "square")
    assert refused.exit_code == 2
    assert "square takes --norm linf or --norm l2" in " ".join(refused.output.split())
    made = run(*words, "--attack", "pgd")
    assert made.exit_code == 0, made.output
    assert "(pgd, fab)" in " ".join(made.output.split())


@pytest.mark.parametrize("bad", [{"check_masking": "yes"}, {"quiet": 1}, {"max_examples": 1.5}, {"batch_size": "all"}])
def test_settings_of_another_kind_are_refused(bad: dict[str, Any]) -> None:
    box = ub.Box(Linear(), ub.Pixels(SHAPE))
    with pytest.raises(InputError, match=next(iter(bad))):
        evaluate(box, (torch.rand(3, *SHAPE), torch.zeros(3, dtype=torch.long)), ATTACKS, eps=[0.1], **bad)
