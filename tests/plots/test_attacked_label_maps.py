"""The figure of an attack on a model that gives each position a class shows these classes, before and after."""

from __future__ import annotations

import numpy as np
import torch

import unboxed as ub
from unboxed.plots.attack_sheet import label_map_rows
from unboxed.plots.embedding import class_colors


def attacked() -> tuple[ub.Box, ub.adversarial.Adversarial]:
    torch.manual_seed(0)
    box = ub.Box(torch.nn.Conv2d(3, 4, 3, padding=1), ub.Pixels((3, 8, 8)), outputs="logits", classes=tuple("abcd"))
    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return box, ub.adversarial.pgd(box, x, box(x).argmax(1), eps=0.1, steps=3)


def test_each_position_has_the_color_of_its_class() -> None:
    box, result = attacked()
    rows = label_map_rows(result.output_before, result.output_after)
    colors = [tuple(bytes.fromhex(c[1:])) for c in class_colors(4)]
    for name, x in (("predicted", result.input), ("predicted then", result.images)):
        wanted = box(x).argmax(1)
        for tile, classes in zip(rows[name], wanted, strict=True):
            assert all(
                tuple(np.asarray(tile.image)[i, j].tolist()) == colors[int(classes[i, j])]
                for i in range(8)
                for j in range(8)
            )
    share = float((box(result.input).argmax(1)[0] != box(result.images).argmax(1)[0]).double().mean())
    assert share > 0
    assert rows["predicted then"][0].caption.startswith(f"{share:.0%} of positions")


def test_the_sheet_has_these_rows_for_maps_of_classes_alone() -> None:
    box, result = attacked()
    with_maps = ub.plots.figures(result, box)["attack"]
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 1))
    number = ub.Box(model, ub.Pixels((3, 8, 8)), outputs="regression")
    without = ub.plots.figures(ub.adversarial.pgd(number, result.input, eps=0.1, steps=1), number)["attack"]
    assert with_maps.height > without.height + 2 * 100
