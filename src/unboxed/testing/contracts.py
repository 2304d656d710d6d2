"""The contracts as functions: few runs of a method on a model, each looked at by many observers.

`check_run` runs a method in the model's own precision and looks at what it leaves behind (also when it fails), at its
seed, at types, bounds and warnings, and at one row at a time. `check_values` runs it in double precision and compares
it with the plain spelling of the model, and with itself in batches of two. `check_refusal` is for a model that the
method can't take. `rows` has more. All raise ContractError, which names every contract that is broken and how.
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..cards import Card
from ..errors import UnboxedError, UnboxedWarning
from . import models
from .cases import Case, call, call_aloud, case, close, name_of, named, takes, tensors
from .trace import changes, snapshot

IMAGES = ("images", "frames", "input", "result")


class ContractError(AssertionError):
    """What a method breaks on a model, contract by contract."""


class Planted(Exception):
    """Raised by a model on purpose; no library may know it."""


class FailingHook:
    """A hook of the user's own on every module: it counts calls, and the k-th of them raises."""

    def __init__(self, model: nn.Module) -> None:
        self.calls, self.fatal, self.error = 0, -1, Planted
        for module in model.modules():
            if not isinstance(module, torch.jit.ScriptModule) and not hasattr(module, "_orig_mod"):
                module.register_forward_pre_hook(self)

    error: type[BaseException]

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.calls += 1
        if self.calls == self.fatal:
            raise self.error("planted")

    def arm(self, k: int, error: type[BaseException] = Planted) -> None:
        self.calls, self.fatal, self.error = 0, k, error


def draw_somewhere(seed: int) -> None:
    """Away from any state that a seed gives, so that a state that was merely seeded again shows."""
    torch.default_generator.manual_seed(seed), np.random.seed(seed), random.seed(seed)
    torch.rand(5), np.random.rand(5), random.random()


def check_run(card: Card, model: str) -> None:
    """Contracts 1 to 4, 6 and 7 on runs in the model's own precision."""
    broken = Broken(card)
    c = case(model)
    for p in c.box.model.parameters():
        if p.requires_grad:
            p.grad = torch.ones_like(p)  # as in the middle of somebody's training
    draw_somewhere(1)
    first = tensors(observed(broken, c, lambda: call_aloud(card, c)))
    _types(broken, c, first)
    _bounds(broken, first)
    _one_row_at_a_time(broken, c, first)
    _failures(broken, card, model, first)
    broken.tell(f"{name_of(card)} on {model}")


def check_values(card: Card, model: str, c: Case | None = None, *, batches: bool = True) -> None:
    """Contracts 2 and 6 in double precision: as on the plain spelling, and (`batches`) the same in batches of two.

    `c` is the model opened in double precision, if it is at hand.
    """
    broken = Broken(card)
    c = c or case(model, torch.float64)
    found = tensors(call(card, c))
    broken.add("awkward", is_picture(found))
    twin = models.twin(model)
    if twin is not None:
        broken.add("awkward", [f"against the model {twin!r}, {m}" for m in _otherwise(found, plainly(card, twin))])
    if batches and takes(card, "batch_size"):
        parts = tensors(call(card, c, batch_size=2))
        broken.add("splitting", [f"with batch_size=2, {message}" for message in close(parts, found, 1e-9)])
    broken.tell(f"{name_of(card)} on {model}")


def _otherwise(found: dict[str, Tensor], want: dict[str, Tensor]) -> list[str]:
    """What differs in the parts that both have: layers have their own names in some models."""
    same = found.keys() & want.keys()
    return close({k: found[k] for k in same}, {k: want[k] for k in same}, 1e-9) if same else ["no part is the same"]


def check_refusal(card: Card, model: str, error: type[UnboxedError] = UnboxedError) -> None:
    """A model that the method can't take is refused by one clear error, and left as it was."""
    broken = Broken(card)
    c = case(model)
    before = snapshot(c.box.model, c.x, c.y)
    try:
        call(card, c)
        broken.add("awkward", [f"is not refused; wanted {error.__name__}"])
    except Exception as raised:
        broken.add("awkward", unclear(raised, error))
    broken.add("leaves no trace", _left(before, snapshot(c.box.model, c.x, c.y)))
    broken.tell(f"{name_of(card)} on {model}")


class Broken:
    """What was found against a card, by contract; one that the card is exempt from is not looked at."""

    def __init__(self, card: Card) -> None:
        self.card, self.found = card, list[str]()

    def add(self, contract: str, messages: list[str]) -> None:
        if contract not in self.card.exempt:
            self.found += [f"{contract}: {message}" for message in messages]

    def tell(self, what: str) -> None:
        """Raise ContractError if anything was found."""
        if self.found:
            raise ContractError(f"{what} breaks its contracts:\n  " + "\n  ".join(self.found))


def observed(broken: Broken, c: Case, work: Callable[[], Any]) -> Any:
    """What `work` gives; what it changed, and warnings that are not ours, are noted."""
    before = snapshot(c.box.model, c.x, c.y)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        result = work()
    broken.add("leaves no trace", _left(before, snapshot(c.box.model, c.x, c.y)))
    foreign = [w for w in heard if w.category is not UnboxedWarning]
    broken.add("awkward", [f"warns by {w.category.__name__}: {w.message}" for w in foreign])
    broken.add("awkward", [f"a warning prints a tensor: {w.message}" for w in heard if "tensor(" in str(w.message)])
    return result


def _left(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [f"{name.strip()} is not as it was" for name in changes(before, after)]


def _types(broken: Broken, c: Case, found: dict[str, Tensor]) -> None:
    wide = {at: h for at, h in found.items() if h.is_floating_point() and h.ndim}
    wrong = [f"{named(at)} is {h.dtype} on {h.device}" for at, h in wide.items() if (h.dtype, h.device) != _home(c)]
    broken.add("dtype and device", wrong)
    broken.add("leaves no trace", [f"{named(at)} requires a gradient" for at, h in found.items() if h.requires_grad])


def _home(c: Case) -> tuple[torch.dtype, torch.device]:
    return c.box.dtype, c.box.device


def _bounds(broken: Broken, found: dict[str, Tensor]) -> None:
    """Whatever is called an image or a frame lies in [0, 1], exactly."""
    images = {at: h for at, h in found.items() if at.rpartition(".")[2] in IMAGES}
    wrong = [at for at, h in images.items() if not (h.min() >= 0 and h.max() <= 1)]
    broken.add("bounds", [f"{named(at)} leaves [0, 1]" for at in wrong])


def _one_row_at_a_time(broken: Broken, c: Case, whole: dict[str, Tensor]) -> None:
    """The verdict of rows alone; of a method without batches, the same again, bit for bit."""
    draw_somewhere(2)
    again = tensors(call(broken.card, c, batch_size=1))
    if not takes(broken.card, "batch_size"):
        broken.add("seed", [f"called again, {message}" for message in close(again, whole, 0)])
        return
    shapes = {at: tuple(h.shape) for at, h in whole.items()}
    if shapes != {at: tuple(h.shape) for at, h in again.items()}:
        broken.add("splitting", ["with batch_size=1, other parts or shapes"])
        return
    of = {at: whole.get(at.replace(".error", ".difference"), h) for at, h in whole.items()}  # what is left of it
    wrong = [at for at, h in whole.items() if not same_verdict(h, again[at], c, of[at])]
    broken.add("splitting", [f"with batch_size=1, {named(at)} differs in its verdict" for at in wrong])


def same_verdict(a: Tensor, b: Tensor, c: Case, of: Tensor) -> bool:
    """What a reader takes from it: flags and counts exactly, an image by what the model says of it, a map roughly."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    if a.shape[1:] == c.x.shape[1:] and a.min() >= 0 and a.max() <= 1:
        return torch.equal(c.box.predict(a), c.box.predict(b))
    off = (a.double() - b.double()).norm() / of.double().norm().clamp_min(1e-6)
    return bool(off < (0.1 if c.box.model_dtype == torch.bfloat16 else 1e-3))


def _failures(broken: Broken, card: Card, model: str, first: dict[str, Tensor]) -> None:
    """In a fresh box the same, bit for bit; also after it failed at its start, in the middle and at its end."""
    c = case(model)
    hook = FailingHook(c.box.model)
    draw_somewhere(3)
    broken.add("seed", [f"in a fresh box, {message}" for message in close(tensors(call(card, c)), first, 0)])
    total = hook.calls
    fatal = ((1, Planted), (max(1, total // 2), KeyboardInterrupt), (total, Planted)) if total else ()
    for k, error in fatal:
        hook.arm(k, error)
        draw_somewhere(4)
        before = snapshot(c.box.model, c.x, c.y)
        with suppress(Planted, KeyboardInterrupt, UnboxedError):
            call(card, c)
        what = "an exception" if error is Planted else "Ctrl-C"
        left = _left(before, snapshot(c.box.model, c.x, c.y))
        broken.add("leaves no trace", [f"after {what} in module call {k} of {total}, {name}" for name in left])
    hook.arm(-1)
    broken.add("seed", [f"after failures, {message}" for message in close(tensors(call(card, c)), first, 0)])


def is_picture(found: dict[str, Tensor]) -> list[str]:
    """What keeps a result from being one: nothing in it, not finite, or blank."""
    if not found:
        return ["the result holds no tensor or number"]
    wrong = [f"{named(at)} is not finite" for at, h in found.items() if not torch.isfinite(h).all()]
    drawn = [h for h in found.values() if h.is_floating_point()]
    counted = [h for h in found.values() if h.ndim and not drawn]  # a result of indices alone
    seen = any(h.ndim > 1 and h.std() > 0 for h in drawn) or any(h.double().std() > 0 for h in counted)
    return wrong if seen else [*wrong, "the result is blank: every value is the same"]


_PLAINLY: dict[tuple[Any, str], dict[str, Tensor]] = {}


def plainly(card: Card, twin: str) -> dict[str, Tensor]:
    """What the method gives on the plain spelling, in double precision."""
    key = card.method, twin
    if key not in _PLAINLY:
        _PLAINLY[key] = tensors(call(card, case(twin, torch.float64)))
    return _PLAINLY[key]


def unclear(raised: BaseException, wanted: type[UnboxedError] = UnboxedError) -> list[str]:
    """What is wrong with an error: it is not ours, fits no builtin, or prints a tensor instead of a sentence."""
    if not isinstance(raised, wanted):
        return [f"raises {type(raised).__name__}, wanted {wanted.__name__}: {str(raised)[:200]}"]
    message = str(raised)
    wrong = [] if len(type(raised).__mro__) > len(UnboxedError.__mro__) + 1 else ["no fitting builtin"]
    if not 15 < len(message) < 700 or re.search(r"\btensor\((\[|-?\d)", message):
        wrong.append(f"no clear sentence: {message}")
    return wrong
