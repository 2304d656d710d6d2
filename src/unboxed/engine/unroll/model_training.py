"""A training of a model by `torch.optim`, on data in memory, as a pure step function."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ... import rng
from ...box import Box
from ...errors import InputError, ModelError
from ...inputs.base import Inputs
from ...model import state as model_state
from ...model.embedding_feed import refuse_training_on_texts
from ...model.outputs import OutputKind
from ...validation import check_float, check_int, valid_seed
from ..example_gradients.labels import read_training_examples
from ..example_gradients.losses import ExampleLoss, check_losses_per_example, resolve_loss
from ..randomized import copy_model, open_copy, randomize_all_layers
from .optimizers import optimizer_update_of
from .raw_forward import RawForward
from .schedules import (
    OptimizerFactory,
    OptimizerName,
    ScheduleFactory,
    ScheduleName,
    hyperparameters_by_step,
    make_optimizer,
    shuffled_batch_indices,
)
from .second_order import MIN_QUERIES_FOR_SECOND_ORDER_MODE, SecondOrderMode
from .training import Training, TrainingState, differentiable_leaves, query_vjp

AugmentFn = Callable[[Tensor, torch.Generator], Tensor]

CONVOLUTION_TYPES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
PARAMETER_KEY_PREFIX, BUFFER_KEY_PREFIX = (
    "parameter.",
    "buffer.",
)  # prefixes of what a state holds; an optimizer's slots have theirs


class ModelTraining(Training):
    """A training of a model by SGD, Adam or AdamW that can be run again, exactly, with other weights of its examples.

    The same as `ub.training.fit` with the same settings (up to rounding): the order of the data and what dropout and
    augmentation draw in a step depend on the seed and the step alone. For a training loop of your own see `Training`.

    Args:
        model: A module before its training; it is copied.
        inputs: What its inputs are.
        train: Labeled training examples: (x, y), a Dataset of (input, class), or a DataLoader. They are kept in memory.
            Of a regression (x, y) with numbers y (N, ...), of several labels with values y (N, K).
        epochs: Passes over the training data, 1 or more.
        batch_size: Examples per step, 1 or more.
        lr: Largest learning rate of the schedule, above 0.
        weight_decay: Of the optimizer, 0 or more.
        momentum: Of SGD, 0 or more; it is constant. (Adam's first beta goes with a one-cycle rate, as `torch` has it.)
        optimizer: "sgd", "adam", "adamw", or a function that makes a `torch.optim` SGD, Adam or AdamW of parameters, in
            groups or of some of them: what it leaves out is not trained.
        schedule: "one-cycle", "constant", or a function that makes a scheduler of `torch.optim.lr_scheduler` of the
            optimizer; it is asked for after each step.
        seed: Seed of all random draws: same seed, same result.
        augment: `augment(x, generator)` changes each batch; see `engine.optimize.transforms`.
        loss: `loss(outputs, labels)` gives the losses (B,) of a batch. None: the one that fits the outputs, in nats.
        outputs: What the model's output means, as for `Box`. None infers it.
        output: Which tensor of a structured output is meant, as for `Box`: a key, an index, or a function of it.

    Raises:
        InputError: for settings out of range, a model of texts or without parameters to train, an optimizer that cannot
            be unrolled.
        DataError: where there are no examples, or no labels, or a DataLoader that shuffles.

    Example:
        >>> import torch, unboxed as ub
        >>> model, inputs = ub.zoo.load("digits-cnn", weights=None)
        >>> data = ub.data.digits("train").first(64)
        >>> training = ub.influence.ModelTraining(model, inputs, data, epochs=1, batch_size=16)
        >>> state = training.run()
        >>> training.n_steps, training.box(state).predict(data[0]).shape
        (4, torch.Size([64]))
    """

    @model_state.outside_callers_modes
    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        train: Any,
        *,
        epochs: int,
        batch_size: int = 128,
        lr: float = 2e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        optimizer: OptimizerName | OptimizerFactory = "adamw",
        schedule: ScheduleName | ScheduleFactory = "one-cycle",
        seed: int = 0,
        augment: AugmentFn | None = None,
        loss: ExampleLoss | None = None,
        outputs: OutputKind | None = None,
        output: object = None,
    ) -> None:
        epochs, batch_size = check_int("epochs", epochs, minimum=1), check_int("batch_size", batch_size, minimum=1)
        refuse_training_on_texts(inputs)
        self._box = Box(copy_model(model), inputs, outputs=outputs, output=output)
        self._settings = {
            "epochs": epochs, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay, "momentum": momentum,
            "optimizer": optimizer, "schedule": schedule, "augment": augment, "loss": loss,
            "outputs": self._box.outputs, "output": output,
        }  # fmt: skip
        check_float("weight_decay", weight_decay, minimum=0), check_float("momentum", momentum, minimum=0)
        self.x, self.y = read_training_examples(self._box, train)
        self.seed = valid_seed(seed)
        batches = shuffled_batch_indices(len(self.x), batch_size, epochs, self.seed)
        copies = {n: nn.Parameter(p.detach().clone()) for n, p in self._box.model.named_parameters() if p.requires_grad}
        if not copies:
            raise InputError("the model has no parameter that requires a gradient: there is nothing to train")
        torch_optimizer = make_optimizer(
            optimizer, list(copies.values()), check_float("lr", lr, above=0), weight_decay, momentum
        )
        self._update = optimizer_update_of(torch_optimizer)
        self._hyperparameters = hyperparameters_by_step(torch_optimizer, schedule, len(batches), copies)
        self._names = list(self._hyperparameters[0])
        self._unused: dict[str, Tensor] = {}  # parameters that get no gradient, which torch's optimizers skip
        if not self._names:
            raise InputError("the optimizer has none of the parameters; make it of those that the function is given")
        self._augment, self.loss = augment, resolve_loss(self._box, loss)
        self._forward = RawForward(self._box)
        super().__init__(self._step, self._initial_state(), batches, self._query_loss, len(self.x))
        self._detect_rng_use_and_unused_parameters()
        # convolutions with many weights at once are grouped ones: half as fast as one after another
        self.is_vectorized = not any(isinstance(m, CONVOLUTION_TYPES) for m in self._box.model.modules())

    def reseed(self, seed: int) -> ModelTraining:
        """The same training retrained from scratch: other initial weights, order, dropout and augmentation."""
        fresh = randomize_all_layers(self._box, valid_seed(seed))
        return ModelTraining(fresh.model, fresh.inputs, (self.x, self.y), **self._settings, seed=seed)  # type: ignore[arg-type]

    @model_state.outside_callers_modes
    def box(self, state: TrainingState) -> Box:
        """The model with the parameters and buffers of a state, opened."""
        return open_copy(self._box, self.model(state))

    @model_state.outside_callers_modes
    def model(self, state: TrainingState) -> nn.Module:
        """A copy of the model with the parameters and buffers of a state."""
        model = copy_model(self._box.model)
        tensors = {
            **_entries_with_prefix(state, PARAMETER_KEY_PREFIX),
            **_entries_with_prefix(state, BUFFER_KEY_PREFIX),
        }
        with torch.no_grad():
            for name, h in [*model.named_parameters(), *model.named_buffers()]:  # also buffers that are not saved
                if name in tensors:
                    h.copy_(tensors[name])
        return model

    def _detect_rng_use_and_unused_parameters(self) -> None:
        """See whether the model draws random numbers, and which parameters it uses, or raise ModelError."""
        with model_state.detecting_rng_use(self._box.device) as used:
            try:
                _, gradients, _ = self._gradients(self.start, 0, self.unit_example_weights()[self.batches[0]])
            except (RuntimeError, NotImplementedError, AttributeError, TypeError) as error:
                message = str(error).strip().partition("\n")[0].rstrip(".")
                raise ModelError(
                    f"the model can't be trained with parameters from outside: {message}. Scripted and exported models "
                    "can't; open the module that they were made from"
                ) from error
        self._forward.draws = bool(used)
        self._exclude_unused_parameters(
            {n for n, g in gradients.items() if g is None and not self._ignores_zero_gradient(n, 0)}
        )

    def _exclude_unused_parameters(self, unused: Collection[str]) -> None:
        """Parameters that the loss does not depend on stay as they are, without decay: torch's optimizers skip them."""
        own = dict(self._box.model.named_parameters())
        self._unused = {name: own[name] for name in unused}
        self._names = [name for name in self._names if name not in unused]
        self.start = {key: h for key, h in self.start.items() if key.partition(".")[2] not in unused}
        self._hyperparameters = [{n: h for n, h in step.items() if n not in unused} for step in self._hyperparameters]

    def warm_start(self, final: TrainingState) -> TrainingState:
        """With a fresh optimizer: its averages are corrected by the number of steps since they were zero."""
        return {
            **self.start,
            **{name: h for name, h in final.items() if name.startswith((PARAMETER_KEY_PREFIX, BUFFER_KEY_PREFIX))},
        }

    def random_part_of_step_text(self, t: int) -> str:
        return (
            "the model"
            if torch.equal(self._batch_inputs_and_labels(t)[0], self._batch_inputs_and_labels(t)[0])
            else "augment"
        )

    # -- the step ----------------------------------------------------------------------------------------------------

    def _initial_state(self) -> TrainingState:
        parameters = dict(self._box.model.named_parameters())
        buffers = dict(self._box.model.named_buffers())
        return {
            **{PARAMETER_KEY_PREFIX + name: parameters[name].detach().clone() for name in self._names},
            **{BUFFER_KEY_PREFIX + name: b.detach().clone() for name, b in buffers.items()},
            **{f"{slot}.{name}": torch.zeros_like(parameters[name])
               for slot in self._update.slot_names for name in self._names},
        }  # fmt: skip

    def _step(self, state: TrainingState, t: int, weights: Tensor) -> TrainingState:
        leaves, gradients, buffers = self._gradients(state, t, weights)
        self._check_same_parameters_used(gradients, t)
        given = {n: torch.zeros_like(h) if (g := gradients[n]) is None else g for n, h in leaves.items()}
        return {**self._optimizer_update(state, given, t), **_add_key_prefix(BUFFER_KEY_PREFIX, buffers)}

    def _check_same_parameters_used(self, gradients: Mapping[str, Tensor | None], t: int) -> None:
        """Raise ModelError where other parameters have a gradient than in the first step."""
        for name, gradient in gradients.items():
            if (gradient is None) is not (name in self._unused) and not self._ignores_zero_gradient(name, t):
                raise ModelError(
                    f"the parameter {name!r} has {'no' if gradient is None else 'a'} gradient in step {t}, other than "
                    "in the first: torch's optimizers skip it in some steps, its decay and averages, too. Write the "
                    "training's step as a pure function: ub.influence.Training(step, start, batches, query_loss)"
                )

    def _ignores_zero_gradient(self, name: str, t: int) -> bool:
        return name not in self._unused and self._update.ignores_zero_gradients(self._hyperparameters[t][name])

    def _gradients(
        self, state: TrainingState, t: int, weights: Tensor
    ) -> tuple[TrainingState, dict[str, Tensor | None], TrainingState]:
        """The parameters of a step as leaves; the gradients of these and of unused ones, None for none; the buffers."""
        leaves = {
            name: h.detach().requires_grad_() for name, h in _entries_with_prefix(state, PARAMETER_KEY_PREFIX).items()
        }
        with torch.enable_grad():
            loss, buffers = self._weighted_loss(leaves, _entries_with_prefix(state, BUFFER_KEY_PREFIX), t, weights)
            named = {**leaves, **self._unused}
            gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        return leaves, dict(zip(named, gradients, strict=True)), buffers

    def functional_step(self, state: TrainingState, t: int, weights: Tensor) -> TrainingState:
        gradients, buffers = torch.func.grad(self._weighted_loss, has_aux=True)(
            _entries_with_prefix(state, PARAMETER_KEY_PREFIX),
            _entries_with_prefix(state, BUFFER_KEY_PREFIX),
            t,
            weights,
        )
        return {**self._optimizer_update(state, gradients, t), **_add_key_prefix(BUFFER_KEY_PREFIX, buffers)}

    def _optimizer_update(self, state: TrainingState, gradients: Mapping[str, Tensor], t: int) -> TrainingState:
        """Parameters and slots after step t."""
        after: TrainingState = {}
        for name, h in self._hyperparameters[t].items():
            slots = tuple(state[f"{slot}.{name}"] for slot in self._update.slot_names)
            parameter, slots = self._update(state[PARAMETER_KEY_PREFIX + name], gradients[name], slots, h, t)
            after[PARAMETER_KEY_PREFIX + name] = parameter
            after |= {f"{slot}.{name}": value for slot, value in zip(self._update.slot_names, slots, strict=True)}
        return after

    def batch_losses(self, state: TrainingState, t: int) -> Tensor:
        """The losses (B,) of the examples of step t's batch, in training, at the state before it."""
        x, y = self._batch_inputs_and_labels(t)
        seed = rng.derive_seed("step", self.seed, t)
        with torch.no_grad():
            output, _ = self._forward.forward_in_train_mode(
                x,
                _entries_with_prefix(state, PARAMETER_KEY_PREFIX),
                _entries_with_prefix(state, BUFFER_KEY_PREFIX),
                seed,
            )
            return self.loss(output, y)

    def _weighted_loss(
        self, parameters: TrainingState, buffers: TrainingState, t: int, weights: Tensor
    ) -> tuple[Tensor, TrainingState]:
        """The mean of the weighted losses of step t's batch; and the buffers after it."""
        x, y = self._batch_inputs_and_labels(t)
        output, buffers = self._forward.forward_in_train_mode(
            x, parameters, buffers, rng.derive_seed("step", self.seed, t)
        )
        losses = check_losses_per_example(self.loss(output, y), len(y))
        return (weights * losses).sum() / len(y), buffers

    def _batch_inputs_and_labels(self, t: int) -> tuple[Tensor, Tensor]:
        index = self.batches[t]
        x = self.x[index]
        if self._augment is not None:
            generator = rng.keyed_generator(x.device, "augment", self.seed, t)
            x = self._box.inputs.clip(self._augment(x, generator))
        return x, self.y[index]

    def vjp(
        self, state: TrainingState, t: int, adjoint: TrainingState, weights: Tensor | None = None
    ) -> tuple[TrainingState, Tensor]:
        many = len(next(iter(adjoint.values()))) >= MIN_QUERIES_FOR_SECOND_ORDER_MODE
        with torch.enable_grad(), SecondOrderMode() if many else model_state.NULL_CONTEXT:
            leaves = differentiable_leaves(
                {n: h for n, h in state.items() if n.startswith((PARAMETER_KEY_PREFIX, BUFFER_KEY_PREFIX))}
            )
            parameters = _entries_with_prefix(leaves, PARAMETER_KEY_PREFIX)
            weights = self.differentiable_weights(t, weights)
            loss, buffers = self._weighted_loss(
                parameters, _entries_with_prefix({**state, **leaves}, BUFFER_KEY_PREFIX), t, weights
            )
            gradients = dict(zip(parameters, torch.autograd.grad(
                loss, list(parameters.values()), create_graph=True, materialize_grads=True), strict=True))  # fmt: skip
        before = self._adjoint_of_optimizer_update(state, {k: g.detach() for k, g in gradients.items()}, t, adjoint)
        outputs = [(g, before.pop("gradient." + name)) for name, g in gradients.items()]
        outputs += [
            (b, adjoint[BUFFER_KEY_PREFIX + name]) for name, b in buffers.items() if BUFFER_KEY_PREFIX + name in adjoint
        ]
        outputs = [(value, adj) for value, adj in outputs if value.requires_grad]
        *by_leaf, by_weight = query_vjp(
            [value for value, _ in outputs], [adj for _, adj in outputs], [*leaves.values(), weights]
        )
        for name, h in zip(leaves, by_leaf, strict=True):
            before[name] = before[name].add_(h) if name in before else h
        return before, by_weight

    def _adjoint_of_optimizer_update(
        self, state: TrainingState, gradients: TrainingState, t: int, adjoint: TrainingState
    ) -> TrainingState:
        """The adjoint before the optimizer's update, and that of the gradient, as "gradient.NAME"."""
        before: TrainingState = {}
        for name, h in self._hyperparameters[t].items():
            keys = [f"{slot}.{name}" for slot in self._update.slot_names]
            adj = self._update.adjoint(
                state[PARAMETER_KEY_PREFIX + name], gradients[name], tuple(state[key] for key in keys), h, t,
                adjoint[PARAMETER_KEY_PREFIX + name], tuple(adjoint[key] for key in keys),
            )  # fmt: skip
            before |= {PARAMETER_KEY_PREFIX + name: adj.parameter, "gradient." + name: adj.gradient}
            before |= dict(zip(keys, adj.slots, strict=True))
        return before

    def _query_loss(self, state: TrainingState, x: Tensor, y: Any) -> Tensor:
        output = self._forward.forward_in_eval_mode(
            x, _entries_with_prefix(state, PARAMETER_KEY_PREFIX), _entries_with_prefix(state, BUFFER_KEY_PREFIX)
        )
        return check_losses_per_example(self.loss(output, y), len(x))

    def class_losses(self, state: TrainingState, x: Tensor, n_classes: int) -> Tensor:
        output = self._forward.forward_in_eval_mode(
            x, _entries_with_prefix(state, PARAMETER_KEY_PREFIX), _entries_with_prefix(state, BUFFER_KEY_PREFIX)
        )  # once for all classes
        labels = torch.arange(n_classes, device=x.device).repeat(len(x))
        cross_entropy = resolve_loss(self._box, None)  # of classes with other weights no difference is a margin
        return cross_entropy(output.repeat_interleave(n_classes, 0), labels).reshape(len(x), n_classes)

    def query_adjoint(self, state: TrainingState, x: Tensor, y: Any) -> TrainingState:
        used = super().query_adjoint(
            {n: h for n, h in state.items() if n.startswith((PARAMETER_KEY_PREFIX, BUFFER_KEY_PREFIX))}, x, y
        )
        unused = {n: h.new_zeros(len(x), *h.shape) for n, h in state.items() if h.is_floating_point()}
        return unused | used


def _entries_with_prefix(state: TrainingState, prefix: str) -> TrainingState:
    return {name.removeprefix(prefix): h for name, h in state.items() if name.startswith(prefix)}


def _add_key_prefix(prefix: str, tensors: TrainingState) -> TrainingState:
    return {prefix + name: h for name, h in tensors.items()}
