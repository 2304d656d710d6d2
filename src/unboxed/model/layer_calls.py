"""The calls of layers in a forward pass: what each receives and gives, where a rule needs both and the layer itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .identity import TransientHook

OnLayerCallFn = Callable[[nn.Module, Tensor, Tensor], None]  # (layer, input, output)


@contextmanager
def observing_layer_calls(layers: Iterable[nn.Module], on_call: OnLayerCallFn) -> Iterator[None]:
    """While open, `on_call` is called after each call of a layer, before hooks of the user may change its output.

    Layers take one tensor, and give one whose graph is of interest: calls without a graph are left out.
    """
    handles, thread = list[RemovableHandle](), get_ident()  # forward passes of other threads are ignored

    def report_layer_call(module: nn.Module, args: Any, kwargs: Any, out: Tensor) -> None:
        if get_ident() == thread and out.requires_grad:
            on_call(module, (*args, *kwargs.values())[0].detach(), out)

    try:
        for layer in layers:
            hook = TransientHook(report_layer_call)
            handles.append(layer.register_forward_hook(hook, prepend=True, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
