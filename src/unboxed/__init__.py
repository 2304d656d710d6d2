"""Open the black box of a PyTorch network. The names below load on first use; `__init__.pyi` lists them."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
__version__ = "0.1.0"
