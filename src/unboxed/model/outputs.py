"""The output of a model: which tensor is meant, what its numbers mean, and where the logits are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import InputError, OutputError
from ..inputs.base import Inputs
from .class_axis import find_class_axis
from .final_op import FinalOpNameRecorder, FinalOpRecorder
from .given_output_kinds import refuse_other_kind
from .incremental import to_dense
from .op_tables import FINAL_OP_NAME_BY_OUTPUT_KIND, SYMMETRIC_BOUNDED_OPS
from .output_choice import describe_output, find_output_key, infer_output_tensor
from .state import NULL_CONTEXT, waits_for_device_on_read

OutputKind = Literal["logits", "logprobs", "probs", "binary", "multilabel", "regression"]
SIGMOID_OUTPUT_KINDS = ("binary", "multilabel")
ONE_OUTPUT_KINDS_READ_AS_BINARY = ("logits", "probs", "multilabel")  # what one such output means: a yes or no

RunModelFn = Callable[[Tensor | None], Any]

MAX_ROUNDING_OF_SUM = 0.01  # of the sum of probabilities in half precision
MIN_PROBABILITY_SPREAD = 0.1  # by how much probabilities vary over inputs that are far apart
NO_OBJECT_CLASS_NAME = "no object"
ONE_OUTPUT_ADVICE = (
    'the model has one output: pass outputs="binary" (a yes/no logit or probability) or outputs="regression"'
)
UNCLEAR_PROBABILITIES_ADVICE = (
    "the outputs all lie between 0 and 1 and do not sum to 1, but their last op is not seen to be a sigmoid: pass "
    'outputs="multilabel" if each is a probability, outputs="logits" if not'
)
SYMMETRIC_FINAL_OP_ADVICE = (
    'in [-1, 1], which is neither a logit nor a probability: pass outputs="regression" if its value is what is wanted, '
    'outputs="binary" and output=lambda t: (t / 2 + 0.5).logit() if it is a yes or no'
)
LOGITS_CODE_BY_FINAL_OP = {
    "sigmoid": "output=lambda p: p.logit()",
    "softmax": 'output=lambda p: p.log(), outputs="logits"',
    "log_softmax": 'outputs="logits"',
}
SOFTMAX_AS_LABELS_TEXT = (
    'outputs="multilabel", but the outputs of each input sum to 1, as those of a softmax. Pass outputs="probs": the '
    "logits before it are then found"
)


class OutputReader:
    """Selects the output tensor in what the model returns, and finds its logits.

    Args:
        pick: Which tensor: a key, an index, a function of the output; None for the only one.
        outputs: What it means; None where that is not yet known.
        class_axis: The axis of the classes, moved to axis 1.
    """

    def __init__(self, pick: object, outputs: OutputKind | None, class_axis: int = 1) -> None:
        if outputs is not None and outputs not in get_args(OutputKind):
            raise InputError(f"outputs must be one of {', '.join(get_args(OutputKind))}; got {outputs!r}")
        self.pick, self.outputs, self.class_axis = pick, outputs, class_axis
        self.has_final_op = outputs in FINAL_OP_NAME_BY_OUTPUT_KIND
        self._is_verified = False  # whether the final op gives the output

    def from_raw_output(
        self, raw: Any, inputs: Inputs, run: RunModelFn, n_names: int | None, config_names: Sequence[str] = ()
    ) -> OutputReader:
        """The reader of a model that gave `raw`: it knows the axis of the classes, and what the output means.

        `run` runs the model on the same inputs again (None) or on others; it is called where all values are between 0
        and 1. `n_names` is the number of names that the caller gave, `config_names` are those of the model's config.
        Raises OutputError where something cannot be determined.
        """
        if self.pick is None and (key := find_output_key(raw, inputs)) is not None:
            return OutputReader(key, self.outputs).from_raw_output(raw, inputs, run, n_names, config_names)
        shape = self.select_tensor(raw).shape
        reader = OutputReader(self.pick, self.outputs, self._find_class_axis(shape, inputs, n_names, len(config_names)))
        n_outputs = reader.select_tensor(raw).shape[1]
        refuse_other_kind(reader.select_tensor(raw), self.outputs)
        if self.outputs == "logits" and n_outputs > 1:
            reader._refuse_probabilities(raw, inputs, run)
        if self.outputs == "binary" and n_outputs > 1:
            raise OutputError(_not_binary_text(n_outputs))
        if self.outputs != "regression" and n_outputs == 1:
            reader._refuse_symmetric_final_op(raw, run)
        outputs = reader.outputs or reader.infer_output_kind(raw, inputs, run, n_names)
        if n_outputs == 1 and outputs in ONE_OUTPUT_KINDS_READ_AS_BINARY:
            outputs = "binary"
        reader = OutputReader(self.pick, outputs, reader.class_axis)
        if reader.outputs in SIGMOID_OUTPUT_KINDS:
            reader.has_final_op = reader._is_sigmoid_output(raw, inputs, run)
        return reader

    def _find_class_axis(self, shape: Sequence[int], inputs: Inputs, n_names: int | None, n_config: int) -> int:
        """The axis of the classes."""
        if self.outputs == "regression" and n_names is None:
            return 1
        n_classes = n_names or next((k for k in (n_config, n_config + 1) if n_config and k in shape[1:]), None)
        if 1 in shape[1:] and (self.outputs == "binary" or n_names == 2) and n_names not in shape[1:]:
            n_classes = 1  # of two names, one is of the no
        return find_class_axis(shape, n_classes, inputs, is_arranged=callable(self.pick))

    def select_tensor(self, raw: Any) -> Tensor:
        """The output (N, K) or (N, K, ...) in what the model returned. Raises OutputError."""
        h = to_dense(self._select_output(raw))
        if not isinstance(h, Tensor) or not h.is_floating_point():
            raise OutputError(
                f"output={self.pick!r} picks {describe_output(h)} from {describe_output(raw)}; wanted a float tensor"
            )
        if h.ndim < 2:  # (N,), or () of a single example that was squeezed
            return h.reshape(-1, 1)
        if self.outputs == "binary" and h.ndim > 2 and 1 not in h.shape[1:]:
            return h[:, None]  # (N, H, W): one yes or no per position
        return h if self.class_axis == 1 else h.movedim(self.class_axis, 1)

    def _select_output(self, raw: Any) -> Any:
        if self.pick is None:
            return infer_output_tensor(raw)
        if callable(self.pick):
            return self.pick(raw)
        try:
            if isinstance(raw, Tensor) and isinstance(self.pick, (int, str)):
                raise KeyError  # a row of the batch, no output
            return getattr(raw, self.pick) if isinstance(self.pick, str) and hasattr(raw, self.pick) else raw[self.pick]
        except (KeyError, IndexError, TypeError) as error:
            raise OutputError(f"there is no {self.pick!r} in the model's output, {describe_output(raw)}") from error

    @property
    def key_notes(self) -> list[str]:
        """For a repr: which tensor is taken, where that is not plain."""
        return [] if self.pick in (None, "logits") or callable(self.pick) else [f"output={self.pick!r}"]

    def infer_output_kind(
        self, raw: Any, inputs: Inputs, run: RunModelFn | None = None, n_names: int | None = None
    ) -> OutputKind:
        """What the output means: from its row sums on a few inputs, and from its last op where these are ambiguous."""
        h = self.select_tensor(raw).detach().double()
        is_one = h.shape[1] == 1
        if is_one and n_names == 2:
            return "binary"
        if not is_one and self._are_probabilities(h, inputs, run):
            return "probs"
        if not is_one and self._are_log_probabilities(h, inputs, run):
            return "logprobs"
        if run is not None and _in_unit_interval(h) and self._ends_in("multilabel", run):
            return "multilabel"
        if is_one:
            raise OutputError(ONE_OUTPUT_ADVICE)
        if run is not None and _in_unit_interval(h) and self._looks_like_probabilities(inputs, run):
            raise OutputError(UNCLEAR_PROBABILITIES_ADVICE)
        return "logits"

    def _refuse_probabilities(self, raw: Any, inputs: Inputs, run: RunModelFn) -> None:
        """Raise OutputError for what a softmax or a sigmoid gives: as logits it would pass through a second softmax."""
        h = self.select_tensor(raw).detach().double()
        is_decision, is_constant = bool(((h == 0) | (h == 1)).all()), bool((h == h[:1]).all())
        if not _in_unit_interval(h) or is_decision or is_constant:  # a one-hot decision has no logits before it
            return
        kind: OutputKind
        if self._are_probabilities(h, inputs, run):
            what, kind = "probabilities that sum to 1", "probs"
        elif self._ends_in("multilabel", run):
            what, kind = "what a sigmoid gives", "multilabel"
        else:
            return
        is_found, hidden_advice = self._ends_in(kind, run), _hidden_logits_advice(FINAL_OP_NAME_BY_OUTPUT_KIND[kind])
        advice = f'Pass outputs="{kind}": the logits before it are then found' if is_found else hidden_advice
        span = f"from {float(h.min()):.3g} to {float(h.max()):.3g}"
        raise OutputError(f'outputs="logits", but the model gives {what}, {span}. {advice}')

    def _are_probabilities(self, h: Tensor, inputs: Inputs, run: RunModelFn | None) -> bool:
        """Whether outputs (N, K, ...) are at least 0 and sum to 1, and have these bounds: what a linear layer gives, as
        of least squares on one-hot labels, which sums to 1, too, leaves them on inputs that are far apart.
        """
        if not ((h >= 0).all() and _sums_to_one(h.sum(1))):
            return False
        return run is None or self._stays_within(0, 1, h, inputs, run)

    def _are_log_probabilities(self, h: Tensor, inputs: Inputs, run: RunModelFn | None) -> bool:
        """As `_are_probabilities`, of their logarithms."""
        if not ((h <= 0).all() and _sums_to_one(h.exp().sum(1))):
            return False
        return run is None or self._stays_within(-math.inf, 0, h, inputs, run)

    def _stays_within(self, low: float, high: float, h: Tensor, inputs: Inputs, run: RunModelFn) -> bool:
        """Whether the last op is not linear, and outputs for inputs that are far apart have these bounds."""
        with FinalOpNameRecorder() as last:
            extreme = self._far_apart_outputs(h, inputs, run)
        return not last.is_output_unbounded(extreme) and not ((extreme < low) | (extreme > high)).any()

    def _refuse_symmetric_final_op(self, raw: Any, run: RunModelFn) -> None:
        """Raise OutputError where the last op is a tanh or another that ends at -1 and 1, and no function undoes it."""
        if callable(self.pick) or not bool((self.select_tensor(raw).abs() <= 1).all()):
            return
        with FinalOpNameRecorder() as last:
            h = self.select_tensor(run(None))
        if (op := last.name_of_op_producing(h)) in SYMMETRIC_BOUNDED_OPS:
            raise OutputError(f"the one output ends in {op}, {SYMMETRIC_FINAL_OP_ADVICE}")

    def _looks_like_probabilities(self, inputs: Inputs, run: RunModelFn) -> bool:
        """Whether the outputs come after a sigmoid, or stay between 0 and 1 for inputs that are far apart, and vary.

        What a linear layer gives has no bounds, and is no probability.
        """
        with FinalOpRecorder(FINAL_OP_NAME_BY_OUTPUT_KIND["multilabel"]) as sigmoid, FinalOpNameRecorder() as last:
            h = self.select_tensor(run(None))
        if last.is_output_unbounded(h):
            return False
        if any(z.numel() == h.numel() for z, _ in sigmoid.calls):
            return True
        extreme = self._far_apart_outputs(h, inputs, run)
        spread = float((extreme.amax(0) - extreme.amin(0)).max())  # small in an untrained model
        return spread > MIN_PROBABILITY_SPREAD and _in_unit_interval(extreme)

    def _far_apart_outputs(self, h: Tensor, inputs: Inputs, run: RunModelFn) -> Tensor:
        """As many outputs as h (N, K, ...), of inputs that are as far apart as possible."""
        return self.select_tensor(run(_far_apart_inputs(inputs, len(h)).to(h.device))).detach()

    def _ends_in(self, kind: OutputKind, run: RunModelFn) -> bool:
        """Whether the last op is that of outputs of a kind, a softmax or a sigmoid, by one more forward pass."""
        with FinalOpRecorder(FINAL_OP_NAME_BY_OUTPUT_KIND[kind]) as final:
            output = self.select_tensor(run(None))
        z = final.input_of_op_producing(output)
        return z is not None and OutputReader(self.pick, kind, self.class_axis)._final_op_reproduces(z, output)

    def _is_sigmoid_output(self, raw: Any, inputs: Inputs, run: RunModelFn) -> bool:
        """Whether yes/no outputs are what a final sigmoid gives. Raises OutputError where it is hidden or a softmax."""
        if not _in_unit_interval(self.select_tensor(raw)):
            return False
        if self._ends_in("multilabel", run):
            return True
        if self._is_softmax_output(raw, inputs, run):
            raise OutputError(SOFTMAX_AS_LABELS_TEXT)
        if self._looks_like_probabilities(inputs, run):
            raise OutputError(f"the outputs are between 0 and 1, but {_hidden_final_op_text('sigmoid')}")
        return False

    def _is_softmax_output(self, raw: Any, inputs: Inputs, run: RunModelFn) -> bool:
        """Whether outputs that vary sum to one for each input, to rounding, also for inputs that are far apart."""
        h = self.select_tensor(raw)
        if h.shape[1] == 1 or bool((h == h[:1]).all()):
            return False
        far = self._far_apart_outputs(h, inputs, run)
        rounding = min(4 * h.shape[1] * torch.finfo(h.dtype).eps, MAX_ROUNDING_OF_SUM)
        sums = torch.cat([h, far]).double().sum(1)
        return _in_unit_interval(far) and bool(((sums - 1).abs() <= rounding).all())

    def recording_final_op(self, wants_logits: bool) -> AbstractContextManager[FinalOpRecorder | None]:
        """Record the model's final softmax or sigmoid, where logits are wanted and the model has one."""
        if not (wants_logits and self.has_final_op and self.outputs is not None):
            return NULL_CONTEXT
        return FinalOpRecorder(FINAL_OP_NAME_BY_OUTPUT_KIND[self.outputs])

    def logits(self, output: Tensor, final: FinalOpRecorder | None) -> Tensor:
        """The pre-softmax values (N, K); of a yes/no output z the pair (-z/2, z/2), whose softmax is its sigmoid.

        Raises OutputError where they cannot be found.
        """
        z = self._final_op_input(output, final)
        return torch.cat([-z / 2, z / 2], 1) if self.outputs == "binary" else z

    def _final_op_input(self, output: Tensor, final: FinalOpRecorder | None) -> Tensor:
        """The input of the final op, or the output where there is none."""
        if final is None:
            return output
        pre_activation = final.input_of_op_producing(output)
        if pre_activation is not None and self._final_op_reproduces(pre_activation, output):
            return pre_activation
        raise OutputError(f"the model gives {self.outputs}, but {_hidden_final_op_text(final.op)}")

    @torch.no_grad()
    def _final_op_reproduces(self, z: Tensor, output: Tensor) -> bool:
        """Whether the final op on these logits gives the output: nothing was overwritten or transposed.

        On an accelerator, which would have to be waited for, it is checked once.
        """
        if self._is_verified and waits_for_device_on_read(output.device):
            return True
        activations = {"logprobs": z.log_softmax, "probs": z.softmax}
        recomputed = activations[self.outputs](1) if self.outputs in activations else z.sigmoid()
        self._is_verified = bool(
            torch.allclose(recomputed.float(), output.float(), rtol=1e-2, atol=1e-3, equal_nan=True)
        )
        return self._is_verified


def with_batch_axis(output: Tensor, n_rows: int, n_columns: int) -> Tensor:
    """The output (n, K, ...), also where the model squeezes a batch of one. Raises OutputError."""
    shape = output.shape
    if n_rows == 1 and shape == (n_columns, 1):
        return output.T
    if shape[0] != n_rows:
        raise OutputError(f"the model gives {tuple(shape)} for {n_rows} inputs: its first axis is not the batch")
    return output


def _hidden_final_op_text(op: str) -> str:
    where = f"its {op} is not its last op, or is hidden in scripted code"
    return f"{where}: the logits cannot be found. {_hidden_logits_advice(op)}"


def _hidden_logits_advice(op: str) -> str:
    return f"Let the model return logits, or pass Box(..., {LOGITS_CODE_BY_FINAL_OP[op]})"


def _not_binary_text(n_outputs: int) -> str:
    two = ' outputs="logits" is for two classes with an output each' * (n_outputs == 2)
    return f'outputs="binary" is for one yes/no output per example; the model has {n_outputs}.{two}'


def _in_unit_interval(h: Tensor) -> bool:
    return bool(((h >= 0) & (h <= 1)).all())


def _far_apart_inputs(inputs: Inputs, n: int) -> Tensor:
    """Valid inputs (n, ...) as far apart as possible: outputs that happen to be between 0 and 1 then leave it."""
    samples = inputs.random_inputs(n, torch.Generator().manual_seed(1))
    is_scalable = not getattr(inputs, "categories", None) and not hasattr(inputs, "parts")
    return inputs.clip(40 * samples - 20) if is_scalable else samples


def _sums_to_one(sums: Tensor) -> bool:
    return bool(torch.allclose(sums, torch.ones_like(sums), atol=2e-2 if sums.dtype != torch.float64 else 1e-2, rtol=0))


def class_names_in_config(model: nn.Module) -> tuple[str, ...]:
    """The class names in the `config.id2label` of a Hugging Face model, by their numbers; () where it has none."""
    names = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(names, Mapping) or set(names) != set(range(len(names))):
        return ()
    return tuple(str(names[k]) for k in range(len(names)))


def usable_config_class_names(names: Sequence[str], n_outputs: int, is_map: bool) -> tuple[str, ...] | None:
    """The names of a config, where they are no placeholders and name each output.

    Detectors have one class more, the last: no object.
    """
    if len(names) == n_outputs - 1 and is_map:
        names = (*names, NO_OBJECT_CLASS_NAME)
    is_default = all(name == f"LABEL_{k}" for k, name in enumerate(names))
    return None if is_default or len(names) != n_outputs else tuple(names)
