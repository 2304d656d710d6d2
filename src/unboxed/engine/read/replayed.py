"""What comes before an edit runs once per example, however many ways there are to edit."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ...box import Box
from ...model.hooks import StopForward
from ...model.replay import Replay
from ...objectives import MODEL_ENDS, Objective


class Before:
    """What the modules that finish before the first edit give for x (N, ...), some rows of it at a time."""

    def __init__(self, box: Box, x: Tensor, objective: Objective) -> None:
        self.box, self.x, self.objective = box, x, objective
        self.replay: Replay | None = None
        self.start = 0  # the example that its first row is
        self.without: set[nn.Module] = set()  # modules that can't answer

    @property
    def possible(self) -> bool:
        return self.box.accepts_proxies and self.box.stateless

    def record(self, examples: Tensor, edits: Collection[str]) -> None:
        """Have a recording of these examples (R,): of R in a row, for the batches to come need the next."""
        first, last = int(examples.min()), int(examples.max())
        if self.replay is None or not self.start <= first <= last < self.start + self.replay.n:
            self.replay, self.start = None, first  # its memory is needed
            self.replay = self._recorded(self.x[first : max(last + 1, first + len(examples))], edits)

    def _recorded(self, x: Tensor, edits: Collection[str], inner: bool = False) -> Replay:
        box, layers = self.box, self.box.layers
        tapped = {layers.resolve(a) for a in {*edits, *self.objective.layers} - set(MODEL_ENDS)}
        replay = Replay(box.modules, layers, tapped, len(x), self.without)
        with box.isolated(grad=False), replay.record_run(inner):
            box.forward(x, [], dict.fromkeys(edits, _stop))
        return replay

    @contextmanager
    def checking(self, examples: Tensor, edits: Collection[str], share: float) -> Iterator[None]:
        """While a whole run of these rows (R,) of x is done, find the modules that can't answer.

        The rows are in another order and number than those of x. `share`: the rounding error of activations.
        """
        replay = self._recorded(self.x, edits, inner=True)
        with replay.verify_rows(examples, share) as found:
            yield
        self.without |= found

    @contextmanager
    def answering(self, examples: Tensor) -> Iterator[None]:
        """While open, those modules answer for inputs that are these recorded examples (R,)."""
        if self.replay is None:
            yield
            return
        try:
            with self.replay.replay_rows(examples - self.start):
                yield
        except BaseException:
            self.replay = None  # where memory ran out, smaller batches need it
            raise


def _stop(h: Tensor) -> Tensor:
    raise StopForward
