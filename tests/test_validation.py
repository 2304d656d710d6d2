"""Checks of settings: what their errors say, and seeds of any size at every entry point."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import unboxed as ub
from check_each import each
from checks.outlier_vit import images_with_white_patches, outlier_box
from contracts.common import CARDS, REFUSED, call_example, has_parameters, result_tensors, shared_case
from contracts.common import result_difference_texts as differences
from unboxed.errors import InputError
from unboxed.validation import MAX_SEED_BITS, check_float, check_int, missing_path_text, suggestion_text, valid_seed

ROOT = Path(ub.__file__).parent
TEXTS: dict[str, Callable[[], Any]] = {
    "k must be a number; got 'a'": lambda: check_float("k", "a"),
    "k must be a number; got nan": lambda: check_float("k", math.nan),
    "k must be a number; got inf": lambda: check_float("k", math.inf),
    "k must be a number, 0 or more; got -1": lambda: check_float("k", -1, minimum=0),
    "k must be a number, 0 or more; got -1e-12": lambda: check_float("k", -1e-12, minimum=0),
    "k must be a number from 0 to 1; got 1.5": lambda: check_float("k", 1.5, minimum=0, maximum=1),
    "k must be a number above 0 and 1 or less; got 0": lambda: check_float("k", 0, above=0, maximum=1),
    "k must be a number, 0 or more and below 100; got 100": lambda: check_float("k", 100, minimum=0, below=100),
    "k must be a number above 0; got 0": lambda: check_float("k", 0, 0),
    "k must be a number above 0; got True": lambda: check_float("k", True, 0),
    "k must be a number below 1; got 1": lambda: check_float("k", 1, below=1),
    "k must be a number, 1 or less; got 2": lambda: check_float("k", 2, maximum=1),
    "k must be a number between 0 and 1, both excluded; got 1.0": lambda: check_float("k", 1.0, 0, 1),
    "k must be a whole number, 0 or more; got -1": lambda: check_int("k", -1),
    "k must be a whole number, 2 or more; got 1.0": lambda: check_int("k", 1.0, minimum=2),
    "seed must be a whole number, of any size; got 'a'": lambda: valid_seed("a"),
    "seed must be a whole number, of any size; got 1.0": lambda: valid_seed(1.0),
    "seed must be a whole number, of any size; got None": lambda: valid_seed(None),
    "seed must be a whole number, of any size; got True": lambda: valid_seed(True),
}


@each(TEXTS)
def test_what_an_error_says(text: str) -> None:
    with pytest.raises(InputError) as caught:
        TEXTS[text]()
    assert str(caught.value) == text


def test_bounds_are_included_or_not() -> None:
    assert [check_float("k", v, minimum=0, maximum=1) for v in (0, 0.5, 1)] == [0.0, 0.5, 1.0]
    assert check_float("k", np.float32(1), above=0, maximum=1) == 1.0
    assert check_int("k", np.int64(0)) == 0


def bounds() -> Iterator[tuple[str, ast.expr]]:
    """(place, expression) of every bound that a check of a setting is called with."""
    sources = {file: file.read_text(encoding="utf-8") for file in sorted(ROOT.rglob("*.py"))}
    for file, source in sources.items():
        for node in ast.walk(ast.parse(source)) if "check_float" in source or "check_int" in source else ():
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("check_float", "check_int")
            ):
                for bound in (*node.args[2:], *(k.value for k in node.keywords if k.arg)):
                    yield f"{file.relative_to(ROOT)}:{node.lineno}", bound


def printable(bound: ast.expr) -> bool:
    """Whether a reader may see it: a variable, or a literal number of an everyday size."""
    if isinstance(bound, (ast.Name, ast.Attribute)):
        return True
    try:
        value = ast.literal_eval(bound)
    except ValueError:
        return False  # arithmetic: an offset that stands for "included"
    return value == 0 or 1e-3 <= abs(value) <= 1e6


def test_no_bound_is_a_trick() -> None:
    found = list(bounds())
    assert len(found) > 20
    assert [where for where, bound in found if not printable(bound)] == []
    tricks = ("-1e-9", "1 + 1e-12", "-MIN_DENOMINATOR", "-(2**62)", "180.000001 + 0", "1e-300")
    assert not any(printable(ast.parse(trick, mode="eval").body) for trick in tricks)


HUGE = (2**40, 2**41, 2**43, 2**60, 2**63, 2**64 + 1, 10**40, -1, -(2**62), -(2**70))
HUGE_AND_NEGATIVE = -(10**40)


def test_seeds_are_folded_at_one_place() -> None:
    assert [valid_seed(s) for s in (0, 1, 2**32, 2 ** (MAX_SEED_BITS + 1) - 1)] == [
        0,
        1,
        2**32,
        2 ** (MAX_SEED_BITS + 1) - 1,
    ]
    folded = [valid_seed(s) for s in HUGE]
    assert len({*folded}) == len(HUGE)
    assert all(0 <= s < 2 ** (MAX_SEED_BITS + 1) for s in folded)
    assert [valid_seed(s) for s in folded] == folded  # a door may call another
    assert valid_seed(2**60) == 1869582636077  # the same in every process
    assert valid_seed(np.int64(-1)) == valid_seed(-1)


SEEDED = [name for name, card in CARDS.items() if has_parameters(card, "seed")]


@each(SEEDED)
def test_every_seeded_method_takes_any_seed(name: str) -> None:
    model = "plain" if (name, "plain") not in REFUSED else "transformer"

    def made(seed: Any) -> Any:
        return result_tensors(call_example(CARDS[name], shared_case(model), seed=seed))

    assert differences(made(HUGE_AND_NEGATIVE), made(valid_seed(HUGE_AND_NEGATIVE)), 0.0) == []


NET = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
BOX = ub.Box(NET, ub.Pixels((1, 8, 8)))
REGRESSION = ub.Box(NET, ub.Pixels((1, 8, 8)), outputs="regression")
X, Y = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])
MAPS = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
MARK = ub.checks.Trigger((1, 8, 8), (1,))
gradient = ub.attribution.gradient


def two() -> ub.Box:
    return ub.Box(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4)), ub.Pixels((1, 8, 8)))


def fitted(seed: Any) -> Any:
    """The weights, for the history has times in it."""
    model, data = copy.deepcopy(NET), torch.utils.data.TensorDataset(X, Y)
    ub.training.fit(model, ub.Pixels((1, 8, 8)), data, epochs=1, quiet=True, seed=seed)
    return [*model.parameters()]


DOORS: dict[str, Callable[[Any], Any]] = {
    "checks.tokens": lambda s: ub.checks.tokens(outlier_box(), images_with_white_patches(4)[0], seed=s),
    "robustness.corrupted": lambda s: ub.robustness.corrupted(X, "gaussian_noise", seed=s),
    "robustness.evaluate_outputs": lambda s: ub.robustness.evaluate_outputs(
        REGRESSION, (X, torch.zeros(4, 4)), {"pgd": lambda *a, **k: ub.adversarial.pgd(*a, **k, steps=1)}, eps=[0.1],
        seed=s,
    ),
    "robustness.evaluate": lambda s: ub.robustness.evaluate(
        BOX, (X, Y), {"square": lambda *a, **k: ub.adversarial.square(*a, **k, queries=2)}, eps=[0.1],
        minimal_attack=None, check_masking=False, seed=s,
    ),
    "robustness.smoothed_predict": lambda s: ub.robustness.smoothed_predict(BOX, X, 0.1, n=10, seed=s),
    "attribution.lime_top": lambda s: ub.attribution.lime_top(BOX, X, 2, segments=("squares", 4), n_samples=20, seed=s),
    "attribution.segmentation": lambda s: ub.attribution.segmentation(MAPS, X, seed=s),
    "checks.deletion": lambda s: ub.checks.deletion(BOX, X, MAPS, n_steps=4, seed=s),
    "checks.insertion": lambda s: ub.checks.insertion(BOX, X, MAPS, n_steps=4, seed=s),
    "checks.infidelity": lambda s: ub.checks.infidelity(BOX, X, MAPS, n_samples=4, seed=s),
    "checks.max_sensitivity": lambda s: ub.checks.max_sensitivity(BOX, X, gradient, n_samples=2, seed=s),
    "checks.plant_shortcut": lambda s: ub.checks.plant_shortcut(X.repeat(5, 1, 1, 1), Y.repeat(5), MARK, seed=s),
    "checks.random_input": lambda s: ub.checks.random_input(BOX, X, gradient, seed=s),
    "checks.random_maps": lambda s: ub.checks.random_maps(BOX, X, seed=s),
    "checks.randomization": lambda s: ub.checks.randomization(BOX, X, gradient, seed=s),
    "checks.rank_methods": lambda s: ub.checks.rank_methods(BOX, X, {"gradient": gradient}, seed=s),
    "checks.train_twice": lambda s: ub.checks.train_twice(lambda y: two(), Y, seed=s),
    "checks.road": lambda s: ub.checks.road(BOX, X, MAPS, seed=s),
    "checks.sensitivity_n": lambda s: ub.checks.sensitivity_n(BOX, X, MAPS, n_samples=4, seed=s),
    "checks.shuffle_labels": lambda s: ub.checks.shuffle_labels(Y, seed=s),
    "checks.verdict": lambda s: ub.checks.verdict(BOX, X, gradient, max_draws=2, seed=s),
    "data.digits": lambda s: ub.data.digits(seed=s),
    "data.reviews": lambda s: torch.tensor([*"".join(ub.data.reviews(4, seed=s).first(4).x).encode()]),
    "explain": lambda s: ub.explain(BOX, X[:1], methods={"gradient": gradient}, seed=s),
    "load": lambda s: ub.load("zoo:digits-cnn", seed=s),
    "loading.model": lambda s: importlib.import_module("unboxed.loading").model("zoo:digits-cnn", seed=s),
    "training.fit": lambda s: fitted(s),
    "zoo.load": lambda s: ub.zoo.load("digits-cnn", weights=None, seed=s),
    "zoo.load_generator": lambda s: ub.zoo.load_generator("digits-gan", weights=None, seed=s),
}  # fmt: skip
LONG = {
    "report",
    "checks.shortcut",
    "checks.influence_verdict",
    "checks.plant_training",
    "training.train",
    "training.shortcut.train_shortcut_pair",
    "cli.explain.run_explain",
}
"""Doors that work for long: only their refusal is tried, and each hands its seed to one of the others."""


def test_unknown_names_are_answered_with_the_nearest() -> None:
    names = ("grad_cam", "grad_cam_plus_plus", "lime")
    assert suggestion_text("GradCAM", names) == "did you mean 'grad_cam' or 'grad_cam_plus_plus'?"
    assert suggestion_text("xyz", names) == "there are 'grad_cam', 'grad_cam_plus_plus', 'lime'"
    assert suggestion_text("xyz", map(str, range(20)), max_listed=2) == "there are '0', '1', ..."


def test_every_entry_point_is_here() -> None:
    spaces = {"": ub} | {n: getattr(ub, n) for n in ("activations", "adversarial", "attribution", "checks", "data")}
    spaces |= {n: getattr(ub, n) for n in ("plots", "robustness", "synthesis", "training", "zoo")}
    spaces |= {n: importlib.import_module(f"unboxed.{n}") for n in ("loading", "cli.explain", "training.shortcut")}
    methods = {card.method for card in CARDS.values()}
    found: dict[Any, str] = {}
    for space, module in spaces.items():
        for name in dir(module):
            f = getattr(module, name)
            public = inspect.isfunction(f) and f not in methods and not name.startswith("_") and f is not valid_seed
            if public and "seed" in inspect.signature(f).parameters and f.__module__.startswith("unboxed"):
                found.setdefault(f, f"{space}.{name}".lstrip("."))
    assert {*found.values()} == {*DOORS, *LONG}


@pytest.mark.parametrize("door", DOORS)
def test_entry_points_take_any_seed_and_refuse_what_is_none(door: str) -> None:
    results = [result_tensors(DOORS[door](seed)) for seed in (HUGE_AND_NEGATIVE, valid_seed(HUGE_AND_NEGATIVE))]
    assert differences(*results, 0.0) == []
    for bad in ("a", 1.5, None):
        with pytest.raises(InputError, match="seed must be a whole number"):
            DOORS[door](bad)


def test_slow_entry_points_refuse_what_is_no_seed(tmp_path: Path) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "report": lambda: ub.report(BOX, (X, Y), tmp_path / "report", seed="a", quiet=True),  # type: ignore[arg-type]
        "checks.shortcut": lambda: ub.checks.shortcut(BOX, BOX, X, Y, MARK, seed="a"),  # type: ignore[arg-type]
        "checks.influence_verdict": lambda: ub.checks.influence_verdict(
            BOX, X, ub.influence.gradient_dot, Y, (X, Y), seed="a"  # type: ignore[arg-type]
        ),
        "checks.plant_training": lambda: ub.checks.plant_training(
            NET, ub.Pixels((1, 8, 8)), (X.repeat(5, 1, 1, 1), Y.repeat(5)), (X, Y), MARK, seed="a"  # type: ignore[arg-type]
        ),
        "training.train": lambda: ub.training.train("digits-cnn", seed="a", out=tmp_path / "a.safetensors"),
    }  # fmt: skip
    for call_ in calls.values():
        with pytest.raises(InputError, match="seed must be a whole number"):
            call_()
    assert not list(tmp_path.iterdir())


def test_a_missing_path_names_those_spelled_alike(tmp_path: Path) -> None:
    (tmp_path / "photos" / "val").mkdir(parents=True)
    (tmp_path / "weights.pth").touch()
    for wrong, right in {"wights.pt": "weights.pth", "photo/val": "photos/val", "Photos": "photos"}.items():
        text = missing_path_text(tmp_path / wrong)
        assert text == f"there is no file {tmp_path / wrong}; did you mean {str(tmp_path / right)!r}?"
    for wrong in ("photo/test", "weights.pth/x", "quite/another"):  # none there that exists
        assert missing_path_text(tmp_path / wrong, "folder") == f"there is no folder {tmp_path / wrong}"
    assert missing_path_text(tmp_path / "photos") == f"there is no file {tmp_path / 'photos'}"  # but a folder


@each(["", ".", "/", "x\udce9", "nowhere"])
def test_a_missing_path_of_any_form_has_a_text(path: str) -> None:
    assert missing_path_text(path).startswith(f"there is no file {path}")
