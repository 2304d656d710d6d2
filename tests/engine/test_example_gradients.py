"""Per-example gradients: every route equals autograd, one example at a time; wrong closed forms are seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unboxed as ub
from unboxed.engine.example_gradients import gradients as gradients_module
from unboxed.engine.example_gradients import terms as terms_module
from unboxed.engine.example_gradients.gradients import ExampleGradients
from unboxed.engine.example_gradients.routes import ClosedFormRoute, OneByOneRoute, VmapRoute
from unboxed.errors import InputError, LayerError, NaNError, OutputError

N = 6


class Tied(nn.Module):
    """Words in a table, whose weights are the output layer's, too."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix, self.out = nn.Embedding(7, 5, padding_idx=0), nn.Linear(5, 5), nn.Linear(5, 7, bias=False)
        self.out.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mix(self.words(x.long())).tanh().mean(1))


class Words(nn.Module):
    def __init__(self, **table: Any) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(9, 5, **table), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.words(x.long()).square().mean(1))


class Block(nn.Module):
    """A transformer block by hand, with weights that `nn.MultiheadAttention` uses in functions."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(4, 6))
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.up, self.down, self.out = nn.Linear(6, 9), nn.Linear(9, 6, bias=False), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.view(len(x), 4, 6) + self.position
        a = self.norm1(h)
        h = h + self.attention(a, a, a, need_weights=False)[0]
        return self.out((h + self.down(F.gelu(self.up(self.norm2(h))))).mean(1))


class UsedInFunctions(nn.Module):
    """A weight that its layer uses once, and a function once more."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.linear(self.fc(x).tanh(), self.fc.weight))


class TimeFirst(nn.Module):
    """Layers that see (T, N, D), and (T N, D): the first axis is not the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.mid, self.out = nn.Linear(2, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x.view(len(x), 4, 2).transpose(0, 1)).tanh()  # (T, N, 5)
        return self.out(self.mid(h.reshape(-1, 5)).view(4, len(x), 5).tanh().mean(0))


class Framewise(nn.Module):
    """A convolution of every frame: its batch is N times as long."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 3, 2), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x.view(2 * len(x), 1, 2, 6)).tanh().mean((2, 3))
        return self.out(h.view(len(x), 2, 3).sum(1))


class DictOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.fc(x), "hidden": x}


def cnn(*, groups: int = 1, **kwargs: Any) -> nn.Module:
    conv = nn.Conv2d(2, 4, 3, padding=1, padding_mode=kwargs.pop("padding_mode", "zeros"))
    second = nn.Conv2d(4, 6, (3, 2), groups=groups, **kwargs)
    return nn.Sequential(conv, nn.ReLU(inplace=True), second, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))


def conv(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))


def called_twice() -> nn.Module:
    fc = nn.Linear(8, 8)
    return nn.Sequential(fc, nn.Tanh(), fc, nn.Tanh(), nn.Linear(8, 3))


def batch_norm() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    nn.init.uniform_(norm.running_var, 0.3, 2)  # type: ignore[arg-type]
    nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
    parts = nn.Conv2d(2, 4, 3, bias=False), norm, nn.ReLU(), nn.GroupNorm(2, 4), nn.Flatten(), nn.LazyLinear(3)
    return nn.Sequential(*parts)


def frozen() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).requires_grad_(False)


def partly_frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    return model


def scripted() -> nn.Module:
    return nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.Tanh())), nn.Linear(8, 3))


def weight_normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Tanh(), nn.Linear(8, 3))


VECTOR, TOKENS = ub.Features(tuple("abcdefgh")), ub.Features(tuple("abcd"), low=(0.0,) * 4, high=(6.9,) * 4)
IMAGE, SIGNAL, VOLUME = ub.Pixels((2, 7, 6)), ub.Pixels((2, 9)), ub.Pixels((2, 4, 5, 4))
PARTS, FRAMES = ub.Features(tuple("abcdefghijklmnopqrstuvwx")), ub.Pixels((1, 4, 6))
CASES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 3, bias=False)), VECTOR),
    "cnn": (cnn, IMAGE),
    "strided, dilated": (lambda: cnn(stride=(1, 2), dilation=(2, 1), bias=False), IMAGE),
    "grouped": (lambda: cnn(groups=2, padding=(1, 0)), IMAGE),
    "circular": (lambda: cnn(groups=2, padding_mode="circular"), IMAGE),
    "same": (lambda: conv(nn.Conv2d(2, 3, 3, padding="same")), IMAGE),
    "conv1d": (lambda: conv(nn.Conv1d(2, 3, 3, stride=2)), SIGNAL),
    "conv3d": (lambda: conv(nn.Conv3d(2, 3, 2)), VOLUME),
    "words": (Words, TOKENS),
    "words by frequency": (lambda: Words(scale_grad_by_freq=True), TOKENS),
    "sparse words": (lambda: Words(sparse=True), TOKENS),
    "tied": (Tied, TOKENS),
    "transformer block": (Block, PARTS),
    "used in functions": (UsedInFunctions, VECTOR),
    "time first": (TimeFirst, VECTOR),
    "framewise": (Framewise, FRAMES),
    "called twice": (called_twice, VECTOR),
    "batch norm": (batch_norm, IMAGE),
    "frozen": (frozen, VECTOR),
    "partly frozen": (partly_frozen, VECTOR),
    "dict output": (DictOutput, VECTOR),
    "scripted": (scripted, VECTOR),
    "weight norm": (weight_normed, VECTOR),
}
CLOSED = (
    "mlp", "cnn", "strided, dilated", "grouped", "circular", "same", "conv1d", "conv3d", "words", "tied", "framewise",
    "called twice", "batch norm", "frozen", "partly frozen", "dict output", "sparse words",
)  # fmt: skip


def open_case(name: str) -> tuple[ub.Box, Tensor, Tensor]:
    make, inputs = CASES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
        x = inputs.random_inputs(N, torch.Generator().manual_seed(3))
        model.eval()(inputs.encode(x))  # lazy layers
    box = ub.Box(model.double(), inputs, outputs="logits")
    return box, x.double(), torch.arange(N) % 3


def by_loop(box: ub.Box, x: Tensor, y: Tensor, **kwargs: Any) -> Tensor:
    gradients = ExampleGradients(box, **kwargs)
    gradients._routes = [OneByOneRoute(gradients._losses, gradients.parameters)]
    return gradients.matrix(x, y)


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-12 * max(1.0, float(b.abs().max())))


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("name", CASES)
def test_every_route_equals_the_loop(name: str) -> None:
    box, x, y = open_case(name)
    gradients, expected = ExampleGradients(box), by_loop(box, x, y)
    assert expected.norm(dim=1).min() > 0
    before = list(box.model.parameters())
    assert close(gradients.matrix(x, y), expected)
    assert close(gradients.dot(x[:2], y[:2], x, y), expected[:2] @ expected.T)
    assert close(gradients.norms(x, y), expected.norm(dim=1))
    v = torch.randn(3, gradients.n_parameters, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert close(gradients.project(gradients.unflatten(v), x, y), v @ expected.T)
    mean = gradients.mean(x, y)
    if name != "words by frequency":  # there a batch's gradient is no mean of its examples'
        assert close(gradients.flatten({n: g[None] for n, g in mean.items()})[0], expected.mean(0))
    assert all(a is b for a, b in zip(before, box.model.parameters(), strict=True))
    if name in CLOSED:
        assert [type(r) for r in gradients._routes] == [ClosedFormRoute]


def test_the_loop_is_autograd() -> None:
    box, x, y = open_case("cnn")
    loss = F.cross_entropy(box.model(x[2:3]), y[2:3])
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(box.model.parameters()))])
    assert close(by_loop(box, x, y)[2], expected)


@pytest.mark.parametrize("name", ["cnn", "transformer block", "words", "batch norm"])
def test_vectorized_equals_the_loop(name: str) -> None:
    box, x, y = open_case(name)
    gradients = ExampleGradients(box)
    gradients._routes = [VmapRoute(gradients._losses, gradients.parameters)]
    assert close(gradients.matrix(x, y), by_loop(box, x, y))


@pytest.mark.parametrize("name", ["cnn", "words", "framewise", "called twice", "transformer block"])
def test_small_parts_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    box, x, y = open_case(name)
    expected = by_loop(box, x, y)
    monkeypatch.setattr(gradients_module, "MAX_CHUNK_BYTES", 1)
    monkeypatch.setattr(terms_module, "MAX_GRADIENT_BLOCK_BYTES", 1)
    gradients = ExampleGradients(box)
    assert close(gradients.dot(x[:3], y[:3], x, y), expected[:3] @ expected.T)
    assert close(gradients.norms(x, y), expected.norm(dim=1))
    vectors = gradients.unflatten(expected[:2])
    assert close(gradients.project(vectors, x, y), expected[:2] @ expected.T)


def test_products_of_factors_equal_products_of_gradients() -> None:
    """Few positions: by pairs of positions; many: by the gradients. Both are the same."""
    g = torch.Generator().manual_seed(0)
    for t, u in ((1, 1), (2, 3), (40, 50)):
        a, b = (
            terms_module.OuterProductGradients(
                torch.randn(4, k, 5, generator=g).double(), torch.randn(4, k, 7, generator=g).double()
            )
            for k in (t, u)
        )
        assert close(a.dot(b), a.rows() @ b.rows().T)
        assert close(a.squared_norms(), a.rows().square().sum(1))
        assert close(a.project(b.rows()), b.rows() @ a.rows().T)
        index = [torch.randint(6, (4, k), generator=g) for k in (t, u)]
        c, d = (terms_module.EmbeddingTableGradients(h.d, i, 6) for h, i in zip((a, b), index, strict=True))
        assert close(c.dot(d), c.rows() @ d.rows().T)


@pytest.mark.parametrize("name", ["called twice", "tied"])
def test_a_dropped_use_of_a_shared_weight_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: of the uses of a weight only one is counted. Verification sees it, and another route runs."""
    box, x, y = open_case(name)
    expected = by_loop(box, x, y)
    monkeypatch.setattr(
        "unboxed.engine.example_gradients.routes.sum_gradients_of_parameter_uses", lambda terms: terms[0]
    )
    gradients = ExampleGradients(box)
    assert close(gradients.matrix(x, y), expected)
    assert any(isinstance(r, VmapRoute) for r in gradients._routes)
    monkeypatch.setattr(
        ExampleGradients, "_matches_autograd", lambda *args: True
    )  # unseen, the fault makes wrong figures
    assert not close(ExampleGradients(box).matrix(x, y), expected)


def test_examples_that_change_places_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each example has a weight of its own in the verification: the plain sum would be right."""
    box, x, y = open_case("time first")
    gradients = ExampleGradients(box)
    gradients.matrix(x, y)
    closed = gradients._routes[0]
    assert set(closed.names) == {"out.weight", "out.bias"}


def test_layers_are_found_by_any_name_of_theirs() -> None:
    box, x, y = open_case("called twice")
    assert set(ExampleGradients(box, "2").parameters) == {"0.weight", "0.bias"}  # the second name of one module
    assert set(ExampleGradients(box, ["4"]).parameters) == {"4.weight", "4.bias"}
    assert close(ExampleGradients(box, "4").matrix(x, y), by_loop(box, x, y)[:, -27:])
    with pytest.raises(LayerError, match="no parameters"):
        ExampleGradients(box, "1")
    with pytest.raises(LayerError):
        ExampleGradients(box, "nowhere")


@pytest.mark.parametrize("outputs", ["binary", "multilabel", "regression"])
def test_the_loss_fits_the_outputs(outputs: Any) -> None:
    k = 1 if outputs == "binary" else 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        box = ub.Box(nn.Linear(8, k).double(), VECTOR, outputs=outputs)
    x = VECTOR.random_inputs(4, torch.Generator().manual_seed(0)).double()
    y = torch.tensor([0, 1, 1, 0]) if outputs == "binary" else torch.rand(4, 3).round()
    z = box.model(x).detach()
    error = (z.sigmoid() - y[:, None]) if outputs == "binary" else z - y if outputs == "regression" else z.sigmoid() - y
    expected = torch.cat([torch.einsum("nk,ni->nki", error, x).flatten(1), error], 1)
    assert close(ExampleGradients(box).matrix(x, y), expected)


def test_a_loss_of_ones_own() -> None:
    box, x, y = open_case("mlp")
    gradients = ExampleGradients(box, loss=lambda z, y: -z[:, 0])
    assert close(gradients.matrix(x, y), by_loop(box, x, y, loss=lambda z, y: -z[:, 0]))
    with pytest.raises(InputError, match="a number per example"):
        ExampleGradients(box, loss=lambda z, y: z.sum()).matrix(x, y)


def test_labels_that_do_not_fit_are_refused() -> None:
    box = ub.Box(nn.Linear(8, 3), VECTOR, outputs="regression")
    with pytest.raises(InputError, match="a value for each of the outputs"):
        ExampleGradients(box).matrix(torch.rand(4, 8), torch.zeros(4))


def test_examples_that_depend_on_one_another_are_refused() -> None:
    box = ub.Box(nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3, track_running_stats=False)), VECTOR, outputs="logits")
    with pytest.raises(OutputError, match="depend on one another"):
        ExampleGradients(box)


def test_nan_losses_name_their_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    box, x, y = open_case("mlp")
    monkeypatch.setattr(gradients_module, "MAX_CHUNK_BYTES", 1)

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return torch.where(y == 2, torch.nan, 1.0) * z[:, 0]

    with pytest.raises(NaNError, match="row 2") as error:
        ExampleGradients(box, loss=loss).norms(x, y)
    assert error.value.rows == [2]


def test_half_precision_is_computed_in_full() -> None:
    """Gradients of a bfloat16 model come in float32, within what its own precision allows."""
    make, inputs = CASES["mlp"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        box = ub.Box(make().bfloat16(), inputs, outputs="logits")
    x, y = inputs.random_inputs(N, torch.Generator().manual_seed(3)), torch.arange(N) % 3
    rows, expected = ExampleGradients(box).matrix(x, y), by_loop(box, x, y)
    assert rows.dtype == torch.float32
    assert (rows - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("name", ["batch norm", "called twice", "tied", "transformer block"])
def test_a_state_stands_in_for_the_models_own(name: str) -> None:
    """Gradients at a checkpoint are those of a model with its weights and buffers; the model is as it was."""
    box, x, y = open_case(name)
    before = {n: h.clone() for n, h in box.model.state_dict().items()}
    generator = torch.Generator().manual_seed(5)
    state = {n: h + 0.1 * torch.rand(h.shape, generator=generator) for n, h in before.items()}
    state |= {"out.weight": state["words.weight"]} if name == "tied" else {}
    state |= {f"2.{n}": state[f"0.{n}"] for n in ("weight", "bias")} if name == "called twice" else {}
    rows = ExampleGradients(box, state=state).matrix(x, y)
    assert all(torch.equal(before[n], h) for n, h in box.model.state_dict().items())
    box.model.load_state_dict(state)
    assert close(rows, by_loop(box, x, y))
