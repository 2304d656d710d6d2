"""Maps of outputs: the axis of the classes is found from the names or from the image, or it is asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.errors import InputError, OutputError

PIXELS = ub.Pixels((3, 16, 12))
NAMES = ["a", "b", "c", "d", "e"]


class Detector(nn.Module):
    """Class scores (N, 12, K) of 12 queries, as a DETR."""

    def __init__(self, n_classes: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.scores = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, n_classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.conv(x).relu().flatten(2).transpose(1, 2)
        return {"logits": self.scores(h), "pred_boxes": h.sigmoid()}


class Segmenter(nn.Module):
    """Class scores per pixel, (N, K, H, W) or with the classes last; at a half of the size where `stride` is 2."""

    def __init__(self, last: bool, stride: int = 1, end: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last, self.end = nn.Conv2d(3, 5, 3, stride, padding=1), last, end or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.end(self.conv(x))
        return h.movedim(1, -1) if self.last else h


def images(n: int = 4) -> Tensor:
    return torch.rand(n, 3, 16, 12, generator=torch.Generator().manual_seed(0))


def test_names_determine_the_axis_of_a_detector() -> None:
    model, x = Detector().eval(), images()
    box = ub.Box(model, PIXELS, classes=NAMES)
    assert (box.n_outputs, box.output_map_shape, box.classes) == (5, (12,), tuple(NAMES))
    assert torch.equal(box(x), model(x)["logits"].transpose(1, 2))
    same = ub.Box(model, PIXELS, classes=NAMES, output=lambda raw: raw["logits"].transpose(1, 2))
    for k in (3, None):
        assert torch.equal(ub.attribution.gradient(box, x, k), ub.attribution.gradient(same, x, k))
    assert ub.Box(model, PIXELS, classes=[str(k) for k in range(12)]).n_outputs == 12  # the other way round


def test_without_names_a_detector_is_asked_about() -> None:
    with pytest.raises(OutputError, match=r"classes on axis 1 or on axis 2.*pass classes=.*output="):
        ub.Box(Detector(), PIXELS)
    with pytest.raises(OutputError, match="cannot be determined"):
        ub.Box(Detector(12), PIXELS, classes=[str(k) for k in range(12)])  # 12 queries of 12 classes
    assert ub.Box(Detector(12), PIXELS, output=lambda raw: raw["logits"].mT).n_outputs == 12
    with pytest.raises(InputError, match="got 3 class names"):
        ub.Box(Detector(), PIXELS, classes=["a", "b", "c"])


@pytest.mark.parametrize("n_scores", [5, 6])
def test_the_names_of_a_config_determine_it_too(n_scores: int) -> None:
    model = Detector(n_scores)
    model.config = SimpleNamespace(id2label=dict(enumerate(NAMES)))
    box = ub.Box(model, PIXELS)
    assert box.classes == (*NAMES, *["no object"] * (n_scores == 6))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("names", [None, NAMES])
def test_of_a_segmentation_the_image_determines_it(last: bool, stride: int, names: Any) -> None:
    model, x = Segmenter(last, stride).eval(), images()
    box = ub.Box(model, PIXELS, classes=names)
    assert box.n_outputs == 5
    assert box.output_map_shape == (16 // stride, 12 // stride)
    assert torch.equal(box(x), model.conv(x))


class Gives(nn.Module):
    """An output of one shape (N, ...), whatever the input."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return self.values + x.flatten(1).sum(1).view(-1, *[1] * self.values.ndim)


AMBIGUOUS = [
    ((3, 16, 16), (16, 16, 16)),  # K = H = W: either end fits the image
    ((3, 16, 40), (16, 16, 5)),  # neither does
    ((3, 16, 40), (5, 7, 7)),
    ((3, 16, 15), (11, 12, 11)),  # both do about
    ((2, 24), (7, 5)),  # of a signal, at no length of its own
    ((1, 6, 6, 6), (6, 6, 6, 6)),
]


@pytest.mark.parametrize(("image", "output"), AMBIGUOUS, ids=str)
def test_an_ambiguous_axis_is_asked_for(image: tuple[int, ...], output: tuple[int, ...]) -> None:
    with pytest.raises(OutputError, match=r"cannot be determined: pass classes=.*output="):
        ub.Box(Gives(*output), ub.Pixels(image))
    arranged = ub.Box(Gives(*output), ub.Pixels(image), output=lambda raw: raw.movedim(-1, 1))
    assert (arranged.n_outputs, arranged.output_map_shape) == (output[-1], output[:-1])
    if output.count(output[-1]) == 1:
        assert (
            ub.Box(Gives(*output), ub.Pixels(image), classes=list(map(str, range(output[-1])))).n_outputs == output[-1]
        )


@pytest.mark.parametrize(
    ("image", "output", "n_classes"),
    [
        ((3, 16, 40), (5, 1, 1), 5),  # one position, of whatever aspect
        ((3, 16, 40), (1, 1, 5), 5),
        ((3, 16, 40), (1, 5), 5),
        ((3, 16, 12), (12, 16, 12), 12),  # exactly the image's aspect, and about it
        ((3, 16, 12), (16, 12, 16), 16),
        ((2, 24), (5, 24), 5),
        ((2, 24), (24, 5), 5),
        ((1, 4, 8, 6), (3, 4, 8, 6), 3),
        ((1, 4, 8, 6), (4, 8, 6, 3), 3),
    ],
    ids=str,
)
def test_what_determines_the_axis(image: tuple[int, ...], output: tuple[int, ...], n_classes: int) -> None:
    assert ub.Box(Gives(*output), ub.Pixels(image)).n_outputs == n_classes


def test_of_several_inputs_any_image_may_be_the_map() -> None:
    class Two(Gives):
        def forward(self, row: Tensor, image: Tensor) -> Tensor:
            return super().forward(image) + row.sum()

    inputs = ub.MultiInput((ub.Features(("a",)), ub.Pixels((3, 16, 12))))
    assert ub.Box(Two(8, 6, 5), inputs).n_outputs == 5
    with pytest.raises(OutputError, match="cannot be determined"):
        ub.Box(Two(7, 7, 3), inputs)


@pytest.mark.parametrize("end", [nn.Softmax(1), nn.LogSoftmax(1), nn.Sigmoid()])
def test_logits_are_found_before_a_final_op_with_the_classes_last(end: nn.Module) -> None:
    model, x = Segmenter(True, end=end).eval(), images()
    box = ub.Box(model, PIXELS)
    assert box.outputs == {nn.Softmax: "probs", nn.LogSoftmax: "logprobs", nn.Sigmoid: "multilabel"}[type(end)]
    assert torch.allclose(box(x), model.conv(x), atol=1e-6)
