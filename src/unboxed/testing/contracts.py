"""The contracts as functions: few runs of a method on a model, each observed by many checks.

`check_run_contracts` runs a method in the model's own precision and checks what it leaves behind (also when it fails),
its seed, types, bounds and warnings, and one row at a time. `check_double_precision_contracts` runs it in double
precision and
compares it with the plain version of the model, and with itself in batches of two. `check_refusal` is for a model that
the method does not
take. `rows` has more. All raise ContractError, which names every contract that is broken and how.
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from ..cards import Card
from ..errors import UnboxedError, UnboxedWarning
from ..model.state import disabling_attention_fast_path
from . import models
from .cases import (
    MethodCase,
    call_example,
    call_example_with_warnings,
    has_parameters,
    make_case,
    method_name,
    result_difference_texts,
    result_part_code,
    result_tensors,
)
from .trace import changes, snapshot

IMAGE_FIELD_NAMES = ("images", "frames", "input", "result")
# The difference of two figures is as exact as these are, however small it is.
PARTS_THAT_DIFFERENCES_ARE_OF = {".completeness_error": ".score_difference", ".gap": ".scores[0].explained_variance"}
FAILURES = ("start", "middle", "end")  # of a run, where the model fails in one of its modules


class ContractError(AssertionError):
    """The contracts that a method breaks on a model."""


class PlantedError(Exception):
    """Raised by a model on purpose; no library handles it."""


class FailingHook:
    """A user's hook on every module: it counts calls, and the k-th of them raises."""

    def __init__(self, model: nn.Module) -> None:
        self.n_calls, self.fail_at_call, self.error = 0, -1, PlantedError
        self._handles = [
            module.register_forward_pre_hook(self)
            for module in model.modules()
            if not isinstance(module, torch.jit.ScriptModule) and not hasattr(module, "_orig_mod")
        ]

    def remove(self) -> None:
        """Take the hook off the model."""
        for handle in self._handles:
            handle.remove()

    error: type[BaseException]

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.n_calls += 1
        if self.n_calls == self.fail_at_call:
            raise self.error("planted")

    def fail_at(self, call_index: int, error: type[BaseException] = PlantedError) -> None:
        self.n_calls, self.fail_at_call, self.error = 0, call_index, error


def set_unseeded_rng_states(seed: int) -> None:
    """Set the RNGs to a state that no seed gives, so that reseeding in place of restoring is detected."""
    torch.default_generator.manual_seed(seed), np.random.seed(seed), random.seed(seed)
    torch.rand(5), np.random.rand(5), random.random()


@disabling_attention_fast_path()  # runs with hooks are compared with runs without
def check_run_contracts(
    card: Card, model: str, method_case: MethodCase | None = None, *, failures: Collection[str] = FAILURES
) -> None:
    """Contracts 1 to 4, 6 and 7 on runs in the model's own precision, some of which fail: at the `FAILURES` named.

    `method_case` is the model opened, if available.
    """
    violations = ContractViolations(card)
    method_case = method_case or make_case(model)
    for p in method_case.box.model.parameters():
        if p.requires_grad:
            p.grad = torch.ones_like(p)  # as in the middle of somebody's training
    hook = FailingHook(method_case.box.model)
    set_unseeded_rng_states(1)
    first = result_tensors(
        run_and_record_side_effects(violations, method_case, lambda: call_example_with_warnings(card, method_case))
    )
    _check_dtypes(violations, method_case, first)
    _check_images_in_unit_range(violations, first)
    _check_failures(violations, method_case, hook, failures)
    _check_batches_of_one(violations, method_case, first)
    hook.remove()
    fresh = result_tensors(call_example(card, make_case(model)))
    violations.add("seed", [f"in a fresh box, {message}" for message in result_difference_texts(fresh, first, 0)])
    violations.raise_if_any(f"{method_name(card)} on {model}")


def check_double_precision_contracts(
    card: Card, model: str, method_case: MethodCase | None = None, *, batches: bool = True
) -> None:
    """Contracts 2 and 6 in double precision: as on the plain version, and (`batches`) the same in batches of two.

    `method_case` is the model opened in double precision, if available. A card's exemption "awkward: MODEL" leaves out
    the comparison of one model with its plain version, "awkward: result.PART" one part of the result.
    """
    violations = ContractViolations(card)
    method_case = method_case or make_case(model, torch.float64)
    outputs = result_tensors(call_example(card, method_case))
    violations.add("awkward", blank_or_nonfinite_problems(outputs))
    twin = models.twin_name(model)
    if twin is not None and f"awkward: {model}" not in card.exempt:
        compared = {k: h for k, h in outputs.items() if f"awkward: result{k}" not in card.exempt}
        differences = _differences_to_twin(compared, cached_result(card, twin, torch.float64))
        violations.add("awkward", [f"against the model {twin!r}, {message}" for message in differences])
    if batches and has_parameters(card, "batch_size"):
        batched = result_tensors(call_example(card, method_case, batch_size=2))
        violations.add(
            "splitting",
            [f"with batch_size=2, {message}" for message in result_difference_texts(batched, outputs, 1e-9)],
        )
    violations.raise_if_any(f"{method_name(card)} on {model}")


def _differences_to_twin(outputs: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Differences in the parts that both have, as layer names differ between models."""
    shared = outputs.keys() & expected.keys()
    return (
        result_difference_texts({k: outputs[k] for k in shared}, {k: expected[k] for k in shared}, 1e-9)
        if shared
        else ["no part is the same"]
    )


def check_refusal(
    card: Card, model: str, error: type[UnboxedError] = UnboxedError, method_case: MethodCase | None = None
) -> None:
    """A model that the method does not take is refused by one clear error, and unchanged.

    `method_case` is the model opened, if available.
    """
    violations = ContractViolations(card)
    method_case = method_case or make_case(model)
    before = snapshot(method_case.box.model, method_case.x, method_case.y)
    try:
        call_example(card, method_case)
        violations.add("awkward", [f"is not refused; wanted {error.__name__}"])
    except Exception as raised:
        violations.add("awkward", error_problems(raised, error))
    violations.add(
        "leaves no trace", _state_change_messages(before, snapshot(method_case.box.model, method_case.x, method_case.y))
    )
    violations.raise_if_any(f"{method_name(card)} on {model}")


class ContractViolations:
    """The violations of a card, by contract; contracts that it is exempt from are skipped."""

    def __init__(self, card: Card) -> None:
        self.card, self.messages = card, list[str]()

    def add(self, contract: str, new_messages: list[str]) -> None:
        if contract not in self.card.exempt:
            self.messages += [f"{contract}: {message}" for message in new_messages]

    def raise_if_any(self, title: str) -> None:
        """Raise ContractError if there are violations."""
        if self.messages:
            raise ContractError(f"{title} breaks its contracts:\n  " + "\n  ".join(self.messages))


def run_and_record_side_effects(violations: ContractViolations, method_case: MethodCase, run: Callable[[], Any]) -> Any:
    """The result of `run`; what it changed, and warnings that are not ours, are recorded."""
    before = snapshot(method_case.box.model, method_case.x, method_case.y)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = run()
    violations.add(
        "leaves no trace", _state_change_messages(before, snapshot(method_case.box.model, method_case.x, method_case.y))
    )
    other_warnings = [w for w in caught if w.category is not UnboxedWarning]
    violations.add("awkward", [f"warns by {w.category.__name__}: {w.message}" for w in other_warnings])
    violations.add(
        "awkward", [f"a warning prints a tensor: {w.message}" for w in caught if "tensor(" in str(w.message)]
    )
    return result


def _state_change_messages(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [f"{name.strip()} is not as it was" for name in changes(before, after)]


def _check_dtypes(violations: ContractViolations, method_case: MethodCase, outputs: dict[str, Tensor]) -> None:
    float_outputs = {at: h for at, h in outputs.items() if h.is_floating_point() and h.ndim}
    wrong = [
        f"{result_part_code(at)} is {h.dtype} on {h.device}"
        for at, h in float_outputs.items()
        if (h.dtype, h.device) != _expected_dtype_device(method_case)
    ]
    violations.add("dtype and device", wrong)
    violations.add(
        "leaves no trace",
        [f"{result_part_code(at)} requires a gradient" for at, h in outputs.items() if h.requires_grad],
    )


def _expected_dtype_device(method_case: MethodCase) -> tuple[torch.dtype, torch.device]:
    return method_case.box.dtype, method_case.box.device


def _check_images_in_unit_range(violations: ContractViolations, outputs: dict[str, Tensor]) -> None:
    """Fields called an image or a frame are in [0, 1], exactly."""
    images = {at: h for at, h in outputs.items() if at.rpartition(".")[2] in IMAGE_FIELD_NAMES}
    wrong = [at for at, h in images.items() if not (h.min() >= 0 and h.max() <= 1)]
    violations.add("bounds", [f"{result_part_code(at)} leaves [0, 1]" for at in wrong])


def _check_batches_of_one(violations: ContractViolations, method_case: MethodCase, batched: dict[str, Tensor]) -> None:
    """Rows one at a time, after failures, give an equivalent result; a method without batches the same, bit for bit."""
    set_unseeded_rng_states(2)
    single_rows = result_tensors(call_example(violations.card, method_case, batch_size=1))
    if not has_parameters(violations.card, "batch_size"):
        violations.add(
            "seed", [f"called again, {message}" for message in result_difference_texts(single_rows, batched, 0)]
        )
        return
    shapes = {at: tuple(h.shape) for at, h in batched.items()}
    if shapes != {at: tuple(h.shape) for at, h in single_rows.items()}:
        violations.add("splitting", ["with batch_size=1, other parts or shapes"])
        return
    wrong = [
        at
        for at, h in batched.items()
        if not is_equivalent_result(h, single_rows[at], method_case, _rounding_reference(batched, at))
    ]
    violations.add("splitting", [f"with batch_size=1, {result_part_code(at)} differs beyond rounding" for at in wrong])


def _rounding_reference(outputs: dict[str, Tensor], at: str) -> Tensor:
    """The part whose size rounding is measured by: itself, or what it is a difference of."""
    for difference, part in PARTS_THAT_DIFFERENCES_ARE_OF.items():
        if difference in at:
            return outputs.get(at.replace(difference, part), outputs[at])
    return outputs[at]


def is_equivalent_result(a: Tensor, b: Tensor, method_case: MethodCase, reference: Tensor) -> bool:
    """Equivalent for a reader: flags and counts exactly, an image by its predicted class, a map approximately."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    if a.shape[1:] == method_case.x.shape[1:] and a.min() >= 0 and a.max() <= 1:
        return torch.equal(method_case.box.predict(a), method_case.box.predict(b))
    relative_error = (a.double() - b.double()).norm() / reference.double().norm().clamp_min(1e-6)
    return bool(relative_error < (0.1 if method_case.box.model_dtype == torch.bfloat16 else 1e-3))


def _check_failures(
    violations: ContractViolations, method_case: MethodCase, hook: FailingHook, failures: Collection[str]
) -> None:
    """Runs that fail leave nothing behind."""
    n_calls = hook.n_calls
    calls: dict[str, tuple[int, type[BaseException]]] = {
        "start": (1, PlantedError),
        "middle": (max(1, n_calls // 2), KeyboardInterrupt),
        "end": (n_calls, PlantedError),
    }
    for k, error in [calls[at] for at in failures] if n_calls else []:
        hook.fail_at(k, error)
        set_unseeded_rng_states(4)
        before = snapshot(method_case.box.model, method_case.x, method_case.y)
        with suppress(PlantedError, KeyboardInterrupt, UnboxedError):
            call_example(violations.card, method_case)
        cause = "an exception" if error is PlantedError else "Ctrl-C"
        changed = _state_change_messages(before, snapshot(method_case.box.model, method_case.x, method_case.y))
        violations.add(
            "leaves no trace", [f"after {cause} in module call {k} of {n_calls}, {name}" for name in changed]
        )
    hook.fail_at(-1)


def blank_or_nonfinite_problems(outputs: dict[str, Tensor]) -> list[str]:
    """Whether a result is empty, not finite, or constant."""
    if not outputs:
        return ["the result holds no tensor or number"]
    wrong = [f"{result_part_code(at)} is not finite" for at, h in outputs.items() if not torch.isfinite(h).all()]
    maps = [h for h in outputs.values() if h.is_floating_point() and h.ndim > 1]
    per_example = [h for h in outputs.values() if h.ndim and not maps]  # a result of indices or scores alone
    varies = any(h.double().std() > 0 for h in maps + per_example)
    return wrong if varies else [*wrong, "the result is blank: every value is the same"]


_RESULT_CACHE: WeakKeyDictionary[Callable[..., Any], dict[tuple[str, torch.dtype | None], dict[str, Tensor]]] = (
    WeakKeyDictionary()
)


@cache
def _case_for_cached_results(model: str, dtype: torch.dtype | None) -> MethodCase:
    """One for all methods, which leave it as it is."""
    return make_case(model, dtype)


def cached_result(card: Card, model: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The result on a model of the zoo, moved to `dtype` if given, cached. Not to be written into."""
    results = _RESULT_CACHE.setdefault(card.method, {})
    if (model, dtype) not in results:
        results[model, dtype] = result_tensors(call_example(card, _case_for_cached_results(model, dtype)))
    return results[model, dtype]


def error_problems(raised: BaseException, expected: type[UnboxedError] = UnboxedError) -> list[str]:
    """What is wrong with an error: another class, no fitting builtin, or no clear sentence."""
    if not isinstance(raised, expected):
        return [f"raises {type(raised).__name__}, wanted {expected.__name__}: {str(raised)[:200]}"]
    message = str(raised)
    wrong = [] if len(type(raised).__mro__) > len(UnboxedError.__mro__) + 1 else ["no fitting builtin"]
    if not 15 < len(message) < 700 or re.search(r"\btensor\((\[|-?\d)", message):
        wrong.append(f"no clear sentence: {message}")
    return wrong
