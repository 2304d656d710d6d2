"""The report of a text classifier: a page of its own sections, from the command line, too."""

from __future__ import annotations

import json
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import unboxed as ub
from unboxed import cli
from unboxed.errors import DataError, UnboxedWarning
from unboxed.report import checks, context, texts
from unboxed.report.word_effects import WordEffects

pytest.importorskip("transformers")
from language.planted_trigger import mixed_texts, planted_box


@pytest.fixture(autouse=True)
def few_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two methods, judged on few texts."""
    all_of, few = context.candidates, ("gradient", "attn_lrp")
    monkeypatch.setattr(context, "candidates", lambda *args: {n: m for n, m in all_of(*args).items() if n in few})
    monkeypatch.setattr(context, "N_VERDICT_TEXTS", 4)
    monkeypatch.setattr(context, "MAX_DRAWS_PER_TEST", 2)


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())  # type: ignore[no-any-return]


def test_the_page_of_a_text_classifier(tmp_path: Path) -> None:
    data = mixed_texts(8)
    written = ub.report(planted_box(), data, tmp_path, quiet=True)
    assert written.failures == {}
    html = written.path.read_text()
    for heading in (
        "Which words does its answer come from?",
        "Which few words flip it?",
        "Where inside is the answer?",
    ):
        assert heading in html
    found = facts(tmp_path)["findings"]
    assert found["overview"]["accuracy"] == 1
    assert set(found) == {"overview", "words", "swaps", "ranking", "inside", "reproduce"}
    assert set(found["words"]["verdicts"]) == set(found["ranking"]["methods"]) == {"gradient", "attn_lrp"}
    assert found["swaps"]["flipped"] >= 0.8 * found["swaps"]["right"]
    assert found["inside"]["agreement"][-1] == 1
    assert "cobalt" in html
    box, swaps = planted_box(), found["swaps"]
    inputs, x, labels = box.inputs, box.validate_inputs(list(data.texts)), torch.as_tensor(data.labels)
    made = ub.adversarial.hotflip(box, x, labels, max_swaps=3)
    stays = box.predict(inputs.fill_tokens(x, inputs.default_fill_kind)).cpu() == labels
    assert swaps["flipped_by_new_words"] == int(
        (stays & made.success.cpu() & ~made.initially_misclassified.cpu()).sum()
    )
    first = found["words"]["texts"][0]  # without an error: one with the trigger, by which the model goes
    assert "cobalt" in data.texts[first]
    assert "depends most on single words" in html
    assert "cobalt → " in swaps["followed"][0]
    assert ": left out." not in html
    n_choices = html.count("data-choose=")
    assert n_choices >= 2
    assert [block.count("data-example=") for block in html.split('class="per-example"')[1:]] == [n_choices] * 2
    top = html[html.index('<section class="followed"') : html.index('class="chapter"')]
    assert top.count('<figure class="text') == n_choices  # the words of each


def test_texts_whose_words_do_not_count_have_no_colors_and_no_legend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WordEffects, "is_negligible", lambda effects, i: True)
    html = ub.report(planted_box(), mixed_texts(4), tmp_path, sections=["words"], quiet=True).path.read_text()
    assert "not colored: the answer does not need these words" in html
    assert "Red words raise the score" not in html
    n = len(facts(tmp_path)["findings"]["words"]["texts"])
    answer = facts(tmp_path)["findings"]["words"]["answer"]
    assert f"In {n} of the {n} texts shown the answer does not need the words" in answer
    assert '<figure class="text good' not in html


def test_texts_without_labels_and_other_forms(tmp_path: Path) -> None:
    texts_alone, sections = mixed_texts(6).texts, ["overview", "words", "swaps"]  # the others read no labels
    written = ub.report(planted_box(), texts_alone, tmp_path, max_examples=4, sections=sections, quiet=True)
    assert written.failures == {}
    assert "Without labels there is no accuracy." in facts(tmp_path)["headline"][0]
    pairs = [*zip(mixed_texts(8).texts, mixed_texts(8).labels, strict=True)]
    ub.report(planted_box(), pairs, tmp_path, sections=["overview"], quiet=True)
    assert facts(tmp_path)["findings"]["overview"]["accuracy"] == 1
    with pytest.raises(DataError, match=r"wanted texts: ub\.data\.texts"):
        ub.report(planted_box(), 5, tmp_path)
    with pytest.raises(DataError, match="the data are empty"):
        ub.report(planted_box(), [], tmp_path)


def test_a_section_that_fails_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("out of luck")

    monkeypatch.setattr(texts, "hotflip", broken)
    written = ub.report(planted_box(), mixed_texts(4), tmp_path, sections=["swaps", "inside"], quiet=True)
    assert list(written.failures) == ["swaps"]
    assert set(facts(tmp_path)["findings"]) == {"inside"}
    assert "out of luck" in written.failures["swaps"]


def test_an_interrupt_keeps_what_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(texts, "hotflip", stop)
    written = ub.report(planted_box(), mixed_texts(4), tmp_path, quiet=True)
    assert set(written.failures) == {"swaps", "ranking", "inside", "reproduce"}
    assert "interrupted" in written.failures["swaps"]
    assert "Which words does its answer come from?" in written.path.read_text()


def test_what_warns_is_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def warned(*args: Any, **kwargs: Any) -> Any:
        warnings.warn(UnboxedWarning("the sky is low"), stacklevel=2)
        return hotflip(*args, **kwargs)

    hotflip = texts.hotflip
    monkeypatch.setattr(texts, "hotflip", warned)
    written = ub.report(planted_box(), mixed_texts(4), tmp_path, sections=["swaps"], quiet=True)
    assert "Note: the sky is low." in written.path.read_text()


def test_methods_beyond_the_budget_are_left_out_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for budget in ("MAX_TOTAL_VERDICT_FLOPS", "MAX_WELL_KNOWN_VERDICT_FLOPS"):
        monkeypatch.setattr(checks, budget, 1.0)
    written = ub.report(planted_box(), mixed_texts(4), tmp_path, sections=["words", "ranking"], quiet=True)
    assert "Not run, to keep the report short: " in written.path.read_text()
    assert len(facts(tmp_path)["findings"]["words"]["verdicts"]) == 1


def test_sections_of_other_inputs(tmp_path: Path) -> None:
    written = ub.report(planted_box(), mixed_texts(4), tmp_path / "a", sections=["overview", "map"], quiet=True)
    assert "This section does not take texts." in written.path.read_text()
    box, digits = ub.load("zoo:digits-cnn"), ub.data.digits("test").first(4)
    written = ub.report(box, digits, tmp_path / "b", sections=["overview", "words"], quiet=True)
    assert "This section needs a model that takes texts; this one takes images." in written.path.read_text()


def test_the_text_that_was_asked_for_comes_first(tmp_path: Path) -> None:
    ub.report(planted_box(), mixed_texts(4), tmp_path, sections=["words"], example=3, quiet=True)
    assert facts(tmp_path)["findings"]["words"]["texts"][0] == 3


def test_from_the_command_line(tmp_path: Path) -> None:
    box, data = planted_box(), mixed_texts(8)
    box.model.save_pretrained(tmp_path / "model")
    box.inputs.tokenizer.save_pretrained(tmp_path / "model")
    rows = [f"{text},{data.classes[label]}" for text, label in data]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *rows]))
    words = [
        "report",
        "--model",
        tmp_path / "model",
        "--data",
        tmp_path / "texts.csv",
        "-o",
        tmp_path / "out",
        "--sections",
        "overview,inside",
        "--quiet",
    ]
    said = CliRunner().invoke(cli.app, list(map(str, words)))
    assert said.exit_code == 0, said.output
    assert facts(tmp_path / "out")["findings"]["overview"]["accuracy"] == 1


def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unboxed.cli.commands import demo

    monkeypatch.setattr(demo, "N_DEMO_TRAINING_TEXTS", 16)
    monkeypatch.setattr(demo, "N_DEMO_TEXTS", 4)
    said = CliRunner().invoke(cli.app, ["demo", "--text", "-o", str(tmp_path), "--quiet"])
    assert said.exit_code == 0, said.output
    assert (tmp_path / "index.html").is_file()
    assert ub.load(str(tmp_path / "model")).classes == ("negative", "positive")
