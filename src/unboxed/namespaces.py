"""What `dir` shows of a package: what it exports, without the files that it is made of."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType


def dir_of_exports(package: str, *modules: str) -> Callable[[], list[str]]:
    """The `__dir__` of a package: its public functions, classes and values, and these of its modules.

    >>> import unboxed as ub
    >>> "gradient" in dir(ub.attribution), "grad_cam_plus_plus" in dir(ub.attribution), "_data" in dir(ub.concepts)
    (True, True, False)
    """

    def list_names() -> list[str]:
        names = vars(sys.modules[package])
        exported = [n for n, value in names.items() if not n.startswith("_") and not isinstance(value, ModuleType)]
        exported = [n for n in exported if n != dir_of_exports.__name__]
        return sorted({*names.get("__all__", exported), *modules})

    return list_names
