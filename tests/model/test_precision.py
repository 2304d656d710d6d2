"""Mixed precision and memory format: for the model's forward alone, close to plain, and without a trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from contracts.common import CARDS, MethodCase, call_example, make_case, result_tensors
from contracts.trace import changes, snapshot
from unboxed.errors import InputError
from unboxed.objectives import layer_objective

NARROW = (torch.bfloat16, torch.float16)


def narrow(model: str, **box: Any) -> tuple[MethodCase, MethodCase]:
    """The same case in a plain box and in another."""
    plain = make_case(model)
    return plain, MethodCase(
        ub.Box(awkward.get_model(model).model, plain.box.inputs, **{**awkward.get_model(model).box_settings, **box}),
        plain.x,
        plain.y,
    )


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(
    "model", ["plain", "color", "log_softmax", "softmax", "tuple_output", "batchnorm", "attention"]
)
def test_close_to_plain_and_in_single_precision(model: str, dtype: torch.dtype) -> None:
    plain, mixed = narrow(model, autocast=dtype)
    z, want = mixed.box(mixed.x), plain.box(plain.x)
    assert z.dtype == torch.float32
    assert torch.allclose(z, want, rtol=0.03, atol=0.03 * float(want.abs().max()))
    assert not torch.equal(z, want)
    g, want = (ub.attribution.gradient(c.box, c.x, 1) for c in (mixed, plain))
    assert g.dtype == torch.float32
    assert torch.cosine_similarity(g.flatten(1), want.flatten(1)).min() > 0.95
    assert mixed.box.batch_dependent == plain.box.batch_dependent


@pytest.mark.parametrize("name", ["gradient", "guided_backprop", "morph", "class_image", "pgd", "maps"])
@pytest.mark.parametrize("box", [{"autocast": torch.bfloat16}, {"channels_last": True}], ids=["autocast", "format"])
def test_methods(name: str, box: dict[str, Any]) -> None:
    """They work, their results are float32, and nothing stays."""
    _, c = narrow("color", **box)
    before = snapshot(c.box.model, c.x, c.y)
    found = result_tensors(call_example(CARDS[name], c))
    assert changes(before, snapshot(c.box.model, c.x, c.y)) == []
    assert not torch.is_autocast_enabled("cpu")
    assert {h.dtype for h in found.values() if h.is_floating_point() and h.ndim} == {torch.float32}
    assert all(h.isfinite().all() for h in found.values())


def test_only_the_model_is_in_low_precision() -> None:
    """Its convolutions see bfloat16; its first input, the objective and all else see float32."""
    _, c = narrow("plain", autocast=torch.bfloat16)
    first: list[Any] = []
    c.box.model.conv1.register_forward_hook(lambda m, args, out: first.append((args[0].dtype, out.dtype)))
    seen: list[torch.dtype] = []

    def score(z: Tensor) -> Tensor:
        seen.append(z.dtype)
        assert not torch.is_autocast_enabled("cpu")
        return z[:, 0]

    ub.attribution.gradient(c.box, c.x, layer_objective("conv2", lambda h: score(h.flatten(1)), "mine"))
    assert first == [(torch.float32, torch.bfloat16)]
    assert seen == [torch.float32]


def test_the_callers_autocast_finds_no_cast_of_ours() -> None:
    """Casts made where no graph is recorded would cost the caller's weights their gradients."""
    _, c = narrow("plain", autocast=torch.bfloat16)
    model = c.box.model
    with torch.autocast("cpu", torch.bfloat16):
        c.box(c.x)
        model(c.box.inputs.encode(c.x)).float().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_images_come_in_the_format_asked_for() -> None:
    for wanted in (False, True):
        _, c = narrow("color", channels_last=wanted)
        seen: list[Tensor] = []
        c.box.model.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0]))
        c.box(c.x)
        assert seen[0].is_contiguous(memory_format=torch.channels_last) == wanted
        assert torch.allclose(c.box(c.x), make_case("color").box(c.x), atol=1e-5)


@pytest.mark.parametrize("model", ["inplace_first_op", "relu_called_twice", "exported", "scripted_part", "transformer"])
def test_formats_on_awkward_models(model: str) -> None:
    plain, c = narrow(model, channels_last=True)
    assert torch.allclose(c.box(c.x), plain.box(plain.x), atol=1e-5)
    got, want = (ub.attribution.gradient(k.box, k.x, 1) for k in (c, plain))
    assert torch.allclose(got, want, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"autocast": torch.float32}, "autocast must be torch.bfloat16, torch.float16 or None; got torch.float32"),
        ({"autocast": "bf16"}, "autocast must be torch.bfloat16, torch.float16 or None; got 'bf16'"),
        ({"autocast": True}, "autocast must be torch.bfloat16, torch.float16 or None; got True"),
        ({"channels_last": "yes"}, "channels_last is True or False; got 'yes'"),
    ],
)
def test_other_values_are_refused(settings: dict[str, Any], says: str) -> None:
    entry = awkward.get_model("plain")
    with pytest.raises(InputError, match=says):
        ub.Box(entry.model, entry.inputs, **settings)


def test_models_that_can_not_are_refused() -> None:
    for model in ("double", "bfloat16"):
        entry = awkward.get_model(model)
        with pytest.raises(InputError, match=r"autocast is for models in torch\.float32; this one is in torch"):
            ub.Box(entry.model, entry.inputs, autocast=torch.bfloat16)

    class Strict(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if (h := x.flatten(1) @ x.new_ones(64, 3)).dtype != torch.float32:
                raise TypeError("wanted float32")
            return h

    strict = nn.Sequential(nn.Conv2d(1, 1, 1), Strict())
    ub.Box(strict, awkward.GRAY_INPUTS, outputs="logits")
    with pytest.raises(InputError, match=r"the model can't run under autocast=torch.bfloat16: wanted float32"):
        ub.Box(strict, awkward.GRAY_INPUTS, outputs="logits", autocast=torch.bfloat16)
    columns = ub.Features(("a", "b"))
    with pytest.raises(InputError, match=r"channels_last is for images"):
        ub.Box(nn.Linear(2, 3), columns, channels_last=True)


def test_the_repr_says_it() -> None:
    _, c = narrow("plain", autocast=torch.bfloat16, channels_last=True)
    assert "autocast=torch.bfloat16, channels_last, on cpu)" in repr(c.box)
    assert "autocast" not in repr(make_case("plain").box)
