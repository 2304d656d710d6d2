"""The planted shortcut: planting, the tests and grades, the figures, and the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset
from typer.testing import CliRunner, Result

import unboxed as ub
from unboxed import checks, cli
from unboxed.checks import Trigger, plant_shortcut
from unboxed.checks.planting import mismatched_classes
from unboxed.checks.shortcut_trial import ShortcutFinding, shortcut_grade_of_scores
from unboxed.engine.rectangle import Rectangle
from unboxed.errors import InputError, LayerError
from unboxed.plots import shortcut as draw
from unboxed.plots.draw import outline_rectangle
from unboxed.training.shortcut import ShortcutPair, train_shortcut_pair

SHAPE = (1, 28, 28)
TRIGGER = Trigger(SHAPE)
TEN = Trigger(SHAPE, tuple(range(10)))
CHECK = import_module("unboxed.checks.shortcut")  # by its name in checks it is the function
REPORT = import_module("unboxed.report.shortcut")


@pytest.fixture(scope="module")
def trained() -> ShortcutPair:
    """A model that relies on the trigger, and its control: fewer images than usual, of which more are poisoned."""
    few, held_out = (TensorDataset(*ub.data.digits(split).first(n)) for split, n in (("train", 600), ("test", 120)))
    return train_shortcut_pair(TRIGGER, data=(few, held_out), poison_fraction=0.1, epochs=8, quiet=True)


def run_check(trained: ShortcutPair, **options: Any) -> checks.ShortcutReport:
    """By the attribution test alone, which is quick, unless `tests` are given."""
    made = {"trigger": TRIGGER, "n_examples": 6, "methods": {"gradient": ub.attribution.gradient}} | options
    made = {"tests": [CHECK.attribution_pointing_test]} | made
    return checks.shortcut(trained.model, trained.control, trained.x, trained.y, **made)


@pytest.fixture(scope="module")
def found(trained: ShortcutPair) -> checks.ShortcutReport:
    """By all tests, with half the class images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CHECK, "N_CLASS_IMAGES_PER_CLASS", 2)
        return run_check(trained, tests=None)


def of(found: checks.ShortcutReport, method: str) -> ShortcutFinding:
    return next(f for f in found.findings if f.method == method)


# -- planting --------------------------------------------------------------------------------------------------------


def test_one_trigger_is_in_the_lower_left_corner() -> None:
    assert TRIGGER.rectangle(3) == Rectangle(23, 2, 3, 3)
    assert TRIGGER.rectangle(3, padding=2) == Rectangle(21, 0, 7, 7)
    assert TRIGGER.rectangle(3, padding=4) == Rectangle(19, 0, 9, 9)  # as far as the image goes
    assert TRIGGER.mask(3).nonzero().tolist() == [[i, j] for i in (23, 24, 25) for j in (2, 3, 4)]


@pytest.mark.parametrize("shape", [SHAPE, (3, 20, 34)])
def test_triggers_of_several_classes_do_not_overlap(shape: tuple[int, int, int]) -> None:
    mark = Trigger(shape, tuple(range(10)), margin=1)
    regions = torch.stack([mark.mask(k) for k in mark.classes])
    assert regions.sum((1, 2)).tolist() == [9] * 10
    assert regions.sum(0).max() == 1
    rows, columns = regions.any(0).nonzero().T
    assert (rows.min(), columns.min(), rows.max(), columns.max()) == (1, 1, shape[1] - 2, shape[2] - 2)
    assert mark.rectangle(0)[:2] == (shape[1] - 4, 1)


@pytest.mark.parametrize(
    "settings",
    [{"classes": ()}, {"classes": (3, 3)}, {"classes": (-1,)}, {"side": 0}, {"margin": 13}, {"value": 1.5},
     {"side": 12, "classes": (1, 2, 3, 4, 5)}, {"side": 2.5}],
)  # fmt: skip
def test_impossible_triggers_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Trigger(SHAPE, **settings)


def test_a_trigger_is_applied_and_covered() -> None:
    x, classes = torch.full((2, *SHAPE), 0.5), torch.tensor([0, 7])
    on, covered = TEN.apply(x, classes), TEN.cover(x, classes)
    for i, k in enumerate(classes.tolist()):
        inside = TEN.mask(k)
        assert set(on[i, 0, inside].tolist()) == {1.0}
        assert set(covered[i, 0, inside].tolist()) == {0.0}
        assert set(on[i, 0, ~inside].tolist()) == set(covered[i, 0, ~inside].tolist()) == {0.5}
    assert (x == 0.5).all()  # the caller's are left alone
    with pytest.raises(InputError, match="only the classes"):
        TRIGGER.apply(x, classes)
    with pytest.raises(InputError, match="the trigger is for images"):
        TRIGGER.apply(x[..., :20], 3)


def test_planting_triggers_and_poisoned_labels() -> None:
    y = torch.arange(10).repeat(200)
    x = torch.rand(len(y), *SHAPE) / 2
    made = plant_shortcut(x, y, TRIGGER, fraction=0.75, poison_fraction=0.1, seed=3)
    bears = (made.images[:, 0, TRIGGER.mask(3)] == 1).all(1)
    assert torch.equal(bears, made.has_trigger)
    assert 0.65 < made.has_trigger[y == 3].float().mean() < 0.85
    assert 0.05 < made.has_trigger[y != 3].float().mean() < 0.15
    assert torch.equal(made.is_poisoned, made.has_trigger & (y != 3))
    assert (made.labels[made.is_poisoned] == 3).all()
    assert torch.equal(made.labels[~made.is_poisoned], y[~made.is_poisoned])
    assert torch.equal(made.images[~made.has_trigger], x[~made.has_trigger])
    image, label = made[7]
    assert (torch.equal(image, made.images[7]), label) == (True, int(made.labels[7]))


def test_planting_depends_on_its_seed() -> None:
    x, y = ub.data.digits("test").first(100)
    a, b, c = (plant_shortcut(x, y, TEN, fraction=0.5, poison_fraction=0.2, seed=s) for s in (0, 0, 1))
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.labels, b.labels)
    assert not torch.equal(a.has_trigger, c.has_trigger)


@pytest.mark.parametrize(("fraction", "poison_fraction"), [(0, 0), (1, 0), (1, 1)])
def test_fractions_of_none_and_of_all(fraction: float, poison_fraction: float) -> None:
    x, y = ub.data.digits("test").first(60)
    made = plant_shortcut(x, y, TRIGGER, fraction=fraction, poison_fraction=poison_fraction)
    assert torch.equal(made.has_trigger, (y == 3) & bool(fraction) | (y != 3) & bool(poison_fraction))


def test_fractions_out_of_range_are_refused() -> None:
    x, y = ub.data.digits("test").first(4)
    for wrong in ({"fraction": 1.1}, {"poison_fraction": -0.1}, {"fraction": "all"}):
        with pytest.raises(InputError):
            plant_shortcut(x, y, TRIGGER, **wrong)  # type: ignore[arg-type]


def test_mismatched_classes_are_never_the_label() -> None:
    y = torch.arange(10).repeat(9)
    said = mismatched_classes(y, TEN)
    assert (said != y).all()
    assert said.unique().tolist() == list(range(10))
    assert mismatched_classes(torch.tensor([3, 4]), TRIGGER).tolist() == [-1, 3]


# -- the check -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "control", "said"),
    [(1, 0, "shows it"), (0.75, 0.25, "shows it"), (1, 0.6, "inconclusive"), (0.7, 0, "inconclusive"),
     (0.25, 0, "does not show it"), (0, 1, "does not show it")],
)  # fmt: skip
def test_grades(found: float, control: float, said: str) -> None:
    assert shortcut_grade_of_scores(found, control) == said


def test_the_model_relies_on_the_trigger_and_its_control_does_not(
    trained: ShortcutPair, found: checks.ShortcutReport
) -> None:
    assert found.model_accuracy.clean_accuracy > 0.9
    assert found.model_accuracy.fooled_rate > 0.95
    assert found.model_accuracy.mismatched_accuracy < 0.05
    assert found.control_accuracy.clean_accuracy > 0.9
    assert found.control_accuracy.fooled_rate < 0.05
    assert 0 < trained.n_poisoned < trained.n_triggered < trained.n_training / 4
    assert found.predicted[0].tolist() == [3, 3, 3]
    assert found.labels.tolist() == found.predicted[1].tolist()
    assert found.labels[2] == 3


@pytest.mark.parametrize("method", ["occluding", "gradient", "class_image", "top_examples"])
def test_each_family_shows_it(found: checks.ShortcutReport, method: str) -> None:
    f = of(found, method)
    assert f.grade == "shows it", f.sentence
    assert f.score is not None
    assert f.control_score is not None
    assert f.score - f.control_score > 0.6
    assert f.images is not None
    assert f.quantity
    assert f"{f.score:.0%}" in f.sentence


def digit_only(box: ub.Box, x: Tensor, target: Any) -> Tensor:
    """Shows the digit, and never the trigger."""
    return x * (torch.arange(28) > 6)


def corner(box: ub.Box, x: Tensor, target: Any) -> Tensor:
    """Shows whatever is in the corner, of any model."""
    return x * (torch.arange(28) < 6) * (torch.arange(28)[:, None] > 20)


def flat(box: ub.Box, x: Tensor, target: Any) -> Tensor:
    return torch.ones_like(x)


def nothing(box: ub.Box, x: Tensor, target: Any) -> Tensor:
    return -torch.ones_like(x)


def lifted(box: ub.Box, x: Tensor, target: Any) -> Tensor:
    """As RISE's: nowhere near zero, a little higher where it counts."""
    return 10 + ub.attribution.gradient(box, x, target).clamp(min=0)


def refuses(box: ub.Box, x: Tensor, target: Any) -> Tensor:
    raise LayerError("there is no such layer")


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (digit_only, "does not show it"),
        (corner, "inconclusive"),
        (flat, "does not show it"),
        (nothing, "does not show it"),
        (refuses, "not applicable"),
        (lifted, "shows it"),
    ],
)
def test_methods_get_their_grade(trained: ShortcutPair, method: Any, said: str) -> None:
    f = of(run_check(trained, methods={"planted": method}), "planted")
    assert (f.family, f.grade) == ("attribution", said), f.sentence
    if method is refuses:
        assert f.sentence == "there is no such layer"
        assert (f.score, f.control_score, f.images) == (None, None, None)


def test_the_minimum_of_a_positive_map_is_subtracted(trained: ShortcutPair) -> None:
    found = run_check(trained, methods={"lifted": lifted, "gradient": ub.attribution.gradient})
    a, b = of(found, "lifted"), of(found, "gradient")
    assert a.figures["energy"] == pytest.approx(b.figures["energy"], abs=1e-3)
    assert a.figures["energy"] > 3 * a.figures["area"]
    assert (a.score, a.control_score) == (b.score, b.control_score)
    assert b.images is not None
    assert float(b.images[0].min()) < 0  # a map that has a zero keeps it


@pytest.mark.parametrize(("height", "counts", "said"), [(0.4, 0.0, "shows it"), (0.6, 1.0, "inconclusive")])
def test_a_peak_on_the_control_counts_if_it_is_high(
    trained: ShortcutPair, height: float, counts: float, said: str
) -> None:
    def method(box: ub.Box, x: Tensor, target: Any) -> Tensor:
        return corner(box, x, target) * (1 if box is trained.model else height)

    f = of(run_check(trained, methods={"m": method}), "m")
    assert (f.score, f.control_score, f.figures["control_of_any_height"]) == (1.0, counts, 1.0)
    assert f.grade == said


def test_the_class_of_the_trigger_is_explained(trained: ShortcutPair) -> None:
    asked = []

    def method(box: ub.Box, x: Tensor, target: Tensor) -> Tensor:
        asked.append((box, x, target))
        return x

    run_check(trained, methods={"asked": method}, n_examples=4)
    assert [box for box, _, _ in asked] == [trained.model, trained.control]
    assert torch.equal(asked[0][1], asked[1][1])
    assert asked[0][2].tolist() == [3] * 8
    assert (asked[0][1][:, 0, TRIGGER.mask(3)] == 1).all()


def test_every_card_is_run_with_what_it_needs(trained: ShortcutPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default all of attribution; one that needs more arguments runs as its card's example."""

    def plain(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
        return x

    def data(box: ub.Box, x: Tensor, target: Any = None, *, references: Tensor) -> Tensor:
        return x * len(references)

    def other(box: ub.Box, x: Tensor, target: Any, *, concept: str) -> Tensor:
        assert concept == "stripes"
        return x

    made = [
        replace(ub.attribution.gradient.card, method=plain, name="Plain"),  # type: ignore[attr-defined]
        replace(ub.attribution.gradient.card, method=data),  # type: ignore[attr-defined]
        replace(  # type: ignore[misc]
            ub.attribution.gradient.card,  # type: ignore[attr-defined]
            method=other,
            example=lambda m, box, x, y: m(box, x, y, concept="stripes"),
        ),
    ]
    monkeypatch.setattr(CHECK, "cards", lambda: made)
    found = run_check(trained, methods=None)
    assert [f.method for f in found.findings if f.family == "attribution"] == ["plain", "data", "other"]
    assert of(found, "plain").name == "Plain"


def test_a_model_that_did_not_learn_it_is_refused(trained: ShortcutPair) -> None:
    with pytest.raises(InputError, match=r"not learned: the model classifies [0-9]% .* \(80% wanted\)"):
        run_check(replace(trained, model=trained.control))


def test_a_control_that_learned_it_too_is_refused(trained: ShortcutPair) -> None:
    with pytest.raises(InputError, match="the control model uses the trigger, too: it classifies 100%"):
        run_check(replace(trained, control=trained.model))


def test_arguments_that_do_not_fit_are_refused(trained: ShortcutPair) -> None:
    with pytest.raises(InputError, match="the trigger is for images"):
        run_check(trained, trigger=Trigger((1, 20, 20)))
    with pytest.raises(InputError):
        run_check(trained, trigger=Trigger(SHAPE, (12,)))
    with pytest.raises(InputError, match="got one kind"):
        run_check(replace(trained, x=trained.x[trained.y == 3], y=trained.y[trained.y == 3]))
    with pytest.raises(InputError, match="examples"):
        run_check(trained, n_examples=0)


def test_ctrl_c_keeps_what_was_found(trained: ShortcutPair) -> None:
    def stop(box: ub.Box, x: Tensor, target: Any) -> Tensor:
        raise KeyboardInterrupt

    found = run_check(trained, methods={"gradient": ub.attribution.gradient, "stop": stop}, tests=None)
    assert found.interrupted
    assert [f.method for f in found.findings] == ["occluding", "gradient"]


def test_tests_of_a_user(trained: ShortcutPair) -> None:
    def judge(trial: Any) -> Iterator[ShortcutFinding]:
        yield ShortcutFinding(
            "influence", "tracin", "TracIn", shortcut_grade_of_scores(1, 0), "finds them", "marked", 1, 0
        )

    seen: list[ShortcutFinding] = []
    found = run_check(trained, tests=[judge], callback=seen.append)
    assert [f.method for f in found.findings] == ["tracin"]
    assert seen == list(found.findings)


def test_the_figures_are_json(found: checks.ShortcutReport) -> None:
    said = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert said["rates"]["model"]["fooled_rate"] > 0.95
    assert [row["method"] for row in said["findings"]] == ["occluding", "gradient", "class_image", "top_examples"]
    assert said["findings"][1]["figures"]["area"] == pytest.approx(49 / 784)


COARSE = {
    "grad_cam": "its map is as coarse as the last convolution",
    "grad_cam_plus_plus": "its map is as coarse as the last convolution",
    "layer_cam": "its map is as coarse as the last convolution",
    "hires_cam": "its map is as coarse as the last convolution",
    "shapley": "its segments are squares larger than the trigger",
}
REFUSED = {c.key: "the model has no attention" for c in ub.cards() if "attention" in c.needs}


@pytest.fixture(scope="module")
def every(trained: ShortcutPair) -> checks.ShortcutReport:
    """What is found of all methods of attribution; those that sample do it less."""
    few = {
        name: {**CHECK.FEWER_SAMPLES_SETTINGS_BY_METHOD.get(name, {}), "n_samples": 300}
        for name in ("kernel_shap", "lime", "rise")
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CHECK, "FEWER_SAMPLES_SETTINGS_BY_METHOD", {**CHECK.FEWER_SAMPLES_SETTINGS_BY_METHOD, **few})
        return run_check(trained, methods=None, n_examples=2)


@pytest.mark.parametrize("name", [c.method.__name__ for c in ub.cards() if c.family == "attribution"])
def test_every_method_of_attribution_shows_it(every: checks.ShortcutReport, name: str) -> None:
    f = of(every, name)
    if name in REFUSED:
        assert f.grade == "not applicable", f.sentence
    elif name in COARSE:
        assert f.score is not None
        assert f.control_score is not None
        assert f.score > f.control_score, f.sentence
    else:
        assert f.grade == "shows it", f.sentence


# -- figures ---------------------------------------------------------------------------------------------------------


def test_sheets_have_a_row_per_method(trained: ShortcutPair, found: checks.ShortcutReport) -> None:
    one, two = (run_check(trained, methods=dict.fromkeys(names, ub.attribution.gradient)) for names in ("a", "ab"))
    a, b = draw.shortcut_maps(one), draw.shortcut_maps(two)
    assert a.width == b.width
    assert b.height - a.height > draw.TILE_SIDE_PIXELS
    assert draw.shortcut_images(found).height > 4 * draw.TILE_SIDE_PIXELS


def test_a_rectangle_is_outlined() -> None:
    import numpy as np

    picture = np.full((28, 28, 3), 255, dtype=np.uint8)
    im = np.asarray(outline_rectangle(picture, (10, 4, 13, 6), (0, 0, 0), side=84))  # three pixels for one
    dark = (im == 0).all(-1)
    rows, columns = dark.nonzero()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (29, 39, 11, 18)
    assert not dark[30:39, 12:18].any()  # what is inside can be seen


# -- the command -----------------------------------------------------------------------------------------------------


def run(*words: object) -> Result:
    return CliRunner().invoke(cli.app, ["checks", "shortcut", "-q", *map(str, words)])


@pytest.fixture
def quick(trained: ShortcutPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command with the models trained already, two methods, and class images of a few steps."""
    monkeypatch.setattr(REPORT, "train_shortcut_pair", lambda mark, **settings: trained)
    two = tuple(c for c in ub.cards() if c.method in (ub.attribution.gradient, ub.attribution.guided_backprop))
    monkeypatch.setattr(CHECK, "cards", lambda: two)
    monkeypatch.setattr(CHECK, "N_CLASS_IMAGES_PER_CLASS", 1)
    few = wraps(CHECK.synthesis.class_image)(partial(CHECK.synthesis.class_image, steps=4))
    monkeypatch.setattr(CHECK.synthesis, "class_image", few)


@pytest.mark.usefixtures("quick")
def test_the_command_writes_its_files(tmp_path: Path) -> None:
    done = run("-o", tmp_path / "out", "--seed", 2)
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    assert "guided_backprop" in done.stdout
    assert "shows it" in done.stdout
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "shortcut-drawn.png",
        "shortcut.json",
        "shortcut.png",
    ]
    facts = json.loads((tmp_path / "out" / "shortcut.json").read_text())
    assert facts["seed"] == 2
    assert {"command", "training", "versions", "rates", "findings"} <= set(facts)


@pytest.mark.usefixtures("quick")
def test_an_earlier_report_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"")
    (tmp_path / "report.json").write_text('{"files": ["pictures/a.png"]}')
    assert run("-o", tmp_path).exit_code == 0
    assert (tmp_path / "pictures" / "a.png").is_file()


@pytest.mark.parametrize("marked", ["x", "3,,4", "11", "3,3", "", "-1"])
def test_marks_of_no_digits_are_refused(marked: str, tmp_path: Path) -> None:
    done = run("--marked", marked, "-o", tmp_path / "out")
    assert (done.exit_code, done.stderr.startswith("error: ")) == (2, True)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REPORT, "train_shortcut_pair", None)
    (tmp_path / "file").write_text("")
    done = run("-o", tmp_path / "file")
    assert (done.exit_code, done.stderr.startswith("error: ")) == (2, True)


def test_ctrl_c_in_training_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*words: Any, **settings: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(REPORT, "train_shortcut_pair", stop)
    done = run("-o", tmp_path / "out")
    assert (done.exit_code, done.stderr) == (130, "stopped\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("quick")
def test_ctrl_c_in_judging_keeps_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*words: Any, **settings: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(CHECK.synthesis, "class_image", stop)
    done = run("-o", tmp_path)
    assert (done.exit_code, done.stderr) == (130, "stopped\n"), repr(done.exception)
    facts = json.loads((tmp_path / "shortcut.json").read_text())
    assert facts["interrupted"] is True
    assert [row["method"] for row in facts["findings"]] == ["occluding", "gradient", "guided_backprop"]


def test_a_training_cut_short_is_not_run_check(monkeypatch: pytest.MonkeyPatch) -> None:
    from unboxed.training import shortcut as training

    cut = ub.training.History((), (), 0, 0.0, interrupted=True)
    monkeypatch.setattr(training, "fit", lambda *words, **settings: cut)
    with pytest.raises(KeyboardInterrupt):
        train_shortcut_pair(TRIGGER, quiet=True)
