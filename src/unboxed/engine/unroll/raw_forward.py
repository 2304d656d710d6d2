"""A model's forward pass with other parameters and buffers, in train or eval mode, as a pure function."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor, nn
from torch.func import functional_call

from ...box import Box
from ...errors import ModelError
from ...model import state as model_state
from ..example_gradients.losses import loss_input_address
from .running_statistics import PureBatchNormMode
from .training import TrainingState


class RawForward(nn.Module):
    """A box's model called with other parameters and buffers, in train or eval mode; its RNGs are keyed."""

    def __init__(self, box: Box) -> None:
        super().__init__()
        self.model = box.model
        self._box = [box]  # in a list: no attribute of a module
        self.draws = False  # whether training steps draw random numbers

    def forward(self, x: Tensor) -> Tensor:
        box, reader = self._box[0], self._box[0].output_reader
        with (
            reader.recording_final_op(loss_input_address(box) == "logits") as final_op,
            model_state.MATH_ATTENTION_CONTEXT,
            model_state.without_compiled_graphs(),  # a graph may allow one backward pass alone
        ):
            output = reader.select_tensor(box.raw_output(x))
        return (output if loss_input_address(box) == "output" else reader.logits(output, final_op)).to(box.dtype)

    def forward_in_train_mode(
        self, x: Tensor, parameters: TrainingState, buffers: TrainingState, seed: int
    ) -> tuple[Tensor, TrainingState]:
        """The output (B, ...) in train mode, and the buffers after it."""
        copies = {name: b.clone() for name, b in buffers.items()}
        batch_norms = PureBatchNormMode()  # of a model without buffers it would do nothing, op by op
        mode = batch_norms if buffers else model_state.NULL_CONTEXT
        with _in_train_mode(self.model), self._forking_rngs_if_random(seed, x), mode:
            output = self._functional_call(x, parameters, copies)
        self._refuse_nondifferentiable_writes(buffers, copies)
        return output, {**copies, **batch_norms.new_buffer_values(copies)}

    def forward_in_eval_mode(self, x: Tensor, parameters: TrainingState, buffers: TrainingState) -> Tensor:
        with self._forking_rngs_if_random(0, x), PureBatchNormMode() if buffers else model_state.NULL_CONTEXT:
            return self._functional_call(x, parameters, buffers)

    def _forking_rngs_if_random(self, seed: int, x: Tensor) -> AbstractContextManager[None]:
        return model_state.forking_rngs(seed, x.device) if self.draws else model_state.NULL_CONTEXT

    def _functional_call(self, x: Tensor, parameters: TrainingState, buffers: TrainingState) -> Tensor:
        replaced = {f"model.{name}": h for part in (parameters, buffers) for name, h in part.items()}
        output: Tensor = functional_call(self, replaced, (x,))
        return output

    @staticmethod
    def _refuse_nondifferentiable_writes(before: TrainingState, after: TrainingState) -> None:
        """Buffers of numbers that change otherwise than by batch norm have no derivative. Raises ModelError."""
        for name, h in after.items():
            if h.is_floating_point() and h._version:
                raise ModelError(
                    f"the model writes its buffer {name!r} in training, which can't be differentiated; make it an "
                    "output, or write the training's step as a pure function"
                )


@contextmanager
def _in_train_mode(model: nn.Module) -> Iterator[None]:
    model.train()
    try:
        yield
    finally:
        for module in model.modules():
            module.training = False  # not .eval(): users override it
