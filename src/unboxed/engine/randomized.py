"""Copies of a model with re-initialized weights, in all layers or in some; the model itself is not changed."""

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
from ..model.first_forward import opening_copy_of
from ..model.hooks import named_modules, tensors_in

LOG = logging.getLogger("unboxed")

ROOT_MODULE_NAME = "(model)"
"""The name for parameters that belong to no layer that runs: the model's own, or those of scripted code."""

MODULE_TABLES = vars(nn.Module()).keys() - {"_buffers"}
"""Attributes of every module that hold no activations: its parameters, child modules and hooks."""

SPECTRAL_NORM_ITERATIONS = 20  # forward passes, one power iteration each, after which spectral norm has converged


@dataclass(frozen=True)
class LayerWithWeights:
    """A layer with weights (or batch statistics): the modules, by path, that belong to it."""

    name: str
    paths: tuple[str, ...]


def layers_with_weights(box: Box) -> tuple[LayerWithWeights, ...]:
    """The layers with weights, in the order in which they first run; tied and reused ones are listed once.

    A module that does not run itself (the projection inside attention, scripted code) belongs to the nearest enclosing
    one that does, or to `ROOT_MODULE_NAME`, which comes first. Modules that the output does not depend on are left out.
    """
    run_order = {"": -1} | {row.path: i for i, row in enumerate(box.layers)}
    unused_paths = _unused_module_paths(box, run_order)
    paths_by_layer: dict[str, list[str]] = {}
    visited: set[nn.Module] = set()
    for path, module in box.modules.items():
        if (
            module not in visited
            and has_weights_of_its_own(module)
            and path not in unused_paths
            and "parametrizations" not in path.split(".")
        ):
            paths_by_layer.setdefault(_nearest_running_ancestor(path, run_order), []).append(path)
        visited.add(module)
    return tuple(
        LayerWithWeights(name or ROOT_MODULE_NAME, tuple(paths_by_layer[name]))
        for name in sorted(paths_by_layer, key=run_order.__getitem__)
    )


def has_weights_of_its_own(module: nn.Module) -> bool:
    """Whether a module has weights or batch statistics of its own."""
    return bool(own_parameters(module)) or getattr(module, "running_mean", None) is not None


def own_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The floating point parameters of a module itself, including those of its parametrizations."""
    parametrizations = getattr(module, "parametrizations", None)
    params = [
        *module.parameters(recurse=False),
        *(parametrizations.parameters() if isinstance(parametrizations, nn.Module) else ()),
    ]
    return [p for p in params if p.is_floating_point()]


def _nearest_running_ancestor(path: str, running_paths: Collection[str]) -> str:
    """The module that runs and is, or contains, the one at a path."""
    while path not in running_paths:
        path = path.rpartition(".")[0]
    return path


def _unused_module_paths(box: Box, running_paths: Collection[str]) -> set[str]:
    """The modules that do not run and that the output does not depend on (heads for training only), by path."""
    if all(path in running_paths for path, module in box.modules.items() if own_parameters(module)):
        return set()
    try:
        clone = copy_model(box.model).requires_grad_(True)
        named_params = [(path, p) for path, module in named_modules(clone).items() for p in own_parameters(module)]
        grads = _parameter_gradients_on_noise(open_copy(box, clone), [p for _, p in named_params])
    except Exception:  # without a graph, all of them count
        LOG.info("which modules the output depends on can not be determined", exc_info=True)
        return set()
    used = {path for (path, _), g in zip(named_params, grads, strict=True) if g is not None}
    return {path for path, _ in named_params} - used - set(running_paths)


def _parameter_gradients_on_noise(box: Box, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Gradients of the output in some parameters, on noise; None for those it does not depend on."""
    noise = box.inputs.random_inputs(2, torch.Generator(box.device).manual_seed(0)).to(box.dtype)
    with box.isolated():
        output = box.forward(noise.requires_grad_(), ["output"])["output"]
        return torch.autograd.grad(output.sum(), parameters, allow_unused=True)


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy of a model. Raises ModelError where it can't be copied."""
    try:
        with state.setting_grad_mode(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # copies of exported models use what torch deprecates
            return copy.deepcopy(model, _detached_activations_memo(model))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(f"this model can't be copied, and what runs on a copy can't be made: {reason}") from error


def open_copy(box: Box, model: nn.Module) -> Box:
    """As `box.with_model`, of a copy of the box's model with other weights: its layers are not found again."""
    with opening_copy_of(box.profile):
        return box.with_model(model)


def _detached_activations_memo(model: nn.Module) -> dict[int, Any]:
    """Activations that a model stores on itself, without their graph, which cannot be copied."""
    stored = [v for module in model.modules() for k, v in vars(module).items() if k not in MODULE_TABLES]
    activations = [h for h in tensors_in(stored) if not h.is_leaf]
    return {id(h): h.detach().clone() for h in activations}


def randomize_layers(box: Box, layers: Iterable[LayerWithWeights], seed: int) -> Box:
    """A box of a copy of the model in which these layers (of `layers_with_weights`) are re-initialized.

    Modules are initialized by their `reset_parameters`, batch statistics included. Weights that this does not change,
    or modules without it, are sampled from a normal distribution with their mean and standard deviation; a parametrized
    weight is assigned such a sample, which its parametrization maps to a valid one (an orthogonal one), or else the
    tensors behind it are sampled. A layer's new weights depend on `seed` alone, not on the other layers. Raises
    ModelError where the model cannot be copied.
    """
    module_index = {path: i for i, path in enumerate(box.modules)}
    model = copy_model(box.model)
    modules = named_modules(model)
    for layer in dict.fromkeys(layers):
        group = {modules[path] for path in layer.paths}
        for path in layer.paths:
            _randomize_module(modules[path], group, rng.derive_seed("weights", seed, module_index[path]), box.device)
    return open_copy(box, model)


def randomize_all_layers(box: Box, seed: int) -> Box:
    """A box of a copy of the model with all layers re-initialized, as by `randomize_layers`.

    Raises ModelError where the model cannot be copied.
    """
    return randomize_layers(box, layers_with_weights(box), seed)


def _randomize_module(module: nn.Module, group: Collection[nn.Module], seed: int, device: torch.device) -> None:
    """Re-initialize one module, and nothing outside its group."""
    params = own_parameters(module)
    old_values = [p.detach().clone() for p in params]
    with state.forking_rngs_with_lock(seed, device), state.setting_grad_mode(False):
        if _reset_stays_in_group(module, group):
            _call_reset_parameters(module)
        generator = torch.Generator(device).manual_seed(seed)
        assigned = {
            id(p) for name in _parametrized_tensor_names(module) for p in _assign_new_weight(module, name, generator)
        }
        for p, value in zip(params, old_values, strict=True):
            if id(p) not in assigned and torch.equal(p, value):
                p.copy_(_normal_with_same_moments(value, generator))
        _converge_spectral_norm(module)


def _parametrized_tensor_names(module: nn.Module) -> tuple[str, ...]:
    """The names of the module's tensors that are under torch's parametrizations."""
    parametrizations = getattr(module, "parametrizations", None)
    return tuple(parametrizations) if isinstance(parametrizations, nn.ModuleDict) else ()


def _assign_new_weight(module: nn.Module, name: str, generator: torch.Generator) -> list[nn.Parameter]:
    """Assign a new value to a parametrized weight, and return the tensors that now hold it.

    None of them where it can't be assigned. Tensors such as those of `orthogonal` have a form of their own, in which
    a sample would be no valid weight.
    """
    originals = list(module.parametrizations[name].parameters(recurse=False))  # type: ignore[index, union-attr]
    if not originals:
        return []
    old_weight = getattr(module, name).detach().clone()
    try:
        setattr(module, name, _normal_with_same_moments(old_weight, generator))
    except Exception:  # without an inverse, or with one that refuses
        LOG.debug("a parametrized weight can't be assigned", exc_info=True)
    return [] if torch.equal(getattr(module, name), old_weight) else originals


def _call_reset_parameters(module: nn.Module) -> None:
    """Call a module's `reset_parameters`, if it has one."""
    for name in ("reset_parameters", "_reset_parameters", "reset_running_stats"):
        reset = getattr(module, name, None)
        if callable(reset):
            reset()
            return


def _reset_stays_in_group(module: nn.Module, group: Collection[nn.Module]) -> bool:
    """Whether a module's `reset_parameters` cannot change the weights of other layers."""
    parametrizations = getattr(module, "parametrizations", None)
    skipped = set(parametrizations.modules()) if isinstance(parametrizations, nn.Module) else set()
    return all(m in group for m in module.modules() if m not in skipped and has_weights_of_its_own(m))


def _normal_with_same_moments(like: Tensor, generator: torch.Generator) -> Tensor:
    """Normal values with the mean and the standard deviation of a tensor; a constant does not change."""
    as_float = like.float() if like.dtype in (torch.float16, torch.bfloat16) else like
    std, mean = torch.std_mean(as_float, correction=0)
    noise = torch.empty_like(as_float).normal_(generator=generator)
    return (mean + std * noise).to(like.dtype)


def _converge_spectral_norm(module: nn.Module) -> None:
    """Let spectral norm converge on the new weight: it starts from the singular vectors of the old one."""
    names = _parametrized_tensor_names(module)
    if not names:
        return
    parametrizations: nn.ModuleDict = module.parametrizations  # type: ignore[assignment]
    training_flags = [(m, m.training) for m in parametrizations.modules()]
    parametrizations.train()
    for name in names:
        for _ in range(SPECTRAL_NORM_ITERATIONS):
            getattr(module, name)
    for m, training in training_flags:
        m.training = training
