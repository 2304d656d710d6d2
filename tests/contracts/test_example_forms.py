"""One door for examples: every method takes them in any form, reads them once, and gives the same result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import unboxed as ub
from check_each import each
from contracts.common import CARDS, MethodCase, call_example, each_method, has_parameters, result_tensors, shared_case

BYTES = torch.randint(0, 256, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
X, Y = BYTES.float() / 255, torch.tensor([1, 0, 0])
PICTURES = [Image.fromarray(image[0].numpy()) for image in BYTES]


class Rows:
    """A Hugging Face data set: rows with columns."""

    features: ClassVar[dict[str, Any]] = {
        "image": None,
        "label": type("ClassLabel", (), {"names": ["0", "1", "2", "3"]})(),
    }

    def __len__(self) -> int:
        return len(PICTURES)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": PICTURES[i], "label": int(Y[i])}


FORMS: dict[str, Callable[[], Any]] = {
    "array": lambda: X.numpy(),
    "bytes, channels last": lambda: np.ascontiguousarray(BYTES.numpy().transpose(0, 2, 3, 1)),
    "gray array": lambda: BYTES.numpy()[:, 0],
    "bytes": lambda: BYTES,
    "list of tensors": lambda: list(X),
    "Pillow": lambda: PICTURES,
    "mixed list": lambda: [X[0], PICTURES[1], BYTES.numpy()[2, 0]],
    "pair": lambda: (X, Y),
    "pair of lists": lambda: (PICTURES, ["1", "0", "0"]),
    "items": lambda: list(zip(PICTURES, Y.tolist(), strict=True)),
    "rows": Rows,
    "columns": lambda: {"image": PICTURES, "label": Y.tolist()},
    "loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=2),
    "generator": lambda: iter(PICTURES),
}
LABELED = ("pair", "pair of lists", "items", "rows", "columns", "loader")


def case(form: str | None = None) -> MethodCase:
    return replace(shared_case("plain"), x=X if form is None else FORMS[form](), y=Y)


def same(a: Any, b: Any) -> bool:
    first, second = result_tensors(a), result_tensors(b)
    return first.keys() == second.keys() and all(
        torch.equal(first[k].nan_to_num(), second[k].nan_to_num()) for k in first
    )


@each(FORMS)
def test_every_form_is_the_same_batch(form: str) -> None:
    assert torch.equal(shared_case("plain").box.validate_inputs(FORMS[form]()), X)


@each_method("example forms", lambda card: has_parameters(card, "x"))
def test_every_method_reads_examples_once(name: str) -> None:
    """A generator can be read only once, and has no length."""
    card = CARDS[name]
    assert same(call_example(card, case("generator")), call_example(card, case()))


ATTACKS = [n for n, c in CARDS.items() if c.family == "adversarial" and has_parameters(c, "x", "y", "eps")]


@each(LABELED)
def test_labels_may_come_with_the_examples(form: str) -> None:
    c = case(form)
    given = ub.adversarial.pgd(c.box, c.x, eps=0.2, steps=2)
    assert same(given, ub.adversarial.pgd(c.box, X, Y, eps=0.2, steps=2))
    accuracy = ub.robustness.calibration(c.box, FORMS[form](), n_bins=3).accuracy
    assert accuracy == (c.box.predict(X) == Y).double().mean()


@each(ATTACKS)
def test_every_attack_takes_labels_from_the_examples(name: str) -> None:
    c, card = case("pair"), CARDS[name]
    settings = {k: v for k, v in {"steps": 2, "queries": 50}.items() if has_parameters(card, k)}
    result = card.method(c.box, c.x, eps=0.2, **settings)
    assert same(result, card.method(c.box, X, Y, eps=0.2, **settings))


def test_a_verdict_takes_what_a_method_takes() -> None:
    c = case()
    method = ub.attribution.gradient
    given = ub.checks.verdict(c.box, iter(PICTURES), method, max_draws=2)
    assert given.grade == ub.checks.verdict(c.box, X, method, max_draws=2).grade


def test_arrays_of_a_double_model_keep_their_precision() -> None:
    box = ub.Box(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)).double(), ub.Pixels((1, 8, 8)))
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    assert torch.equal(box.validate_inputs(x.numpy()), x)
    assert torch.equal(box.validate_inputs(x.numpy().astype(">f8")), x)
