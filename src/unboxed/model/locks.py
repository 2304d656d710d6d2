"""Who may run a model: one thread at a time per model, one for the process's random number generators.

Boxes that share modules share their lock. A thread of the user that runs a boxed model (a training during a report)
waits at its next module until the box is done, also in the middle of a forward pass, and so never runs in the box's
eval mode. (A module that reads its own flag between two of its children at that moment may; open a copy of the model to
avoid it.) `os.fork` waits until no other thread is inside a model: a child inherits no acquired lock.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from .identity import TransientHook

NEXT_MODULE_WAIT_SECONDS = 0.001  # in which a running forward pass reaches its next module, and waits there


class ModelLock:
    """A re-entrant lock; locks are acquired in the order of `order`, so that threads never deadlock."""

    _orders = count()

    def __init__(self) -> None:
        self.order = next(self._orders)
        self.lock = threading.RLock()
        self.depth = 0  # how often its thread has acquired it

    def acquire(self) -> None:
        self.lock.acquire()
        self.depth += 1

    def release(self) -> None:
        self.depth -= 1
        self.lock.release()


_LOCK_BY_MODULE: WeakKeyDictionary[nn.Module, ModelLock] = WeakKeyDictionary()
_LOCK_TABLE_LOCK = threading.RLock()
RNG_LOCK = ModelLock()
"""For seeding the process's random number generators. Acquired after the model's own locks."""


def locks_of(modules: Sequence[nn.Module]) -> tuple[ModelLock, ...]:
    """The locks of a model's modules, in the order in which they are acquired."""
    with _LOCK_TABLE_LOCK:
        new = ModelLock()
        locks = {_LOCK_BY_MODULE.setdefault(module, new) for module in modules}
    return tuple(sorted(locks, key=lambda lock: lock.order))


class _ThreadRegistry:
    """The threads that are inside a model or wait for one, and how deep.

    A thread registers before it checks for a fork, and a fork is announced before it checks for threads: one of the two
    always sees the other, and without a fork no thread waits.
    """

    def __init__(self) -> None:
        self.condition = threading.Condition(threading.Lock())
        self.depth_by_thread: dict[int, int] = {}
        self.is_forking = False

    def register_thread(self) -> None:
        thread_id = threading.get_ident()
        depth = self.depth_by_thread[thread_id] = self.depth_by_thread.get(thread_id, 0) + 1
        while self.is_forking and depth == 1:
            del self.depth_by_thread[thread_id]
            with self.condition:
                self.condition.notify_all()
                while self.is_forking:
                    self.condition.wait()
            self.depth_by_thread[thread_id] = 1

    def unregister_thread(self) -> None:
        thread_id = threading.get_ident()
        if self.depth_by_thread[thread_id] > 1:
            self.depth_by_thread[thread_id] -= 1
            return
        del self.depth_by_thread[thread_id]
        if self.is_forking:
            with self.condition:
                self.condition.notify_all()

    def before_fork(self) -> None:
        """Wait until no other thread is inside; a thread that forks from inside a model does not wait."""
        _LOCK_TABLE_LOCK.acquire()
        self.condition.acquire()
        self.is_forking = True
        while self.depth_by_thread and threading.get_ident() not in self.depth_by_thread:
            self.condition.wait()

    def after_fork(self) -> None:
        self.is_forking = False
        self.condition.notify_all()
        self.condition.release()
        _LOCK_TABLE_LOCK.release()

    def after_fork_in_child(self) -> None:
        """Only the forking thread exists in the child; locks of others are made new."""
        thread_id = threading.get_ident()
        self.depth_by_thread = {thread_id: self.depth_by_thread[thread_id]} if thread_id in self.depth_by_thread else {}
        for lock in {RNG_LOCK, *_LOCK_BY_MODULE.values()}:
            if not lock.lock._is_owned():  # type: ignore[attr-defined]
                lock.lock, lock.depth = threading.RLock(), 0
        self.after_fork()


_THREAD_REGISTRY = _ThreadRegistry()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_THREAD_REGISTRY.before_fork,
        after_in_parent=_THREAD_REGISTRY.after_fork,
        after_in_child=_THREAD_REGISTRY.after_fork_in_child,
    )


class holding_locks:
    """Acquire these locks for this thread; gives whether it did not have them before."""

    def __init__(self, locks: Sequence[ModelLock]) -> None:
        self.locks = locks
        self.acquired: list[ModelLock] = []

    def __enter__(self) -> bool:
        _THREAD_REGISTRY.register_thread()
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
        _THREAD_REGISTRY.unregister_thread()


@contextmanager
def blocking_other_threads(
    model: nn.Module, modules: Sequence[nn.Module], locks: Sequence[ModelLock], *, changes_flags: bool
) -> Iterator[None]:
    """While open, in a thread that holds the locks, other threads that call the model wait.

    `changes_flags`: whether its train flags are about to change; a running forward pass of another thread then waits,
    too, at its next module.
    """
    wait = TransientHook(_make_lock_wait_hook(modules, locks))
    handles = [m.register_forward_pre_hook(wait) for m in (modules if changes_flags else (model,))]
    try:
        if changes_flags:
            time.sleep(NEXT_MODULE_WAIT_SECONDS)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _make_lock_wait_hook(modules: Sequence[nn.Module], locks: Sequence[ModelLock]) -> Callable[[nn.Module, Any], None]:
    """A hook that makes the other Python threads of the process wait for the locks.

    Threads that Python did not start (of autograd, which rerun a checkpoint) work for the owner of the locks, and so do
    replicas of the modules (of nn.DataParallel): they do not wait.
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
        with holding_locks(locks):
            pass

    return wait
