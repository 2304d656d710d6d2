"""What comes before an edit runs once per example, however many ways there are to edit."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ...box import Box
from ...model.hooks import StopForward
from ...model.replay import Replay
from ...objectives import MODEL_ENDS, Objective


class PrefixReplay:
    """What the modules that finish before the first edit give for x (N, ...), some rows of it at a time."""

    def __init__(self, box: Box, x: Tensor, objective: Objective) -> None:
        self.box, self.x, self.objective = box, x, objective
        self.replay: Replay | None = None
        self.first_example = 0  # the example that its first row is
        self.unreplayable: set[nn.Module] = set()  # modules that can't answer

    @property
    def is_possible(self) -> bool:
        return self.box.accepts_proxies and self.box.stateless

    def record_prefix(self, examples: Tensor, edits: Collection[str]) -> None:
        """Have a recording of these examples (R,): of R in a row, for the batches to come need the next."""
        first, last = int(examples.min()), int(examples.max())
        if self.replay is None or not self.first_example <= first <= last < self.first_example + self.replay.n:
            self.replay, self.first_example = None, first  # its memory is needed
            self.replay = self._make_recording(self.x[first : max(last + 1, first + len(examples))], edits)

    def _make_recording(self, x: Tensor, edits: Collection[str], include_inner: bool = False) -> Replay:
        box, layers = self.box, self.box.layers
        captured = {layers.resolve(a) for a in {*edits, *self.objective.layers} - set(MODEL_ENDS)}
        replay = Replay(box.modules, layers, captured, len(x), self.unreplayable)
        with box.isolated(grad=False), replay.record_run(include_inner):
            box.forward(x, [], dict.fromkeys(edits, _raise_stop))
        return replay

    @contextmanager
    def finding_unreplayable(self, examples: Tensor, edits: Collection[str], rounding_error: float) -> Iterator[None]:
        """While a whole run of these rows (R,) of x is done, find the modules that can't answer.

        The rows are in another order and number than those of x. `share`: the rounding error of activations.
        """
        replay = self._make_recording(self.x, edits, include_inner=True)
        with replay.verify_rows(examples, rounding_error) as failed_modules:
            yield
        self.unreplayable |= failed_modules

    @contextmanager
    def replaying(self, examples: Tensor) -> Iterator[None]:
        """While open, those modules answer for inputs that are these recorded examples (R,)."""
        if self.replay is None:
            yield
            return
        try:
            with self.replay.replay_rows(examples - self.first_example):
                yield
        except BaseException:
            self.replay = None  # where memory ran out, smaller batches need it
            raise


def _raise_stop(h: Tensor) -> Tensor:
    raise StopForward
