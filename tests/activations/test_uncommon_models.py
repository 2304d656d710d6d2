"""Models for which figures were wrong once: in-place aliases, exchanged axes, edited outputs, odd first axes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unboxed as ub
from unboxed.errors import InputError, LayerError, OutputError, UnboxedWarning

PIXELS = ub.Pixels((1, 8, 8), mean=0.4, std=0.5)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def same_weights() -> None:
    torch.manual_seed(1)


class PreActivation(nn.Module):
    """The in-place ReLU's input is used again, so that it must have what the ReLU wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(256, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(x)
        r = self.relu(h)
        return self.fc((self.conv2(r) + h).flatten(1))


def test_capture_keeps_a_tensor_and_its_aliases_together(x: Tensor) -> None:
    model = PreActivation().eval()
    box, want = ub.Box(model, PIXELS), model(PIXELS.encode(x))
    for address in ("conv1", "relu:input", "relu", "relu:relu"):
        assert torch.equal(box.read(x, [address, "logits"])["logits"], want)
    assert torch.equal(box.read(x, "conv1")["conv1"], model.conv1(PIXELS.encode(x)))  # as it was before the ReLU
    assert torch.equal({m.path: m for m in ub.activations.maps(box, x)}["fc"].outputs, want)
    with box.isolated(grad=False):
        zeroed = box.forward(x, {"logits"}, edits={"relu": torch.zeros_like})["logits"]
    h = torch.zeros(4, 4, 8, 8)
    assert torch.allclose(
        zeroed, model.fc((model.conv2(h) + h).flatten(1)), atol=1e-6
    )  # an edit is seen by the alias too


def test_an_in_place_layer_whose_result_is_ignored(x: Tensor) -> None:
    class Model(PreActivation):
        def forward(self, x: Tensor) -> Tensor:
            h = self.conv1(x)
            self.relu(h)
            h.mul_(3)
            return self.fc(h.flatten(1))

    model = Model().eval()
    assert torch.equal(ub.Box(model, PIXELS).read(x, "relu")["relu"], model.conv1(PIXELS.encode(x)).relu())


def test_channels_last_probabilities(x: Tensor) -> None:
    """A segmentation head that exchanges axes around its log-softmax."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 5, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).permute(0, 2, 3, 1).contiguous().log_softmax(-1).permute(0, 3, 1, 2)

    model = Model()
    box = ub.Box(model, PIXELS)
    assert torch.allclose(box(x), model.conv(PIXELS.encode(x)), atol=1e-6)
    with pytest.raises(InputError, match="one class for each position"):
        ub.adversarial.pgd(box, x, torch.zeros(4, dtype=torch.long), eps=0.1)
    for call in (
        lambda: ub.synthesis.morph(box, x, 1),
        lambda: ub.synthesis.class_image(box),
    ):
        with pytest.raises(OutputError, match="one row of class scores"):
            call()


@pytest.mark.parametrize("end", ["edited", "clamped"])
def test_outputs_changed_after_their_last_op_are_refused(end: str, x: Tensor) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            z = self.fc(x.flatten(1))
            if end == "clamped":
                return z.sigmoid().clamp(1e-6, 1 - 1e-6)
            p = z.softmax(1)
            with torch.no_grad():
                p[:, 0] = 0
                p /= p.sum(1, keepdim=True)
            return p

    with pytest.raises(OutputError, match="logits cannot be found"):
        ub.Box(Model(), PIXELS, outputs="multilabel" if end == "clamped" else None)(x)


def test_a_layer_whose_first_axis_is_not_the_batch(x: Tensor) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.fc = nn.LSTM(8, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.lstm(x[:, 0].transpose(0, 1))[0][-1])

    box = ub.Box(Model(), PIXELS)
    assert not box.layers["lstm"].has_batch_axis
    assert box.read(x, "lstm", batch_size=2)["lstm"].shape == (8, 4, 6)  # never split
    with pytest.raises(LayerError, match="not the batch"):
        ub.attribution.gradient(box, x, ub.channel("lstm", 3))
    assert "lstm" not in [m.path for m in ub.activations.maps(box, x)]


def test_a_model_that_squeezes_a_batch_of_one(x: Tensor) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 5, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).squeeze()

    box = ub.Box(Model(), PIXELS)
    assert torch.allclose(box(x, batch_size=1), box(x), atol=1e-6)
    assert torch.allclose(ub.attribution.gradient(box, x[:1], 3), ub.attribution.gradient(box, x, 3)[:1], atol=1e-6)


def test_filters_are_of_the_pixels_or_refused(x: Tensor) -> None:
    class Permuted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(192, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.permute(0, 2, 3, 1).flatten(1))

    with pytest.raises(LayerError, match="pixels themselves"):
        ub.activations.filters(ub.Box(Permuted(), ub.Pixels((3, 8, 8))))
    deep = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)), PIXELS)
    with pytest.raises(LayerError, match="no weights in the shape of images"):
        ub.activations.filters(deep, "3")
    conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 4, 3)).train()
    box = ub.Box(nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)), PIXELS)
    before = {k: v.clone() for k, v in conv.state_dict().items()}
    assert ub.activations.filters(box).shape == (4, 1, 3, 3)
    assert all(torch.equal(v, before[k]) for k, v in conv.state_dict().items())


def test_parameters_that_the_model_writes_are_restored(x: Tensor) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.fc.weight.data = F.normalize(self.fc.weight.data)
            return self.fc(x.flatten(1))

    model = Model()
    before = model.fc.weight.detach().clone()
    box = ub.Box(model, PIXELS)
    ub.attribution.gradient(box, x, 1)
    assert torch.equal(model.fc.weight, before)


def test_a_nan_gradient_is_reported_and_moves_nothing() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            return self.fc(x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-6))

    box, black = ub.Box(Model(), ub.Pixels((1, 8, 8))), torch.zeros(2, 1, 8, 8)
    with pytest.warns(UnboxedWarning, match="NaN or infinite for 2 of 2"):
        ub.attribution.gradient(box, black, 1)
    morph = ub.synthesis.morph(box, black, 1, steps=3)
    assert torch.equal(morph.images, black)
    assert not morph.confidence_reached.any()


def test_masks_in_place_of_a_relu_are_warned_of(x: Tensor) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(144, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(x)
            return self.fc((h * (h > 0)).relu().flatten(1))

    with pytest.warns(UnboxedWarning, match="in another spelling"):
        ub.attribution.guided_backprop(ub.Box(Model(), PIXELS), x, 1)


def test_lazy_modules_are_refused_and_arrays_taken(x: Tensor) -> None:
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
    with pytest.raises(InputError, match="run it once on a batch"):
        ub.Box(lazy, PIXELS)
    box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), PIXELS)
    assert torch.equal(ub.attribution.gradient(box, x.numpy(), 1), ub.attribution.gradient(box, x, 1))


class Mirrored(nn.Module):
    """Predicts by the mean over the image and its mirror image, both in one batch of twice as many rows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fc(self.conv(torch.cat([x, x.flip(-1)])).relu().mean((2, 3))).chunk(2)
        return (a + b) / 2


@pytest.mark.parametrize("layer", [":relu#0", "conv:input", "fc:input", "conv"])
@pytest.mark.parametrize("method", ["top_examples", "statistics", "receptive_field", "ablation", "tsne"])
def test_what_mixes_examples_is_refused_by_any_address(method: str, layer: str, x: Tensor) -> None:
    box, result = ub.Box(Mirrored().eval(), PIXELS), getattr(ub.activations, method)
    assert not box.has_batch_axis(layer)
    given = {"receptive_field": (layer,), "ablation": (x, layer)}.get(method, (x, [layer]))
    with pytest.raises(LayerError, match="first axis is not the batch"):
        result(box, *given)


def test_what_mixes_examples_is_read_in_one_batch(x: Tensor) -> None:
    box = ub.Box(Mirrored().eval(), PIXELS)
    whole, parts = (box.read(x, [":relu#0"], batch_size=size)[":relu#0"] for size in (4, 1))
    assert torch.equal(whole, parts)
    assert len(whole) == 8
