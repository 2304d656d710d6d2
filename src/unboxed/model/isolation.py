"""A model that is run without leaving a trace: what it consists of, writes and draws, and who may run it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import InputError, warn
from ..inputs.base import Inputs
from . import buffer_writes, late_hooks, relu_rules, state
from .hooks import named_modules
from .identity import HookRef, model_identity_and_hooks
from .locks import blocking_other_threads, holding_locks, locks_of
from .private_rngs import PrivateRng, preserving_private_rngs, private_rng_states, private_rngs

Mode = Literal["eval", "as-is"]


def check_is_module(model: object) -> None:
    """Raise InputError for what is no module, with what to do."""
    if isinstance(model, nn.Module):
        return
    got, advice = type(model).__name__, "ub.load opens files and names"
    if isinstance(model, type) and issubclass(model, nn.Module):
        got, advice = f"the class {model.__name__}", f"make one: {model.__name__}(...)"
    elif isinstance(model, Mapping) and any(isinstance(v, Tensor) for v in model.values()):
        advice = "these are weights: load them into their model, model.load_state_dict(weights), and open that"
    elif isinstance(model, Inputs):
        advice = "the model comes first: ub.Box(model, inputs)"
    raise InputError(f"model must be a torch.nn.Module; got {got}. {advice}")


class IsolatedModel:
    """A model as it is now; once its modules or parameters are replaced, moved or cast, it `has_changed`.

    `detecting_writes_and_rng_use` observes a first forward pass. Later ones, inside `run`, then restore only what this
    model writes, and seed the generators only of a stochastic model.
    """

    def __init__(self, model: nn.Module, mode: Mode) -> None:
        self.model, self.mode = model, mode
        self.tensors = [*model.parameters(), *model.buffers()]  # kept alive, as a model is identified by their ids
        if any(is_lazy(t) for t in self.tensors):
            raise InputError("the model has lazy modules without parameters yet: run it once on a batch, then open it")
        first = next((t for t in self.tensors if t.is_floating_point()), torch.empty(0))
        self.device, self.device_type, self.dtype = first.device, first.device.type, first.dtype
        self.modules_by_name = named_modules(model)
        self.modules = tuple(dict.fromkeys((*model.modules(), *self.modules_by_name.values())))
        self.eager = tuple(m for m in self.modules if not isinstance(m, torch.jit.ScriptModule))
        self.locks = locks_of(self.modules)
        self.is_inference = any(p.is_inference() for p in model.parameters())
        self.has_fused_attention = any(isinstance(m, state.FUSED_ATTENTION_MODULE_TYPES) for m in self.modules)
        self.uses_rng = False
        self._used_private_rngs: tuple[PrivateRng, ...] = ()
        self._written_tensors: tuple[Tensor, ...] = ()
        self._untouched_buffers: tuple[Tensor, ...] = ()  # buffers that it does not write
        self._identity, hooks = model_identity_and_hooks(self.eager, mode)
        self._known_hooks = {key for _, key in hooks}
        self.late_hooks: list[HookRef] = []  # those added after opening
        self._is_changed_by_hook = False  # whether one of them changes an activation

    def has_changed(self) -> bool:
        """Whether the model is no longer the one that was opened."""
        current, hooks = model_identity_and_hooks(self.eager, self.mode)
        self.late_hooks = [(at, key) for at, key in hooks if key not in self._known_hooks]
        has_lost_hooks = len(hooks) - len(self.late_hooks) < len(self._known_hooks)
        return self._is_changed_by_hook or has_lost_hooks or current != self._identity

    @property
    def is_stateless(self) -> bool:
        """Whether a forward pass neither draws nor writes: outputs of modules then depend on their inputs alone."""
        return not (self.uses_rng or self._written_tensors)

    def rng_states(self) -> object:
        """The states of the generators that are no op's: NumPy's, Python's and the model's own; to compare."""
        return state.numpy_and_python_rng_states(), private_rng_states(self._used_private_rngs)

    @contextmanager
    def detecting_writes_and_rng_use(self) -> Iterator[None]:
        """Observe what a first forward pass writes and draws; both are restored."""
        rngs = private_rngs(self.modules)
        with (
            buffer_writes.restoring_and_listing_writes(self.tensors) as written,
            state.detecting_rng_use(self.device) as used_rngs,
            preserving_private_rngs(rngs),
        ):
            before = private_rng_states(rngs)
            yield
            now = private_rng_states(rngs)
        self._used_private_rngs = tuple(rng for rng, a, b in zip(rngs, before, now, strict=True) if a != b)
        written_ids = {id(t) for t in written}
        self._written_tensors, self.uses_rng = tuple(written), bool(used_rngs or self._used_private_rngs)
        self._untouched_buffers = tuple(
            b for b in self.model.buffers() if id(b) not in written_ids and not b.is_inference()
        )

    @contextmanager
    def run(self, *, grad: bool = True, rule: relu_rules.ReluRule | None = None, seed: int = 0) -> Iterator[None]:
        """The context of every forward pass; one thread at a time."""
        if grad and self.is_inference:
            raise InputError("the model was made in inference_mode, so it has no gradients; make it outside")
        with (
            holding_locks(self.locks) as is_outermost,
            self._blocking_other_threads() if is_outermost and threading.active_count() > 1 else state.NULL_CONTEXT,
            state.setting_train_flags(self.modules, self.mode),
            buffer_writes.preserving_buffer_registration(self.eager),
            state.setting_grad_mode(grad),
            buffer_writes.reporting_writes_on_exit(self._untouched_buffers, self._on_buffer_write_after_opening)
            if self._untouched_buffers
            else state.NULL_CONTEXT,
            state.combined_context(self._needed_contexts(seed, rule)),
        ):
            yield

    def _blocking_other_threads(self) -> AbstractContextManager[None]:
        changes_flags = self.mode == "eval" and any(m.training for m in self.eager)
        return blocking_other_threads(self.model, self.eager, self.locks, changes_flags=changes_flags)

    def _needed_contexts(self, seed: int, rule: relu_rules.ReluRule | None) -> list[AbstractContextManager[object]]:
        needed = list[AbstractContextManager[object]]()
        if self.late_hooks:
            needed.append(late_hooks.detecting_hook_edits(self.late_hooks, self._on_hook_change))
        if self._written_tensors:
            needed.append(buffer_writes.preserving_tensor_values(self._written_tensors))
        if self.uses_rng:
            needed.append(state.forking_rngs_with_lock(seed, self.device))
        if self._used_private_rngs:
            needed.append(preserving_private_rngs(self._used_private_rngs))
        needed += state.hook_safe_contexts(self.device_type, self.has_fused_attention)
        if rule is not None:
            needed.append(relu_rules.leaving_scripts_unoptimized(self.modules))
        return needed

    def _on_hook_change(self, module: nn.Module) -> None:
        """A hook that only reads does not change the model; this one changes an input or output."""
        if not self._is_changed_by_hook:
            self._is_changed_by_hook = True  # first: where warnings are errors, too
            name = next((path for path, m in self.modules_by_name.items() if m is module), "?")
            warn(
                f"a forward hook that was added to {name!r} after the box was opened changes an activation there; the "
                "next call opens the model again. Call box.refresh() after adding such a hook"
            )

    def _on_buffer_write_after_opening(self, buffer: Tensor) -> None:
        """A buffer was written that the first forward pass did not write: it is restored from the next call on."""
        name = next((path for path, b in self.model.named_buffers() if b is buffer), "?")
        self._written_tensors += (buffer,)
        self._untouched_buffers = tuple(b for b in self._untouched_buffers if b is not buffer)
        warn(
            f"the model wrote to its buffer {name!r}, which it did not do when it was opened: what this call wrote "
            "remains; from the next call on the buffer is restored"
        )
