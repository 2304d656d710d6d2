"""Models of several inputs, one at a time: maps of one image by its layer, and the others held."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.errors import InputError

P = ub.Pixels((3, 12, 12), mean=0.4, std=0.3)


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bb, self.fc = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), nn.Linear(8, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.fc((self.bb(a).mean((2, 3)) - self.bb(b).mean((2, 3))).abs())


def case(by_name: bool) -> tuple[ub.Box, dict[str, Tensor] | tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    a, b = torch.rand(3, 3, 12, 12), torch.rand(3, 3, 12, 12)
    inputs = ub.MultiInput({"a": P, "b": P} if by_name else (P, P))
    return ub.Box(Siamese().eval(), inputs, outputs="logits", classes=["same", "other"]), (
        {"a": a, "b": b} if by_name else (a, b)
    )


@pytest.mark.parametrize("by_name", [True, False])
def test_a_held_model_answers_as_the_model_does(by_name: bool) -> None:
    box, x = case(by_name)
    for name in ("a", "b") if by_name else (0, 1):
        one = {k: v[:1] for k, v in x.items()} if isinstance(x, dict) else tuple(v[:1] for v in x)
        held = box.fix_other_inputs(name, one)
        assert held.inputs == P
        assert held.classes == box.classes
        assert torch.allclose(held(one[name]), box(one), atol=1e-6)
        gradient = ub.attribution.gradient(box, one, 0).map[name]
        assert torch.allclose(ub.attribution.gradient(held, one[name], 0).map, gradient, atol=1e-6)
        layer = f"model.bb#{list(box.inputs.keys_and_parts()).index((name, P))}"
        maps = (
            ub.attribution.occlusion(held, one[name], 0),
            ub.attribution.rise(held, one[name], 0, n_samples=20),
            ub.attribution.grad_cam(held, one[name], 0, layer=layer),
        )
        assert [m.map.shape for m in maps] == [(1, 1, 12, 12)] * 3
        assert ub.synthesis.class_image(held, 0, steps=2).images.shape == (1, 3, 12, 12)


def test_what_cannot_be_held_is_refused() -> None:
    box, x = case(True)
    with pytest.raises(InputError, match="'a', 'b'; got 'c'"):
        box.fix_other_inputs("c", x)
    with pytest.raises(InputError, match="got 3 examples"):
        box.fix_other_inputs("a", x)
    with pytest.raises(InputError, match=r"box\.fix_other_inputs"):
        ub.attribution.occlusion(box, x, 0)


def test_grad_cam_of_each_call_of_a_shared_backbone() -> None:
    box, x = case(False)
    maps = [ub.attribution.grad_cam(box, x, 0, layer=f"bb#{i}").map for i in (0, 1)]
    assert maps[0].shape == (3, 1, 12, 12)
    swapped = ub.attribution.grad_cam(box, (x[1], x[0]), 0, layer="bb#0").map
    assert torch.allclose(swapped, maps[1], atol=1e-6)  # |f(a) - f(b)| is symmetric


def test_attacks_of_an_evaluation_are_a_dict() -> None:
    box, x = case(False)
    with pytest.raises(InputError, match="attacks must be a dict"):
        ub.robustness.evaluate(box, (x, torch.zeros(3, dtype=torch.long)), ["fgsm"], eps=[0.1])  # type: ignore[arg-type]
