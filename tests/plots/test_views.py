"""What results show of themselves: axes, a picture by name, in a notebook, as a GIF; of all types: test_figures.py."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageShow

import unboxed as ub
from contracts.common import CARDS, call_example, make_case
from unboxed.engine.result_views import ResultViewsMixin
from unboxed.errors import InputError, UnboxedWarning, WriteError


def attribution() -> Any:
    case = make_case("plain")
    return ub.attribution.gradient(case.box, case.x)


def test_axes_take_the_picture() -> None:
    from matplotlib.figure import Figure

    result = attribution()
    own = result.plot()
    assert own.images[0].get_array().shape[:2] == result.image().size[::-1]
    axes = Figure().subplots(1, 2)
    assert result.plot(axes[1]) is axes[1]
    assert [len(ax.images) for ax in axes] == [0, 1]


def test_a_picture_by_name() -> None:
    case = make_case("plain")
    result = call_example(CARDS["auto_attack"], case)
    assert result.image("robust accuracy").size == ub.plots.figures(result)["robust accuracy"].size
    with pytest.raises(InputError, match="no picture 'curve'; it has 'attack', 'robust accuracy'"):
        result.image("curve")


def test_show_in_a_notebook_and_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(ImageShow, "show", lambda image: shown.append(image) or True)
    monkeypatch.setenv("DISPLAY", ":0")
    attribution().show()
    shell = types.SimpleNamespace(kernel=object())
    display = types.SimpleNamespace(display=lambda image: shown.append(("cell", image)))
    notebook = types.SimpleNamespace(get_ipython=lambda: shell, display=display)
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    attribution().show()
    assert isinstance(shown[0], Image.Image)
    assert shown[1][0] == "cell"


@pytest.mark.parametrize("screen", [True, False])
def test_show_without_a_viewer_names_save(screen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no display is named, no viewer is started: the system's opener prints errors of its own."""
    started: list[Any] = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ImageShow, "show", lambda image: bool(started.append(image)))
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    if screen:
        monkeypatch.setenv("DISPLAY", ":0")
    else:
        monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.warns(UnboxedWarning, match=r"write it to a file with \.save\("):
        attribution().show()
    assert len(started) == screen


def test_an_animation_of_what_has_frames(tmp_path: Path) -> None:
    case = make_case("plain")
    morph = ub.synthesis.morph(case.box, case.x[:1], 1, steps=3)
    with Image.open(morph.save(tmp_path / "a.gif")) as written:
        assert written.n_frames > 1
    with pytest.raises(InputError, match="no frames for a GIF"):
        attribution().save(tmp_path / "b.gif")
    with pytest.raises(WriteError):
        attribution().save(tmp_path / "b.unknown")
    assert not list(tmp_path.glob("b*"))


def test_the_page_has_the_words_of_the_card_and_no_markup_of_names(tmp_path: Path) -> None:
    case = make_case("plain")
    result = ub.attribution.gradient(case.box, case.x)
    result.layer = "<script>"
    page = result.save(tmp_path / "a.html").read_text()
    assert ub.attribution.gradient.card.shows in page
    assert "layer=<script>" not in page
    assert "layer=<script>" not in result._repr_html_()


def test_results_without_a_picture_fall_back_to_their_repr() -> None:
    class Plain(ResultViewsMixin):
        pass

    assert Plain()._repr_html_() is None
    with pytest.raises(InputError, match="no picture of this Plain"):
        Plain().image()


def test_a_tuple_of_results() -> None:
    case = make_case("plain")
    maps = ub.activations.maps(case.box, case.x)
    assert isinstance(maps, tuple)
    assert repr(maps).startswith(f"ResultTuple({len(maps)}: LayerMaps(")
    assert torch.equal(maps[0].outputs, next(iter(maps)).outputs)
