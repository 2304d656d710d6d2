"""A model spec: `zoo:NAME`, `module:factory`, `path/to/file.py:factory` or a .pt2 file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn

from .. import zoo
from ..box import Box
from ..errors import InputError, ModelError
from ..inputs.base import Inputs
from ..inputs.preprocessing import to_inputs
from ..validation import add_sentence, nearest_paths_text, valid_seed
from ..weight_files import ADAPTER_FILE_NAMES, ADAPTER_REFUSED_TEXT
from .exported import load_exported
from .factories import build_from_spec, first_names_with_ellipsis, public_names_defined_in_file
from .huggingface import is_pretrained_folder, load_pretrained

MODEL_SPEC_TEXT = (
    "a model is zoo:NAME, module:factory, path/to/file.py:factory, a torch.export file (.pt2) or a Hugging Face folder"
)
WEIGHT_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".safetensors"}


def model(spec: str, *, trained: bool = True, seed: int = 0) -> tuple[nn.Module, Inputs | None]:
    """The model that a text names, and what its inputs are if it says so.

    Args:
        spec: "zoo:NAME", "package.module:factory", "path/to/file.py:factory", a `torch.export` file (.pt2), or a folder
            that `save_pretrained` of transformers wrote. A factory is a Module class, a Module, or a function without
            arguments that returns a Module, (Module, inputs), (Module, inputs, classes) or a `Box`.
        trained: Whether a model of the zoo or of a folder has its trained weights.
        seed: Seed of what the factory draws.

    Returns:
        (model, inputs); inputs is None where the factory does not return them, or a folder has no image processor.

    Raises:
        ModelError: for a wrong spec, and for what is no model.
        MissingPackageError: for a Hugging Face folder without transformers.

    Example:
        >>> from unboxed import loading
        >>> module, inputs = loading.model("zoo:digits-cnn")
        >>> type(module).__name__
        'DigitsCNN'
    """
    made = model_with_options(spec, trained=trained, seed=seed)
    return made.model, made.inputs


class ModelWithOptions(NamedTuple):
    """A model, its inputs, and how its factory opens it, as options of `Box`; each as far as it is said."""

    model: nn.Module
    inputs: Inputs | None
    options: Mapping[str, Any] = MappingProxyType({})


def model_with_options(spec: str, *, trained: bool = True, seed: int = 0) -> ModelWithOptions:
    """As `model`, with what its factory says of its outputs. Raises ModelError and MissingPackageError."""
    if not isinstance(spec, (str, Path)):
        raise ModelError(_no_spec_text(spec))
    spec, seed = str(spec), valid_seed(seed)
    if spec.startswith("zoo:"):
        name = spec.removeprefix("zoo:")
        load = zoo.load_generator if is_generator(spec) else zoo.load
        return ModelWithOptions(*load(name, weights="trained" if trained else None))
    if spec.endswith(".pt2"):
        return ModelWithOptions(load_exported(Path(spec)), None)
    if is_pretrained_folder(Path(spec)):
        return ModelWithOptions(*load_pretrained(Path(spec), trained=trained, seed=seed))
    if ":" not in spec:
        raise ModelError(_unknown_model_text(spec))
    return _split_factory_result(build_from_spec(spec, ModelError, seed), spec)


def is_generator(spec: str) -> bool:
    """Whether a model is a generator of the zoo, whose output is an image."""
    return str(spec).startswith("zoo:") and spec.removeprefix("zoo:") in zoo.generator_names()


def comes_with_weights(spec: str) -> bool:
    """Whether a model comes with its weights: of the zoo, of a .pt2 file or of a folder."""
    return spec.startswith("zoo:") or spec.endswith(".pt2") or is_pretrained_folder(Path(spec))


def _split_factory_result(built: object, spec: str) -> ModelWithOptions:
    if isinstance(built, Box):
        return ModelWithOptions(built.model, built.inputs, built.options)
    model, inputs, *classes = built if isinstance(built, tuple) and len(built) in (2, 3) else (built, None)
    if not isinstance(model, nn.Module):
        expected = "wanted a torch.nn.Module, (Module, inputs), (Module, inputs, classes) or a Box"
        raise ModelError(f"{spec} made a {type(built).__name__}; {expected}{_weights_hint(model)}")
    try:
        options = {"classes": classes[0]} if classes else {}
        return ModelWithOptions(model, None if inputs is None else to_inputs(inputs, model), options)
    except InputError as error:
        raise ModelError(f"{spec} returned {type(inputs).__name__} as its inputs: {error}") from error


def _weights_hint(built: object) -> str:
    return (
        ". Weights alone are no model: load them into the model that they belong to" if isinstance(built, dict) else ""
    )


def _no_spec_text(model: object) -> str:
    """What opens what is given in place of a path or a name."""
    kind = model if isinstance(model, type) else type(model)
    advice = MODEL_SPEC_TEXT
    if issubclass(kind, nn.Module):
        advice = "open a module by ub.Box(model, inputs), after ub.loading.weights(model, path) for weights from a file"
    return f"wanted the path or the name of a model; got {kind.__name__}: {advice}"


def _unknown_model_text(spec: str) -> str:
    path = Path(spec)
    if path.suffix in WEIGHT_SUFFIXES:
        advice = "give it as the weights (--weights), and as the model what builds it"
        return f"{spec} is a file for weights, not one that torch.export wrote: {advice}; {MODEL_SPEC_TEXT}"
    if path.suffix == ".py":
        names = ", ".join(
            first_names_with_ellipsis([f"{path.name}:{name}" for name in public_names_defined_in_file(path)])
        )
        return f"{spec} names no factory in the file; add it after a colon" + (
            f": {names}" if names else f"; {MODEL_SPEC_TEXT}"
        )
    if path.is_dir():
        if any((path / name).is_file() for name in ADAPTER_FILE_NAMES):
            return f"{spec} {ADAPTER_REFUSED_TEXT}"
        return f"{spec} is a folder, not a model (folders are data: --data), without a config.json; {MODEL_SPEC_TEXT}"
    if spec in (*zoo.names(), *zoo.generator_names()):
        return f"{spec!r} is not a model spec; did you mean zoo:{spec}?"
    return add_sentence(f"{spec!r} is no model{nearest_paths_text(spec)}", MODEL_SPEC_TEXT)
