"""The box: a model, opened."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from threading import RLock
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .errors import InputError, LayerError, OutputError
from .inputs import Inputs, laid_out
from .net import layers, quiet, rules
from .net.batching import BatchSize, in_batches
from .net.layers import Layers
from .net.outputs import Outputs, Reader
from .net.taps import Acts, Edit, Padding, Stop, named_modules, tapped
from .objectives import ENDS, Objective, as_classes, check_classes, logit
from .several import Packed, Several

BATCH_BYTES = 2**29  # what the activations of one automatic batch may hold


class Box:
    """A net with what its inputs are, what its output means and what its classes are called.

    `outputs` says what the output means; it is recognized from row sums when not given. `output` picks the tensor from
    a structure (default: `.logits`, `["logits"]`, else the only tensor (N, K)): a key, an index or a function.
    The net is run in eval (`mode="as-is"`: as it stands; batches may then be coupled) and left as it was.
    For speed on accelerators: `autocast` (torch.bfloat16 or torch.float16) runs a float32 net's forward in mixed
    precision, all else staying in float32; `channels_last` gives it images in that memory format.

    Raises InputError where the net can't take such inputs, OutputError where its output can't be understood.
    """

    def __init__(
        self,
        net: nn.Module,
        inputs: Inputs,
        *,
        classes: Sequence[str] | None = None,
        outputs: Outputs | None = None,
        output: object = None,
        mode: Literal["eval", "as-is"] = "eval",
        autocast: torch.dtype | None = None,
        channels_last: bool = False,
    ) -> None:
        if not isinstance(net, nn.Module):
            raise InputError(f"a box opens a torch.nn.Module; got {type(net).__name__}")
        if not isinstance(inputs, Inputs):
            raise InputError(f"inputs is Pixels(...), Features(...) or Several(...); got {type(inputs).__name__}")
        if mode not in ("eval", "as-is"):
            raise InputError(f'mode is "eval" or "as-is"; got {mode!r}')
        self.net, self.inputs, self.mode = net, inputs, mode
        first = next((p for p in (*net.parameters(), *net.buffers()) if p.is_floating_point()), torch.empty(0))
        self.device, self.net_dtype = first.device, first.dtype
        self.dtype = torch.float64 if first.dtype == torch.float64 else torch.float32  # of images and results
        self.modules = named_modules(net)
        self._unique = tuple(dict.fromkeys((*net.modules(), *self.modules.values())))
        if any(is_lazy(p) for p in (*net.parameters(), *net.buffers())):
            raise InputError("the net has lazy modules without parameters yet: run it once on a batch, then open it")
        self._graphless = any(p.is_inference() for p in net.parameters())
        self._written: tuple[nn.Parameter, ...] = ()  # that the net itself writes while it runs
        self._lock = RLock()
        rows: tuple[int, int] = getattr(net, "exported_rows", (1, 1024))  # that the graph of an exported net takes
        self._least, self._most = rows
        self._reader = Reader(output, outputs)
        self.autocast: torch.dtype | None = None  # the first look is in full precision: rows are compared there
        self.channels_last = laid_out(inputs, channels_last)
        self._look(outputs)
        self.classes = self._names(classes)
        if autocast is not None:
            self._narrow(autocast)

    def around(self, net: nn.Module) -> Box:
        """Another net, opened as this one is: the same inputs, classes, outputs, mode and precision."""
        return Box(
            net, self.inputs, classes=self.classes, outputs=self.outputs, output=self._reader.pick, mode=self.mode,
            autocast=self.autocast, channels_last=self.channels_last,
        )  # fmt: skip

    def _look(self, outputs: Outputs | None) -> None:
        """A first look at the net, on noise: which layers run, what the output means, whether rows are coupled."""
        generator = torch.Generator(self.device).manual_seed(0)
        noise = self.inputs.sample(4 if self._most >= 3 else 1, generator).to(self.dtype)
        found: list[layers.Survey] = []
        self._written = quiet.written_by(
            self.net, lambda: found.append(layers.survey(self._run, noise, self.modules, self._least))
        )
        (self._found,) = found
        self.layers: Layers = self._found.layers
        again = self._found.output, self.inputs, lambda: self._run(noise)
        self.outputs: Outputs = outputs or self._reader.recognize(*again)
        self._reader = Reader(self._reader.pick, self.outputs)
        self.coupled, self.noisy = self._found.coupled, self._found.noisy  # noisy: it draws while it runs
        self.flops = self._found.flops_each  # of one example's way through
        seen = self._reader.tensor(self._found.output)
        self.n_outputs, self._found_shape = seen.shape[1], tuple(seen.shape[2:])

    def _run(self, x: Tensor) -> object:
        with self.quiet(grad=False):
            return self._call(x)

    def _narrow(self, autocast: torch.dtype) -> None:
        """From here on in mixed precision, if the net can. Raises InputError."""
        if autocast not in (torch.bfloat16, torch.float16):
            raise InputError(f"autocast is torch.bfloat16, torch.float16 or None; got {autocast!r}")
        if self.net_dtype != torch.float32:
            raise InputError(f"autocast is for nets in torch.float32; this one is in {self.net_dtype}")
        self.autocast = autocast
        noise = self.inputs.sample(max(2, self._least), torch.Generator(self.device).manual_seed(0))
        try:
            self._run(noise[: self._most])
        except Exception as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise InputError(f"the net can't run under autocast={autocast}: {said}") from error

    def _names(self, classes: Sequence[str] | None) -> tuple[str, ...]:
        names = tuple(map(str, classes if classes is not None else range(self.n_outputs)))
        if len(names) != self.n_outputs:
            raise InputError(f"the net has {self.n_outputs} outputs; got {len(names)} class names")
        return names

    # -- running the net ---------------------------------------------------------------------------------------------

    @contextmanager
    def quiet(self, *, grad: bool = True, rule: rules.Rule | None = None, seed: int = 0) -> Iterator[None]:
        """Everything that touches the net happens inside: it runs in its mode, on seeded RNGs, and leaves no trace."""
        if grad and self._graphless:
            raise InputError("the net was made in inference_mode, so nothing has a gradient in it; make it outside")
        with ExitStack() as stack:
            stack.enter_context(self._lock)
            stack.enter_context(quiet.flags(self._unique, self.mode))
            stack.enter_context(quiet.buffers_restored(self._unique, self._written))
            stack.enter_context(quiet.seeded(seed, self.device))
            stack.enter_context(quiet.own_settings(self.device))
            if rule is not None:
                stack.enter_context(rules.unoptimized_scripts(self._unique))
            stack.enter_context(quiet.gradients_on(grad))
            yield

    def forward(
        self, x: Tensor, wanted: Collection[str], edits: Mapping[str, Edit] | None = None, rows: int | None = None
    ) -> Acts:
        """Activations at the wanted addresses and ends, inside `quiet`. The forward stops at the deepest one needed.

        `rows` is how many come out where an edit gives more of them than it gets.
        """
        inner = {a: self.layers.resolve(a) for a in wanted if a not in ENDS}
        to_end = bool({"output", "logits"} & set(wanted))
        rewrites = {self.layers.resolve(a): edit for a, edit in (edits or {}).items()}
        padding = Padding(len(x), max(len(x), self._least))
        with ExitStack() as stack:
            tap = tapped(self.modules, inner.values(), edits=rewrites, stop=not to_end, padding=padding)
            taps = stack.enter_context(tap)
            if self.noisy:
                stack.enter_context(quiet.SharedNoise())
            final = stack.enter_context(self._reader.watching("logits" in wanted))
            raw = self._call(padding.pad(x)) if inner or rewrites or to_end else None
        if missing := [a for a, real in inner.items() if real not in taps]:
            raise LayerError(f"{missing[0]!r} did not run for this input")
        acts = Acts()
        acts["input"] = x
        for a, real in inner.items():
            acts[a], acts.edges[a] = taps[real], taps.edges[real]
        if to_end:
            output = self._in_rows(self._reader.tensor(raw), rows or padding.size)
            acts["output"] = padding.split(output)[0]
            if "logits" in wanted:
                acts["logits"] = padding.split(self._reader.logits(output, final))[0]
        return acts

    def _in_rows(self, output: Tensor, n: int) -> Tensor:
        """The output (n, K, ...), also where the net squeezed a batch of one. Raises OutputError."""
        if n == 1 and output.shape == (self.n_outputs, 1):
            return output.T
        if len(output) != n:
            raise OutputError(f"the net gives {tuple(output.shape)} for {n} inputs: its first axis is not the batch")
        return output

    def _call(self, x: Tensor) -> object:
        try:
            with quiet.narrowed(self.device, self.autocast):
                args, named = self._encode(x)
                return self.net(*args, **named)
        except Stop:
            return None

    def _encode(self, x: Tensor) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """The net's arguments, by place and by name: always new tensors, for a net may write over its input."""
        z = self.inputs.encode(x)
        if isinstance(z, dict):
            return (), {name: value.to(self.net_dtype) for name, value in z.items()}
        if isinstance(z, tuple):
            return tuple(value.to(self.net_dtype) for value in z), {}
        z = z.to(self.net_dtype)
        return (z.contiguous(memory_format=torch.channels_last) if self.channels_last else z,), {}

    # -- asking the net ----------------------------------------------------------------------------------------------

    def accept(self, x: Packed) -> Tensor:
        """A checked copy of the inputs on the net's device, in the box's dtype; several packed. Raises InputError."""
        x = self.inputs.check(x)
        with torch.inference_mode(False):
            packed: Tensor = self.inputs.pack(x) if isinstance(self.inputs, Several) else x  # type: ignore[assignment]
            return packed.detach().to(self.device, self.dtype, copy=True)

    def shaped(self, h: Tensor) -> Any:
        """What a method found for each input number, (N, ...), as the inputs came: a dict or tuple for several."""
        return self.inputs.unpack(h) if isinstance(self.inputs, Several) else h

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
        classes = self.labels(target, n)
        return logit(classes) if as_classes(target).ndim else logit(int(classes[0]))

    def has_rows(self, address: str) -> bool:
        """Whether the first axis of what is found there is the batch. Raises LayerError for an unknown address."""
        return address in ENDS or self.layers.has_rows(address)

    def checked(self, objective: Objective, n: int) -> Objective:
        """An objective that fits n examples and this net. Raises InputError or LayerError."""
        for a in objective.layers:
            if not self.has_rows(a):
                gives = f"gives {self.layers[a].shape} for a batch" if ":" not in a else "mixes examples"
                raise LayerError(f"{a!r} {gives}: its first axis is not the batch, so it scores no row")
        return objective.fits(n)

    def one_class_each(self, what: str) -> None:
        """Raise OutputError unless the net gives each example one row of class scores."""
        if self.outputs == "regression":
            raise OutputError(f"{what} needs classes, and a regression net has none; climb an objective instead")
        if self._found_shape:
            raise OutputError(
                f"{what} needs one row of class scores an example; the net gives a map {self._found_shape}"
            )

    @property
    def _read_limit(self) -> int:
        """As `batch_limit`, for forward passes alone, which hold few layers at a time."""
        return self.fitting(self._found.bytes_peak)

    @property
    def batch_limit(self) -> int:
        """How many examples an automatic batch takes: their activations fit in half a gigabyte."""
        return self.fitting(self._found.bytes_each)

    def fitting(self, bytes_each: int) -> int:
        """How many examples an automatic batch takes where each holds so many bytes."""
        return max(1, min(1024, self._most, BATCH_BYTES // max(1, bytes_each)))

    @property
    def takes_others(self) -> bool:
        """Whether the net may be given what only stands for a tensor: its rows are free, and noise draws no shape."""
        return not (self.coupled or self.noisy) and self._least == 1

    def splits(self, n: int, batch_size: BatchSize, coupled: bool = False) -> tuple[BatchSize, int]:
        """(size, most) for `in_batches`: rows that depend on one another are never split."""
        if coupled or self.coupled:
            return max(n, 1), n
        return min(batch_size, self._most) if isinstance(batch_size, int) else batch_size, self.batch_limit

    def read(self, x: Tensor, addresses: str | Sequence[str], *, batch_size: BatchSize = "auto") -> dict[str, Tensor]:
        """Activations {address: (N, ...)} of inputs x, in the box's dtype. Raises LayerError for unknown addresses."""
        addresses = [addresses] if isinstance(addresses, str) else addresses
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
            raise OutputError("a regression net gives no probabilities; read box(x)")
        return logits.sigmoid() if self.outputs == "multilabel" else logits.softmax(1)

    def predict(self, x: Tensor, *, batch_size: BatchSize = "auto") -> Tensor:
        """The class (N,) with the largest output for each input."""
        if self.outputs == "regression":
            raise OutputError("a regression net predicts no class; read box(x)")
        return self(x, batch_size=batch_size).argmax(1)

    def __repr__(self) -> str:
        head = f"Box({type(self.net).__name__}, {self.inputs}, outputs={self.outputs!r}, {len(self.classes)} classes"
        notes = [f"mode={self.mode!r}"] * (self.mode != "eval")
        notes += ["rows are coupled: batches are never split"] * self.coupled
        notes += [f"autocast={self.autocast}"] * (self.autocast is not None) + ["channels_last"] * self.channels_last
        return ", ".join([head, *notes]) + f", on {self.device})\n{self.layers}"
