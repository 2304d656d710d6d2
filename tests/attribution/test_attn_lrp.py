"""AttnLRP: relevance is conserved layer by layer on the transformers people have, and what is lost is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unboxed as ub
from unboxed.attribution import attn_lrp
from unboxed.engine.conservation import Conservation
from unboxed.errors import RuleError, UnboxedWarning

transformers = pytest.importorskip("transformers")
from inputs.test_tokens import MAKERS, TEXTS, WORDS, open_model  # noqa: E402
from loading.huggingface_models import build  # noqa: E402

COLOR = ub.Pixels((3, 16, 16), mean=0.5, std=0.5)
BLOCKS = {
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "gpt2": "transformer.h",
    "llama": "model.layers",
}


def images(n: int = 3) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def with_biases(box: ub.Box) -> ub.Box:
    """Biases of a fresh model are zero, and would hold nothing back."""
    with torch.no_grad():
        for p in box.model.parameters():
            if p.ndim == 1:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).to(p) / 5)
    return box


def trained(box: ub.Box, steps: int = 12) -> ub.Box:
    """Trained to tell the texts with "good" from the others."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, len(WORDS), (64, 9), generator=generator)
    labels = (ids == WORDS.index("good")).any(1).long()
    optimizer = torch.optim.Adam(box.model.parameters(), 3e-3)
    box.model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(box.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, labels)
        loss.backward()
        optimizer.step()
    box.model.eval()
    optimizer.zero_grad()
    return box


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(("how", "rule"), [("random", "epsilon"), ("trained", "gamma")])
def test_each_layer_of_a_text_model_conserves_relevance(name: str, how: str, rule: Any) -> None:
    box = with_biases(open_model(MAKERS[name], torch.float32))
    box = trained(box) if how == "trained" else box
    a = attn_lrp(box, TEXTS, 1, rule=rule)
    made: Conservation = a.conservation
    assert {f"{BLOCKS[name]}.0", f"{BLOCKS[name]}.1"} <= set(made.layers)
    assert made.max_error <= 1e-4
    total = torch.stack([*made.held_back.values()]).sum((0, 2)) + a.sum(1)
    assert torch.allclose(total, a.score, rtol=1e-4)
    assert torch.allclose(made.passed_on[:, 0], a.sum(1), rtol=1e-4, atol=1e-6)
    has_biases = name != "llama"  # nor has it positions but turns
    assert (float(made.held_back["biases"].abs().max()) > 1e-3) == has_biases
    assert (float(made.held_back["constants"].abs().max()) > 1e-3) == has_biases


VISION: dict[str, Callable[[], nn.Module]] = {
    "ViT": lambda: build("ViT"),
    "Dinov2": lambda: build("Dinov2"),
    "Swin": lambda: build("Swin"),
    "Beit": lambda: build("Beit"),
    "encoder": lambda: Encoder(batch_first=True),
    "tokens first": lambda: Encoder(batch_first=False),
}


class Encoder(nn.Module):
    """torch's own layers; with `batch_first=False` the first axis is not the batch."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.batch_first, self.embed = batch_first, nn.Conv2d(3, 8, 4, 4)
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=batch_first, activation="gelu")
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x).flatten(2)
        h = h.mT if self.batch_first else h.permute(2, 0, 1)
        return self.head(self.encoder(h).mean(1 if self.batch_first else 0))


@pytest.mark.parametrize("name", VISION)
def test_each_layer_of_a_vision_transformer_conserves_relevance(name: str) -> None:
    box = ub.Box(VISION[name]().eval(), COLOR, outputs="logits")
    a = attn_lrp(box, images(), 1)
    assert a.conservation.max_error <= 1e-4
    assert len(a.conservation.layers) >= 3
    one = attn_lrp(box, images()[1:2], 1).conservation
    for kind, values in one.held_back.items():
        assert torch.allclose(values[0], a.conservation.held_back[kind][1], atol=1e-4), kind


def test_convolutional_models_conserve_it_too() -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    x, y = ub.data.digits("test").first(5)
    made = attn_lrp(box, x, y).conservation
    assert made.max_error <= 1e-4
    assert made.layers[-1] == "fc2"


def test_without_a_check_the_map_is_the_same() -> None:
    box = open_model(MAKERS["bert"])
    a, b = attn_lrp(box, TEXTS, 1), attn_lrp(box, TEXTS, 1, check=False)
    assert torch.equal(a.map, b.map)
    assert "conservation" not in b.extras


def test_batches_change_nothing() -> None:
    box = with_biases(open_model(MAKERS["gpt2"]))
    whole, split = attn_lrp(box, TEXTS, 1), attn_lrp(box, TEXTS, 1, batch_size=1)
    assert torch.allclose(whole.map, split.map, atol=1e-10)
    for kind, values in whole.conservation.held_back.items():
        assert torch.allclose(values, split.conservation.held_back[kind], atol=1e-9)


def test_the_account_is_printed() -> None:
    made = attn_lrp(with_biases(open_model(MAKERS["gpt2"])), TEXTS, 1).conservation
    lines = str(made).splitlines()
    assert lines[0].split() == [
        "layer",
        "receives",
        "passes",
        "on",
        "biases",
        "constants",
        "softmax",
        "epsilon",
        "error",
    ]
    assert [line.split()[0] for line in lines[1:]] == list(reversed(made.layers))
    assert "100.00 %" in lines[1]
    assert repr(made).startswith(f"Conservation({len(made.layers)} layers, 3 inputs, max_error=")


# -- what escapes ------------------------------------------------------------------------------------------------------


class Around(nn.Module):
    """A skip connection around both blocks: no layer between is all of the model."""

    def __init__(self, op: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.head, self.op = nn.ModuleList(nn.Linear(6, 6) for _ in range(3)), nn.Linear(6, 2), op

    def forward(self, x: Tensor) -> Tensor:
        h = first = self.blocks[0](x)
        for block in self.blocks[1:]:
            h = h + block(self.op(h))
        return self.head(h + first)


FEATURES = ub.Features(tuple("abcdef"))


def test_only_layers_that_all_relevance_goes_through_are_compared() -> None:
    box = ub.Box(Around().eval(), FEATURES, outputs="logits")
    made = attn_lrp(box, torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), 1).conservation
    assert made.layers == ("blocks.0", "head")
    assert made.max_error < 1e-5


def test_an_op_whose_rule_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain gradient of GELU, as of a patch that was forgotten."""
    from unboxed.model.lrp import mode

    def plain(f: Any, x: Tensor, report: Any = None) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(f(leaf).sum(), leaf)
        return mode.with_backward_rule(f(x.detach()), lambda c: (c * slope,), x)

    monkeypatch.setattr(mode, "run_op_with_secant_gradient", plain)
    with pytest.warns(UnboxedWarning, match=r"not conserved: 'bert\.pooler' loses .*by tanh in 'bert"):
        made = attn_lrp(open_model(MAKERS["bert"]), TEXTS, 1).conservation
    assert made.max_error > 1e-3
    assert made.unruled[0] == "tanh in 'bert.pooler'"
    assert any(op.startswith("gelu in 'bert.encoder.layer") for op in made.unruled)
    assert not any("dropout" in op for op in made.unruled)


@pytest.mark.parametrize("fault", ["a bias is not counted", "a product gives all to both"])
def test_planted_faults_are_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from unboxed.model.lrp import linear_rules, mode

    if fault == "a bias is not counted":
        monkeypatch.setattr(linear_rules, "_report_shares", lambda report, of_stabilizer, of_bias: None)
        op = "linear"
    else:
        whole = mode.run_op_with_scaled_gradient
        monkeypatch.setattr(
            mode,
            "run_op_with_scaled_gradient",
            lambda run, variables, scale=1.0, report=None: whole(run, variables, 1.0, report),
        )
        op = "matmul"
    with pytest.warns(UnboxedWarning, match=f"not conserved.*{op}"):
        attn_lrp(with_biases(open_model(MAKERS["bert"])), TEXTS, 1)


class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def test_an_op_out_of_sight_is_named_with_its_layer() -> None:
    class Chain(Around):
        def forward(self, x: Tensor) -> Tensor:
            h = self.blocks[1](self.op(self.blocks[0](x)))
            return self.head(self.blocks[2](h))

    box = ub.Box(Chain(Hidden.apply).eval(), FEATURES, outputs="logits")
    with pytest.raises(RuleError, match=r"no rule for HiddenBackward in 'blocks\.1'"):
        attn_lrp(box, torch.randn(2, 6), 1)


def test_its_card_says_what_is_claimed_of_patents() -> None:
    for method in (attn_lrp, ub.attribution.lrp):
        assert "patented" in method.card.patents  # type: ignore[attr-defined]


def test_a_number_that_is_added_is_a_bias() -> None:
    """Of outputs (N,) it has as many axes as a bias of channels before positions."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.shift = nn.Linear(3, 1), nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).squeeze(-1) + self.shift  # (N,)

    box, x = ub.Box(Shifted(), ub.Features(("a", "b", "c")), outputs="regression"), torch.rand(2, 3)
    made = attn_lrp(box, x)
    shift = box.model.shift.detach() + box.model.linear.bias.detach()
    torch.testing.assert_close(made.conservation.held_back["biases"].sum(1), shift.expand(2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made.map, x * box.model.linear.weight.detach(), rtol=1e-4, atol=1e-5)
