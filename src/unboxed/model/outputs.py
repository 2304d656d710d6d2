"""The output of a model: which tensor is meant, what its numbers mean, and where the logits are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import InputError, OutputError, warn
from ..inputs.base import Inputs
from .hooks import FinalOpRecorder, tensors_in
from .incremental import to_dense
from .op_tables import FINAL_OPS
from .state import NO_CONTEXT, syncs_on_read

Outputs = Literal["logits", "logprobs", "probs", "multilabel", "regression"]


MIN_PROBABILITY_SPREAD = 0.1  # by how much probabilities vary over inputs that are far apart


class OutputReader:
    """Selects the output tensor in what the model returns, and finds its logits."""

    def __init__(self, pick: object, outputs: Outputs | None) -> None:
        if outputs is not None and outputs not in get_args(Outputs):
            raise InputError(f"outputs must be one of {', '.join(get_args(Outputs))}; got {outputs!r}")
        self.pick, self.outputs = pick, outputs
        self._is_verified = False  # whether the final op gives the output

    def select_tensor(self, raw: Any) -> Tensor:
        """The output (N, K) or (N, K, ...) in what the model returned. Raises OutputError."""
        h = to_dense(self._select_output(raw))
        if not isinstance(h, Tensor) or not h.is_floating_point() or h.ndim == 0:
            raise OutputError(f"output={self.pick!r} picks {_describe(h)} from {_describe(raw)}; wanted a float tensor")
        return h[:, None] if h.ndim == 1 else h

    def _select_output(self, raw: Any) -> Any:
        if self.pick is None:
            return _default_output(raw)
        if callable(self.pick):
            return self.pick(raw)
        try:
            return getattr(raw, self.pick) if isinstance(self.pick, str) and hasattr(raw, self.pick) else raw[self.pick]
        except (KeyError, IndexError, TypeError) as error:
            raise OutputError(f"there is no {self.pick!r} in the model's output, {_describe(raw)}") from error

    def infer_outputs(self, raw: Any, inputs: Inputs, run: Callable[[Tensor | None], Any] | None = None) -> Outputs:
        """What the output means: from its row sums on a few inputs, and from its last op where these are ambiguous.

        `run` runs the model on the same inputs again (None) or on others; it is called where all values are between 0
        and 1.
        """
        h = self.select_tensor(raw).detach().double()
        if h.shape[1] == 1:
            raise OutputError(
                'the model has one output: pass outputs="multilabel" (a yes/no logit) or outputs="regression"'
            )
        if (h >= 0).all() and _sums_to_one(h.sum(1)):
            return "probs"
        if (h <= 0).all() and _sums_to_one(h.exp().sum(1)):
            return "logprobs"
        if run is None or not bool(((h > 0) & (h < 1)).all()):
            return "logits"
        if self._ends_in_sigmoid(run):
            return "multilabel"
        extreme_outputs = self.select_tensor(run(_extreme_inputs(inputs, len(h)).to(h.device))).detach()
        spread = float((extreme_outputs.amax(0) - extreme_outputs.amin(0)).max())  # small in an untrained model
        is_in_unit_interval = bool(((extreme_outputs > 0) & (extreme_outputs < 1)).all())
        return _warn_ambiguous() if spread > MIN_PROBABILITY_SPREAD and is_in_unit_interval else "logits"

    def _ends_in_sigmoid(self, run: Callable[[Tensor | None], Any]) -> bool:
        """Whether the last op is a sigmoid, by one more forward pass."""
        with FinalOpRecorder(FINAL_OPS["multilabel"]) as final:
            output = self.select_tensor(run(None))
        z = final.input_of(output)
        return z is not None and OutputReader(self.pick, "multilabel")._reproduces(z, output)

    def watch_final_op(self, wants_logits: bool) -> AbstractContextManager[FinalOpRecorder | None]:
        """Record the model's final softmax or sigmoid, where logits are wanted and the model has one."""
        return FinalOpRecorder(FINAL_OPS[self.outputs]) if wants_logits and self.outputs in FINAL_OPS else NO_CONTEXT

    def logits(self, output: Tensor, final: FinalOpRecorder | None) -> Tensor:
        """The pre-softmax values (N, K). Raises OutputError where they cannot be found."""
        if final is None or (
            self.outputs == "multilabel" and not any(z.numel() == output.numel() for z, _ in final.calls)
        ):
            return output
        pre_activation = final.input_of(output)
        if pre_activation is not None and self._reproduces(pre_activation, output):
            return pre_activation
        raise OutputError(
            f"the model gives {self.outputs}, but its {final.op} is not its last op, or is hidden in scripted code: "
            "the logits cannot be found. Let the model return logits"
        )

    @torch.no_grad()
    def _reproduces(self, z: Tensor, output: Tensor) -> bool:
        """Whether the final op on these logits gives the output: nothing was overwritten or transposed.

        On an accelerator, which would have to be waited for, it is checked once.
        """
        if self._is_verified and syncs_on_read(output.device):
            return True
        activations = {"logprobs": z.log_softmax, "probs": z.softmax}
        recomputed = activations[self.outputs](1) if self.outputs in activations else z.sigmoid()
        self._is_verified = bool(
            torch.allclose(recomputed.float(), output.float(), rtol=1e-2, atol=1e-3, equal_nan=True)
        )
        return self._is_verified


def with_batch_axis(output: Tensor, n: int, n_outputs: int) -> Tensor:
    """The output (n, K, ...), also where the model squeezes a batch of one. Raises OutputError."""
    shape = output.shape
    if n == 1 and shape == (n_outputs, 1):
        return output.T
    if shape[0] != n:
        raise OutputError(f"the model gives {tuple(shape)} for {n} inputs: its first axis is not the batch")
    return output


def _default_output(raw: Any) -> Any:
    if isinstance(raw := to_dense(raw), Tensor):
        return raw
    logits = to_dense(raw.get("logits") if isinstance(raw, Mapping) else getattr(raw, "logits", None))
    if isinstance(logits, Tensor):
        return logits
    candidates = [h for h in tensors_in(raw) if h.ndim == 2 and h.is_floating_point()]
    if len(candidates) != 1:
        raise OutputError(
            f"the model gives {_describe(raw)}, in which {len(candidates)} tensors are (N, K): pass which one is "
            'meant, as a key, an index or a function: Box(..., output="name")'
        )
    return candidates[0]


def _extreme_inputs(inputs: Inputs, n: int) -> Tensor:
    """Valid inputs (n, ...) as far apart as possible: outputs that happen to be between 0 and 1 then leave it."""
    samples = inputs.random_inputs(n, torch.Generator().manual_seed(1))
    is_scalable = not getattr(inputs, "categories", None) and not hasattr(inputs, "parts")
    return inputs.clip(40 * samples - 20) if is_scalable else samples


def _warn_ambiguous() -> Outputs:
    warn(
        "the outputs all lie between 0 and 1 and do not sum to 1, but their last op is not seen to be a sigmoid; they "
        'are read as logits. Pass outputs="multilabel" if each is a probability, else outputs="logits"'
    )
    return "logits"


def _sums_to_one(sums: Tensor) -> bool:
    return bool(torch.allclose(sums, torch.ones_like(sums), atol=2e-2 if sums.dtype != torch.float64 else 1e-2, rtol=0))


def _describe(raw: Any) -> str:
    if isinstance(raw, Tensor):
        return f"a tensor {tuple(raw.shape)}"
    if isinstance(raw, Mapping):
        return f"{type(raw).__name__} with {', '.join(map(str, raw))}"
    return f"a {type(raw).__name__}" + (f" of {len(raw)}" if isinstance(raw, (tuple, list)) else "")


def class_names_in_config(model: nn.Module, n_outputs: int) -> tuple[str, ...] | None:
    """The class names in the `config.id2label` of a Hugging Face model; None where it names not each of the outputs."""
    names = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(names, Mapping) or set(names) != set(range(n_outputs)):
        return None
    is_default = all(names[k] == f"LABEL_{k}" for k in range(n_outputs))
    return None if is_default else tuple(str(names[k]) for k in range(n_outputs))
