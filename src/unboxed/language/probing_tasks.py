"""Probing tasks in SentEval's format: sentences with a label each, for training, validation and test."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, InputError
from ..rng import keyed_generator
from ..validation import expand_home, listed_names, missing_path_text
from .files import open_maybe_gzipped

FLAGS = ("tr", "va", "te")
WANTED_LINE = 'wanted "tr", "va" or "te", a tab, a label, a tab and a sentence'


@dataclass(frozen=True, eq=False, repr=False)
class ProbingTask:
    """Sentences with a label each, and which of them train, choose the penalty, and test.

    Args:
        name: What the labels are, such as "tense".
        sentences: The sentences (N,).
        labels: The label of each (N,): names or numbers.
        flags: "tr", "va" or "te" of each (N,), as in SentEval's files. Without them three fifths of the sentences of
            each label, drawn at random, train, a fifth chooses the penalty, and a fifth tests.

    Example:
        >>> import unboxed as ub
        >>> sentences = ["it rains", "it rained", "she runs", "she ran", "he goes", "he went"]
        >>> flags = ["tr", "tr", "va", "va", "te", "te"]
        >>> task = ub.language.ProbingTask("tense", sentences, ["now", "past"] * 3, flags)
        >>> task, task.classes
        (ProbingTask('tense', 6 sentences, 2 classes), ('now', 'past'))
    """

    name: str
    sentences: Sequence[str]
    labels: Sequence[str]
    flags: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not len(self.flags):
            object.__setattr__(self, "flags", _drawn_flags(list(map(str, self.labels))))
        for field in ("sentences", "labels", "flags"):
            object.__setattr__(self, field, tuple(map(str, getattr(self, field))))
        n = len(self.sentences)
        if not n == len(self.labels) == len(self.flags):
            raise InputError(
                f"wanted a label and a flag per sentence; got {n} sentences, {len(self.labels)} labels and "
                f"{len(self.flags)} flags"
            )
        if blank := [i for i, sentence in enumerate(self.sentences) if not sentence.strip()]:
            raise InputError(f"sentence {blank[0]} is empty")
        if unknown := sorted(set(self.flags) - set(FLAGS)):
            raise InputError(f"flags must be 'tr', 'va' or 'te'; got {listed_names(unknown)}")
        if absent := [flag for flag in FLAGS if flag not in self.flags]:
            raise DataError(f"{self.name}: no sentence has the flag {' or '.join(map(repr, absent))}")
        if len(present := {label for label, flag in zip(self.labels, self.flags, strict=True) if flag == "tr"}) < 2:
            raise DataError(f"{self.name}: all training sentences have the label {present.pop()!r}: nothing to read")

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The labels, each once: numbers by size, names in order."""
        names = sorted(set(self.labels))
        return tuple(sorted(names, key=int)) if all(name.lstrip("-").isdecimal() for name in names) else tuple(names)

    @cached_property
    def y(self) -> Tensor:
        """The class (N,) of each sentence, as an index of `classes`."""
        number = {name: k for k, name in enumerate(self.classes)}
        return torch.tensor([number[label] for label in self.labels])

    def rows(self, flag: str) -> list[int]:
        """The indices of the sentences with a flag."""
        return [i for i, own in enumerate(self.flags) if own == flag]

    def __len__(self) -> int:
        return len(self.sentences)

    def __repr__(self) -> str:
        return f"ProbingTask({self.name!r}, {len(self):,} sentences, {len(self.classes)} classes)"


def _drawn_flags(labels: Sequence[str]) -> list[str]:
    """Three fifths "tr", a fifth "va", a fifth "te" of the sentences of each label, in a random order."""
    order = torch.randperm(len(labels), generator=keyed_generator(torch.device("cpu"), "flags")).tolist()
    flag_of = dict(zip(sorted(order, key=labels.__getitem__), cycle(("tr", "va", "tr", "te", "tr")), strict=False))
    return [flag_of[i] for i in range(len(labels))]


def as_probing_task(data: Any) -> ProbingTask:
    """A task itself; of (texts, labels), or of texts as `ub.data.texts` reads them, one whose flags are drawn."""
    if isinstance(data, ProbingTask):
        return data
    if isinstance(data, (tuple, list)) and len(data) == 2 and not any(isinstance(part, str) for part in data):
        texts, labels = (part.tolist() if hasattr(part, "tolist") else list(part) for part in data)
        return ProbingTask("label", texts, labels)
    texts, numbers, names = (getattr(data, name, None) for name in ("texts", "labels", "classes"))
    if texts is None or numbers is None:
        raise InputError(
            "task must be (texts, labels), texts with labels as ub.data.texts reads them, or a ProbingTask, as "
            f"load_probing_task reads it; got {type(data).__name__}"
        )
    if -1 in numbers:
        raise DataError(f"{getattr(data, 'name', 'the texts')}: these texts have no labels to read")
    return ProbingTask("label", texts, [names[k] if names else k for k in numbers])


def load_probing_task(path: str | os.PathLike[str]) -> ProbingTask:
    r"""Read a probing task in SentEval's format: on each line a flag, a label and a sentence, separated by tabs.

    For the ten tasks of Conneau et al. 2018, or any other labels of sentences.

    Args:
        path: The file, as text or compressed (.gz). Flags are "tr", "va" and "te".

    Returns:
        The `ProbingTask`, named as the file.

    Raises:
        DataError: for no such file, a broken line (its number is named), a flag that no sentence has, or labels that
            are all the same.

    Example:
        >>> import pathlib, tempfile, unboxed as ub
        >>> path = pathlib.Path(tempfile.mkdtemp(), "tense.txt")
        >>> size = path.write_text("tr\tnow\tit rains\ntr\tpast\tit rained\nva\tnow\tshe runs\nte\tpast\tshe ran\n")
        >>> ub.language.load_probing_task(path)
        ProbingTask('tense', 4 sentences, 2 classes)

    Source:
        Conneau, Kruszewski, Lample, Barrault & Baroni 2018, "What you can cram into a single vector", arXiv:1805.01070;
        SentEval's data/probing.
    """
    file = expand_home(path)
    if not os.path.isfile(file):
        raise DataError(missing_path_text(file))
    rows = [_parse_line(file, number, line) for number, line in _numbered_lines(file)]
    if not rows:
        raise DataError(f"{file} is empty: {WANTED_LINE} on each line")
    flags, labels, sentences = zip(*rows, strict=True)
    return ProbingTask(file.name.removesuffix(".gz").removesuffix(".txt"), sentences, labels, flags)


def _numbered_lines(file: Path) -> list[tuple[int, str]]:
    """(line number from 1, line) of those that are not blank. Raises DataError."""
    number, lines = 0, list[tuple[int, str]]()
    try:
        with open_maybe_gzipped(file) as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    lines.append((number, line.decode("utf-8").rstrip("\r\n")))
    except UnicodeDecodeError as error:
        raise DataError(f"line {number} of {file} is not UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} is broken after line {number}: {error}") from error
    return lines


def _parse_line(file: Path, number: int, line: str) -> tuple[str, str, str]:
    fields = line.split("\t")
    if len(fields) != len(("flag", "label", "sentence")):
        raise DataError(f"line {number} of {file} has {len(fields)} fields: {line[:40]!r}; {WANTED_LINE}")
    flag, label, sentence = (field.strip() for field in fields)
    if flag not in FLAGS:
        raise DataError(f"line {number} of {file} has the flag {flag!r}; {WANTED_LINE}")
    if not label or not sentence:
        raise DataError(f"line {number} of {file} has an empty {'sentence' if label else 'label'}; {WANTED_LINE}")
    return flag, label, sentence


def first_word_types(task: ProbingTask) -> Tensor:
    """The first word (N,) of each sentence, in lower case, as a number: its type in the control task."""
    words = [sentence.split()[0].lower() for sentence in task.sentences]
    number = {word: i for i, word in enumerate(Counter(words))}
    return torch.tensor([number[word] for word in words])
