"""The box: a model, opened."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError, LayerError, OutputError
from .inputs.base import Inputs, check_channels_last, inputs_at_levels
from .inputs.batches import model_arguments
from .inputs.multi import MultiInput, Packed
from .model import relu_rules, state
from .model.batch_dependence import contrast_levels
from .model.batching import BatchSize, Padding, in_batches
from .model.first_forward import explain_failure, first_forward
from .model.hooks import Acts, Edit, StopForward, capture
from .model.isolation import IsolatedModel, Mode
from .model.layers import Layers
from .model.nan_checks import check_no_nan
from .model.outputs import OutputReader, Outputs, with_batch_axis
from .objectives import MODEL_ENDS, Objective, as_classes, check_classes, class_logit, logit
from .validation import address_list, check_class_names

MAX_BATCH_BYTES = 2**29  # what the activations of one automatic batch may hold


class Box:
    """A model with what its inputs are, what its output means and what its classes are called.

    `outputs` says what the output means; it is recognized from row sums when not given. `output` picks the tensor from
    a structure (default: `.logits`, `["logits"]`, else the only tensor (N, K)): a key, an index or a function.
    The model is run in eval (`mode="as-is"`: as it stands; batches may then be coupled) and left as it was.
    For speed on accelerators: `autocast` (torch.bfloat16 or torch.float16) runs a float32 model's forward in mixed
    precision, all else staying in float32; `channels_last` gives it images in that memory format.

    Raises InputError where the model can't take such inputs, OutputError where its output can't be understood.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        *,
        classes: Sequence[str] | None = None,
        outputs: Outputs | None = None,
        output: object = None,
        mode: Mode = "eval",
        autocast: torch.dtype | None = None,
        channels_last: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"a box opens a torch.nn.Module; got {type(model).__name__}")
        if not isinstance(inputs, Inputs):
            raise InputError(f"inputs is Pixels(...), Features(...) or MultiInput(...); got {type(inputs).__name__}")
        if mode not in ("eval", "as-is"):
            raise InputError(f'mode is "eval" or "as-is"; got {mode!r}')
        self.model, self.inputs, self.mode = model, inputs, mode
        self._options: dict[str, Any] = {"classes": classes, "outputs": outputs, "output": output}
        self._options |= {"autocast": autocast, "channels_last": channels_last}
        self.channels_last = check_channels_last(inputs, channels_last)
        self.output_reader = OutputReader(output, outputs)
        self._is_opening = self._is_refreshed = self._is_stale = False
        self._open()

    def reopen(self, model: nn.Module, inputs: Inputs | None = None) -> Box:
        """Another model, opened as this one is: the same inputs (or others), classes, outputs, mode and precision."""
        options = self._options | {"classes": self.classes, "outputs": self.outputs}
        return Box(model, inputs or self.inputs, mode=self.mode, **options)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or what another process gets, is opened there."""
        return _reopen, (type(self), self.model, self.inputs, self.mode, self._options)

    def _open(self) -> None:
        """Look at the model as it is now, in full precision, for rows are compared there."""
        self._is_opening = True
        try:
            self._model = model = IsolatedModel(self.model, self.mode)
            self.device, self.model_dtype, self.modules = model.device, model.dtype, model.modules_by_name
            self.dtype = torch.float64 if model.dtype == torch.float64 else torch.float32  # of images and results
            row_limits: tuple[int, int] = getattr(self.model, "row_limits", (1, 1024))  # that an exported graph takes
            self.min_rows, self.max_rows = row_limits  # of a batch
            self.autocast: torch.dtype | None = None
            self._run_first_forward()
            n_before: int | None = len(getattr(self, "classes", ())) or None
            self.classes = check_class_names(self._options["classes"], self.n_outputs, n_before)
            if self._options["autocast"] is not None:
                self._enable_autocast(self._options["autocast"])
            self._is_stale = False
        finally:
            self._is_opening = False

    def refresh(self, *, hooks: bool = True) -> None:
        """Open the model again if it was changed: moved, cast, given other modules or (`hooks`) new forward hooks.

        Every call does so by itself, but for hooks, most of which only look: one that is seen to change what passes is
        warned of, and the next call opens the model again. Class names must fit still. Raises OutputError.
        """
        if not self._is_opening and (self._is_stale or self._model.has_changed() or (hooks and self._model.late_hooks)):
            self._is_stale = True  # until it is open
            self._open()
        self._is_refreshed = True

    def _run_first_forward(self) -> None:
        """A first forward, on noise: which layers run, what the output means, whether rows are coupled."""
        noise = self.noise(3 if self.max_rows >= 3 else 1)
        contrast_inputs = inputs_at_levels(self.inputs, contrast_levels(self.inputs.shape, self.device)).to(self.dtype)
        self.profile, self.batch_dependent = first_forward(
            self._model, self.raw_output, noise, contrast_inputs, (self.min_rows, self.max_rows)
        )
        self.stochastic, self.stateless = (
            self.profile.stochastic,
            self._model.is_stateless,
        )  # asks for noise; a pure function
        self.layers: Layers = self.profile.layers
        probe_args = self.profile.output, self.inputs, lambda x: self._run(noise if x is None else x)
        self.outputs: Outputs = self._options["outputs"] or self.output_reader.infer_outputs(*probe_args)
        self.output_reader = OutputReader(self.output_reader.pick, self.outputs)
        self.flops_per_example = self.profile.flops_per_example  # of one example's way through
        output = self.output_reader.select_tensor(self.profile.output)
        self.n_outputs, self.output_map_shape = output.shape[1], tuple(output.shape[2:])

    def noise(self, n: int) -> Tensor:
        """Valid inputs (n, ...) that differ, the same each time."""
        return self.inputs.sample(n, torch.Generator(self.device).manual_seed(0)).to(self.dtype)

    def _run(self, x: Tensor) -> object:
        with self._model.run(grad=False):
            return self.raw_output(x)

    def _enable_autocast(self, autocast: torch.dtype) -> None:
        """From here on in mixed precision, if the model can. Raises InputError."""
        self.autocast = state.check_autocast(autocast, self.model_dtype)
        with explain_failure(f"run under autocast={autocast}"):
            self._run(self.noise(max(2, self.min_rows))[: self.max_rows])

    def isolated(
        self, *, grad: bool = True, rule: relu_rules.ReluRule | None = None, seed: int = 0
    ) -> AbstractContextManager[None]:
        """Everything that touches the model happens inside: it runs in its mode, and no trace is left.

        One thread at a time is inside a model. A model that draws runs on RNGs started at `seed`; the process's own go
        on as if it had not run. A model that draws nothing touches none.
        """
        if not self._is_refreshed:  # else the inputs were accepted just now
            self.refresh(hooks=False)
        self._is_refreshed = False
        return self._model.run(grad=grad, rule=rule, seed=seed)

    def forward(
        self, x: Tensor, addresses: Collection[str], edits: Mapping[str, Edit] | None = None, n_rows: int | None = None
    ) -> Acts:
        """Activations at the wanted addresses and ends, inside `quiet`. The forward stops at the deepest one needed.

        `rows` is how many come out where an edit gives more of them than it gets.
        """
        inner_addresses = {a: self.layers.resolve(a) for a in addresses if a not in MODEL_ENDS}
        needs_output = "output" in addresses or "logits" in addresses
        rewrites = {self.layers.resolve(a): edit for a, edit in edits.items()} if edits else {}
        n = x.shape[0]
        padding = Padding(n, max(n, self.min_rows))
        hook_dicts = bool(inner_addresses or rewrites)
        with (
            capture(self.modules, inner_addresses.values(), edits=rewrites, stop=not needs_output, padding=padding)
            if hook_dicts
            else state.NOTHING as captured,
            state.SharedNoise() if self.stochastic else state.NOTHING,
            self.output_reader.watch_final_op("logits" in addresses) as final_op,
        ):
            raw = self.raw_output(padding.pad(x)) if hook_dicts or needs_output else None
        acts = Acts({"input": x})
        for a, real in inner_addresses.items():
            if captured is None or real not in captured:
                raise LayerError(f"{a!r} did not run for this input")
            acts[a], acts.edges[a] = captured[real], captured.edges[real]
        if needs_output:
            output = with_batch_axis(self.output_reader.select_tensor(raw), n_rows or padding.padded_n, self.n_outputs)
            acts["output"] = padding.split(output)[0]
            if "logits" in addresses:
                logits = self.output_reader.logits(output, final_op)
                acts["logits"] = acts["output"] if logits is output else padding.split(logits)[0]
        return acts

    def raw_output(self, x: Tensor) -> object:
        """What the model itself returns for accepted inputs x (N, ...), run as it stands; None where it was stopped."""
        try:
            with state.autocast_to(self.device, self.autocast):
                args, named = model_arguments(self.inputs.encode(x), self.model_dtype, self.channels_last)
                return self.model(*args, **named)
        except StopForward:
            return None

    # -- asking the model ----------------------------------------------------------------------------------------------

    def validate_inputs(self, x: Packed) -> Tensor:
        """A checked copy of the inputs on the model's device, in the box's dtype; several packed. Raises InputError."""
        self.refresh(hooks=False)
        x = self.inputs.check(x)
        with state.out_of_inference():
            packed: Tensor = self.inputs.pack(x) if isinstance(self.inputs, MultiInput) else x  # type: ignore[assignment]
            return packed.detach().to(self.device, self.dtype, copy=True)

    def restore_structure(self, h: Tensor) -> Any:
        """What a method found for each input number, (N, ...), as the inputs came: a dict or tuple for several."""
        return self.inputs.unpack(h) if isinstance(self.inputs, MultiInput) else h

    def class_labels(self, y: Tensor | int | Sequence[int], n: int) -> Tensor:
        """Classes (n,) on the model's device; one class stands for all. Raises InputError."""
        y = as_classes(y)
        check_classes(y, n, self.n_outputs)
        with state.out_of_inference():
            return y.to(self.device, torch.long, copy=True).expand(n)

    def objective(self, target: int | Tensor | Objective | None, n: int) -> Objective:
        """What `target` means in attribution: a class, one an example (n,), None (the predicted one), an objective."""
        if target is None or isinstance(target, Objective):
            return target or logit()
        return class_logit(as_classes(target), n, self.n_outputs, self.device)

    def has_batch_axis(self, address: str) -> bool:
        """Whether the first axis of what is found there is the batch. Raises LayerError for an unknown address."""
        return address in MODEL_ENDS or self.layers.has_batch_axis(address)

    def check_objective(self, objective: Objective, n: int) -> Objective:
        """An objective that fits n examples and this model. Raises InputError or LayerError."""
        for a in objective.layers:
            if not self.has_batch_axis(a):
                mismatch = f"gives {self.layers[a].shape} for a batch" if ":" not in a else "mixes examples"
                raise LayerError(f"{a!r} {mismatch}: its first axis is not the batch, so it scores no row")
        return objective.check_batch(n)

    def require_class_scores(self, caller: str) -> None:
        """Raise OutputError unless the model gives each example one row of class scores."""
        if self.outputs == "regression":
            raise OutputError(f"{caller} needs classes, and a regression model has none; climb an objective instead")
        if shape := self.output_map_shape:
            raise OutputError(f"{caller} needs one row of class scores an example; the model gives a map {shape}")

    @property
    def _read_batch_limit(self) -> int:
        """As `batch_limit`, for forward passes alone, which hold few layers at a time."""
        return self.rows_within(self.profile.peak_bytes_per_example)

    @property
    def batch_limit(self) -> int:
        """How many examples an automatic batch takes: their activations fit in half a gigabyte."""
        return self.rows_within(self.profile.bytes_per_example)

    def rows_within(self, bytes_per_example: int) -> int:
        """How many examples an automatic batch takes where each holds so many bytes."""
        return max(1, min(1024, self.max_rows, MAX_BATCH_BYTES // max(1, bytes_per_example)))

    @property
    def accepts_proxies(self) -> bool:
        """Whether the model may be given what only stands for a tensor: its rows are free, and noise draws no shape."""
        return not (self.batch_dependent or self.stochastic) and self.min_rows == 1

    def batch_plan(self, n: int, batch_size: BatchSize, batch_dependent: bool = False) -> tuple[BatchSize, int]:
        """(size, most) for `in_batches`: rows that depend on one another are never split."""
        if batch_dependent or self.batch_dependent:
            return max(n, 1), n
        return min(batch_size, self.max_rows) if isinstance(batch_size, int) else batch_size, self.batch_limit

    def read(self, x: Tensor, addresses: str | Sequence[str], *, batch_size: BatchSize = "auto") -> dict[str, Tensor]:
        """Activations {address: (N, ...)} of inputs x, in the box's dtype. Raises LayerError for unknown addresses."""
        addresses = address_list(addresses)
        for a in addresses:
            if a not in MODEL_ENDS:
                self.layers.resolve(a)
        x = self.validate_inputs(x)

        def read_rows(rows: slice) -> dict[str, Tensor]:
            with self.isolated(grad=False):
                acts = self.forward(x[rows], addresses)
                return {a: h if h.is_complex() else h.to(self.dtype) for a, h in acts.items()}

        unsplittable = any(
            not self.has_batch_axis(a) for a in addresses
        )  # such a layer can't be put together from parts
        size, limit = self.batch_plan(len(x), batch_size, batch_dependent=unsplittable)
        parts = in_batches(
            read_rows, len(x), size, limit if self.batch_dependent or unsplittable else self._read_batch_limit
        )
        if len(parts) == 1:
            return {a: parts[0][a] for a in addresses}
        return {a: torch.cat([p[a] for p in parts]) for a in addresses}

    def __call__(self, x: Tensor, *, batch_size: BatchSize = "auto") -> Tensor:
        """The logits (N, K) of inputs x."""
        return self.read(x, ["logits"], batch_size=batch_size)["logits"]

    def probs(self, x: Tensor, *, batch_size: BatchSize = "auto") -> Tensor:
        """The probabilities (N, K) of inputs x: softmax of the logits, or sigmoid where outputs are multilabel."""
        return self.probs_from(self(x, batch_size=batch_size))

    def probs_from(self, logits: Tensor) -> Tensor:
        if self.outputs == "regression":
            raise OutputError("a regression model gives no probabilities; read box(x)")
        return logits.sigmoid() if self.outputs == "multilabel" else logits.softmax(1)

    def predict(self, x: Tensor, *, batch_size: BatchSize = "auto") -> Tensor:
        """The class (N,) with the largest output for each input. Raises NaNError where the model gives NaN."""
        if self.outputs == "regression":
            raise OutputError("a regression model predicts no class; read box(x)")
        return check_no_nan(self(x, batch_size=batch_size)).argmax(1)

    def __repr__(self) -> str:
        head = f"Box({type(self.model).__name__}, {self.inputs}, outputs={self.outputs!r}, {len(self.classes)} classes"
        notes = [f"mode={self.mode!r}"] * (self.mode != "eval")
        notes += ["rows are coupled: batches are never split"] * self.batch_dependent
        notes += [f"autocast={self.autocast}"] * (self.autocast is not None) + ["channels_last"] * self.channels_last
        return ", ".join([head, *notes]) + f", on {self.device})\n{self.layers}"


def _reopen(box_type: type[Box], model: nn.Module, inputs: Inputs, mode: Mode, options: dict[str, Any]) -> Box:
    return box_type(model, inputs, mode=mode, **options)
