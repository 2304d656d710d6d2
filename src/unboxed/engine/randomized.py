"""The same architecture with new weights, in all of its layers or in some: copies, the model itself is not touched."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import rng
from ..box import Box
from ..errors import ModelError
from ..model import state
from ..model.hooks import named_modules, tensors_in

LOG = logging.getLogger("unboxed")

WHOLE = "(model)"
"""The name of what belongs to no layer that runs by itself: the model's own parameters, or those of scripted code."""

POWER = 20  # looks at a weight by which spectral norm, which takes one step of its iteration at each, finds its size


@dataclass(frozen=True)
class Weights:
    """A layer that holds weights of its own (or batch statistics): the modules, by path, that belong to it."""

    name: str
    paths: tuple[str, ...]


def weighted(box: Box) -> tuple[Weights, ...]:
    """The layers that hold weights, in the order in which they first run; tied and reused ones stand once.

    A module that does not run by itself (the projection inside attention, scripted code) counts with the nearest one
    around it that does, or with `WHOLE`, which comes first. What the output doesn't depend on is left out.
    """
    order = {"": -1} | {row.path: i for i, row in enumerate(box.layers)}
    idle = _idle(box, order)
    found: dict[str, list[str]] = {}
    seen: set[nn.Module] = set()
    for path, module in box.modules.items():
        if module not in seen and holds(module) and path not in idle and "parametrizations" not in path.split("."):
            found.setdefault(_owner(path, order), []).append(path)
        seen.add(module)
    return tuple(Weights(name or WHOLE, tuple(found[name])) for name in sorted(found, key=order.__getitem__))


def holds(module: nn.Module) -> bool:
    """Whether a module has weights or batch statistics of its own."""
    return bool(own(module)) or getattr(module, "running_mean", None) is not None


def own(module: nn.Module) -> list[nn.Parameter]:
    """The floating point parameters of a module itself, those that a parametrization holds for it included."""
    inside = getattr(module, "parametrizations", None)
    mine = [*module.parameters(recurse=False), *(inside.parameters() if isinstance(inside, nn.Module) else ())]
    return [p for p in mine if p.is_floating_point()]


def _owner(path: str, order: Collection[str]) -> str:
    """The module that runs and is, or holds, the one at a path."""
    while path not in order:
        path = path.rpartition(".")[0]
    return path


def _idle(box: Box, running: Collection[str]) -> set[str]:
    """The modules that don't run and that the output does not depend on (heads for training only), by path."""
    if all(path in running for path, module in box.modules.items() if own(module)):
        return set()
    try:
        twin = copied(box).requires_grad_(True)
        at = [(path, p) for path, module in named_modules(twin).items() for p in own(module)]
        grads = _gradients(box.reopen(twin), [p for _, p in at])
    except Exception:  # no graph, or none that can be walked: all of them count
        LOG.info("which modules the output depends on can not be determined", exc_info=True)
        return set()
    used = {path for (path, _), g in zip(at, grads, strict=True) if g is not None}
    return {path for path, _ in at} - used - set(running)


def _gradients(box: Box, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Of the output in some parameters, on noise; None where it does not depend on one."""
    noise = box.inputs.sample(2, torch.Generator(box.device).manual_seed(0)).to(box.dtype)
    with box.isolated():
        output = box.forward(noise.requires_grad_(), ["output"])["output"]
        return torch.autograd.grad(output.sum(), parameters, allow_unused=True)


def copied(box: Box) -> nn.Module:
    """A deep copy of the model. Raises ModelError where it can't be copied."""
    try:
        with state.grad_mode(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # copies of exported models use what torch deprecates
            return copy.deepcopy(box.model, _kept_by(box.model))
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(f"this model can't be copied, so no layer of a copy can be drawn anew: {said}") from error


def _kept_by(model: nn.Module) -> dict[int, Any]:
    """Activations that a model keeps on itself, as a copy of it has them: without their graph, which can't be
    copied."""
    held = [h for module in model.modules() for h in tensors_in(vars(module)) if not h.is_leaf]
    return {id(h): h.detach().clone() for h in held}


def randomized(box: Box, layers: Iterable[Weights], seed: int) -> Box:
    """A box around a copy of the model in which those layers (of `weighted`) have new weights.

    Modules draw their own start (`reset_parameters`), batch statistics included. What they leave as it was, or have no
    start for (parametrized weights among them), is drawn from a normal distribution with its own mean and standard
    deviation. A layer draws the same from `seed` whichever others are drawn. Raises ModelError where the model can't be
    copied.
    """
    places = {path: i for i, path in enumerate(box.modules)}
    model = copied(box)
    modules = named_modules(model)
    for layer in dict.fromkeys(layers):
        group = {modules[path] for path in layer.paths}
        for path in layer.paths:
            _renew(modules[path], group, rng.derive_seed("weights", seed, places[path]), box.device)
    return box.reopen(model)


def untrained(box: Box, seed: int) -> Box:
    """A box around a copy of the model with new weights in every layer, as `randomized` draws them.

    Raises ModelError where the model can't be copied.
    """
    return randomized(box, weighted(box), seed)


def _renew(module: nn.Module, group: Collection[nn.Module], seed: int, device: torch.device) -> None:
    """New weights for one module, and for nothing outside of its group."""
    mine = own(module)
    before = [p.detach().clone() for p in mine]
    with state.seeded_rngs(seed, device), state.grad_mode(False):
        if _alone(module, group):
            _start(module)
        generator = torch.Generator(device).manual_seed(seed)
        for p, value in zip(mine, before, strict=True):
            if torch.equal(p, value):
                p.copy_(_normal(value, generator))
        _look_again(module)


def _start(module: nn.Module) -> None:
    """A module's own start, if it has one."""
    for name in ("reset_parameters", "_reset_parameters", "reset_running_stats"):
        reset = getattr(module, name, None)
        if callable(reset):
            reset()
            return


def _alone(module: nn.Module, group: Collection[nn.Module]) -> bool:
    """Whether a module's own start can't reach the weights of other layers, which lie below it."""
    inside = getattr(module, "parametrizations", None)
    skipped = set(inside.modules()) if isinstance(inside, nn.Module) else set()
    return all(m in group for m in module.modules() if m not in skipped and holds(m))


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Normal values with the mean and the standard deviation of a tensor; a constant stays what it is."""
    wide = like.float() if like.dtype in (torch.float16, torch.bfloat16) else like
    std, mean = torch.std_mean(wide, correction=0)
    noise = torch.empty_like(wide).normal_(generator=generator)
    return (mean + std * noise).to(like.dtype)


def _look_again(module: nn.Module) -> None:
    """Let spectral norm find the size of a weight drawn anew: it keeps an estimate of the old one's directions."""
    inside = getattr(module, "parametrizations", None)
    if not isinstance(inside, nn.ModuleDict):
        return
    flags = [(m, m.training) for m in inside.modules()]
    inside.train()
    for name in inside:
        for _ in range(POWER):
            getattr(module, name)
    for m, training in flags:
        m.training = training
