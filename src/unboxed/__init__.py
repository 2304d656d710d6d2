"""Open the black box of a PyTorch network. The names below load on first use; `__init__.pyi` lists them."""

from typing import Any as _Any

import lazy_loader as _lazy

_get_lazily, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
__version__ = "0.1.0"


def __getattr__(name: str) -> _Any:
    if name not in __all__ and not name.startswith("_"):
        from .namespaces import import_submodule

        return import_submodule(__name__, name)
    return _get_lazily(name)
