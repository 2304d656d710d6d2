"""A model spec: `zoo:NAME`, `module:factory`, `path/to/file.py:factory` or a .pt2 file."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from .. import zoo
from ..errors import ModelError
from ..inputs.base import Inputs
from ..inputs.features import Features
from ..inputs.multi import MultiInput
from ..inputs.pixels import Pixels
from ..validation import check_seed
from .exported import exported
from .factories import build, cut, defined

KINDS = "a model is zoo:NAME, module:factory, path/to/file.py:factory or a torch.export file (.pt2)"
WEIGHTS = {".pt", ".pth", ".ckpt", ".bin", ".safetensors"}


def model(spec: str, *, trained: bool = True, seed: int = 0) -> tuple[nn.Module, Inputs | None]:
    """The model that `spec` names, and what its inputs are if the factory says so.

    A factory is a Module class, a Module, or a function without arguments that returns a Module or (Module, inputs).
    `trained=False` takes a zoo model without its weights; a factory's random numbers start at `seed`. Raises
    ModelError.
    """
    spec, seed = str(spec), check_seed(seed)
    if spec.startswith("zoo:"):
        return zoo.load(spec.removeprefix("zoo:"), weights="trained" if trained else None)
    if spec.endswith(".pt2"):
        return exported(Path(spec)), None
    if ":" not in spec:
        raise ModelError(_refusal(spec))
    return _model_and_inputs(build(spec, ModelError, seed), spec)


def _model_and_inputs(made: object, spec: str) -> tuple[nn.Module, Inputs | None]:
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        wanted = "wanted a torch.nn.Module, or (Module, inputs)"
        raise ModelError(f"{spec} made a {type(made).__name__}; {wanted}{_hint(model)}")
    if inputs is not None and not isinstance(inputs, (Pixels, Features, MultiInput)):
        wanted = "wanted ub.Pixels, ub.Features or ub.MultiInput"
        raise ModelError(f"{spec} returned {type(inputs).__name__} as its inputs; {wanted}")
    return model, inputs


def _hint(made: object) -> str:
    return (
        ". Weights alone are no model: load them into the model that they belong to" if isinstance(made, dict) else ""
    )


def _refusal(spec: str) -> str:
    path = Path(spec)
    if path.suffix in WEIGHTS:
        advice = "give it as the weights (--weights), and as the model what builds it"
        return f"{spec} holds weights, not a network: {advice}; {KINDS}"
    if path.suffix == ".py":
        names = ", ".join(cut([f"{path.name}:{name}" for name in defined(path)]))
        return f"{spec} names no factory in the file; add it after a colon" + (f": {names}" if names else f"; {KINDS}")
    if path.is_dir():
        return f"{spec} is a folder, not a model (folders are data: --data); {KINDS}"
    if spec in zoo.names():
        return f"{spec!r} is no model by itself; did you mean zoo:{spec}?"
    return f"{spec!r} is no model; {KINDS}"
