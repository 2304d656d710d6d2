"""Contract 8, from the cards: for every setting with a range or choices, a value outside is refused by its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from check_each import each
from contracts.common import CARDS, call_example, shared_case
from contracts.test_bad_input import leaving_no_trace, refusal, refused
from contracts.test_texts import text_case
from unboxed.errors import InputError
from unboxed.settings import Setting

NAN = float("nan")
FAMILIES = sorted({card.family for card in CARDS.values()})


def values_outside(setting: Setting) -> Iterator[Any]:
    """Values of a setting that must be refused: other types, and numbers just outside of its range."""
    bounds = setting.bounds
    if setting.kind == "choice":
        yield from ("no such choice", 7, *([] if setting.optional else [None]))
    if setting.kind in ("int", "float") and bounds:
        yield from (NAN, "many", True, [1])
        step = 1 if setting.kind == "int" else 1e-3
        yield from (bounds[k] - step for k in ("minimum",) if k in bounds)
        yield from (bounds[k] + step for k in ("maximum",) if k in bounds)
        yield from (bounds[k] for k in ("above", "below") if k in bounds)
        yield from () if setting.optional else (None,)
    if setting.kind == "int" and bounds:
        yield 1.5


@pytest.mark.parametrize("family", FAMILIES)
def test_values_out_of_range_are_refused_by_name(family: str) -> None:
    c, problems, tried = shared_case("plain"), list[str](), 0
    with leaving_no_trace(c):
        for name, card in CARDS.items():
            settings = card.settings.values() if card.family == family else ()
            for setting, value in ((s, v) for s in settings for v in values_outside(s)):
                where = f"{name}({setting.name}={value!r})"
                tried += 1
                try:
                    call = partial(call_example, CARDS[name], c, **{setting.name: value})
                    text = refusal(call, InputError, where)
                except Exception as error:
                    problems.append(f"{where}: {type(error).__name__} {error}"[:200])
                    continue
                if setting.name not in text:
                    problems.append(f"{where} is refused without its name: {text}"[:200])
    assert not problems, "\n" + "\n".join(problems)
    assert tried or family not in ("activations", "attribution", "adversarial", "synthesis")


WHAT_ZERO_MEANS = {
    "steps": "the start, as a control",  # of images that are made; not of attacks on given examples
    "jitter": "no shift",
    "refinement_rounds": "the first result",
    "n_controls": "no control is retrained",
    "n_random": "no random control, which the verdict says",
    "n_rotations": "no rotated control, which the verdict says",
    "n_criticisms": "prototypes alone",
    "n_errors": "no errors are listed",
}


@each(sorted(CARDS))
def test_a_count_of_zero_is_refused_where_it_means_nothing(name: str) -> None:
    card, c = CARDS[name], shared_case("plain")
    counts = [s for s in card.settings.values() if s.kind == "int" and s.unit and not s.is_required]
    attacks_examples = card.returns in ("adversarial", "texts")
    for setting in counts:
        if setting.bounds.get("minimum") == 0:
            assert setting.name in WHAT_ZERO_MEANS, setting.name
            assert not (attacks_examples and setting.name == "steps")
        else:
            text = refused(c, lambda s=setting: call_example(card, c, **{s.name: 0}), InputError, setting.name)
            assert f"{setting.name} must be" in text


TAKE_LAYERS = [(n, s.name) for n, card in CARDS.items() for s in card.settings.values() if s.kind == "layers"]


@each(TAKE_LAYERS)
def test_no_layers_are_refused(name: str, setting: str) -> None:
    """An empty list would give an empty result."""
    c = shared_case("plain")
    text = refused(c, lambda: call_example(CARDS[name], c, **{setting: []}), InputError, f"{name}({setting}=[])")
    assert f"{setting} must name a layer" in text


def with_numpy_ints(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, called with NumPy's whole numbers in place of Python's, and a batch size of such a number."""

    def call(*args: Any, **settings: Any) -> Any:
        extra = {"batch_size": 2} if "batch_size" in inspect.signature(method).parameters else {}
        numpy_ints = {k: np.int64(v) if type(v) is int else v for k, v in (extra | settings).items()}
        return method(*args, **numpy_ints)

    return call


@pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")
@each(sorted(CARDS))
def test_whole_numbers_of_numpy_are_taken(name: str) -> None:
    card = CARDS[name]
    c = text_case() if "texts" in card.needs else shared_case("transformer" if "attention" in card.needs else "plain")
    assert card.example(with_numpy_ints(card.method), c.box, c.x, c.y) is not None


def test_a_choice_may_be_a_whole_number_of_numpy() -> None:
    bits = Setting("bits", "choice", choices=(8, 4))
    bits.check(np.int64(8))
    for value in (np.int64(7), True, 8.0):
        with pytest.raises(InputError, match="bits"):
            bits.check(value)


def test_values_outside() -> None:
    n, share = Setting("n", "int", bounds={"minimum": 1}), Setting("share", "float", bounds={"above": 0, "below": 1})
    kind = Setting("kind", "choice", choices=("a", "b"), optional=True)
    assert [*values_outside(n)][3:] == [[1], 0, None, 1.5]
    assert [*values_outside(share)][4:] == [0, 1, None]
    assert [*values_outside(kind)] == ["no such choice", 7]
    for setting in (n, share, kind):
        for value in values_outside(setting):
            with pytest.raises(InputError, match=setting.name):
                setting.check(value)
