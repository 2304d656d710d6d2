"""The box: what it recognizes, what it refuses, how layers are addressed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unboxed as ub
from unboxed.engine.randomized import open_copy
from unboxed.errors import InputError, LayerError, OutputError
from unboxed.model.hooks import tensors_in
from unboxed.testing import models

SHAPE = (1, 12, 10)


class Net(nn.Module):
    """One ReLU module used twice, one functional ReLU, one ignored in-place one."""

    def __init__(self, end: str = "logits") -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4 * 8 * 6, 5)
        self.final_op = end

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.conv2(self.relu(self.conv1(x))))
        h = F.relu(h - 0.1)
        h.relu_()
        z = self.fc(h.flatten(1))
        return {"logits": z, "logprobs": F.log_softmax(z, 1), "probs": torch.softmax(z, -1)}.get(self.final_op, z)


def facts(box: ub.Box) -> list[object]:
    return [
        *map(str, (box.layers, box.outputs, box.classes, box.batch_dependent, box.stochastic, box.stateless)),
        *(box.layers.path_of_module(module) for module in box.model.modules()),
        *(box.layers.has_batch_axis(row.path) for row in box.layers if row.n_calls == 1),
        box.profile.flops_per_example, box.profile.bytes_per_example, box.profile.peak_bytes_per_example,
    ]  # fmt: skip


COPIED = (
    "plain", "conv_called_twice", "batchnorm_on_batch_statistics", "dropout_always_on", "random_noise_per_row", "lstm",
    "transformer", "dict_output", "relu_logits", "registers_buffer", "batch_maximum", "weight_normed",
)  # fmt: skip


@pytest.mark.parametrize("name", COPIED)
def test_a_copy_has_the_facts_of_the_original(name: str) -> None:
    """All but its layers is found again: its outputs for noise, and what it draws and writes."""
    entry = models.get_model(name)
    box = ub.Box(entry.model, entry.inputs)
    model = copy.deepcopy(entry.model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    opened, surveyed = open_copy(box, model), box.with_model(model)
    assert facts(opened) == facts(surveyed)
    z = next(tensors_in(surveyed.profile.output))
    assert torch.equal(next(tensors_in(opened.profile.output)), z)
    same = torch.equal(next(tensors_in(box.profile.output)), z)
    assert not same
    x = box.noise(4)
    assert torch.equal(opened(x), surveyed(x))
    if name == "plain":  # what is changed later is surveyed
        opened.model.register_module("conv1", nn.Sequential(opened.model.conv1))
        assert "conv1.0" in {row.path for row in (opened.refresh(), opened.layers)[1]}


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


def boxed(model: nn.Module, **kw: object) -> ub.Box:
    return ub.Box(model, ub.Pixels(SHAPE), **kw)  # type: ignore[arg-type]


@pytest.mark.parametrize("end", ["logits", "logprobs", "probs"])
def test_outputs_are_recognized_and_logits_found(model: Net, x: Tensor, end: str) -> None:
    want = model(x)
    model.final_op = end
    box = boxed(model)
    assert box.outputs == end
    assert torch.equal(box(x), want)
    assert torch.allclose(box.probs(x), want.softmax(1))
    assert f"outputs={end!r}" in repr(box)


def test_logits_that_cannot_be_found_are_refused(model: Net, x: Tensor) -> None:
    class Later(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x).log_softmax(1) * 1.0

    with pytest.raises(OutputError, match="logits cannot be found"):
        boxed(Later())(x)


def test_a_single_output_must_be_explained(x: Tensor) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(120, 1))
    with pytest.raises(OutputError, match="binary"):
        boxed(model)
    assert boxed(model, outputs="multilabel").probs(x).shape == (6, 2)
    with pytest.raises(OutputError, match="regression"):
        boxed(model, outputs="regression").predict(x)


def test_the_layer_table(model: Net) -> None:
    box = boxed(model)
    rows = {row.path: row for row in box.layers}
    assert list(rows) == ["conv1", "relu", "conv2", "fc"]
    assert rows["conv1"].shape == (4, 10, 8)
    assert rows["relu"].n_calls == 2
    assert rows["fc"].n_parameters == 4 * 8 * 6 * 5 + 5
    macs = {"conv1": 80 * 4 * 9, "conv2": 48 * 4 * 36, "fc": 4 * 48 * 5}
    for path, mac in macs.items():
        assert rows[path].flops_share == pytest.approx(mac / sum(macs.values()))
    for text in ("relu (runs 2x)", "Conv2d", "4x10x8", "965"):
        assert text in repr(box)


def test_addresses(model: Net, x: Tensor) -> None:
    box = boxed(model)
    a = box.read(x, ["conv1", "relu#0", "conv2", "relu#1", ":relu#0", ":relu#1", "fc:input", "fc"])
    c1 = model.conv1(x)
    c2 = model.conv2(c1.relu())
    assert torch.equal(a["conv1"], c1)  # before the in-place ReLU that follows it
    assert torch.equal(a["relu#0"], c1.relu())
    assert torch.equal(a["conv2"], c2)
    assert torch.equal(a["relu#1"], c2.relu())
    assert torch.equal(a[":relu#0"], F.relu(c2.relu() - 0.1))
    assert torch.equal(a["fc:input"], a[":relu#1"].flatten(1))
    assert torch.equal(a["fc"], model(x))


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("conv3", "did you mean 'conv"),
        ("relu", "say which: relu#0, relu#1"),
        ("relu#2", "runs 2 times"),
        (":relu", "say which: :relu#0, :relu#1"),
        ("conv1:relu", "no layer"),
        ("", "no layer|as a module"),
    ],
)
def test_wrong_addresses_are_explained(model: Net, x: Tensor, address: str, says: str) -> None:
    with pytest.raises(LayerError, match=says):
        boxed(model).read(x, [address])


def test_rewriting_an_activation_changes_what_follows(model: Net, x: Tensor) -> None:
    box = boxed(model)
    with box.isolated(grad=False):
        acts = box.forward(x, {"logits"}, edits={"relu#1": torch.zeros_like})
        functional = box.forward(x, {"logits"}, edits={":relu#1": torch.zeros_like})
    assert torch.allclose(acts["logits"], model.fc.bias.expand(6, 5))
    assert torch.allclose(functional["logits"], model.fc.bias.expand(6, 5))  # in place, its return ignored
    assert torch.equal(box(x), model(x))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (torch.rand(1, *SHAPE) * 255, "divide them by 255"),
        (torch.randn(1, *SHAPE) * 2, "look normalized"),
        (torch.full((1, *SHAPE), float("nan")), "NaN"),
        (torch.rand(SHAPE), r"x\[None\]"),
        (torch.rand(1, 3, 12, 10), r"got shape \(1, 3, 12, 10\)"),
        (torch.rand(0, *SHAPE), "empty batch"),
        (torch.zeros(1, *SHAPE, dtype=torch.int64), "floating point"),
        ([[1.0]], "torch.as_tensor"),
    ],
)
def test_bad_images_are_refused(model: Net, bad: Tensor, says: str) -> None:
    with pytest.raises(InputError, match=says):
        boxed(model)(bad)


def test_normalized_images_are_warned_of_with_how_to_decode(model: Net) -> None:
    box = ub.Box(model, ub.Pixels(SHAPE, mean=0.5, std=0.25))
    z = box.inputs.encode(torch.rand(2, *SHAPE))
    with pytest.raises(InputError, match=r"box\.inputs\.decode"):
        box(z)
    assert box(box.inputs.decode(z).clamp(0, 1)).shape == (2, 5)


def test_what_does_not_fit_is_refused_at_once(model: Net) -> None:
    with pytest.raises(InputError, match="can't take a batch"):
        ub.Box(model, ub.Pixels((3, 12, 10)))
    with pytest.raises(InputError, match=r"shape \(8, 8, 1\) \(channels come first: did you mean \(1, 8, 8\)\?\)"):
        ub.Box(model, ub.Pixels((8, 8, 1)))
    with pytest.raises(InputError, match="5 outputs; got 2 class names"):
        boxed(model, classes=["a", "b"])
    with pytest.raises(InputError, match="outputs must be one of"):
        boxed(model, outputs="logit")
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        boxed(lambda x: x)  # type: ignore[arg-type]


def test_tabular_features() -> None:
    torch.manual_seed(0)  # of some weights, no unit answers, and a gradient of zero is warned of
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    columns, mean, std = ("age", "height", "sex"), (40, 1.7, 0.5), (20, 0.1, 0.5)
    inputs = ub.Features(columns, (0, 0, 0), (120, 3, 1), mean, std, categories={"sex": (0, 1)})
    box = ub.Box(model, inputs, classes=["no", "yes"])
    x = torch.tensor([[30.0, 1.8, 1.0], [70.0, 1.6, 0.0]])
    assert torch.allclose(box(x), model((x - torch.tensor([40, 1.7, 0.5])) / torch.tensor([20, 0.1, 0.5])))
    assert ub.attribution.gradient(box, x, 1).shape == x.shape
    with pytest.raises(InputError, match="'age' must be in"):
        box(x + 100)
    with pytest.raises(InputError, match="categories"):
        box(torch.tensor([[30.0, 1.8, 0.5]]))


def test_another_model_is_opened_alike() -> None:
    a, b = (nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval() for _ in range(2))
    box = ub.Box(
        a, ub.Pixels((1, 8, 8), 0.4, 0.5), classes=["cat", "dog"], outputs="multilabel", autocast=torch.bfloat16
    )
    other = box.with_model(b)
    assert other.model is b
    assert (other.inputs, other.classes, other.outputs, other.autocast) == (
        box.inputs, ("cat", "dog"), "multilabel", torch.bfloat16,
    )  # fmt: skip


def test_a_data_set_is_taken_in_place_of_a_tensor() -> None:
    box, digits = ub.Box(*ub.zoo.load("digits-cnn")), ub.data.digits("test")
    assert torch.equal(box(digits), box(digits.tensors().x))


class Config:
    def __init__(self, id2label: dict[int, str]) -> None:
        self.id2label = id2label


def test_class_names_of_a_hugging_face_model(model: Net) -> None:
    """Those in its config, unless they are the defaults, do not fit the outputs, or others are given."""
    names = ("cat", "dog", "owl", "cow", "pig")
    model.config = Config(dict(enumerate(names)))  # type: ignore[assignment]
    assert boxed(model).classes == names
    assert boxed(model, classes=list("abcde")).classes == tuple("abcde")
    for unfit in ({0: "cat"}, {k: f"LABEL_{k}" for k in range(5)}):
        model.config = Config(unfit)  # type: ignore[assignment]
        assert boxed(model).classes == tuple("01234")


def test_a_box_of_one_logit_says_what_its_two_are() -> None:
    box = boxed(nn.Sequential(nn.Flatten(), nn.Linear(120, 1)), outputs="binary")
    assert "2 classes, one logit z: box(x) is (-z/2, z/2), the score of class 1 is z" in repr(box)
    x = box.noise(3)
    z = box.model(x)[:, 0]
    assert torch.allclose(box(x), torch.stack([-z / 2, z / 2], 1))
    assert torch.allclose(ub.attribution.gradient(box, x, 1).score, z)
    assert torch.allclose(ub.attribution.gradient(box, x, 0).score, -z)


def test_one_output_is_one_class() -> None:
    box = boxed(nn.Sequential(nn.Flatten(), nn.Linear(120, 1)), outputs="regression")
    assert "1 output," in repr(box)
    with pytest.raises(InputError, match="the model has one output, 0; got 1"):
        box.class_labels(1, 2)


@pytest.mark.parametrize("shape", [(1, 9, 7), (9, 7, 1), (2, 1, 9, 7)])
def test_images_of_another_size_are_pointed_to_what_resizes_them(model: Net, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"ub\.image\(images, like=box\) resizes"):
        boxed(model).predict(torch.rand(shape).numpy())


def test_a_copy_is_of_the_same_model_and_does_not_run_it() -> None:
    calls = list[int]()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    box = ub.Box(model, ub.Pixels((1, 8, 8)), outputs="logits")
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    box.refresh()
    calls.clear()
    other = copy.copy(box)
    assert calls == []
    assert other.model is box.model
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(other(x), box(x))
    model.double()
    assert other(x).dtype == box(x).dtype == torch.float64  # each sees that the model has changed
