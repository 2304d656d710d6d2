"""A model that is run without leaving a trace: what it is made of, what it writes and draws, and who may run it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import InputError, warn
from . import buffer_writes, late_hooks, relu_rules, state
from .hooks import named_modules
from .identity import HookPlace, identity
from .locks import held, locks_of, others_wait

Mode = Literal["eval", "as-is"]


class Isolated:
    """A model as it is now: once its modules or parameters are exchanged, moved or cast, it is another one.

    `discovering` watches a first forward, after which each later one, inside `run`, puts back just what the model
    writes and seeds the generators only of a model that draws.
    """

    def __init__(self, model: nn.Module, mode: Mode) -> None:
        self.model, self.mode = model, mode
        self.tensors = [*model.parameters(), *model.buffers()]  # kept, for a model is told by their ids
        if any(is_lazy(t) for t in self.tensors):
            raise InputError("the model has lazy modules without parameters yet: run it once on a batch, then open it")
        first = next((t for t in self.tensors if t.is_floating_point()), torch.empty(0))
        self.device, self.dtype = first.device, first.dtype
        self.named = named_modules(model)
        self.modules = tuple(dict.fromkeys((*model.modules(), *self.named.values())))
        self.eager = tuple(m for m in self.modules if not isinstance(m, torch.jit.ScriptModule))
        self.locks = locks_of(self.modules)
        self.without_graph = any(p.is_inference() for p in model.parameters())
        self.fused = any(isinstance(m, state.FUSED) for m in self.modules)
        self.draws = False
        self._written: tuple[Tensor, ...] = ()
        self._unwritten: tuple[Tensor, ...] = ()  # buffers that it leaves alone
        self._identity, hooks = identity(self.eager, mode)
        self._hooks = {key for _, key in hooks}
        self.late_hooks: list[HookPlace] = []  # those added since
        self._hooked = False  # whether one of them changes what passes

    def has_changed(self) -> bool:
        """Whether the model is no longer the one that was opened."""
        now, hooks = identity(self.eager, self.mode)
        self.late_hooks = [(at, key) for at, key in hooks if key not in self._hooks]
        lost = len(hooks) - len(self.late_hooks) < len(self._hooks)
        return self._hooked or lost or now != self._identity

    @property
    def stateless(self) -> bool:
        """Whether a forward neither draws nor writes: then what a module gives depends on what it is given alone."""
        return not (self.draws or self._written)

    @contextmanager
    def discovering(self) -> Iterator[None]:
        """Watch what a first forward writes and draws; both is put back."""
        with buffer_writes.discovering(self.tensors) as written, state.drawing(self.device) as drawn:
            yield
        known = {id(t) for t in written}
        self._written, self.draws = tuple(written), bool(drawn)
        self._unwritten = tuple(b for b in self.model.buffers() if id(b) not in known and not b.is_inference())

    @contextmanager
    def run(self, *, grad: bool = True, rule: relu_rules.Rule | None = None, seed: int = 0) -> Iterator[None]:
        """Everything that touches the model happens inside, by one thread at a time."""
        if grad and self.without_graph:
            raise InputError("the model was made in inference_mode, so it has no gradients; make it outside")
        with (
            held(self.locks) as first,
            self._others_wait() if first and threading.active_count() > 1 else state.NOTHING,
            state.flags(self.modules, self.mode),
            buffer_writes.buffers_in_place(self.eager),
            state.gradients_on(grad),
            buffer_writes.unwritten(self._unwritten, self._late) if self._unwritten else state.NOTHING,
            state.all_of(self._what_some_need(seed, rule)),
        ):
            yield

    def _others_wait(self) -> AbstractContextManager[None]:
        switching = self.mode == "eval" and any(m.training for m in self.eager)
        return others_wait(self.model, self.eager, self.locks, switching=switching)

    def _what_some_need(self, seed: int, rule: relu_rules.Rule | None) -> list[AbstractContextManager[object]]:
        needed = list[AbstractContextManager[object]]()
        if self.late_hooks:
            needed.append(late_hooks.watched(self.late_hooks, self._changed_by_hook))
        if self._written:
            needed.append(buffer_writes.restored(self._written))
        if self.draws:
            needed.append(state.seeded(seed, self.device))
        needed += state.own_settings(self.device, self.fused)
        if rule is not None:
            needed.append(relu_rules.unoptimized_scripts(self.modules))
        return needed

    def _changed_by_hook(self, module: nn.Module) -> None:
        """A hook that only looks makes no other model; this one changes what a module takes or gives."""
        if not self._hooked:
            self._hooked = True  # first: where warnings are errors, too
            name = next((path for path, m in self.named.items() if m is module), "?")
            warn(
                f"a forward hook that was added to {name!r} after the box was opened changes what passes there; the "
                "next call opens the model again. Call box.refresh() after adding such a hook"
            )

    def _late(self, buffer: Tensor) -> None:
        """A buffer was written that the first forward left alone: it is put back from the next call on."""
        name = next((path for path, b in self.model.named_buffers() if b is buffer), "?")
        self._written += (buffer,)
        self._unwritten = tuple(b for b in self._unwritten if b is not buffer)
        warn(
            f"the model wrote to its buffer {name!r}, which it did not do when it was opened: what this call wrote "
            "stays; from the next call on it is put back"
        )
