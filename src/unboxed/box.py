"""The box: an opened model, with what its inputs are and what its output means."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from importlib import import_module
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from .argument_names import LeadingToModelMixin, naming_arguments
from .errors import InputError, LayerError, OutputError
from .inputs.base import Inputs, check_channels_last_setting, inputs_from_unit_interval
from .inputs.batches import to_model_arguments
from .inputs.class_files import resolve_class_names
from .inputs.examples import to_batch
from .inputs.held import fix_other_inputs_of_model, inputs_of_varied_part
from .inputs.labels import class_numbers, warn_of_repeated_class_names
from .inputs.multi import PackedOrParts
from .inputs.preprocessing import Preprocessing, to_inputs
from .model import relu_rules, state
from .model.batch_dependence import contrasting_input_levels
from .model.batching import BatchPadding, BatchSize, check_batch_size
from .model.embedding_feed import feeding_text_embeddings
from .model.first_forward import first_forward, reraising_as_input_error
from .model.hooks import Acts, Edit, StopForward, capturing_activations
from .model.isolation import IsolatedModel, Mode, check_is_module
from .model.language_models import is_next_token_output, output_names_of_model, scores_at_answer_position
from .model.layers import Layers
from .model.locks import holding_locks
from .model.maskless_texts import PaddingCheck
from .model.nan_checks import check_no_nan
from .model.output_advice import class_scores_problem_text
from .model.outputs import OutputKind, OutputReader, class_names_in_config, with_batch_axis
from .objectives import (
    INPUT_OUTPUT_ADDRESSES,
    Objective,
    binary_logit,
    check_classes,
    class_logit,
    logit,
    to_class_tensor,
)
from .table_views import NotebookTablesMixin
from .validation import check_class_names, count_class_names

LayersToRead = str | nn.Module | Sequence[str | nn.Module] | None
MAX_AUTO_BATCH_ACTIVATION_BYTES = 2**29  # for the activations of one automatic batch


class Box(NotebookTablesMixin, LeadingToModelMixin):
    """An opened model: the module, what its inputs are, what its output means, and its class names.

    Every method takes a box as its first argument. Opening runs the model once on noise, to list its layers and to see
    whether the examples of a batch depend on one another. The box runs the model in eval mode for each call and leaves
    no trace: train flags, buffers, gradients, hooks and random number generators are then as they were. Inputs are in
    the units of `inputs` (images in [0, 1]); normalization happens inside the box. `ub.load` opens a model by a path,
    a name or an object, and finds out most of these arguments.

    Args:
        model: The model, a torch.nn.Module, on any device and in any floating point dtype.
        inputs: What one input is: `Pixels(...)`, `Features(...)`, or a `MultiInput(...)` of these. A Hugging Face image
            processor, a `Compose` or `Normalize` of torchvision and a timm config are read as `Pixels`.
        classes: Names of the outputs, in their order, or the path of a file of them: one per line (a line may be
            `n02108089 boxer`), or JSON such as imagenet_class_index.json. None takes those of a Hugging Face model
            (`config.id2label`), else "0", "1", ...
        outputs: What the output means: "logits", "logprobs", "probs", "binary" (one logit or probability of yes: the
            box has two classes, 0 for no and 1 for yes), "multilabel" or "regression". None infers it from the sums of
            the outputs of a few inputs and the last op, and raises where they do not determine it. One output of
            "logits", "probs" or "multilabel" is "binary".
        output: Which tensor of a structured output is meant: a key, an index, or a function of the output. None takes
            `.logits`, `["logits"]` or `["out"]`, else the only tensor beside losses and auxiliary outputs that is
            (N, K) or a map, which the repr says. Of a map of outputs (N, ...), the axis with as many
            entries as `classes`, or the one that is no position of the image, becomes axis 1.
        mode: "eval" runs all modules in eval mode; "as-is" leaves their train flags alone. With BatchNorm or dropout in
            train mode, examples then depend on one another, and no batch is split.
        autocast: Mixed precision of the forward pass on accelerators, torch.bfloat16 or torch.float16, for a float32
            model; everything else stays in float32. None runs the model in its own precision.
        channels_last: Whether images are passed in that memory format, which is faster on some accelerators.

    Attributes:
        layers: The layers that ran, in order, each with path, type, output shape, parameters and share of the FLOPs;
            prints as a table.
        classes: Names of the outputs.
        outputs: What the output means.
        device, dtype: Where the model is, and the dtype of images and results: float32, float64 for a double model.
        n_outputs, output_map_shape: Number of outputs K, and the other axes of an output map (N, K, ...); () for none.
        predicts_tokens: Whether it is a language model: its classes are then the tokens of the vocabulary, and its
            logits those of the next token of each text (at the first [MASK], where there is one).
        batch_dependent: Whether the examples of a batch depend on one another: then no batch is split.
        stochastic, stateless: Whether it asks for random numbers; whether it neither draws any nor writes buffers.
        flops_per_example: FLOPs of one forward pass of one example.

    Raises:
        InputError: when the model does not take such inputs, or an argument is none of the above.
        OutputError: when the output tensor or its meaning cannot be determined.

    Example:
        >>> import unboxed as ub
        >>> model, inputs = ub.zoo.load("digits-cnn")
        >>> box = ub.Box(model, inputs)
        >>> x, y = ub.data.digits("test").first(4)
        >>> box.predict(x)
        tensor([6, 6, 6, 2])
        >>> box.layers["conv2"].shape
        (32, 10, 10)
    """

    @naming_arguments
    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs | Preprocessing,
        *,
        classes: Sequence[str] | PathLike[str] | None = None,
        outputs: OutputKind | None = None,
        output: object = None,
        mode: Mode = "eval",
        autocast: torch.dtype | None = None,
        channels_last: bool = False,
    ) -> None:
        check_is_module(model)
        inputs = to_inputs(inputs, model)
        if mode not in ("eval", "as-is"):
            raise InputError(f'mode must be "eval" or "as-is"; got {mode!r}')
        self.model, self.inputs, self.mode = model, inputs, mode
        self.options: dict[str, Any] = {"classes": resolve_class_names(classes), "outputs": outputs, "output": output}
        self.options |= {"mode": mode, "autocast": autocast, "channels_last": channels_last}
        self.channels_last = check_channels_last_setting(inputs, channels_last)
        OutputReader(output, outputs)  # refuses an unknown meaning before the model runs
        self._is_opening = self._is_refreshed = self._is_stale = False
        self._open_model()

    def with_model(self, model: nn.Module, inputs: Inputs | None = None, classes: Sequence[str] | None = None) -> Box:
        """A box of another model, opened with the settings of this one: classes, outputs, mode and precision.

        Args:
            model: The other model, with as many outputs.
            inputs: What its inputs are; None takes this box's.
            classes: The names of its classes; None takes this box's.

        Returns:
            A new `Box`.

        Example:
            >>> import unboxed as ub
            >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
            >>> untrained, _ = ub.zoo.load("digits-cnn", weights=None)
            >>> box.with_model(untrained).classes == box.classes
            True
        """
        options = self.options | {"classes": classes or self.classes, "outputs": self.outputs}
        return Box(model, inputs or self.inputs, **options)

    def fix_other_inputs(self, varied: str | int, x: PackedOrParts) -> Box:
        """A box of one of several inputs, with the others held at the values of one example.

        Every method that takes one image or one table then works on it: occlusion of the left of two images, a class
        image beside a given row. Layers are called as before, after "model.".

        Args:
            varied: Name of the input that remains, or its position.
            x: Inputs of one example (1, ...), a dict or tuple: what the others are held at.

        Returns:
            A new `Box` of this one input.

        Raises:
            InputError: for a model of one input, an unknown name, or more examples than one.

        Example:
            >>> import torch, unboxed as ub
            >>> from torch import nn
            >>> two = ub.MultiInput((ub.Features(("a", "b")), ub.Features(("c", "d"))))
            >>> box = ub.Box(nn.Bilinear(2, 2, 3), two)
            >>> first = box.fix_other_inputs(0, (torch.ones(1, 2), torch.ones(1, 2)))
            >>> first.predict(torch.rand(4, 2)).shape
            torch.Size([4])
        """
        part = inputs_of_varied_part(self.inputs, varied)
        return self.with_model(
            fix_other_inputs_of_model(self.model, self.inputs, varied, self.validate_inputs(x), self.model_dtype), part
        )

    def __copy__(self) -> Box:
        """The same model, which need not be opened again."""
        clone = object.__new__(type(self))
        clone.__dict__.update(self.__dict__)
        return clone

    def __reduce__(self) -> tuple[Any, ...]:
        """Deep copies and unpickled boxes open their model again."""
        return partial(type(self), **self.options), (self.model, self.inputs)

    def _open_model(self) -> None:
        """Survey the model as it is now, in full precision: rows are compared."""
        self._is_opening = True
        try:
            self._model = model = IsolatedModel(self.model, self.mode)
            self.device, self.model_dtype, self.modules = model.device, model.dtype, model.modules_by_name
            self.dtype = torch.float64 if model.dtype == torch.float64 else torch.float32  # of images and results
            row_limits: tuple[int, int] = getattr(self.model, "row_limits", (1, 1024))  # that an exported graph takes
            self.min_rows, self.max_rows = row_limits  # of a batch
            self.autocast: torch.dtype | None = None
            self._run_first_forward()
            n_before = len(getattr(self, "classes", ())) or None
            if (names := self.options["classes"]) is None:
                names = output_names_of_model(self.model, self.inputs, self.n_outputs, bool(self.output_map_shape))
            if names and self.outputs == "binary" and count_class_names(names) == 1:  # the name of the one output
                names = (f"not {names[0]}", names[0])
            self.classes = check_class_names(names, self.n_outputs, n_before)
            warn_of_repeated_class_names(self.classes)
            if (autocast := self.options["autocast"]) is not None:
                self._enable_autocast(autocast)
            self._is_stale = False
            self._padding_check = PaddingCheck(
                self.inputs, self.stochastic, self.batch_dependent, self.output_map_shape
            )
        finally:
            self._is_opening = False

    def refresh(self, *, hooks: bool = True) -> None:
        """Open the model again if it was changed: moved, cast, given other modules or new forward hooks.

        Every call does this by itself, except for new hooks, most of which only read: when a hook is seen to change an
        activation, a warning is issued and the next call opens the model again.

        Args:
            hooks: Whether new forward hooks count as a change.

        Raises:
            OutputError: when the output can no longer be determined.
            InputError: when the class names no longer fit.

        Example:
            >>> import unboxed as ub
            >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
            >>> _ = box.model.double()
            >>> box.refresh()
            >>> box.dtype
            torch.float64
        """
        if not self._is_opening and self._may_have_changed(hooks) and self._has_model_changed(hooks):
            self._is_stale = True  # until it has been opened
            self._open_model()
        self._is_refreshed = True

    def _may_have_changed(self, hooks: bool) -> bool:
        return self._is_stale or self._model.has_changed() or (hooks and bool(self._model.late_hooks))

    def _has_model_changed(self, hooks: bool) -> bool:
        """Asked while no other thread runs the model: it may have put other parameters in their place for a pass."""
        with holding_locks(self._model.locks):
            return self._may_have_changed(hooks)

    def _run_first_forward(self) -> None:
        """One forward pass on noise: which layers run, what the output means, whether rows are independent."""
        noise = self.noise(3 if self.max_rows >= 3 else 1)
        levels = contrasting_input_levels(self.inputs.shape, self.device)
        contrast_inputs = inputs_from_unit_interval(self.inputs, levels).to(self.dtype)
        self.profile, self.batch_dependent = first_forward(
            self._model, self.raw_output, noise, contrast_inputs, (self.min_rows, self.max_rows)
        )
        self.stochastic, self.stateless = self._model.uses_rng, self._model.is_stateless
        self.layers: Layers = self.profile.layers
        self.output_reader = OutputReader(self.options["output"], self.options["outputs"]).from_raw_output(
            self.profile.output,
            self.inputs,
            lambda x: self._raw_output_without_grad(noise if x is None else x),
            count_class_names(self.options["classes"]),
            class_names_in_config(self.model),
        )
        self.outputs: OutputKind = self.output_reader.outputs or "logits"
        self.flops_per_example = self.profile.flops_per_example
        output = self.output_reader.select_tensor(self.profile.output)
        self._n_columns, self.predicts_tokens = output.shape[1], is_next_token_output(self.inputs, output)
        self.output_map_shape = () if self.predicts_tokens else tuple(output.shape[2:])
        self.n_outputs = 2 if self.outputs == "binary" else self._n_columns

    def noise(self, n: int) -> Tensor:
        """Random valid inputs, the same at each call.

        Args:
            n: Number of inputs.

        Returns:
            Inputs (n, ...) in the box's units, on its device.

        Example:
            >>> import unboxed as ub
            >>> ub.Box(*ub.zoo.load("digits-cnn")).noise(2).shape
            torch.Size([2, 1, 28, 28])
        """
        return self.inputs.random_inputs(n, torch.Generator(self.device).manual_seed(0)).to(self.dtype)

    def _raw_output_without_grad(self, x: Tensor) -> object:
        with self._model.run(grad=False):
            return self.raw_output(x)

    def _enable_autocast(self, autocast: torch.dtype) -> None:
        """Run in mixed precision from here on. Raises InputError where the model fails in it."""
        self.autocast = state.check_autocast_dtype(autocast, self.model_dtype)
        with reraising_as_input_error(f"run under autocast={autocast}"):
            self._raw_output_without_grad(self.noise(max(2, self.min_rows))[: self.max_rows])

    def isolated(
        self, *, grad: bool = True, rule: relu_rules.ReluRule | None = None, seed: int = 0
    ) -> AbstractContextManager[None]:
        """A context in which the model may be run: in the box's mode, by one thread at a time, leaving no trace.

        For methods of your own: everything that runs the model belongs inside.

        Args:
            grad: Whether gradients are recorded.
            rule: A backward rule of the ReLUs, `model.relu_rules.GUIDED_BACKPROP_RULE` or `DECONVNET_RULE`; None is the
                plain gradient.
            seed: Seed of the random numbers that a stochastic model draws. The generators of the process are restored
                afterwards; those of a model that draws nothing are never touched.

        Returns:
            A context manager.

        Example:
            >>> import unboxed as ub
            >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
            >>> with box.isolated(grad=False):
            ...     acts = box.forward(box.noise(2), ["conv2", "logits"])
            >>> acts["conv2"].shape
            torch.Size([2, 32, 10, 10])
        """
        if not self._is_refreshed:  # else `validate_inputs` has just done it
            self.refresh(hooks=False)
        self._is_refreshed = False
        return self._model.run(grad=grad, rule=rule, seed=seed)

    def forward(
        self, x: Tensor, addresses: Collection[str], edits: Mapping[str, Edit] | None = None, n_rows: int | None = None
    ) -> Acts:
        """Activations of one batch, inside `isolated`; the forward pass stops at the deepest layer needed.

        For methods of your own; `read` is simpler where no gradient is wanted.

        Args:
            x: Inputs (N, ...) from `validate_inputs`, or made by the method.
            addresses: Layers, and "input", "output" or "logits".
            edits: {address: function of an activation} that replaces activations during the forward pass.
            n_rows: Number of rows of the output where an edit changes it. None is N.

        Returns:
            {address: activation (N, ...)} in the model's dtype, with its graph where gradients are recorded.

        Raises:
            LayerError: when a layer does not run for this input.
            InputError: for layers of texts of several lengths, where the model takes no mask and its answers change
                with padding.

        Example:
            >>> import unboxed as ub
            >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
            >>> with box.isolated(grad=False):
            ...     acts = box.forward(box.noise(2), ["logits"], edits={"relu1": lambda h: 0 * h})
            >>> bool((acts["logits"][0] == acts["logits"][1]).all())  # all that differed was set to 0
            True
        """
        if by_length := self._padding_check.forward_by_length(x, {*addresses, *(edits or ())}, self.forward):
            return by_length
        inner = {a: self.layers.resolve(a) for a in addresses if a not in INPUT_OUTPUT_ADDRESSES}
        needs_output = "output" in addresses or "logits" in addresses
        rewrites = {self.layers.resolve(a): edit for a, edit in edits.items()} if edits else {}
        padding = BatchPadding(n := x.shape[0], max(n, self.min_rows))
        hook_dicts = bool(inner or rewrites)
        with (
            capturing_activations(self.modules, inner.values(), edits=rewrites, stop=not needs_output, padding=padding)
            if hook_dicts
            else state.NULL_CONTEXT as captured,
            state.SharedDropoutMaskMode() if self.stochastic else state.NULL_CONTEXT,
            self.output_reader.recording_final_op("logits" in addresses) as final_op,
        ):
            raw = self.raw_output(padding.pad(x)) if hook_dicts or needs_output else None
        acts = Acts({"input": x})
        for a, real in inner.items():
            if captured is None or real not in captured:
                raise LayerError(f"{a!r} did not run for this input")
            acts[a], acts.edges[a] = captured[real], captured.edges[real]
        if needs_output:
            output = with_batch_axis(self.output_reader.select_tensor(raw), n_rows or padding.padded_n, self._n_columns)
            acts["output"] = padding.split(output)[0]
            if "logits" in addresses:
                scores = self.output_reader.logits(output, final_op)
                logits = scores_at_answer_position(self.inputs, padding.pad(x), scores)
                acts["logits"] = acts["output"] if logits is output else padding.split(logits)[0]
        return acts

    def raw_output(self, x: Tensor) -> object:
        """What the model itself returns, inside `isolated`.

        Args:
            x: Inputs (N, ...) in the box's units; they are normalized here.

        Returns:
            The model's output, of any type; None where a hook stopped the forward pass.

        Example:
            >>> import unboxed as ub
            >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
            >>> with box.isolated(grad=False):
            ...     box.raw_output(box.noise(2)).shape
            torch.Size([2, 10])
        """
        try:
            with state.autocast_context(self.device, self.autocast), feeding_text_embeddings(self.inputs, x):
                args, named = to_model_arguments(self.inputs.encode(x), self.model_dtype, self.channels_last)
                return self.model(*args, **named)
        except StopForward:
            return None

    def validate_inputs(self, x: Any) -> Tensor:
        """Check inputs, and copy them to the model's device in the box's dtype. The first line of most methods.

        Args:
            x: Inputs (N, ...) in the box's units; a dict or tuple of them for `MultiInput`. Images may also be NumPy
                arrays (N, C, H, W) or (N, H, W, C), Pillow images, paths, a list of these, a DataLoader, a Dataset, a
                Hugging Face data set or a pair (x, y): 8-bit values are divided by 255, and Pillow images and files are
                resized and cropped to the model's size.

        Returns:
            A copy (N, ...); several inputs are packed into one tensor (N, D). Labels are left out, and so are files
            that cannot be read, with a warning.

        Raises:
            InputError: when shape, dtype or range are wrong, values are NaN or infinite, or nothing can be read.

        Example:
            >>> import torch, unboxed as ub
            >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
            >>> box.validate_inputs(torch.zeros(2, 28, 9))
            Traceback (most recent call last):
            ...
            unboxed.errors.InputError: wanted images in [0, 1], shape (N, 1, 28, 28); got shape (2, 28, 9)
        """
        self.refresh(hooks=False)
        x = self.inputs.check(to_batch(x, self.inputs))
        with state.leaving_inference_mode():
            packed = state.copy_to(self.inputs.pack(x), self.device, self.dtype)
        self._padding_check.update(x, packed, self)
        return packed

    def restore_structure(self, h: Tensor) -> Any:
        """Give a packed result the structure that the inputs came in. The last line of most methods.

        Args:
            h: A tensor with the shape of `validate_inputs(x)`.

        Returns:
            h in the shape of the inputs, such as (N, C, T) of signals; for `MultiInput`, a dict or tuple of these.

        Example:
            >>> import unboxed as ub
            >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
            >>> box.restore_structure(box.noise(2)).shape
            torch.Size([2, 1, 28, 28])
        """
        return self.inputs.unpack(h)

    def class_numbers(self, y: Any) -> Tensor:
        """Labels as class numbers: names are those of the model's classes.

        Args:
            y: Classes (n,) or (n, 1), or one for all: numbers or names.

        Returns:
            Integers (n,), or () for one.

        Raises:
            InputError: when they are neither ints nor names of classes.

        Example:
            >>> import unboxed as ub
            >>> ub.Box(*ub.zoo.load("digits-cnn")).class_numbers(["2", "6"])
            tensor([2, 6])
        """
        y = class_numbers(y, self.classes)
        if self.outputs == "binary" and isinstance(y, Tensor) and (y.is_floating_point() or y.dtype == torch.bool):
            y = y.long() if bool(((y == 0) | (y == 1)).all()) else y
        return to_class_tensor(y)

    def class_labels(self, y: Any, n: int) -> Tensor:
        """Check the classes of examples, and copy their numbers to the model's device.

        Args:
            y: Classes (n,) or (n, 1), or one for all: numbers or names.
            n: Number of examples.

        Returns:
            Classes (n,), int64.

        Raises:
            InputError: when there are not n of them, or the model has no such class.

        Example:
            >>> import unboxed as ub
            >>> ub.Box(*ub.zoo.load("digits-cnn")).class_labels(3, 2)
            tensor([3, 3])
        """
        classes = self.class_numbers(y)
        check_classes(classes, n, self.n_outputs)
        with state.leaving_inference_mode():
            return classes.to(self.device, torch.long, copy=True).expand(n)

    def objective(self, target: Any, n: int) -> Objective:
        """The objective that a `target` means in attribution and synthesis.

        Args:
            target: The score: a class (its number or name), one per example (n,), or an objective. None is the
                predicted class.
            n: Number of examples.

        Returns:
            An `Objective`: the logit of the class, or the given objective. Of one yes/no logit z ("binary") it is z for
            class 1 and -z for class 0: the difference of the two logits of `box(x)`.

        Raises:
            InputError: when the model has no such class, or there are not n of them.

        Example:
            >>> import unboxed as ub
            >>> ub.Box(*ub.zoo.load("digits-cnn")).objective(3, 4)
            Objective(logit 3)
        """
        score = binary_logit if self.outputs == "binary" else logit
        if target is None or isinstance(target, Objective):
            return target or score()
        return class_logit(self.class_numbers(target), n, self.n_outputs, self.device, score)

    def has_batch_axis(self, address: str) -> bool:
        """Whether the first axis of an activation is the batch.

        Args:
            address: A layer, or "input", "output" or "logits".

        Returns:
            False for layers that move, merge or drop the batch axis.

        Raises:
            LayerError: when there is no such layer.

        Example:
            >>> import unboxed as ub
            >>> ub.Box(*ub.zoo.load("digits-cnn")).has_batch_axis("conv1")
            True
        """
        return address in INPUT_OUTPUT_ADDRESSES or self.layers.has_batch_axis(address)

    def check_objective(self, objective: Objective, n: int) -> Objective:
        """Check that an objective fits this model and a number of examples.

        Args:
            objective: The objective.
            n: Number of examples.

        Returns:
            The objective.

        Raises:
            InputError: when it holds values for another number of examples.
            LayerError: when a layer does not exist, or its first axis is not the batch.

        Example:
            >>> import unboxed as ub
            >>> ub.Box(*ub.zoo.load("digits-cnn")).check_objective(ub.channel("conv2", 3), 4)
            Objective(conv2 channel 3)
        """
        for a in objective.layers:
            if not self.has_batch_axis(a):
                mismatch = f"gives {self.layers[a].shape} for a batch" if ":" not in a else "mixes examples"
                raise LayerError(f"{a!r} {mismatch}: its first axis is not the batch, so it gives no score per example")
        return objective.check_batch(n)

    def require_class_scores(self, caller: str, *, exclusive: bool = False, objective_call: str = "") -> None:
        """Check that the model gives each example one row of class scores (K,).

        Args:
            caller: The method that needs them, for the error text.
            exclusive: Whether the classes must exclude one another, too.
            objective_call: What does the same for an {objective} or a {score}, for the error text.

        Raises:
            OutputError: for a regression model or a map of outputs (N, K, ...), and for multi-label outputs if
                `exclusive`. It names the objective or the `output=` that does it.

        Example:
            >>> import unboxed as ub
            >>> ub.Box(*ub.zoo.load("digits-cnn")).require_class_scores("my_method")
        """
        problem = class_scores_problem_text(
            self.output_reader, self.output_map_shape, exclusive=exclusive, objective_call=objective_call
        )
        if problem:
            raise OutputError(f"{caller} {problem}")

    @property
    def forward_batch_limit(self) -> int:
        """As `batch_limit`, for forward passes without gradients, which hold few layers at a time."""
        return self.max_rows_in_memory(self.profile.peak_bytes_per_example)

    @property
    def batch_limit(self) -> int:
        """Number of examples in an automatic batch: their activations fit in half a gigabyte."""
        return self.max_rows_in_memory(self.profile.bytes_per_example)

    def max_rows_in_memory(self, bytes_per_example: int) -> int:
        """Number of examples in an automatic batch where each needs some memory.

        Args:
            bytes_per_example: Memory per example.

        Returns:
            At least 1, at most 1024.

        Example:
            >>> import unboxed as ub
            >>> ub.Box(*ub.zoo.load("digits-cnn")).max_rows_in_memory(2**24)
            32
        """
        return max(1, min(1024, self.max_rows, MAX_AUTO_BATCH_ACTIVATION_BYTES // max(1, bytes_per_example)))

    @property
    def accepts_proxy_tensors(self) -> bool:
        """Whether the model may be run on tensor-like proxies: its rows are independent, and it draws nothing."""
        return not (self.batch_dependent or self.stochastic) and self.min_rows == 1

    def batch_size_and_max_rows(
        self, n: int, batch_size: BatchSize, batch_dependent: bool = False
    ) -> tuple[BatchSize, int]:
        """The arguments of `model.batching.map_in_batches`: rows that depend on one another are never split.

        Args:
            n: Number of examples.
            batch_size: Number of examples per batch, or "auto".
            batch_dependent: Whether the work itself relates examples to one another.

        Returns:
            (batch_size, max_rows).

        Example:
            >>> import unboxed as ub
            >>> ub.Box(*ub.zoo.load("digits-cnn")).batch_size_and_max_rows(100, 32)
            (32, 1024)
        """
        if batch_dependent or self.batch_dependent:
            return max(n, 1), n
        size = check_batch_size(batch_size)
        return size if size == "auto" else min(size, self.max_rows), self.batch_limit

    def read(self, x: Any, addresses: LayersToRead = None, *, batch_size: BatchSize = "auto") -> dict[str, Tensor]:
        """Activations of layers for a batch of inputs.

        The forward pass stops at the deepest layer needed. `ub.activations.maps` gives the layers' inputs, too.

        Args:
            x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
            addresses: Addresses of the layers, as `box.layers` lists them: "conv1" is what the module gives, "conv1#1"
                what its second call gives, "conv1:input" what it receives, "block:relu#0" the first ReLU called as a
                function in its forward. "input", "output" and "logits" are taken, too, and modules of the model. None
                takes every module without children.
            batch_size: Number of examples per batch; "auto" takes what fits in half a gigabyte, and halves it when
                memory runs out.

        Returns:
            {address: activation (N, ...)} in the box's dtype, on its device: a dict that shows itself, by `.show()`, as
            the last line of a cell, and in a file by `.save("activations.png")`.

        Raises:
            LayerError: when an address names no layer, or more than one call of it; the nearest names are listed.
            InputError: when x is not what the model takes, or all layers of so many inputs take more than 4 GiB.

        Example:
            >>> import unboxed as ub
            >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
            >>> x, y = ub.data.digits("test").first(4)
            >>> box.read(x, ["relu1", "logits"])
            Activations(2 layers of 4 inputs: relu1 (4, 16, 24, 24), logits (4, 10))
        """
        reading = import_module("unboxed.engine.read.activations")  # results are above the box
        return reading.read_activations(self, x, addresses, batch_size)  # type: ignore[no-any-return]

    def __call__(self, x: Any, *, batch_size: BatchSize = "auto") -> Tensor:
        """The logits of a batch of inputs: pre-softmax values, also of a model that ends in a softmax.

        Args:
            x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
            batch_size: Number of examples per batch, or "auto".

        Returns:
            Logits (N, K), or (N, K, ...) for a map of outputs; the output itself of a regression model. One yes/no
            logit z ("binary") is the pair (-z/2, z/2): its softmax is the sigmoid of z, and its difference is z.

        Raises:
            InputError: when x is not what the model takes.
            OutputError: when the logits before the final softmax or sigmoid cannot be found.

        Example:
            >>> import unboxed as ub
            >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
            >>> x, y = ub.data.digits("test").first(4)
            >>> box(x).shape
            torch.Size([4, 10])
        """
        return self.read(x, ["logits"], batch_size=batch_size)["logits"]

    def probs(self, x: Any, *, batch_size: BatchSize = "auto") -> Tensor:
        """The probabilities of a batch of inputs.

        Args:
            x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
            batch_size: Number of examples per batch, or "auto".

        Returns:
            Probabilities (N, K): the softmax of the logits; their sigmoid where outputs are "multilabel".

        Raises:
            InputError: when x is not what the model takes.
            NaNError: when the model gives NaN.
            OutputError: for a regression model.

        Example:
            >>> import unboxed as ub
            >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
            >>> x, y = ub.data.digits("test").first(4)
            >>> (box.probs(x).amax(1) > 0.99).tolist()
            [True, True, True, True]
        """
        return self.probs_from_logits(check_no_nan(self(x, batch_size=batch_size)))

    def probs_from_logits(self, logits: Tensor) -> Tensor:
        """The probabilities that logits mean.

        Args:
            logits: Logits (N, K).

        Returns:
            Probabilities (N, K): softmax, or sigmoid where outputs are "multilabel".

        Raises:
            OutputError: for a regression model.

        Example:
            >>> import torch, unboxed as ub
            >>> ub.Box(*ub.zoo.load("digits-cnn")).probs_from_logits(torch.zeros(1, 10))[0, 0]
            tensor(0.1000)
        """
        if self.outputs == "regression":
            raise OutputError("a regression model gives no probabilities; read box(x)")
        return logits.sigmoid() if self.outputs == "multilabel" else logits.softmax(1)

    def predict(self, x: Any, *, batch_size: BatchSize = "auto") -> Tensor:
        """The class with the largest output for each input.

        Args:
            x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
            batch_size: Number of examples per batch, or "auto".

        Returns:
            Classes (N,), int64; (N, ...) for a map of outputs.

        Raises:
            InputError: when x is not what the model takes.
            NaNError: when the model gives NaN.
            OutputError: for a regression model.

        Example:
            >>> import unboxed as ub
            >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
            >>> x, y = ub.data.digits("test").first(4)
            >>> bool((box.predict(x) == y).all())
            True
        """
        if self.outputs == "regression":
            raise OutputError("a regression model predicts no class; read box(x)")
        return check_no_nan(self(x, batch_size=batch_size)).argmax(1)

    def __repr__(self) -> str:
        noun, plural = ("output", "s") if self.outputs == "regression" else ("class", "es")
        head = f"Box({type(self.model).__name__}, {self.inputs}, outputs={self.outputs!r}, {len(self.classes)} {noun}"
        head += plural * (len(self.classes) != 1)
        notes = ["one logit z: box(x) is (-z/2, z/2), the score of class 1 is z"] * (self.outputs == "binary")
        notes += self.output_reader.key_notes + [f"mode={self.mode!r}"] * (self.mode != "eval")
        notes += ["examples depend on one another: batches are never split"] * self.batch_dependent
        notes += [f"autocast={self.autocast}"] * (self.autocast is not None) + ["channels_last"] * self.channels_last
        return ", ".join([head, *notes]) + f", on {self.device})\n{self.layers}"
