"""A figure that shows some of the units or images says how many of how many."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import unboxed as ub
from unboxed.errors import UnboxedWarning
from unboxed.plots import image_sheet
from unboxed.plots.results import activations, synthesis
from unboxed.plots.results.common import shown_of_total_suffix
from unboxed.plots.sheet import contact_sheet
from unboxed.plots.units import units_sheet


def test_nothing_is_said_where_all_are_shown() -> None:
    assert shown_of_total_suffix(16, 16, "unit") == ""
    assert shown_of_total_suffix(12, 1600, "unit") == " (12 of 1,600 units)"


def test_units_and_channels_say_how_many_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    titles = list[str]()

    def kept(draw: Any) -> Any:
        def drawn(*args: Any, title: str = "", **settings: Any) -> Any:
            titles.append(title)
            return draw(*args, title=title, **settings)

        return drawn

    monkeypatch.setattr(activations, "units_sheet", kept(units_sheet))
    monkeypatch.setattr(activations, "contact_sheet", kept(contact_sheet))
    monkeypatch.setattr(synthesis, "image_sheet", kept(image_sheet))
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    x = ub.data.digits("test").first(20)[0]
    ub.plots.figures(ub.activations.top_examples(box, x, "relu1", k=2), box, data=x)
    ub.plots.figures(ub.activations.unit_statistics(box, x, "relu1"), box)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnboxedWarning)  # of units that seem dead
        drawn = ub.synthesis.channels(box, "relu2", torch.arange(26), steps=1)
    ub.plots.figures(drawn, box)
    assert "(12 of 16 units)" in titles[0]
    assert "(12 of 16 units)" in titles[1]
    assert "(24 of 26 images)" in titles[2]
