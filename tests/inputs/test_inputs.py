"""What inputs take as their settings, and inputs as values: hashed, compared, pickled, copied."""

from __future__ import annotations

import copy
import math
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import unboxed as ub
from unboxed.errors import InputError, UnboxedWarning

NUMBERS = {
    "a number": 0.5, "a 0-d tensor": torch.tensor(0.5), "a NumPy number": np.float32(0.5), "a 0-d array": np.array(0.5),
    "an int": 1, "a learned number": torch.nn.Parameter(torch.tensor(0.5)),
}  # fmt: skip
ROWS = {
    "a tuple": (0.25, 0.5, 0.75), "a list": [0.25, 0.5, 0.75], "a tensor": torch.tensor([0.25, 0.5, 0.75]),
    "an array": np.array([0.25, 0.5, 0.75], dtype=np.float32), "numbers of NumPy": (np.float32(0.25), 0.5, 0.75),
    "a tensor (C, 1, 1)": torch.tensor([0.25, 0.5, 0.75]).view(3, 1, 1),
    "an array (1, C, 1, 1)": np.array([0.25, 0.5, 0.75]).reshape(1, 3, 1, 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", NUMBERS)
def test_one_number(kind: str) -> None:
    value, want = NUMBERS[kind], 1.0 if kind == "an int" else 0.5
    pixels = ub.Pixels((3, 4, 4), mean=value, std=value)
    assert (pixels.mean, pixels.std) == (want, want)
    columns = ub.Features(("a", "b"), low=-value, high=value, mean=value, std=value)
    assert (columns.low, columns.mean, columns.std) == ((-want,) * 2, (want,) * 2, (want,) * 2)
    x = torch.rand(2, 3, 4, 4)
    assert torch.allclose(pixels.decode(pixels.encode(x)), x, atol=1e-6)


@pytest.mark.parametrize("kind", ROWS)
def test_one_number_each(kind: str) -> None:
    want = (0.25, 0.5, 0.75)
    pixels = ub.Pixels((3, 4, 4), mean=ROWS[kind], std=ROWS[kind])
    assert (pixels.mean, pixels.std) == (want, want)
    columns = ub.Features(("a", "b", "c"), high=ROWS[kind], mean=ROWS[kind], std=ROWS[kind])
    assert (columns.high, columns.mean, columns.std) == (want, want, want)
    assert all(type(v) is float for v in (*pixels.mean, *columns.std))


NAN = float("nan")
BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "mean NaN": (lambda: ub.Pixels((1, 8, 8), mean=NAN), "mean"),
    "mean a NaN tensor": (lambda: ub.Pixels((1, 8, 8), mean=torch.tensor(NAN)), "mean"),
    "mean of a string": (lambda: ub.Pixels((1, 8, 8), mean="0.5"), "mean"),
    "mean in words": (lambda: ub.Pixels((3, 8, 8), mean=("a", "b", "c")), "mean"),
    "mean an image": (lambda: ub.Pixels((3, 8, 8), mean=torch.rand(3, 8, 8)), r"mean .*\(3, 8, 8\)"),
    "mean 8-bit": (lambda: ub.Pixels((3, 8, 8), mean=torch.tensor([123.0, 117.0, 104.0])), "divide 8-bit values"),
    "std zero": (lambda: ub.Pixels((1, 8, 8), std=np.array(0.0)), "std"),
    "two means for three": (lambda: ub.Pixels((3, 8, 8), mean=(0.1, 0.2)), "2 values for 3 channels"),
    "a shape in words": (lambda: ub.Pixels("abc"), "shape"),
    "a shape of a number": (lambda: ub.Pixels(8), "shape"),
    "names a string": (lambda: ub.Features("abc"), "tuple of column names"),
    "names a number": (lambda: ub.Features(3), "tuple of column names"),
    "names None": (lambda: ub.Features(None), "tuple of column names"),
    "no names": (lambda: ub.Features(()), "at least one"),
    "a name twice": (lambda: ub.Features(("a", "b", "a")), "different name"),
    "feature std NaN": (lambda: ub.Features(("a", "b"), std=(NAN, 1.0)), "std"),
    "feature std zero": (lambda: ub.Features(("a", "b"), std=(0.0, 1.0)), "std must be a number above 0"),
    "feature std infinite": (lambda: ub.Features(("a", "b"), std=math.inf), "std"),
    "feature mean NaN": (lambda: ub.Features(("a", "b"), mean=(NAN, 1.0)), "mean"),
    "feature mean infinite": (lambda: ub.Features(("a", "b"), mean=(math.inf, 1.0)), "mean"),
    "low NaN": (lambda: ub.Features(("a", "b"), low=NAN), "low"),
    "high NaN": (lambda: ub.Features(("a", "b"), high=(1.0, NAN)), "high"),
    "low above high": (lambda: ub.Features(("a", "b"), low=(0, 2), high=(1, 1)), "'b' has no values"),
    "low infinite": (lambda: ub.Features(("a", "b"), low=math.inf), "'a' has no values"),
    "high minus infinite": (lambda: ub.Features(("a", "b"), high=(1, -math.inf)), "'b' has no values"),
    "low in words": (lambda: ub.Features(("a", "b"), low="zero"), "low"),
    "too many": (lambda: ub.Features(("a", "b"), low=(0, 0, 0)), "3 values for 2 columns"),
    "unknown categories": (lambda: ub.Features(("a",), categories={"b": (0, 1)}), "don't exist: b"),
    "no categories": (lambda: ub.Features(("a",), categories={"a": ()}), "categories of 'a'"),
    "categories NaN": (lambda: ub.Features(("a",), categories={"a": (0, NAN)}), "category of 'a'"),
    "categories in words": (lambda: ub.Features(("a",), categories={"a": ("red", "blue")}),
                            "categories of 'a' are texts.*get_dummies.*a_red"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_bad_settings(bad: str) -> None:
    work, match = BAD[bad]
    with pytest.raises(InputError, match=match):
        work()


PIXELS, COLUMNS = ub.Pixels((1, 4, 4)), ub.Features(("p", "q"), low=0.0, categories={"q": [0, 1]})
VALUES: dict[str, Callable[[], Any]] = {
    "pixels": lambda: ub.Pixels((1, 4, 4)),
    "color": lambda: ub.Pixels((3, 4, 4), mean=torch.tensor([0.1, 0.2, 0.3])),
    "columns": lambda: ub.Features(("p", "q")),
    "bounded": lambda: ub.Features(("p", "q"), low=0.0),
    "categories": lambda: ub.Features(("p", "q"), categories={"q": torch.tensor([0.0, 1.0])}),
    "dict": lambda: ub.MultiInput({"image": PIXELS, "row": COLUMNS}),
    "tuple": lambda: ub.MultiInput((PIXELS, COLUMNS)),
}


@pytest.mark.parametrize("kind", VALUES)
def test_inputs_are_values(kind: str) -> None:
    own = VALUES[kind]()
    for other in (VALUES[kind](), pickle.loads(pickle.dumps(own)), copy.deepcopy(own), copy.copy(own)):
        assert other == own
        assert hash(other) == hash(own)
        assert other.shape == own.shape
    assert [name for name, make in VALUES.items() if make() == own] == [kind]
    assert len({make() for make in VALUES.values()}) == len(VALUES)


def test_a_callers_dict_can_change() -> None:
    parts: dict[str, Any] = {"image": PIXELS, "row": COLUMNS}
    both = ub.MultiInput(parts)
    parts.clear()
    assert both == ub.MultiInput({"image": PIXELS, "row": COLUMNS})


GIVEN: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], dict[str, Any], str]] = {
    "0 to 255": (lambda x: 255 * x, {}, r"go from \S+ to 2\d\d: they look like 8-bit values, divide them by 255"),
    "0 to 8": (lambda x: 8 * x, {}, r"the largest value there can be: (8|7\.9\d?) if that is white, 255 of dark 8-bit"),
    "integers": (
        lambda x: (255 * x).long(),
        {},
        r"wanted floating point images in \[0, 1\]; got torch\.int64: they look like 8-bit values, divide them by 255, "
        r"or pass x\.to\(torch\.uint8\)",
    ),
    "integers to 16": (lambda x: (16 * x).round().long(), {}, r"torch\.int64: divide .* can be: 16 if that is white"),
    "integers to 1": (lambda x: x.round().long(), {}, r"got torch\.int64\. Pass x\.float\(\)"),
    "negative integers": (lambda x: (255 * x).long() - 128, {}, r"got torch\.int64$"),
    "16 bits": (lambda x: 65535 * x, {}, "divide them by the largest value there can be, 65535 for 16 bits"),
    "a little above": (lambda x: 1.1 * x, {}, r"x\.clamp\(0, 1\), or divide them by the largest value"),
    "normalized": (lambda x: (x - 0.5) / 0.25, {"mean": 0.5, "std": 0.25}, r"normalized already.*box\.inputs\.decode"),
    "normalized, unsaid": (lambda x: (x - 0.5) / 0.25, {}, "Give Pixels their mean and std"),
}  # fmt: skip
ASKED: dict[str, Callable[[ub.Box, torch.Tensor], object]] = {
    "the box": lambda box, x: box(x),
    "an attribution": lambda box, x: ub.attribution.gradient(box, x, 1),
    "an attack": lambda box, x: ub.adversarial.fgsm(box, x, torch.tensor([0, 1]), eps=0.1),
    "a pass over data": lambda box, x: ub.activations.statistics(box, x),
    "an evaluation": lambda box, x: ub.robustness.calibration(box, (x, torch.tensor([0, 1]))),
}


@pytest.mark.parametrize("form", GIVEN)
@pytest.mark.parametrize("asked", ASKED)
def test_images_beyond_their_range_are_refused_with_what_to_do(asked: str, form: str) -> None:
    make, settings, said = GIVEN[form]
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4))
    box = ub.Box(model, ub.Pixels((3, 4, 4), **settings))
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).index_fill(3, torch.tensor([0]), 0.999)
    with pytest.raises(InputError, match=said):
        ASKED[asked](box, make(x))


def bytes_up_to(largest: int, n: int = 4) -> torch.Tensor:
    x = torch.randint(0, largest + 1, (n, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return x.index_fill(3, torch.tensor([0]), largest)


@pytest.mark.parametrize("largest", [1, 16])
def test_8_bit_images_with_another_white_are_warned_of_once(largest: int) -> None:
    box, x = (
        ub.Box(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4)), ub.Pixels((3, 4, 4))),
        bytes_up_to(largest),
    )
    said = rf"the largest of these 8-bit values is {largest}, .* divided by 255: .* pass floats, x / {largest}$"
    y = torch.tensor([0, 1, 2, 3])
    calls: list[Callable[[], object]] = [
        lambda: box(x), lambda: box(x.numpy()), lambda: ub.attribution.gradient(box, x, 1),
        lambda: ub.robustness.calibration(box, (x, y)),
        lambda: ub.robustness.calibration(box, DataLoader(TensorDataset(x, y), batch_size=2)),
        lambda: box(x[:1]), lambda: box(x[:1].numpy()), lambda: box(list(x)), lambda: box(list(x.numpy())),
        lambda: box([x[0].numpy().transpose(1, 2, 0)]), lambda: ub.image(x[0].numpy(), like=box),
        lambda: ub.image(x[0], like=box), lambda: ub.attribution.gradient(box, x[:1], 1),
        lambda: ub.robustness.calibration(box, (list(x.numpy()), [0, 1, 2, 3])),
        lambda: ub.robustness.calibration(box, TensorDataset(x, y)),
        lambda: ub.activations.statistics(box, list(zip(x, y, strict=True))),
    ]  # fmt: skip
    for call in calls:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            call()
        assert len([w for w in caught if re.search(said, str(w.message))]) == 1
    with pytest.warns(UnboxedWarning, match=said):
        torch.testing.assert_close(box(x), box(x.float() / 255))  # said, not changed


@pytest.mark.parametrize(
    "x",
    [
        bytes_up_to(0),
        bytes_up_to(17),
        bytes_up_to(255),
        torch.cat([bytes_up_to(9), bytes_up_to(200)]),
    ],
    ids=["black", "dim", "bright", "dark ones beside bright ones"],
)
def test_other_8_bit_images_are_not_warned_of(x: torch.Tensor) -> None:
    box = ub.Box(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4)), ub.Pixels((3, 4, 4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        box(x)
        box(x.numpy())
        box(list(x))
        ub.activations.statistics(box, list(x.numpy()))


def test_an_image_among_several_inputs_is_named() -> None:
    inputs = ub.MultiInput({"image": ub.Pixels((1, 4, 4)), "row": ub.Features(("a", "b"))})
    with pytest.raises(InputError, match=r"input 'image': .*divide them by 255"):
        inputs.check({"image": 255 * torch.rand(2, 1, 4, 4), "row": torch.rand(2, 2)})


@pytest.mark.parametrize(
    ("x", "inputs", "next_step"),
    [
        ("cat.png", PIXELS, "ub.image(path, like=box)"),
        (Path("photos"), PIXELS, "ub.image(path, like=box)"),
        ("rows.csv", COLUMNS, "ub.data.table(path, box) reads"),
        (Image.new("L", (4, 4)), PIXELS, "ub.image(image, like=box)"),
        ([Image.new("L", (4, 4))], PIXELS, "ub.image(image, like=box)"),
        ([torch.rand(1, 4, 4)] * 2, PIXELS, "torch.stack(x)"),
        (np.zeros((2, 1, 4, 4)), PIXELS, "torch.as_tensor(x)"),
    ],
    ids=["path", "Path", "table", "PIL", "list of PIL", "list of tensors", "array"],
)
def test_what_is_no_tensor_is_refused_with_how_to_become_one(x: Any, inputs: Any, next_step: str) -> None:
    with pytest.raises(InputError, match=f"got {type(x).__name__}.*{re.escape(next_step)}"):
        inputs.check(x)


def test_an_image_is_made_a_batch_as_the_hint_says() -> None:
    x = ub.image(Image.new("L", (6, 5)), like=PIXELS)
    assert PIXELS.check(x) is x


def test_inputs_of_many_columns_are_short_in_print() -> None:
    many = ub.Features(tuple(f"c{i}" for i in range(13)), low=(0.0, *[-math.inf] * 12), mean=2.0)
    assert repr(many) == "Features(13 columns: c0, c1, c2, ..., low=(0, -inf, -inf, ...), mean=2)"
    assert repr(ub.Features(("a", "b"))) == "Features(('a', 'b'))"
    assert repr(ub.Features(("a", "b"), std=(1.0, 2.5), categories={"a": [0, 1]})) == (
        "Features(('a', 'b'), std=(1, 2.5), categories of a)"
    )
    assert repr(ub.Pixels((1, 4, 4))) == "Pixels((1, 4, 4))"
    assert repr(ub.Pixels((9, 4, 4), mean=(0.1,) * 8 + (0.25,), std=0.5)) == (
        "Pixels((9, 4, 4), mean=(0.1, 0.1, 0.1, ...), std=0.5)"
    )
    assert len(repr(ub.MultiInput((many, ub.Pixels((3, 4, 4), mean=(0.485, 0.456, 0.406)))))) < 200
