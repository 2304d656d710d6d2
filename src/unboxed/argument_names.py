"""Calls that don't fit a function: the error names the argument that was meant.

Names that captum, foolbox, torchattacks and shap have for a setting are known (`PEER_NAMES`); others are looked for by
their spelling.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import numpy as np
from torch import Tensor, nn

from .errors import ArgumentError
from .validation import nearest_names

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
MAX_LISTED_ARGUMENTS = 12  # in an error about a name that is like none of them
PEER_NAMES: Mapping[str, str] = {
    "eps": "epsilon epsilons radius max_norm perturbation_size",
    "steps": "n_iter n_iters iter iters iterations num_iter num_iters num_iterations num_steps n_steps nb_iter "
             "max_iter max_iters max_iterations n_step epochs",
    "queries": "n_queries num_queries max_queries",
    "step": "alpha abs_stepsize rel_stepsize stepsize step_size eps_iter eps_step",
    "lr": "learning_rate stepsize step_size alpha",
    "n_steps": "steps n_step num_steps n_iter",
    "n_samples": "nsamples num_samples nt_samples n_sample samples n_perturb_samples num_perturb_samples",
    "target": "targets target_class target_category category class_idx class_index output_index label labels y",
    "y": "labels label targets target true_label",
    "x": "inputs input images image input_tensor input_ids examples",
    "data": "dataset dataloader loader inputs images x",
    "baseline": "baselines background reference background_data",
    "references": "baselines background background_data baseline",
    "segments": "feature_mask superpixels",
    "window": "sliding_window_shapes window_size patch_size",
    "stride": "strides",
    "sigma": "stdevs stdev std noise_level",
    "noise": "stdevs stdev std noise_level sigma",
    "layer": "target_layer target_layers layer_name layers",
    "layers": "layer target_layers layer_names",
    "restarts": "n_restarts num_restarts num_random_init",
    "random_start": "rand_init random_init",
    "kappa": "confidence",
    "initial_c": "c const initial_const",
    "decay": "mu momentum",
    "eot": "eot_iter",
    "loss": "loss_fn loss_fct criterion",
    "batch_size": "internal_batch_size perturbations_per_eval bs",
    "seed": "random_state random_seed manual_seed rng",
    "max_examples": "n_examples num_examples max_samples limit",
    "n_features": "num_features",
    "classes": "class_names labels label_names id2label",
    "outputs": "output_type output_kind task",
    "inputs": "input input_shape shape preprocessing transform processor",
    "weights": "checkpoint state_dict weights_path",
    "spec": "model model_name name",
    "out": "path folder output_dir out_dir directory",
    "attacks": "attack",
    "methods": "method",
}  # fmt: skip
"""What others call a setting, the nearest meaning first: a name may be more than one setting's."""


EXAMPLES = {
    "inputs": "ub.Pixels((3, 224, 224), mean=(.485, .456, .406), std=(.229, .224, .225)) for photos, "
              "ub.Features(names) for the columns of a table, ub.Tokens(tokenizer) for texts",
    "eps": "eps=8/255 for images in [0, 1]",
    "references": "examples to compare with, such as 50 of the training set",
    "out": 'a folder, such as "report/"',
}  # fmt: skip
"""What arguments are that a call may lack."""


NO_ARRAYS = ("attacks", "kinds", "layer", "layers", "out")  # of labels as a third argument it is said where they belong
DEVICE_ADVICE = 'a box runs where its model is, and follows it: model.to("cuda"), or box.model.to("cuda")'
NO_TARGET_TEXT = "it asks for no class or score, so what it gives is the same for each"
ADVICE_BY_ABSENT_NAME = {"device": DEVICE_ADVICE, "target": NO_TARGET_TEXT}
"""What is said of arguments that a function does not take, and has no other name for."""


class LeadingToModelMixin:
    """Errors of what is asked of a box and is its model's."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            advice = DEVICE_ADVICE if name in ("to", "cuda", "cpu") else f"its model has: box.model.{name}"
            is_of_modules = hasattr(nn.Module, name) and not name.startswith("_")
            raise AttributeError(f"a box has no attribute {name!r}" + f"; {advice}" * is_of_modules)


def naming_arguments(function: FunctionT) -> FunctionT:
    """The function, with an ArgumentError where a call doesn't fit it: what isn't taken, and what was meant.

    A call that fits costs one wrapper more; of one that fails by a TypeError it is asked whether it fits.

    >>> import unboxed as ub
    >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
    >>> ub.adversarial.pgd(box, *ub.data.digits("test").first(2), epsilon=.1)
    Traceback (most recent call last):
    ...
    unboxed.errors.ArgumentError: pgd() takes no epsilon=; did you mean eps=?
    """

    takes_labels_with_data = _takes_labels_with_data(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if takes_labels_with_data and len(args) > 2 and isinstance(args[2], (Tensor, np.ndarray)):
            raise ArgumentError(f"{function.__name__}() takes the labels with the examples, as (x, y)")
        try:
            return function(*args, **kwargs)
        except TypeError:
            if text := _misfit_text(function, args, kwargs):
                raise ArgumentError(text) from None
            raise

    return cast(FunctionT, call)


def _takes_labels_with_data(function: Callable[..., Any]) -> bool:
    """Whether it takes (box, data), and nothing after them that is an array."""
    by_position = [n for n, p in inspect.signature(function).parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    return by_position[:2] == ["box", "data"] and by_position[2:3] in ([], *([name] for name in NO_ARRAYS))


def _misfit_text(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Why a call does not fit a function, and what does; empty where it fits."""
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        call = f"{function.__qualname__.removesuffix('.__init__')}()"
        parameters = dict(signature.parameters)
        by_position = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        given = {*by_position[: len(args)], *kwargs}
        if unknown := [name for name in kwargs if name not in parameters]:
            left = [n for n in parameters if n not in given]
            return " ".join(f"{call} takes no {name}=; {_meant_text(name, left)}" for name in unknown)
        lacking = [n for n, p in parameters.items() if p.default is p.empty and n not in given]
        if lacking and len(args) <= len(by_position):
            advice = "; ".join(EXAMPLES[n] for n in lacking if n in EXAMPLES)
            return f"{call} needs {' and '.join(f'{n}=' for n in lacking)}, too{advice and f': {advice}'}"
        if twice := [n for n in by_position[: len(args)] if n in kwargs]:
            return f"{call} got {twice[0]} twice: by its position and as {twice[0]}="
        named = _listed([n for n in parameters if n not in by_position])
        placed = ", ".join(n for n in by_position if n != "self")
        no_target = f", and no target: {NO_TARGET_TEXT}" if placed == "box, x" and "target" not in parameters else ""
        return f"{call} takes {placed} by their position{named and f', and by name {named}'}{no_target or f': {error}'}"
    return ""


def _meant_text(name: str, names: Collection[str]) -> str:
    """The end of an error about an unknown argument: the one that it is elsewhere the name of, or the nearest ones."""
    others = {ours: peers.split() for ours, peers in PEER_NAMES.items() if ours in names}
    known = [ours for ours, peers in others.items() if name in peers]
    if known:
        return f"did you mean {min(known, key=lambda ours: others[ours].index(name))}=?"
    if name in ADVICE_BY_ABSENT_NAME:
        return ADVICE_BY_ABSENT_NAME[name]
    if nearest := nearest_names(name, names):
        return f"did you mean {' or '.join(f'{n}=' for n in nearest)}?"
    return f"there are {_listed(names)}"


def _listed(names: Collection[str]) -> str:
    shown = [f"{n}=" for n in names][:MAX_LISTED_ARGUMENTS]
    return ", ".join([*shown, *["..."] * (len(names) > len(shown))])
