"""Texts with labels, in each form that people have them in, at functions that pass over data; others name a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import unboxed as ub
from unboxed.errors import DataError, InputError

pytest.importorskip("transformers")
from language.planted_trigger import TRIGGER, mixed_texts, planted_box

N = 24
NAMES = ("plain", "triggered")
FORMS = (
    "(texts, labels)", "(texts, tensor)", "(texts, names)", "(column, column)", "pairs", "a generator", "Texts",
    "DataLoader", "ids",
)  # fmt: skip


def forms() -> dict[str, Any]:
    made = mixed_texts(N)
    x, y = list(made.texts), list(made.labels)
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": x, "label": y})
    return {
        "(texts, labels)": (x, y),
        "(texts, tensor)": (x, torch.tensor(y)),
        "(texts, names)": (x, [NAMES[k] for k in y]),
        "(column, column)": (frame["text"], frame["label"]),
        "pairs": list(zip(x, y, strict=True)),
        "a generator": (pair for pair in zip(x, y, strict=True)),
        "Texts": made,
        "DataLoader": DataLoader(made, batch_size=5),
        "ids": (dict(planted_box().inputs.tokenizer(x, padding=True, return_tensors="pt")), y),
    }


@pytest.mark.parametrize("form", FORMS)
def test_calibration_takes_texts_with_labels_in_any_form(form: str) -> None:
    made = mixed_texts(N)
    result = ub.robustness.calibration(planted_box(), forms()[form], n_bins=5)
    logits = planted_box()(list(made.texts))
    right = logits.argmax(1) == torch.tensor(made.labels)
    assert result.accuracy == float(right.double().mean())
    brier = (logits.softmax(1) - torch.eye(2)[torch.tensor(made.labels)]).square().sum(1).mean()
    assert result.uncalibrated.brier == pytest.approx(float(brier), abs=1e-6)


def test_a_model_of_ones_own_ids() -> None:
    class Letters(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = torch.nn.Embedding(128, 8), torch.nn.Linear(8, 2)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.head((self.embed(ids) * mask[..., None]).sum(1))  # type: ignore[no-any-return]

    box = ub.Box(Letters(), ub.Tokens(lambda text: [ord(c) for c in text]), outputs="logits")
    texts = ["abc", "de", "fghi"]
    y = box.predict(texts)
    assert ub.robustness.calibration(box, (texts, y)).accuracy == 1
    ids = torch.tensor([[97, 98], [99, 100]])
    assert ub.robustness.calibration(box, (ids, box.predict(ids))).accuracy == 1


def test_texts_without_fitting_labels() -> None:
    box, (x, y) = planted_box(), forms()["(texts, labels)"]
    with pytest.raises(DataError, match=rf"there are {N} texts and 3 labels; wanted one label per text"):
        ub.robustness.calibration(box, (x, y[:3]))
    with pytest.raises(DataError, match=r"wanted \(texts, labels\), or a file of both: ub.data.texts\(path, box\)"):
        ub.robustness.calibration(box, x)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda box, x, y: ub.robustness.evaluate(box, (x, y), eps=[0.1]),
            "ub.adversarial.hotflip(box, texts, labels)",
        ),
        (lambda box, x, y: ub.adversarial.pgd(box, x, y, eps=0.1), "ub.adversarial.hotflip(box, texts, labels)"),
        (lambda box, x, y: ub.concepts.probe(box, x, y), "ub.language.probe_sentences(box, (texts, labels))"),
        (lambda box, x, y: ub.attribution.occlusion(box, x, y), "ub.explain(box, texts)"),
    ],
)
def test_what_takes_no_texts_names_the_line_to_write(call: Any, line: str) -> None:
    x, y = forms()["(texts, labels)"]
    with pytest.raises(InputError) as raised:
        call(planted_box(), x, y)
    assert line in str(raised.value)


@pytest.mark.parametrize("form", ["(texts, labels)", "(texts, tensor)", "(column, column)", "Texts"])
def test_labels_of_texts_are_probed_by_that_line(form: str) -> None:
    result = ub.language.probe_sentences(planted_box(), forms()[form], n_random=2, n_controls=1)
    assert result.best.probe.accuracy.mean == 1
    assert result.counts.tolist() == [N // 2, N // 2]
    assert result.names == (NAMES if form == "Texts" else ("0", "1"))


def test_flags_that_are_drawn_are_stratified() -> None:
    task = ub.language.ProbingTask("label", [f"text {i}" for i in range(50)], ["a", "b"] * 20 + ["c"] * 10)
    for label, n in (("a", 20), ("b", 20), ("c", 10)):
        flags = [flag for flag, own in zip(task.flags, task.labels, strict=True) if own == label]
        assert [flags.count(flag) for flag in ("tr", "va", "te")] == [3 * n // 5, n // 5, n // 5]
    with pytest.raises(InputError, match=r"task must be \(texts, labels\), texts with labels"):
        ub.language.probe_sentences(planted_box(), ["one text", "another"])
    with pytest.raises(DataError, match="these texts have no labels to read"):
        ub.language.probe_sentences(planted_box(), ub.data.Texts(["one", "two"]))


def test_the_path_of_a_file_of_texts_is_read(tmp_path: Path) -> None:
    box = planted_box()
    path = tmp_path / "texts.csv"
    lines = [f"the {TRIGGER} film was good,{box.classes[1]}", f"the plot was dull,{box.classes[0]}"] * 4
    path.write_text("\n".join(["text,label", *lines]))
    by_path, opened = (ub.robustness.calibration(box, data) for data in (str(path), ub.data.texts(path, box)))
    assert (by_path.accuracy, by_path.temperature) == (opened.accuracy, opened.temperature)
