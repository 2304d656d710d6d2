"""`module:factory` and `path/to/file.py:factory`: run the user's code and return what it makes."""

from __future__ import annotations

import ast
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

from ..errors import InputError, UnboxedError
from ..model.state import forking_rngs_with_lock
from ..validation import suggestion_text

ErrorType = type[UnboxedError]  # of errors: ModelError for models, DataError for data
USER_CODE_EXCEPTION_TYPES = (Exception, SystemExit)  # a script without a __main__ guard may call sys.exit


def build_from_spec(spec: str, error_type: ErrorType, seed: int = 0) -> Any:
    """The object that `spec` names; a class or a function is called without arguments.

    A file is imported under a private name, so that it cannot shadow another module. Its folder (for a module: the
    working folder) is on sys.path until the factory has returned. Random numbers are seeded by `seed`, and the caller's
    generators restored.
    """
    module_path, _, name = spec.rpartition(":")
    if not module_path or not name:
        raise error_type(f"{spec!r} names no factory; wanted module:factory or path/to/file.py:factory")
    is_file, path = module_path.endswith(".py"), Path(module_path).resolve()
    if is_file and not path.is_file():
        hint = _name_suggestion_text(path.name, _python_file_names(path.parent))
        raise error_type(f"{spec}: there is no file {module_path}{hint}")
    with _importing_from_folder(path.parent if is_file else Path.cwd()):
        load, source = (_import_file, path) if is_file else (_import_module, module_path)
        module = _import_with_seeded_rngs(load, source, spec, error_type, seed)
        return _call_factory_with_seeded_rngs(
            _resolve_dotted_name(module, name, spec, error_type), spec, error_type, seed
        )


def import_methods(source: str) -> ModuleType:
    """Import a Python file or a module, for the methods that get their cards in it. Raises InputError."""
    if not source.endswith(".py"):
        with _importing_from_folder(Path.cwd()):
            return _import_module(source, source, InputError)
    path = Path(source).resolve()
    if not path.is_file():
        raise InputError(
            f"there is no file {source}{_name_suggestion_text(path.name, _python_file_names(path.parent))}"
        )
    with _importing_from_folder(path.parent):
        return _import_file(path, source, InputError)


def public_names_defined_in_file(path: Path) -> list[str]:
    """The public classes and functions that a Python file defines, read without running it."""
    try:
        body = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return []
    node_types = (ast.ClassDef, ast.FunctionDef)
    return [node.name for node in body if isinstance(node, node_types) and not node.name.startswith("_")]


def _import_with_seeded_rngs(
    load_module: Callable[..., ModuleType], source: object, spec: str, error_type: ErrorType, seed: int
) -> ModuleType:
    """Import a module with seeded random numbers: it may build its model during the import."""
    with forking_rngs_with_lock(seed, torch.get_default_device()):
        return load_module(source, spec, error_type)


def _import_file(path: Path, spec: str, error_type: ErrorType) -> ModuleType:
    name = f"_unboxed_{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise error_type(f"{spec}: Python can't import {path.name}")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses and type hints look their module up here
    try:
        module_spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, USER_CODE_EXCEPTION_TYPES):
            raise error_type(f"{spec}: {path.name} failed while it was imported: {_user_error_text(error)}") from error
        raise
    return module


def _import_module(module_name: str, spec: str, error_type: ErrorType) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise error_type(
                f"{spec}: {module_name} failed while it was imported: {_user_error_text(error)}"
            ) from error
        advice = "install it, or run from its folder, or give the file: path/to/file.py:factory"
        raise error_type(f"{spec}: there is no module {error.name!r} here; {advice}") from error
    except USER_CODE_EXCEPTION_TYPES as error:
        raise error_type(f"{spec}: {module_name} failed while it was imported: {_user_error_text(error)}") from error


def _resolve_dotted_name(module: ModuleType, name: str, spec: str, error_type: ErrorType) -> Any:
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            public_names = [
                attribute
                for attribute, attribute_value in vars(value).items()
                if not attribute.startswith("_") and not inspect.ismodule(attribute_value)
            ]
            raise error_type(f"{spec}: {part!r} is not defined there{_name_suggestion_text(part, public_names)}")
        value = getattr(value, part)
    return value


def _call_factory_with_seeded_rngs(value: Any, spec: str, error_type: ErrorType, seed: int) -> Any:
    if not (inspect.isclass(value) or inspect.isroutine(value) or isinstance(value, functools.partial)):
        return value
    if required := _required_parameters(value):
        advice = "write a function without arguments that makes it"
        raise error_type(f"{spec} wants arguments ({', '.join(required)}) and a factory gets none; {advice}")
    try:
        with forking_rngs_with_lock(seed, torch.get_default_device()):
            return value()
    except USER_CODE_EXCEPTION_TYPES as error:
        raise error_type(f"{spec} failed when it was called: {_user_error_text(error)}") from error


def _required_parameters(factory: Any) -> list[str]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty and parameter.kind not in optional
    ]


def _user_error_text(error: BaseException) -> str:
    """The error in one line, with the place in the user's code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    location = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{location}"


def _name_suggestion_text(name: str, choices: list[str]) -> str:
    return f"; {suggestion_text(name, sorted(choices))}" if choices else ""


def first_names_with_ellipsis(names: list[str], max_names: int = 5) -> list[str]:
    """The first names of a list, with "..." if there are more."""
    return names if len(names) <= max_names else [*names[:max_names], "..."]


def _python_file_names(folder: Path) -> list[str]:
    return [p.name for p in folder.glob("*.py")] if folder.is_dir() else []


@contextmanager
def _importing_from_folder(folder: Path) -> Iterator[None]:
    """Let the user's code import modules from its folder, and remove those from sys.modules afterwards.

    Otherwise the `layers.py` of one folder would be used for that of the next.
    """
    old_modules = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:  # the user's code may have changed the path too
            sys.path.remove(str(folder))
        for top_module in {name.partition(".")[0] for name in set(sys.modules) - old_modules} - old_modules:
            if (folder / f"{top_module}.py").is_file() or (folder / top_module).is_dir():
                _remove_module_unless_importable(top_module)


def _remove_module_unless_importable(top_module: str) -> None:
    removed = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == top_module}
    importlib.invalidate_caches()
    try:
        other_spec = importlib.util.find_spec(top_module)
    except (ImportError, ValueError):
        other_spec = None
    if other_spec is not None:
        sys.modules.update(removed)
