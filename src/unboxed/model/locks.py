"""Who may run a model: one thread at a time per model, one for the process's random number generators.

Boxes that share modules share their lock. A thread of the user's own that runs a boxed model (a training beside a
report) waits until the box is done, also in the middle of a forward, at its next module: it does not meet the eval mode
of the box. (A module that reads its own flag between two of its children just then would; a box on a copy of the model
has no such neighbor.) `os.fork` waits until no other thread is inside a model: a child inherits no lock that is held.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from .identity import TransientHook

GRACE_SECONDS = 0.001  # seconds, in which a forward that is under way comes to its next module, and waits there


class ModelLock:
    """A re-entrant lock; locks are taken in the order of their numbers, so that two threads never wait in a ring."""

    _orders = count()

    def __init__(self) -> None:
        self.order = next(self._orders)
        self.lock = threading.RLock()
        self.depth = 0  # how often the thread that holds it has taken it

    def acquire(self) -> None:
        self.lock.acquire()
        self.depth += 1

    def release(self) -> None:
        self.depth -= 1
        self.lock.release()


_LOCK_BY_MODULE: WeakKeyDictionary[nn.Module, ModelLock] = WeakKeyDictionary()
_REGISTRY_LOCK = threading.RLock()
RNG_LOCK = ModelLock()
"""Held while the process's random number generators are seeded for a model that draws. Taken after the model's own."""


def locks_of(modules: Sequence[nn.Module]) -> tuple[ModelLock, ...]:
    """The locks of a model's modules, in the order in which they are taken."""
    with _REGISTRY_LOCK:
        new = ModelLock()
        locks = {_LOCK_BY_MODULE.setdefault(module, new) for module in modules}
    return tuple(sorted(locks, key=lambda lock: lock.order))


class _ThreadRegistry:
    """The threads that are inside a model or wait for one, and how deep.

    A thread enters its name first and looks then whether another forks, and who forks says so first and looks then who
    is inside: one of the two always sees the other, and without a fork nobody waits.
    """

    def __init__(self) -> None:
        self.condition = threading.Condition(threading.Lock())
        self.depth_by_thread: dict[int, int] = {}
        self.is_forking = False

    def enter(self) -> None:
        thread_id = threading.get_ident()
        depth = self.depth_by_thread[thread_id] = self.depth_by_thread.get(thread_id, 0) + 1
        while self.is_forking and depth == 1:
            del self.depth_by_thread[thread_id]
            with self.condition:
                self.condition.notify_all()
                while self.is_forking:
                    self.condition.wait()
            self.depth_by_thread[thread_id] = 1

    def leave(self) -> None:
        thread_id = threading.get_ident()
        if self.depth_by_thread[thread_id] > 1:
            self.depth_by_thread[thread_id] -= 1
            return
        del self.depth_by_thread[thread_id]
        if self.is_forking:
            with self.condition:
                self.condition.notify_all()

    def before_fork(self) -> None:
        """Wait until no other thread is inside; a thread that forks from within a model waits for nobody."""
        _REGISTRY_LOCK.acquire()
        self.condition.acquire()
        self.is_forking = True
        while self.depth_by_thread and threading.get_ident() not in self.depth_by_thread:
            self.condition.wait()

    def after_fork(self) -> None:
        self.is_forking = False
        self.condition.notify_all()
        self.condition.release()
        _REGISTRY_LOCK.release()

    def in_child(self) -> None:
        """Threads stay with the parent, and so do the locks that they held."""
        thread_id = threading.get_ident()
        self.depth_by_thread = {thread_id: self.depth_by_thread[thread_id]} if thread_id in self.depth_by_thread else {}
        for lock in {RNG_LOCK, *_LOCK_BY_MODULE.values()}:
            if not lock.lock._is_owned():  # type: ignore[attr-defined]
                lock.lock, lock.depth = threading.RLock(), 0
        self.after_fork()


_THREADS_INSIDE = _ThreadRegistry()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_THREADS_INSIDE.before_fork,
        after_in_parent=_THREADS_INSIDE.after_fork,
        after_in_child=_THREADS_INSIDE.in_child,
    )


def hold_locks(locks: Sequence[ModelLock]) -> AbstractContextManager[bool]:
    """Be the only thread that has these locks; gives whether it did not have them before."""
    return _HeldLocks(locks)


class _HeldLocks:
    def __init__(self, locks: Sequence[ModelLock]) -> None:
        self.locks = locks
        self.acquired: list[ModelLock] = []

    def __enter__(self) -> bool:
        _THREADS_INSIDE.enter()
        try:
            for lock in self.locks:
                lock.acquire()
                self.acquired.append(lock)
        except BaseException:  # Ctrl-C while it waits
            self.__exit__()
            raise
        return self.locks[0].depth == 1

    def __exit__(self, *error: object) -> None:
        for lock in reversed(self.acquired):
            lock.release()
        _THREADS_INSIDE.leave()


@contextmanager
def block_other_threads(
    model: nn.Module, modules: Sequence[nn.Module], locks: Sequence[ModelLock], *, changes_flags: bool
) -> Iterator[None]:
    """While open, in a thread that holds the locks, other threads that call the model wait.

    `changes_flags` says that its train flags are about to change: then a forward of another thread that is under way
    waits, too, at the next module that it comes to.
    """
    wait = TransientHook(_waiting_hook(modules, locks))
    handles = [m.register_forward_pre_hook(wait) for m in (modules if changes_flags else (model,))]
    try:
        if changes_flags:
            time.sleep(GRACE_SECONDS)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _waiting_hook(modules: Sequence[nn.Module], locks: Sequence[ModelLock]) -> Callable[[nn.Module, Any], None]:
    """A hook that has the process's other Python threads wait for the locks.

    Threads that are not Python's own (autograd's, which run a checkpoint again) work for the thread that holds them,
    and so do replicas of the modules (of nn.DataParallel).
    """
    owner, module_ids = threading.get_ident(), {id(m) for m in modules}

    def wait(module: nn.Module, args: Any) -> None:
        thread_id = threading.get_ident()
        if (
            thread_id == owner
            or id(module) not in module_ids
            or thread_id not in {t.ident for t in threading.enumerate()}
        ):
            return
        with hold_locks(locks):
            pass

    return wait
