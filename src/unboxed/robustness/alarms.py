"""Is a model robust, or are its gradients of no use to an attack? What can't be true of a model that attacks see
through.

Athalye, Carlini & Wagner 2018, "Obfuscated Gradients Give a False Sense of Security", arXiv:1802.00420, section 3.1.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..adversarial.attempt import Attempt
from ..adversarial.fgsm import fgsm
from ..adversarial.pgd import pgd
from ..adversarial.square import square
from ..box import Box
from ..engine.optimize.constraints import Ball, ball_of
from ..errors import NaNError, OutputError, UnboxedWarning
from ..inputs.pixels import Pixels
from ..model.answers import among, without_nan
from ..model.batching import BatchSize

MOST = 200  # examples that are asked
SHARE, LEAST = 0.05, 3  # by how many of them one attack must beat another before it is told
FEW, MANY = 10, 100  # steps
QUERIES = 500
DRAWS = 10  # of a model's own noise


@dataclass(frozen=True)
class Alarm:
    name: str
    sentence: str
    figures: dict[str, float] = field(default_factory=dict)  # shares of the examples asked

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.name}: {self.sentence}"


def alarms_of(
    box: Box,
    x: Tensor,
    y: Tensor,
    right: Tensor,
    eps: float,
    norm: str = "linf",
    *,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> tuple[Alarm, ...]:
    """What speaks against the robust accuracy within `eps`, asked of the first examples (N, ...) named `right` (N,)."""
    rows = right.nonzero()[:MOST, 0]
    if not len(rows) or box.coupled:  # rows that change one another can't be asked apart from those that are wrong
        return ()
    asked = _Asked(box, x[rows], y[rows], ball_of(eps, norm, None), {"seed": seed, "batch_size": batch_size})
    try:
        return tuple(a for check in (noisy, no_gradient, _compared) for a in check(asked))
    except NaNError as error:
        raise among(error, rows) from None
    except OutputError as error:
        return (Alarm("no gradient", f"attacks by gradient can't be run on this model: {error}"),)


@dataclass
class _Asked:
    """Examples that the model names right, and how many of them each attack leaves so."""

    box: Box
    x: Tensor  # (M, ...)
    y: Tensor  # (M,)
    ball: Ball
    common: dict[str, Any]

    def stands(self, attack: Callable[..., Any], ball: Ball | None = None, **settings: Any) -> int:
        """How many examples the attack leaves right."""
        x = self.box.shaped(self.x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnboxedWarning)  # a gradient of zero is an alarm of its own
            found = attack(self.box, x, self.y, **_within(ball or self.ball), **self.common, **settings)
        if found.interrupted:
            raise KeyboardInterrupt
        return int((~found.success).sum())

    def beats(self, stronger: int, weaker: int) -> bool:
        """Whether so few left standing are fewer than by chance."""
        return weaker - stronger >= max(LEAST, SHARE * len(self.x))

    def share(self, standing: int) -> float:
        return standing / len(self.x)


def _within(ball: Ball) -> dict[str, Any]:
    return {"eps": ball.eps, "norm": type(ball).__name__.lower()}


def noisy(asked: _Asked) -> Iterator[Alarm]:
    """The model draws at every look: what an attack sees is one draw of many."""
    if not asked.box.noisy:
        return
    answers = torch.stack([_answers(asked, draw) for draw in range(DRAWS)])  # (DRAWS, M)
    share = float((answers != answers[0]).any(0).float().mean())
    said = (
        f"the model draws random numbers when it runs, and over {DRAWS} draws {share:.0%} of its answers change. An "
        f"attack sees one draw; give pgd and fgsm eot={DRAWS}, which climb the mean over so many"
    )
    yield Alarm("random layers", said, {"changes": share})


def _answers(asked: _Asked, draw: int) -> Tensor:
    with asked.box.quiet(grad=False, seed=draw):
        return without_nan(asked.box.forward(asked.x, {"logits"})["logits"]).argmax(1)


def no_gradient(asked: _Asked) -> Iterator[Alarm]:
    """Nothing tells an attack by gradient where to go."""
    x = asked.box.shaped(asked.x)
    attempt = Attempt(asked.box, x, asked.y, norm=asked.ball, batch_size=asked.common["batch_size"])
    grad = attempt.slope(attempt.x, torch.arange(len(asked.x), device=asked.x.device)).grad
    share = float((grad.flatten(1) == 0).all(1).float().mean())
    if share * len(asked.x) >= 1:
        said = (
            f"the gradient is exactly zero for {share:.0%} of the examples, so attacks by gradient do not move them; "
            "ask square or hop_skip_jump"
        )
        yield Alarm("no gradient", said, {"zero": share})


def _compared(asked: _Asked) -> Iterator[Alarm]:
    """Alarms of attacks that do better than they should beside others."""
    one, few, many = asked.stands(fgsm), asked.stands(pgd, steps=FEW), asked.stands(pgd, steps=MANY)
    if asked.beats(one, few):
        yield _than(asked, "iterative weaker than single step", "one step", one, f"{FEW} steps", few, ITERATIVE)
    if asked.beats(few, many):
        yield _than(asked, "more steps not stronger", f"{FEW} steps", few, f"{MANY} steps", many, STEPS)
    margin = asked.stands(pgd, steps=MANY, loss="margin")
    if asked.beats(margin, many):
        yield _than(asked, "loss saturates", "PGD on the margin", margin, "PGD on the cross-entropy", many, SATURATED)
    best = min(one, few, many, margin)
    if isinstance(asked.box.inputs, Pixels) and type(asked.ball).__name__ != "L1":
        blind = asked.stands(square, queries=QUERIES)
        if asked.beats(blind, best):
            yield _than(asked, "black box stronger than white box", "Square", blind, "PGD", best, BLIND)
    if best:
        yield from _unbounded(asked)


ITERATIVE = "From the second step on the gradient leads nowhere: it is masked, and robust accuracy by PGD is too high"
STEPS = "Small steps get stuck where large ones pass: the surface is jagged, as that of a model that masks gradients"
SATURATED = "The softmax is so sure that the gradient of its loss vanishes: attack with loss='margin' or 'dlr'"
BLIND = "It sees only answers, and finds more than who sees the gradient: what PGD says is too good. Use auto_attack"


def _than(asked: _Asked, name: str, a: str, left: int, b: str, more: int, why: str) -> Alarm:
    shares = {a: asked.share(left), b: asked.share(more)}
    return Alarm(name, f"{a} leaves {shares[a]:.0%} of the examples right, {b} {shares[b]:.0%}. {why}", shares)


def _unbounded(asked: _Asked) -> Iterator[Alarm]:
    """With any change allowed, every example can be made into one of another class."""
    everything = _everything(asked)
    if everything is None:
        return
    left = asked.stands(pgd, everything, steps=MANY)
    if left >= max(1, SHARE * len(asked.x)):
        said = (
            f"with any change allowed PGD leaves {asked.share(left):.0%} of the examples right, where it must leave "
            "none: it does not find what surely is there, so what it misses within eps tells nothing"
        )
        yield Alarm("unbounded eps does not reach 0", said, {"PGD, any change": asked.share(left)})


def _everything(asked: _Asked) -> Ball | None:
    """The ball that holds all images; None where inputs have no bounds."""
    if not isinstance(asked.box.inputs, Pixels):
        return None
    one = torch.ones_like(asked.x[:1])
    return replace(asked.ball, eps=float(asked.ball.distance(one, 0 * one)))  # type: ignore[type-var]
