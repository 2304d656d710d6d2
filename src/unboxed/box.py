"""The box: a model, opened."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError, LayerError, OutputError
from .inputs.base import Inputs, at_levels, laid_out
from .inputs.batches import model_arguments
from .inputs.multi import MultiInput, Packed
from .model import relu_rules, state
from .model.answers import without_nan
from .model.batch_dependence import levels
from .model.batching import BatchSize, in_batches
from .model.first_forward import first_forward, refusing
from .model.hooks import Acts, Edit, Padding, Stop, tapped
from .model.isolation import Isolated, Mode
from .model.layers import Layers
from .model.outputs import Outputs, Reader, in_rows
from .objectives import ENDS, Held, Objective, as_classes, check_classes, logit
from .validation import class_names, listed_addresses

BATCH_BYTES = 2**29  # what the activations of one automatic batch may hold


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
        self._asked: dict[str, Any] = {"classes": classes, "outputs": outputs, "output": output}
        self._asked |= {"autocast": autocast, "channels_last": channels_last}
        self.channels_last = laid_out(inputs, channels_last)
        self.output_reader = Reader(output, outputs)
        self._opening = self._fresh = self._stale = False
        self._open()

    def around(self, model: nn.Module, inputs: Inputs | None = None) -> Box:
        """Another model, opened as this one is: the same inputs (or others), classes, outputs, mode and precision."""
        asked = self._asked | {"classes": self.classes, "outputs": self.outputs}
        return Box(model, inputs or self.inputs, mode=self.mode, **asked)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or what another process gets, is opened there."""
        return _reopened, (type(self), self.model, self.inputs, self.mode, self._asked)

    def _open(self) -> None:
        """Look at the model as it is now, in full precision, for rows are compared there."""
        self._opening = True
        try:
            self._model = model = Isolated(self.model, self.mode)
            self.device, self.model_dtype, self.modules = model.device, model.dtype, model.named
            self.dtype = torch.float64 if model.dtype == torch.float64 else torch.float32  # of images and results
            rows: tuple[int, int] = getattr(self.model, "exported_rows", (1, 1024))  # that an exported graph takes
            self.min_rows, self.max_rows = rows  # of a batch
            self.autocast: torch.dtype | None = None
            self._try_out()
            before: int | None = len(getattr(self, "classes", ())) or None
            self.classes = class_names(self._asked["classes"], self.n_outputs, before)
            if self._asked["autocast"] is not None:
                self._narrow(self._asked["autocast"])
            self._stale = False
        finally:
            self._opening = False

    def refresh(self, *, hooks: bool = True) -> None:
        """Open the model again if it was changed: moved, cast, given other modules or (`hooks`) new forward hooks.

        Every call does so by itself, but for hooks, most of which only look: one that is seen to change what passes is
        warned of, and the next call opens the model again. Class names must fit still. Raises OutputError.
        """
        if not self._opening and (self._stale or self._model.has_changed() or (hooks and self._model.late_hooks)):
            self._stale = True  # until it is open
            self._open()
        self._fresh = True

    def _try_out(self) -> None:
        """A first forward, on noise: which layers run, what the output means, whether rows are coupled."""
        noise = self.noise(3 if self.max_rows >= 3 else 1)
        apart = at_levels(self.inputs, levels(self.inputs.shape, self.device)).to(self.dtype)
        rows = self.min_rows, self.max_rows
        self.profile, self.coupled = first_forward(self._model, self.raw_output, noise, apart, rows)
        self.noisy, self.stateless = self.profile.noisy, self._model.stateless  # asks for noise; a pure function
        self.layers: Layers = self.profile.layers
        again = self.profile.output, self.inputs, lambda x: self._run(noise if x is None else x)
        self.outputs: Outputs = self._asked["outputs"] or self.output_reader.recognize(*again)
        self.output_reader = Reader(self.output_reader.pick, self.outputs)
        self.flops = self.profile.flops_each  # of one example's way through
        seen = self.output_reader.tensor(self.profile.output)
        self.n_outputs, self.output_map_shape = seen.shape[1], tuple(seen.shape[2:])

    def noise(self, n: int) -> Tensor:
        """Valid inputs (n, ...) that differ, the same each time."""
        return self.inputs.sample(n, torch.Generator(self.device).manual_seed(0)).to(self.dtype)

    def _run(self, x: Tensor) -> object:
        with self._model.run(grad=False):
            return self.raw_output(x)

    def _narrow(self, autocast: torch.dtype) -> None:
        """From here on in mixed precision, if the model can. Raises InputError."""
        self.autocast = state.check_autocast(autocast, self.model_dtype)
        with refusing(f"run under autocast={autocast}"):
            self._run(self.noise(max(2, self.min_rows))[: self.max_rows])

    def quiet(
        self, *, grad: bool = True, rule: relu_rules.Rule | None = None, seed: int = 0
    ) -> AbstractContextManager[None]:
        """Everything that touches the model happens inside: it runs in its mode, and no trace is left.

        One thread at a time is inside a model. A model that draws runs on RNGs started at `seed`; the process's own go
        on as if it had not run. A model that draws nothing touches none.
        """
        if not self._fresh:  # else the inputs were accepted just now
            self.refresh(hooks=False)
        self._fresh = False
        return self._model.run(grad=grad, rule=rule, seed=seed)

    def forward(
        self, x: Tensor, wanted: Collection[str], edits: Mapping[str, Edit] | None = None, rows: int | None = None
    ) -> Acts:
        """Activations at the wanted addresses and ends, inside `quiet`. The forward stops at the deepest one needed.

        `rows` is how many come out where an edit gives more of them than it gets.
        """
        inner = {a: self.layers.resolve(a) for a in wanted if a not in ENDS}
        to_end = bool({"output", "logits"} & set(wanted))
        rewrites = {self.layers.resolve(a): edit for a, edit in (edits or {}).items()}
        padding = Padding(len(x), max(len(x), self.min_rows))
        taps = Acts()
        with ExitStack() as stack:
            if inner or rewrites:
                tap = tapped(self.modules, inner.values(), edits=rewrites, stop=not to_end, padding=padding)
                taps = stack.enter_context(tap)
            if self.noisy:
                stack.enter_context(state.SharedNoise())
            final = stack.enter_context(self.output_reader.watching("logits" in wanted))
            raw = self.raw_output(padding.pad(x)) if inner or rewrites or to_end else None
        if missing := [a for a, real in inner.items() if real not in taps]:
            raise LayerError(f"{missing[0]!r} did not run for this input")
        acts = Acts({"input": x})
        for a, real in inner.items():
            acts[a], acts.edges[a] = taps[real], taps.edges[real]
        if to_end:
            output = in_rows(self.output_reader.tensor(raw), rows or padding.size, self.n_outputs)
            acts["output"] = padding.split(output)[0]
            if "logits" in wanted:
                acts["logits"] = padding.split(self.output_reader.logits(output, final))[0]
        return acts

    def raw_output(self, x: Tensor) -> object:
        """What the model itself returns for accepted inputs x (N, ...), run as it stands; None where it was stopped."""
        try:
            with state.narrowed(self.device, self.autocast):
                args, named = model_arguments(self.inputs.encode(x), self.model_dtype, self.channels_last)
                return self.model(*args, **named)
        except Stop:
            return None

    # -- asking the model ----------------------------------------------------------------------------------------------

    def accept(self, x: Packed) -> Tensor:
        """A checked copy of the inputs on the model's device, in the box's dtype; several packed. Raises InputError."""
        self.refresh(hooks=False)
        x = self.inputs.check(x)
        with torch.inference_mode(False):
            packed: Tensor = self.inputs.pack(x) if isinstance(self.inputs, MultiInput) else x  # type: ignore[assignment]
            return packed.detach().to(self.device, self.dtype, copy=True)

    def shaped(self, h: Tensor) -> Any:
        """What a method found for each input number, (N, ...), as the inputs came: a dict or tuple for several."""
        return self.inputs.unpack(h) if isinstance(self.inputs, MultiInput) else h

    def labels(self, y: Tensor | int | Sequence[int], n: int) -> Tensor:
        """Classes (n,) on the model's device; one class stands for all. Raises InputError."""
        y = as_classes(y)
        check_classes(y, n, self.n_outputs)
        with torch.inference_mode(False):
            return y.to(self.device, torch.long, copy=True).expand(n)

    def objective(self, target: int | Tensor | Objective | None, n: int) -> Objective:
        """What `target` means in attribution: a class, one an example (n,), None (the predicted one), an objective."""
        if target is None or isinstance(target, Objective):
            return target or logit()
        classes = Held(as_classes(target))
        check_classes(classes, n, self.n_outputs)
        if not classes.value.ndim:
            return logit(int(classes.value))
        with torch.inference_mode(False):
            return logit(classes.moved(self.device, torch.long))

    def has_rows(self, address: str) -> bool:
        """Whether the first axis of what is found there is the batch. Raises LayerError for an unknown address."""
        return address in ENDS or self.layers.has_rows(address)

    def checked(self, objective: Objective, n: int) -> Objective:
        """An objective that fits n examples and this model. Raises InputError or LayerError."""
        for a in objective.layers:
            if not self.has_rows(a):
                gives = f"gives {self.layers[a].shape} for a batch" if ":" not in a else "mixes examples"
                raise LayerError(f"{a!r} {gives}: its first axis is not the batch, so it scores no row")
        return objective.fits(n)

    def one_class_each(self, what: str) -> None:
        """Raise OutputError unless the model gives each example one row of class scores."""
        if self.outputs == "regression":
            raise OutputError(f"{what} needs classes, and a regression model has none; climb an objective instead")
        if shape := self.output_map_shape:
            raise OutputError(f"{what} needs one row of class scores an example; the model gives a map {shape}")

    @property
    def _read_limit(self) -> int:
        """As `batch_limit`, for forward passes alone, which hold few layers at a time."""
        return self.fitting(self.profile.bytes_peak)

    @property
    def batch_limit(self) -> int:
        """How many examples an automatic batch takes: their activations fit in half a gigabyte."""
        return self.fitting(self.profile.bytes_each)

    def fitting(self, bytes_each: int) -> int:
        """How many examples an automatic batch takes where each holds so many bytes."""
        return max(1, min(1024, self.max_rows, BATCH_BYTES // max(1, bytes_each)))

    @property
    def takes_others(self) -> bool:
        """Whether the model may be given what only stands for a tensor: its rows are free, and noise draws no shape."""
        return not (self.coupled or self.noisy) and self.min_rows == 1

    def splits(self, n: int, batch_size: BatchSize, coupled: bool = False) -> tuple[BatchSize, int]:
        """(size, most) for `in_batches`: rows that depend on one another are never split."""
        if coupled or self.coupled:
            return max(n, 1), n
        return min(batch_size, self.max_rows) if isinstance(batch_size, int) else batch_size, self.batch_limit

    def read(self, x: Tensor, addresses: str | Sequence[str], *, batch_size: BatchSize = "auto") -> dict[str, Tensor]:
        """Activations {address: (N, ...)} of inputs x, in the box's dtype. Raises LayerError for unknown addresses."""
        addresses = listed_addresses(addresses)
        for a in addresses:
            if a not in ENDS:
                self.layers.resolve(a)
        x = self.accept(x)

        def part(rows: slice) -> dict[str, Tensor]:
            with self.quiet(grad=False):
                acts = self.forward(x[rows], addresses)
                return {a: h if h.is_complex() else h.to(self.dtype) for a, h in acts.items()}

        whole = any(not self.has_rows(a) for a in addresses)  # such a layer can't be put together from parts
        size, most = self.splits(len(x), batch_size, coupled=whole)
        parts = in_batches(part, len(x), size, most if self.coupled or whole else self._read_limit)
        if len(parts) == 1:
            return {a: parts[0][a] for a in addresses}
        return {a: torch.cat([p[a] for p in parts]) for a in addresses}

    def __call__(self, x: Tensor, *, batch_size: BatchSize = "auto") -> Tensor:
        """The logits (N, K) of inputs x."""
        return self.read(x, ["logits"], batch_size=batch_size)["logits"]

    def probs(self, x: Tensor, *, batch_size: BatchSize = "auto") -> Tensor:
        """The probabilities (N, K) of inputs x: softmax of the logits, or sigmoid where outputs are multilabel."""
        return self.probs_of(self(x, batch_size=batch_size))

    def probs_of(self, logits: Tensor) -> Tensor:
        if self.outputs == "regression":
            raise OutputError("a regression model gives no probabilities; read box(x)")
        return logits.sigmoid() if self.outputs == "multilabel" else logits.softmax(1)

    def predict(self, x: Tensor, *, batch_size: BatchSize = "auto") -> Tensor:
        """The class (N,) with the largest output for each input. Raises NaNError where the model gives NaN."""
        if self.outputs == "regression":
            raise OutputError("a regression model predicts no class; read box(x)")
        return without_nan(self(x, batch_size=batch_size)).argmax(1)

    def __repr__(self) -> str:
        head = f"Box({type(self.model).__name__}, {self.inputs}, outputs={self.outputs!r}, {len(self.classes)} classes"
        notes = [f"mode={self.mode!r}"] * (self.mode != "eval")
        notes += ["rows are coupled: batches are never split"] * self.coupled
        notes += [f"autocast={self.autocast}"] * (self.autocast is not None) + ["channels_last"] * self.channels_last
        return ", ".join([head, *notes]) + f", on {self.device})\n{self.layers}"


def _reopened(kind: type[Box], model: nn.Module, inputs: Inputs, mode: Mode, asked: dict[str, Any]) -> Box:
    return kind(model, inputs, mode=mode, **asked)
