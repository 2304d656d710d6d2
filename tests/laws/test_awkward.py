"""Law 6: every method works on the nets that people have, or says why not. Never a silent wrong picture."""

from __future__ import annotations

import re
import shutil
import warnings
from functools import cache

import pytest
import torch
from torch import Tensor

import awkward
from laws.common import (
    CARDS,
    REFUSED,
    TORCH_WARNS,
    Case,
    box_of,
    call,
    call_aloud,
    case,
    close,
    methods,
    pairs,
    tensors,
)
from unboxed.errors import UnboxedError, UnboxedWarning

pytestmark = pytest.mark.filterwarnings(TORCH_WARNS)


@cache
def plainly(name: str, twin: str) -> dict[str, Tensor]:
    return tensors(call(CARDS[name], case(twin, torch.float64)))


@pairs("awkward")
def test_as_on_the_plain_spelling(name: str, net: str) -> None:
    """Where the net computes what a plain net does, the result is the plain net's; else it is at least a picture."""
    entry = awkward.get(net)
    got = tensors(call(CARDS[name], case(net, torch.float64)))
    assert got, "an empty result"
    for at, h in got.items():
        assert torch.isfinite(h).all(), f"{at} is not finite"
    drawn = [h for h in got.values() if h.is_floating_point()]
    counted = [h for h in got.values() if h.ndim and not drawn]  # a result of places alone
    assert any(h.ndim > 1 and h.std() > 0 for h in drawn) or any(h.double().std() > 0 for h in counted), "blank"
    if entry.twin is not None:
        want = plainly(name, entry.twin)
        same = got.keys() & want.keys()  # layers have their own names in some nets
        assert same
        assert close({k: got[k] for k in same}, {k: want[k] for k in same}, 1e-9) == []


@pairs("awkward", refused=True)
def test_refusals(name: str, net: str) -> None:
    c = case(net)
    with pytest.raises(REFUSED[name, net]) as caught:
        call(CARDS[name], c)
    assert_clear(caught.value)


def assert_clear(error: BaseException) -> None:
    """One clear error: ours, a fitting builtin, and a sentence with no tensor printed in it."""
    assert isinstance(error, UnboxedError)
    assert len(type(error).__mro__) > len(UnboxedError.__mro__) + 1, "no fitting builtin"
    said = str(error)
    assert 15 < len(said) < 700, said
    assert not re.search(r"\btensor\((\[|-?\d)", said), said


@methods("awkward")
def test_bfloat16_is_close_to_single_precision(name: str) -> None:
    """A map in bfloat16 is noisy, but it is the same map."""
    coarse, fine = (tensors(call(CARDS[name], case(net))) for net in ("bfloat16", "plain"))
    for at in coarse.keys() & fine.keys():
        a, b = coarse[at].flatten().double(), fine[at].flatten().double()
        if a.numel() > 16 and a.shape == b.shape and b.norm() > 0:
            assert torch.cosine_similarity(a, b, dim=0) > 0.9, at


@methods("awkward")
@pytest.mark.skipif(shutil.which("g++") is None, reason="the default backend of torch.compile needs a C++ compiler")
def test_compiled_by_the_default_backend(name: str) -> None:
    c = case("plain", torch.float64)
    want = tensors(call(CARDS[name], c))
    entry = awkward.Awkward(compiled_for_real(), awkward.GRAY)
    got = tensors(call(CARDS[name], Case(box_of(entry), c.x, c.y)))
    assert close(got, want, 1e-9) == []


@cache
def compiled_for_real() -> torch.nn.Module:
    return awkward.inductor().double()


@methods("awkward")
@pytest.mark.parametrize("net", ["softmax", "clamped_logits", "log_softmax"])
def test_warnings_are_ours(name: str, net: str) -> None:
    """What a reader must know comes as an UnboxedWarning that names no tensor; nothing else warns."""
    if (name, net) in REFUSED:
        return
    c = case(net)
    with warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("always")
        call_aloud(CARDS[name], c)
    assert {w.category for w in met} <= {UnboxedWarning}
    assert not any("tensor(" in str(w.message) for w in met)


@pytest.mark.parametrize("name", ["gradient", "guided_backprop"])
def test_a_clamped_logit_is_told(name: str) -> None:
    """With relu(W x) most gradients are zero: the map is then taken before the clamp, and the reader told so."""
    c = case("clamped_logits", torch.float64)
    z, weight = c.box(c.x), c.box.net[1].weight.detach()
    shut = (z == 0).nonzero()
    assert len(shut) > 0
    row, k = shut[0].tolist()
    with pytest.warns(UnboxedWarning, match="before the clamp"):
        m = CARDS[name].method(c.box, c.x[row : row + 1], k)
    assert torch.allclose(m.flatten(), weight[k] / 0.5)  # d w.(x - mean) / std


@pytest.mark.parametrize(("net", "paths"), [("compiled", "conv1 relu1 fc"), ("compiled_part", "block block.0 block.1")])
def test_compiled_layers_go_by_their_own_names(net: str, paths: str) -> None:
    box = case(net).box
    assert set(paths.split()) <= {row.path for row in box.layers}
    assert not [row.path for row in box.layers if "_orig_mod" in row.path]


LIKE_PLAIN = [n for n in awkward.NETS if awkward.get(n).twin == "plain"]


@pytest.mark.parametrize("net", LIKE_PLAIN)
def test_layers_read_as_they_were_given(net: str) -> None:
    """A tapped activation is what the layer gave, whatever is written over it later."""
    entry = awkward.get(net, torch.float64)
    box, x = box_of(entry), entry.images().double()
    p = awkward.get("plain", torch.float64).net
    z = awkward.GRAY.encode(x)
    want = {"conv1": p.conv1(z), "conv2": p.conv2(p.first(z)), "fc": p(z), "logits": p(z)}
    rows = {row.path for row in box.layers} | {"logits"}
    got = box.read(x, [k for k in want if k in rows])
    assert len(got) >= (1 if net == "exported_flat" else 3)
    assert {k: torch.allclose(h, want[k].detach()) for k, h in got.items()} == dict.fromkeys(got, True)


@pytest.mark.parametrize("net", LIKE_PLAIN)
@pytest.mark.parametrize("size", ["auto", 1])
def test_one_answer_by_all_spellings(net: str, size: int | str) -> None:
    """Logits, probabilities and classes are the plain net's, also where the net ends in a softmax."""
    entry = awkward.get(net, torch.float64)
    box, x = box_of(entry), entry.images().double()
    want = awkward.get("plain", torch.float64).net(awkward.GRAY.encode(x)).detach()
    assert torch.allclose(box(x, batch_size=size), want)
    assert torch.allclose(box.probs(x, batch_size=size), want.softmax(1))
    assert torch.equal(box.predict(x, batch_size=size), want.argmax(1))
