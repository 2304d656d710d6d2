"""`module:factory` and `path/to/file.py:factory`: run the user's own code and hand back what it makes."""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..errors import UnboxedError
from ..model.state import seeded_rngs

Wrong = type[UnboxedError]  # what a failure is raised as: ModelError for models, DataError for data
USER_FAULTS = (Exception, SystemExit)  # a script without a __main__ guard may well call sys.exit


def build(spec: str, wrong: Wrong, seed: int = 0) -> Any:
    """What `spec` names; a class or a function is called without arguments, anything else is taken as it is.

    A file is imported under a private name, so it can't stand in for another module. Its folder (for a module: the
    working folder) is on sys.path until the factory has returned, not longer. Its random numbers
    start at `seed`; the caller's are afterwards as before.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise wrong(f"{spec!r} names no factory; wanted module:factory or path/to/file.py:factory")
    if not place.endswith(".py"):
        with _beside(Path.cwd()):
            return _made(_named(_drawing(_import, place, spec, wrong, seed), name, spec, wrong), spec, wrong, seed)
    path = Path(place).resolve()
    if not path.is_file():
        raise wrong(f"{spec}: there is no file {place}{_nearest(path.name, _listing(path.parent))}")
    with _beside(path.parent):
        return _made(_named(_drawing(_run, path, spec, wrong, seed), name, spec, wrong), spec, wrong, seed)


def defined(path: Path) -> list[str]:
    """The public classes and functions that a Python file defines, read without running it."""
    try:
        body = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return []
    kinds = (ast.ClassDef, ast.FunctionDef)
    return [node.name for node in body if isinstance(node, kinds) and not node.name.startswith("_")]


def _drawing(load: Callable[..., ModuleType], place: object, spec: str, wrong: Wrong, seed: int) -> ModuleType:
    """A module loaded on random numbers of its own: it may make its model while it is imported."""
    with seeded_rngs(seed, torch.get_default_device()):
        return load(place, spec, wrong)


def _run(path: Path, spec: str, wrong: Wrong) -> ModuleType:
    name = f"_unboxed_{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}"
    plan = importlib.util.spec_from_file_location(name, path)
    if plan is None or plan.loader is None:
        raise wrong(f"{spec}: Python can't import {path.name}")
    module = importlib.util.module_from_spec(plan)
    sys.modules[name] = module  # dataclasses and type hints look their module up here
    try:
        plan.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, USER_FAULTS):
            raise wrong(f"{spec}: {path.name} failed while it was imported: {_said(error)}") from error
        raise
    return module


def _import(place: str, spec: str, wrong: Wrong) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise wrong(f"{spec}: {place} failed while it was imported: {_said(error)}") from error
        advice = "install it, or run from its folder, or give the file: path/to/file.py:factory"
        raise wrong(f"{spec}: there is no module {error.name!r} here; {advice}") from error
    except USER_FAULTS as error:
        raise wrong(f"{spec}: {place} failed while it was imported: {_said(error)}") from error


def _named(module: ModuleType, name: str, spec: str, wrong: Wrong) -> Any:
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            public = [n for n, v in vars(value).items() if not n.startswith("_") and not inspect.ismodule(v)]
            raise wrong(f"{spec}: {part!r} is not defined there{_nearest(part, public)}")
        value = getattr(value, part)
    return value


def _made(value: Any, spec: str, wrong: Wrong, seed: int) -> Any:
    if not (inspect.isclass(value) or inspect.isroutine(value) or isinstance(value, functools.partial)):
        return value
    if asked := _required(value):
        advice = "write a function without arguments that makes it"
        raise wrong(f"{spec} wants arguments ({', '.join(asked)}) and a factory gets none; {advice}")
    try:
        with seeded_rngs(seed, torch.get_default_device()):
            return value()
    except USER_FAULTS as error:
        raise wrong(f"{spec} failed when it was called: {_said(error)}") from error


def _required(factory: Any) -> list[str]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in optional]


def _said(error: BaseException) -> str:
    """The error in one line, with the place in the user's code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{where}"


def _nearest(name: str, choices: list[str]) -> str:
    near = difflib.get_close_matches(name, choices, n=3) or cut(sorted(choices))
    return f"; there is {', '.join(near)}" if near else ""


def cut(names: list[str], most: int = 5) -> list[str]:
    """The first of a list, and a sign that there are more."""
    return names if len(names) <= most else [*names[:most], "..."]


def _listing(folder: Path) -> list[str]:
    return [p.name for p in folder.glob("*.py")] if folder.is_dir() else []


@contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """Let the user's code import its neighbors, then forget those that only this folder could give.

    Otherwise the `layers.py` of one folder would be taken for the `layers.py` of the next.
    """
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:  # the user's code may have changed the path too
            sys.path.remove(str(folder))
        for top in {name.partition(".")[0] for name in set(sys.modules) - before} - before:
            if (folder / f"{top}.py").is_file() or (folder / top).is_dir():
                _forget(top)


def _forget(top: str) -> None:
    held = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == top}
    importlib.invalidate_caches()
    try:
        elsewhere = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        elsewhere = None
    if elsewhere is not None:
        sys.modules.update(held)
