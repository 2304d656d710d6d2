"""The modules before an edit run once per example, however many edits there are."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ...box import Box
from ...model.hooks import StopForward
from ...model.replay import Replay
from ...objectives import INPUT_OUTPUT_ADDRESSES, Objective


class PrefixReplay:
    """Recorded outputs, for some rows of x (N, ...), of the modules that finish before the first edit."""

    def __init__(self, box: Box, x: Tensor, objective: Objective) -> None:
        self.box, self.x, self.objective = box, x, objective
        self.replay: Replay | None = None
        self.first_example = 0  # the example in the first row of the recording
        self.unreplayable: set[nn.Module] = set()  # modules that cannot be replayed

    @property
    def is_replay_possible(self) -> bool:
        return self.box.accepts_proxy_tensors and self.box.stateless

    def record_prefix(self, examples: Tensor, edits: Collection[str]) -> None:
        """Record the outputs for these examples (R,), and the following ones, which the next batches need."""
        first, last = int(examples.min()), int(examples.max())
        if self.replay is None or not self.first_example <= first <= last < self.first_example + self.replay.n:
            self.replay, self.first_example = None, first  # to free its memory
            self.replay = self._record_module_outputs(self.x[first : max(last + 1, first + len(examples))], edits)

    def _record_module_outputs(self, x: Tensor, edits: Collection[str], include_inner: bool = False) -> Replay:
        box, layers = self.box, self.box.layers
        captured = {layers.resolve(a) for a in {*edits, *self.objective.layers} - set(INPUT_OUTPUT_ADDRESSES)}
        replay = Replay(box.modules, layers, captured, len(x), self.unreplayable)
        with box.isolated(grad=False), replay.recording_calls(include_inner):
            box.forward(x, [], dict.fromkeys(edits, _stop_after_prefix))
        return replay

    @contextmanager
    def finding_unreplayable_modules(
        self, examples: Tensor, edits: Collection[str], rounding_error: float
    ) -> Iterator[None]:
        """While open, a full run of these rows (R,) of x finds the modules that cannot be replayed.

        The rows differ from those of x in order and number. `rounding_error`: of activations, relative.
        """
        replay = self._record_module_outputs(self.x, edits, include_inner=True)
        with replay.collecting_unreplayable_modules(examples, rounding_error) as failed_modules:
            yield
        self.unreplayable |= failed_modules

    @contextmanager
    def replaying_prefix(self, examples: Tensor) -> Iterator[None]:
        """While open, those modules return recorded outputs for inputs that are these examples (R,)."""
        if self.replay is None:
            yield
            return
        try:
            with self.replay.replaying_outputs(examples - self.first_example):
                yield
        except BaseException:
            self.replay = None  # after running out of memory, smaller batches need that memory
            raise


def _stop_after_prefix(h: Tensor) -> Tensor:
    raise StopForward
