"""Control models that all methods share: made once, with the same numbers."""

from __future__ import annotations

import pytest

import unboxed as ub
from unboxed.checks import control_boxes
from unboxed.checks.control_boxes import sharing_control_boxes
from unboxed.explaining import explain

METHODS = {"gradient": ub.attribution.gradient, "gradient_x_input": ub.attribution.gradient_x_input}


def test_shared_control_models_are_made_once_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[tuple[object, int]]()
    randomize = control_boxes.randomize_layers

    def counting(box: ub.Box, layers: object, seed: int) -> ub.Box:
        made.append((tuple(layers), seed))  # type: ignore[call-overload]
        return randomize(box, made[-1][0], seed)  # type: ignore[arg-type]

    monkeypatch.setattr(control_boxes, "randomize_layers", counting)
    box, x = ub.load("zoo:digits-cnn"), ub.data.digits("test").first(4)[0]
    alone = {name: ub.checks.verdict(box, x, method) for name, method in METHODS.items()}
    assert len(made) > len(set(made))
    made.clear()
    ranked = ub.checks.rank_methods(box, x, METHODS)
    assert len(made) == len(set(made)) > 0
    assert {name: ranked[name].to_dict() for name in METHODS} == {name: v.to_dict() for name, v in alone.items()}
    made.clear()
    explained = explain(box, x[:1], methods=METHODS)
    assert len(made) == len(set(made)) > 0
    assert explained.verdicts.keys() == METHODS.keys()


def test_they_are_let_go_of_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    box, other = ub.load("zoo:digits-cnn"), ub.load("zoo:digits-cnn")

    def get(b: ub.Box) -> ub.Box:
        return control_boxes.cached_control_box(b, "copy", lambda: ub.Box(b.model, b.inputs))

    with sharing_control_boxes(box):
        first = get(box)
        assert get(box) is first
        assert get(other) is not get(other)  # of another box
    assert get(box) is not first
    monkeypatch.setattr(control_boxes, "MAX_CONTROL_WEIGHTS_BYTES", 1)
    with sharing_control_boxes(box):
        assert get(box) is not get(box)
