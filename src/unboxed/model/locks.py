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

GRACE = 0.001  # seconds, in which a forward that is under way comes to its next module, and waits there


class ModelLock:
    """A re-entrant lock; locks are taken in the order of their numbers, so that two threads never wait in a ring."""

    _numbers = count()

    def __init__(self) -> None:
        self.number = next(self._numbers)
        self.lock = threading.RLock()
        self.depth = 0  # how often the thread that holds it has taken it

    def acquire(self) -> None:
        self.lock.acquire()
        self.depth += 1

    def release(self) -> None:
        self.depth -= 1
        self.lock.release()


_LOCKS: WeakKeyDictionary[nn.Module, ModelLock] = WeakKeyDictionary()
_REGISTRY = threading.RLock()
GENERATORS = ModelLock()
"""Held while the process's random number generators are seeded for a model that draws. Taken after the model's own."""


def locks_of(modules: Sequence[nn.Module]) -> tuple[ModelLock, ...]:
    """The locks of a model's modules, in the order in which they are taken."""
    with _REGISTRY:
        new = ModelLock()
        found = {_LOCKS.setdefault(module, new) for module in modules}
    return tuple(sorted(found, key=lambda lock: lock.number))


class _Inside:
    """The threads that are inside a model or wait for one, and how deep.

    A thread enters its name first and looks then whether another forks, and who forks says so first and looks then who
    is inside: one of the two always sees the other, and without a fork nobody waits.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.Lock())
        self.threads: dict[int, int] = {}
        self.forking = False

    def enter(self) -> None:
        me = threading.get_ident()
        depth = self.threads[me] = self.threads.get(me, 0) + 1
        while self.forking and depth == 1:
            del self.threads[me]
            with self.changed:
                self.changed.notify_all()
                while self.forking:
                    self.changed.wait()
            self.threads[me] = 1

    def leave(self) -> None:
        me = threading.get_ident()
        if self.threads[me] > 1:
            self.threads[me] -= 1
            return
        del self.threads[me]
        if self.forking:
            with self.changed:
                self.changed.notify_all()

    def before_fork(self) -> None:
        """Wait until no other thread is inside; a thread that forks from within a model waits for nobody."""
        _REGISTRY.acquire()
        self.changed.acquire()
        self.forking = True
        while self.threads and threading.get_ident() not in self.threads:
            self.changed.wait()

    def after_fork(self) -> None:
        self.forking = False
        self.changed.notify_all()
        self.changed.release()
        _REGISTRY.release()

    def in_child(self) -> None:
        """Threads stay with the parent, and so do the locks that they held."""
        me = threading.get_ident()
        self.threads = {me: self.threads[me]} if me in self.threads else {}
        for lock in {GENERATORS, *_LOCKS.values()}:
            if not lock.lock._is_owned():  # type: ignore[attr-defined]
                lock.lock, lock.depth = threading.RLock(), 0
        self.after_fork()


_INSIDE = _Inside()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_INSIDE.before_fork, after_in_parent=_INSIDE.after_fork, after_in_child=_INSIDE.in_child)


def held(locks: Sequence[ModelLock]) -> AbstractContextManager[bool]:
    """Be the only thread that has these locks; gives whether it did not have them before."""
    return _Held(locks)


class _Held:
    def __init__(self, locks: Sequence[ModelLock]) -> None:
        self.locks = locks
        self.taken: list[ModelLock] = []

    def __enter__(self) -> bool:
        _INSIDE.enter()
        try:
            for lock in self.locks:
                lock.acquire()
                self.taken.append(lock)
        except BaseException:  # Ctrl-C while it waits
            self.__exit__()
            raise
        return self.locks[0].depth == 1

    def __exit__(self, *error: object) -> None:
        for lock in reversed(self.taken):
            lock.release()
        _INSIDE.leave()


@contextmanager
def others_wait(
    model: nn.Module, modules: Sequence[nn.Module], locks: Sequence[ModelLock], *, switching: bool
) -> Iterator[None]:
    """While open, in a thread that holds the locks, other threads that call the model wait.

    `switching` says that its train flags are about to change: then a forward of another thread that is under way waits,
    too, at the next module that it comes to.
    """
    wait = TransientHook(_waits(modules, locks))
    handles = [m.register_forward_pre_hook(wait) for m in (modules if switching else (model,))]
    try:
        if switching:
            time.sleep(GRACE)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _waits(modules: Sequence[nn.Module], locks: Sequence[ModelLock]) -> Callable[[nn.Module, Any], None]:
    """A hook that has the process's other Python threads wait for the locks.

    Threads that are not Python's own (autograd's, which run a checkpoint again) work for the thread that holds them,
    and so do replicas of the modules (of nn.DataParallel).
    """
    owner, ours = threading.get_ident(), {id(m) for m in modules}

    def wait(module: nn.Module, args: Any) -> None:
        me = threading.get_ident()
        if me == owner or id(module) not in ours or me not in {t.ident for t in threading.enumerate()}:
            return
        with held(locks):
            pass

    return wait
