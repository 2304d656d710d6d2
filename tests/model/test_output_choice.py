"""Which tensor of a dict or tuple is taken as the model's output."""

import pytest
import torch
from torch import nn

import unboxed as ub
from unboxed.errors import OutputError

INPUTS = ub.Pixels((3, 6, 6))
X = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Returning(nn.Module):
    """A convolution whose output map is returned as `arrange` says."""

    def __init__(self, arrange):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.arrange = nn.Conv2d(3, 4, 3, padding=1), arrange

    def forward(self, x):
        return self.arrange(self.conv(x))


@pytest.mark.parametrize(
    ("arrange", "key"),
    [
        (lambda h: {"out": h}, "out"),
        (lambda h: {"out": h, "aux": 2 * h}, "out"),
        (lambda h: {"masks": h, "aux_masks": 2 * h, "loss": h.mean(), "hidden": 3 * h}, "masks"),
        (lambda h: (h.mean(), h), 1),
        (lambda h: [h], 0),
    ],
)
def test_one_map_is_taken_and_said(arrange, key):
    box = ub.Box(Returning(arrange), INPUTS)
    assert torch.equal(box(X), box.model.conv(X))
    assert f"output={key!r}" in repr(box).partition("\n")[0]
    code = f"output=lambda out: out[{key!r}].mean((2, 3))"
    with pytest.raises(OutputError) as raised:
        ub.synthesis.class_image(box, 1)
    assert code in str(raised.value)
    assert ub.Box(box.model, INPUTS, output=eval(code.partition("=")[2])).n_outputs == 4


def test_rows_of_scores_beside_others():
    scores = lambda h: h.mean((2, 3))  # noqa: E731
    for arrange in (
        lambda h: {"y": scores(h), "features": h},
        lambda h: {"y": scores(h), "aux_y": 2 * scores(h)},
        lambda h: {"logits": scores(h), "y": 2 * scores(h)},
    ):
        box = ub.Box(Returning(arrange), INPUTS)
        assert torch.equal(box(X), scores(box.model.conv(X)))


@pytest.mark.parametrize(
    ("arrange", "choices"),
    [
        (lambda h: {"a": h, "b": h}, ["Box(..., output='a')", "Box(..., output='b')"]),
        (lambda h: (h.mean((2, 3)), h.sum((2, 3)), h), ["Box(..., output=0)", "Box(..., output=1)"]),
        (lambda h: {"last_hidden_state": h}, ["Box(..., output='last_hidden_state')"]),
    ],
)
def test_several_that_may_be_meant_are_listed_as_code(arrange, choices):
    with pytest.raises(OutputError, match="which of its tensors is the output") as raised:
        ub.Box(Returning(arrange), INPUTS)
    for code in choices:
        assert code in str(raised.value)
        options = eval(code.replace("Box(..., ", "dict("))
        assert ub.Box(Returning(arrange), INPUTS, **options).n_outputs == 4
    assert "output=2" not in str(raised.value)
