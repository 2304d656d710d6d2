"""Warnings point at the line that called, however deep they come from; see conftest for those of all other tests."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.errors import UnboxedWarning, warn


class Masked(nn.Module):
    """After a ReLU a mask, which may be another."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.f = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.c(x))
        return self.f((h * (h > 0.1)).flatten(1))  # type: ignore[no-any-return]


class Clamped(Masked):
    """Its logits are clamped at 0, and are."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.f(torch.relu(self.c(x)).flatten(1)) - 5)


def box(model: type[nn.Module]) -> ub.Box:
    torch.manual_seed(0)
    return ub.Box(model(), ub.Pixels((1, 8, 8)))


A = ub.attribution
CALLS: dict[str, tuple[type[nn.Module], Callable[[ub.Box, Tensor], Any]]] = {
    "guided_backprop": (Masked, lambda b, x: A.guided_backprop(b, x, 3)),
    "deconvnet": (Masked, lambda b, x: A.deconvnet(b, x, 3)),
    "guided_grad_cam": (Masked, lambda b, x: A.guided_grad_cam(b, x, 3, layer="c")),
    "gradient": (Clamped, lambda b, x: A.gradient(b, x, 3)),
    "grad_cam": (Clamped, lambda b, x: A.grad_cam(b, x, 3, layer="c")),
    "layer_cam": (Clamped, lambda b, x: A.layer_cam(b, x, 3, layer="c")),
    "gradient_x_input": (Clamped, lambda b, x: A.gradient_x_input(b, x, 3)),
    "smoothgrad": (Clamped, lambda b, x: A.smoothgrad(b, x, 3, n_samples=3)),
    "lime": (Masked, lambda b, x: A.lime(b, x, 3, segments=("squares", 2), n_samples=18)),
    "kernel_shap": (Masked, lambda b, x: A.kernel_shap(b, x, 3, segments=("squares", 2), n_samples=34)),
    "fgsm": (Clamped, lambda b, x: ub.adversarial.fgsm(b, x, torch.tensor([0, 0]), eps=0.1)),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_line_that_called(name: str) -> None:
    model, call = CALLS[name]
    opened, x = box(model), torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call(opened, x)
    ours = [w for w in seen if issubclass(w.category, UnboxedWarning)]
    assert ours
    line = inspect.getsourcelines(call)[1]
    assert {(w.filename, w.lineno) for w in ours} == {(__file__, line)}


def test_one_clamp_is_reported_once() -> None:
    """Guided Grad-CAM takes two gradients of one clamped score."""
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ub.attribution.guided_grad_cam(box(Clamped), x, 3, layer="c")
    assert sum("clamped at 0 by a final ReLU" in str(w.message) for w in seen) == 1


def test_a_call_that_comes_back_through_torch() -> None:
    """Below our own function, called by a decorator of torch's, the caller is still the line below."""
    source = "import torch\n@torch.no_grad()\ndef ours(warn):\n    warn('look')\n"
    names: dict[str, Any] = {"__name__": "unboxed.somewhere"}
    exec(compile(source, "ours.py", "exec"), names)
    with pytest.warns(UnboxedWarning, match="look") as seen:
        names["ours"](warn)
    assert (seen[0].filename, seen[0].lineno) == (__file__, inspect.currentframe().f_lineno - 1)  # type: ignore[union-attr]


def test_each_line_is_reported_once() -> None:
    """The default filter shows a warning once a line, as for warnings.warn: the caller's registry is used."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.resetwarnings()
        warnings.simplefilter("default")
        for _ in range(3):
            warn("once")
        warn("once")
    assert len(seen) == 2
