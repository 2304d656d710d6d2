"""`unboxed.testing.check_method`: a user's own method against the contracts, in one line."""

from __future__ import annotations

import re
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import unboxed as ub
from unboxed.cards import Card, card
from unboxed.errors import InputError
from unboxed.testing import check_method, contracts, covering


def honest(box: ub.Box, x: Tensor, *, batch_size: Any = "auto") -> Tensor:
    return box.read(x, ["logits"], batch_size=batch_size)["logits"]


def test_a_correct_method_passes() -> None:
    check_method(honest, on=["plain", "dict_output", "batchnorm_in_train_mode", "bfloat16", "random_noise"])


def test_a_method_that_refuses_clearly_passes() -> None:
    def refuses(box: ub.Box, x: Tensor) -> Tensor:
        raise InputError("this method wants models of a kind that there is not: take another")

    check_method(refuses, on=["plain"])


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda box, x: box.model.eval() and honest(box, x), "leaves no trace"),
        (lambda box, x: honest(box, x) + torch.rand(()), "seed"),
        (lambda box, x: honest(box, x).half(), "dtype"),
        (lambda box, x: honest(box, x) * 0, "blank"),
    ],
)
def test_what_is_broken_is_named(work: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_method(work, on=["batchnorm_in_train_mode"])


def on_plain(work: Any, **settings: Any) -> str:
    """What `check_method` says of a method that breaks its contracts."""
    with pytest.raises(AssertionError) as raised:
        check_method(work, on=["plain"], **settings)
    return str(raised.value)


# ---- rows and targets ------------------------------------------------------------------------------------------------


def couples(box: ub.Box, x: Tensor, *, batch_size: Any = "auto") -> Tensor:
    return x - x.mean(0, keepdim=True)


def couples_a_part(box: ub.Box, x: Tensor) -> dict[str, Tensor]:
    return {"own": x, "layers": (x / x.mean()).movedim(0, 2)}


def couples_by_chance(box: ub.Box, x: Tensor, *, seed: int = 0) -> Tensor:
    noise = torch.randn(len(x), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x + noise.sum()).to(x)


@pytest.mark.parametrize("work", [couples, couples_a_part, couples_by_chance])
def test_inputs_that_change_one_another_are_seen(work: Any) -> None:
    assert "rows: input 0 alone, result" in on_plain(work)


@pytest.mark.parametrize("work", [lambda box, x: x[:1], lambda box, x: [x[:2].mean((2, 3))], lambda box, x: x[0][None]])
def test_rows_for_some_of_the_inputs_are_seen(work: Any) -> None:
    assert re.search(r"rows: result.* has the rows of [12] of 3 inputs", on_plain(work))


def first_row_of_its_own(box: ub.Box, x: Tensor, *, seed: int = 0) -> Tensor:
    """Draws by the index of a row, as the library does."""
    drawn = [torch.rand(x[0].shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(len(x))]
    return x + torch.stack(drawn).to(x)


SOUND: dict[str, Any] = {
    "a mean": lambda box, x: x.mean(0, keepdim=True),
    "a maximum": lambda box, x: x.amax(0, keepdim=True),
    "the commonest class": lambda box, x: (x, box.predict(x).mode().values[None]),
    "two for all": lambda box, x: (x, torch.stack([x.amin(), x.amax()])),
    "similarities": lambda box, x: x.flatten(1) @ x.flatten(1).T / x.numel() * len(x),
    "a list": lambda box, x: list(x),
    "draws by row": first_row_of_its_own,
}


@pytest.mark.parametrize("kind", SOUND)
def test_results_that_have_no_row_per_input_pass(kind: str) -> None:
    check_method(SOUND[kind], on=["plain"])


def test_a_method_that_takes_no_single_input_passes() -> None:
    def pairs(box: ub.Box, x: Tensor) -> Tensor:
        if len(x) < 2:
            raise InputError("this method compares inputs, so it takes two at least: got one")
        return x - x.roll(1, 0)

    check_method(pairs, on=["plain"])


@pytest.mark.parametrize("model", ["batchnorm_without_statistics", "random_noise_per_row"])
def test_models_that_couple_their_rows_are_not_the_methods_fault(model: str) -> None:
    check_method(honest, on=[model])


def test_an_exempt_contract_is_not_checked() -> None:
    described = card(
        name="Couples", source="", shows="", does_not_show="", exempt={"rows": "it is about all of them"},
        example=lambda method, box, x, y: method(box, x),
    )  # fmt: skip
    check_method(described(lambda box, x: couples(box, x)), on=["plain"])


def test_an_ignored_target_is_seen() -> None:
    def deaf(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
        return ub.attribution.gradient(box, x, 0)

    assert "target: the result is the same for every class" in on_plain(deaf)


def test_targets_that_are_heard_or_are_no_classes_pass() -> None:
    def hears(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
        return ub.attribution.gradient(box, x, target)

    def reads(box: ub.Box, x: Tensor, target: str = "conv1") -> Tensor:
        return box.read(x, [target])[target]

    for work in (hears, reads):
        check_method(work, on=["plain"])


# ---- messages --------------------------------------------------------------------------------------------------------


def test_an_error_of_its_own_names_the_model() -> None:
    def fails(box: ub.Box, x: Tensor) -> Tensor:
        raise ValueError("no")

    with pytest.raises(AssertionError, match=r"^fails on plain raises ValueError: no$") as raised:
        check_method(fails, on=["plain"])
    assert isinstance(raised.value.__cause__, ValueError)


def test_a_late_error_and_an_assertion_of_its_own_are_wrapped() -> None:
    def late(box: ub.Box, x: Tensor, *, batch_size: Any = "auto") -> Tensor:
        assert batch_size == "auto"
        return box(x)

    assert "late on plain raises AssertionError" in on_plain(late)


def test_faults_are_said_of_named_parts() -> None:
    assert "seed: called again, result differs by up to" in on_plain(lambda box, x: x + torch.rand(()))
    assert "awkward: result[0] is not finite" in on_plain(lambda box, x: [x / 0])


def test_a_method_that_runs_no_model_is_not_failed_half_way() -> None:
    def draws(box: ub.Box, x: Tensor) -> Tensor:
        torch.rand(1)
        return x

    assert on_plain(draws).splitlines()[1:] == ["  leaves no trace: torch RNG is not as it was"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": 3}, "takes a function whose first parameter is a box; got 3"),
        ({"method": lambda box: 1}, r"can't be called as <lambda>\(box, x\): give example="),
        ({"method": honest, "example": "honest"}, "example is a function"),
        ({"method": honest, "on": ["plane"]}, "'plane'"),
        ({"method": honest, "on": "plain"}, r"such as \['plain'\]; got 'plain'"),
        ({"method": honest, "on": 3}, "got 3"),
        ({"method": honest, "on": []}, "nothing would be checked"),
        ({"method": honest, "on": [["plain"]]}, "no model"),
    ],
)
def test_what_cannot_be_checked_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_method(**settings)


def test_methods_without_a_name() -> None:
    check_method(partial(honest, batch_size=2), on=["plain"])
    assert "partial on plain" in on_plain(partial(couples, batch_size=2))


def test_a_method_that_was_made_without_a_module() -> None:
    names: dict[str, Any] = {"card": card}
    said = "name='', source='', shows='', does_not_show='', example=lambda method, box, x, y: method(box, x)"
    exec(f"@card({said})\ndef f(box, x): return x", names)
    assert (names["f"].card.family, names["f"].__module__) == ("own", None)
    covering.covering_method_model_pairs([names["f"].card], ["plain"])


def test_an_example_of_ones_own_goes_before_the_cards() -> None:
    def wants(box: ub.Box, x: Tensor, layer: str) -> Tensor:
        return box.read(x, [layer])[layer]

    check_method(wants, example=lambda method, box, x, y: method(box, x, "conv1"), on=["plain"])
    described = card(name="", source="", shows="", does_not_show="", example=lambda method, box, x, y: None)(wants)
    check_method(described, example=lambda method, box, x, y: method(box, x, "conv1"), on=["plain"])


# ---- warnings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["error", "always"])
def test_our_own_models_warn_of_nothing(action: Any) -> None:
    with warnings.catch_warnings(record=action == "always") as heard:
        warnings.simplefilter(action)
        check_method(honest, on=["plain", "batchnorm_in_train_mode"])
        for name in ("checkpointed_reentrant", "compiled", "exported", "scripted_and_optimized"):
            contracts.check_double_precision_contracts(
                Card(honest, "own", "", "", "", "", lambda m, box, x, y: m(box, x)), name
            )
    assert not heard


def test_a_warning_of_the_methods_own_is_named_whatever_the_filters() -> None:
    def warns(box: ub.Box, x: Tensor) -> Tensor:
        warnings.warn("old", DeprecationWarning, stacklevel=2)
        return x

    for action in ("error", "ignore"):
        with warnings.catch_warnings():
            warnings.simplefilter(action)  # type: ignore[arg-type]
            assert "awkward: warns by DeprecationWarning: old" in on_plain(warns)


def test_strategies_are_an_attribute_that_loads_on_first_use() -> None:
    """In a new process, `ub.testing` imports no Hypothesis: tests/test_import.py."""
    assert ub.testing.strategies.cases() is not None
    with pytest.raises(AttributeError, match="no attribute 'strategy'"):
        ub.testing.strategy  # noqa: B018
