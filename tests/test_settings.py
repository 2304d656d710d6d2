"""Settings are read from annotations: kinds, ranges, units, help; and values are checked by them."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy as np
import pytest

import unboxed as ub
from unboxed.errors import InputError
from unboxed.parameters import Eps, LayerAddress, Target
from unboxed.settings import NO_DEFAULT, Above, AtLeast, AtMost, Below, Unit, check_settings, settings_of


def method(
    box: ub.Box,
    x: Any,
    target: Target = None,
    *,
    n: Annotated[int, AtLeast(1), Unit("samples"), "Number of samples."] = 5,
    share: Annotated[float, Above(0), Below(1), "A share."] = 0.5,
    top: Annotated[float | None, AtLeast(0), AtMost(1)] = None,
    kind: Literal["mean", "squared"] = "mean",
    size: Annotated[int | Literal["auto"], AtLeast(1)] = "auto",
    flag: bool = False,
    eps: Eps = None,
    layer: LayerAddress = None,
    names: tuple[str, ...] | list[str] = (),
) -> None:
    check_settings(method, locals())


def test_what_annotations_say() -> None:
    settings = settings_of(method)
    assert list(settings) == ["x", "target", "n", "share", "top", "kind", "size", "flag", "eps", "layer", "names"]
    n, share, eps = settings["n"], settings["share"], settings["eps"]
    assert (n.kind, n.default, n.unit, n.help, n.range) == ("int", 5, "samples", "Number of samples.", "1 or more")
    assert (share.kind, share.range) == ("float", "above 0 and below 1")
    assert (eps.kind, eps.optional, eps.unit) == ("float", True, "pixel range")
    assert (settings["kind"].kind, settings["kind"].choices) == ("choice", ("mean", "squared"))
    assert (settings["size"].kind, settings["size"].range) == ("int", '1 or more or "auto"')
    assert [settings[k].kind for k in ("x", "target", "flag", "layer", "names")] == [
        "object", "target", "bool", "layer", "strs"]  # fmt: skip
    assert settings["x"].default is NO_DEFAULT


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("n", 0, "n must be a whole number, 1 or more; got 0"),
        ("n", True, "n must be a whole number, 1 or more; got True"),
        ("n", 2.0, "n must be a whole number, 1 or more; got 2.0"),
        ("share", 0, "share must be a number between 0 and 1, both excluded; got 0"),
        ("share", math.nan, "share must be a number between 0 and 1, both excluded; got nan"),
        ("top", 1.5, "top must be a number from 0 to 1, or None; got 1.5"),
        ("kind", "median", 'kind must be "mean" or "squared"; got \'median\''),
        ("size", "all", "size must be a whole number, 1 or more, or \"auto\"; got 'all'"),
        ("flag", "yes", "flag must be True or False; got 'yes'"),
        ("eps", -0.1, "eps must be a number above 0, or None; got -0.1"),
    ],
)
def test_what_is_out_of_range_is_refused(name: str, value: object, text: str) -> None:
    with pytest.raises(InputError) as error:
        method(None, None, **{name: value})  # type: ignore[arg-type]
    assert str(error.value) == text


def test_what_is_in_range_is_taken() -> None:
    method(None, None, n=np.int64(3), share=np.float32(0.5), top=1, kind="squared", size=4, flag=True, eps=0.1)  # type: ignore[arg-type]
    method(None, None, top=None, size="auto", eps=None)  # type: ignore[arg-type]
