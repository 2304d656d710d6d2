"""Contract 8, from the cards: for every setting with a range or choices, a value outside is refused by its name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from contracts.common import CARDS, call_example, make_case
from contracts.test_bad_input import refused
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
    c, problems = make_case("plain"), list[str]()
    tried = 0
    for name, card in CARDS.items():
        for setting in card.settings.values() if card.family == family else ():
            for value in values_outside(setting):
                where = f"{name}({setting.name}={value!r})"
                tried += 1
                try:
                    text = refused(c, lambda: call_example(card, c, **{setting.name: value}), InputError, where)  # noqa: B023
                except Exception as error:
                    problems.append(f"{where}: {type(error).__name__} {error}"[:200])
                    continue
                if setting.name not in text:
                    problems.append(f"{where} is refused without its name: {text}"[:200])
    assert not problems, "\n" + "\n".join(problems)
    assert tried or family not in ("activations", "attribution", "adversarial", "synthesis")


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
