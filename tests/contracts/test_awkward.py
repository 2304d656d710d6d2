"""Contract 6: every method works on the models that people have, or says why not. Never a silent wrong map."""

from __future__ import annotations

import shutil
from functools import cache

import pytest
import torch

import awkward
from check_each import each
from contracts.common import (
    CARDS,
    REFUSED,
    MethodCase,
    call_example,
    make_case,
    open_box,
    result_difference_texts,
    result_tensors,
)
from unboxed.errors import UnboxedWarning
from unboxed.testing import covering
from unboxed.testing.contracts import error_problems


def assert_clear(error: BaseException) -> None:
    """One clear error: ours, a fitting builtin, and a sentence with no tensor printed in it."""
    assert error_problems(error) == []


def one_of_each_mechanism() -> list[str]:
    """Methods that together touch a model in every way there is."""
    found: dict[str, str] = {}
    for name, card in CARDS.items():
        if (name, "plain") not in REFUSED:
            found |= {m: name for m in covering.mechanisms(card) if m not in found}
    return sorted(set(found.values()))


@pytest.mark.skipif(shutil.which("g++") is None, reason="the default backend of torch.compile needs a C++ compiler")
def test_compiled_by_the_default_backend() -> None:
    for name in one_of_each_mechanism():
        c = make_case("plain", torch.float64)
        want = result_tensors(call_example(CARDS[name], c))
        entry = awkward.AwkwardModel(compiled_for_real(), awkward.GRAY_INPUTS)
        got = result_tensors(call_example(CARDS[name], MethodCase(open_box(entry), c.x, c.y)))
        assert result_difference_texts(got, want, 1e-9) == [], name


@cache
def compiled_for_real() -> torch.nn.Module:
    return awkward.inductor(torch.float64)


@pytest.mark.parametrize("name", ["gradient", "guided_backprop"])
def test_a_clamped_logit_is_reported(name: str) -> None:
    """With relu(W x) most gradients are zero: the map is then taken before the clamp, with a warning."""
    c = make_case("relu_logits", torch.float64)
    z, weight = c.box(c.x), c.box.model[1].weight.detach()
    shut = (z == 0).nonzero()
    assert len(shut) > 0
    row, k = shut[0].tolist()
    with pytest.warns(UnboxedWarning, match="before the clamp"):
        m = CARDS[name].method(c.box, c.x[row : row + 1], k)
    assert torch.allclose(m.flatten(), weight[k] / 0.5)  # d w.(x - mean) / std


@pytest.mark.parametrize(
    ("model", "paths"), [("compiled", "conv1 relu1 fc"), ("compiled_part", "block block.0 block.1")]
)
def test_compiled_layers_go_by_their_own_names(model: str, paths: str) -> None:
    box = make_case(model).box
    assert set(paths.split()) <= {row.path for row in box.layers}
    assert not [row.path for row in box.layers if "_orig_mod" in row.path]


LIKE_PLAIN = [n for n in awkward.MODELS if awkward.twin_name(n) == "plain"]


@each(LIKE_PLAIN)
def test_layers_read_as_they_were_given(model: str) -> None:
    """A captured activation is what the layer gave, whatever is written over it later."""
    entry = awkward.get_model(model, torch.float64)
    box, x = open_box(entry), entry.images().double()
    p = awkward.get_model("plain", torch.float64).model
    z = awkward.GRAY_INPUTS.encode(x)
    want = {"conv1": p.conv1(z), "conv2": p.conv2(p.first_block(z)), "fc": p(z), "logits": p(z)}
    rows = {row.path for row in box.layers} | {"logits"}
    got = box.read(x, [k for k in want if k in rows])
    assert len(got) >= (1 if model == "exported_flat" else 3)
    assert {k: torch.allclose(h, want[k].detach()) for k, h in got.items()} == dict.fromkeys(got, True)


@each(LIKE_PLAIN)
def test_one_answer_by_all_spellings(model: str) -> None:
    """Logits, probabilities and classes are the plain model's, also where the model ends in a softmax."""
    entry = awkward.get_model(model, torch.float64)
    box, x = open_box(entry), entry.images().double()
    want = awkward.get_model("plain", torch.float64).model(awkward.GRAY_INPUTS.encode(x)).detach()
    assert torch.allclose(box(x, batch_size=1), want)
    assert torch.allclose(box.probs(x), want.softmax(1))
    assert torch.equal(box.predict(x), want.argmax(1))
