"""Sentence probing: a bag of words against the figures of the data's index, and an encoder trained here on word order.

The sentences are not part of the repository (UNBOXED_REAL_DATA): without them nothing is measured. The encoder learns
to find swapped neighbors in the plain training sentences (shift_encoder.py); no sentence of a validation or test split
is among them, in whatever order of its words.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

import unboxed as ub
from harness import seconds, write
from shift_encoder import ShiftEncoder, WordClasses, train

DATA = Path(os.environ.get("UNBOXED_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
INDEX = {"past_present": 0.910, "sentence_length": 0.642, "subj_number": 0.734, "tree_depth": 0.475,
         "bigram_shift": 0.511, "obj_number": None}  # fmt: skip
SHIFT, PLAIN = "bigram_shift", "O"
MAX_DIFFERENCE, MIN_GAIN, N_EPOCHS = 0.01, 0.10, 40
LAYERS = ["embedding", "blocks.0", "blocks.1", "blocks.2"]
Task = ub.language.ProbingTask


def plain_training_sentences(tasks: dict[str, Task]) -> list[str]:
    """Sentences that train any task, as they were written, without those that are tested anywhere."""
    held_out = {_words(s) for t in tasks.values() for s, flag in zip(t.sentences, t.flags, strict=True) if flag != "tr"}
    found = dict.fromkeys(
        s
        for name, t in tasks.items()
        for s, flag, label in zip(t.sentences, t.flags, t.labels, strict=True)
        if flag == "tr" and (name != SHIFT or label == PLAIN)
    )
    return [s for s in found if _words(s) not in held_out]


def _words(sentence: str) -> tuple[str, ...]:
    return tuple(sorted(sentence.lower().split()))


def as_box(model: torch.nn.Module, tokenizer: WordClasses) -> ub.Box:
    return ub.Box(model, ub.Tokens(tokenizer, pad_id=0), classes=("plain", "shifted"), outputs="logits")


def by_layer(result: ub.language.SentenceProbing) -> dict[str, Any]:
    return {
        p.layer: {
            "accuracy": p.probe.accuracy.mean, "control": p.probe.control.mean, "verdict": p.verdict,
            "gain over the bag of words": [gain.mean, gain.low, gain.high],
        }
        for p, gain in zip(result.layers, result.gains, strict=True)
    }  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    tasks = {name: ub.language.load_probing_task(DATA / "sentences" / f"{name}.txt.gz") for name in INDEX}
    sentences, trained = plain_training_sentences(tasks), list[Any]()
    taken = seconds(
        lambda: trained.append(train(sentences, N_EPOCHS, log=lambda e, loss, *_: print(e, loss, flush=True)))
    )
    model, tokenizer = trained[0]
    torch.manual_seed(1)
    boxes = {
        "trained": as_box(model, tokenizer),
        "random weights": as_box(ShiftEncoder(len(tokenizer)).eval(), tokenizer),
    }
    glove = ub.language.load_vectors(DATA / "words" / "glove.6B.50d.top2446.txt", ignore_case=True)
    figures: dict[str, Any] = {
        "encoder": {"training sentences": len(sentences), "words": sum(len(s.split()) for s in sentences),
                    "epochs": N_EPOCHS, "seconds": taken, "parameters": sum(p.numel() for p in model.parameters())},
        "tasks": {},
    }  # fmt: skip
    for name, task in tasks.items():
        n_random = 39 if name in (SHIFT, "past_present") else 0
        found = ub.language.probe_sentences(boxes["trained"], task, LAYERS, n_controls=1, n_random=n_random)
        random = ub.language.probe_sentences(boxes["random weights"], task, LAYERS, n_controls=1, n_random=0)
        vectors = ub.language.probe_sentences(glove, task, n_controls=1)
        figures["tasks"][name] = {
            "sentences": len(task), "classes": len(task.classes), "bag of words": found.bag_of_words.accuracy.mean,
            "index": INDEX[name], "majority": found.layers[0].probe.majority, "trained": by_layer(found),
            "random weights": by_layer(random), "mean of GloVe vectors": vectors.best.probe.accuracy.mean,
            "verdict": [found.verdict, found.reason], "comparison": found.comparison,
        }  # fmt: skip
        print(found, random, vectors, sep="\n", flush=True)
    _check(figures["tasks"])
    write("sentence_probing", figures, packages=("scikit-learn",))


def _check(tasks: dict[str, Any]) -> None:
    far = {
        n: t["bag of words"]
        for n, t in tasks.items()
        if t["index"] and abs(t["bag of words"] - t["index"]) > MAX_DIFFERENCE
    }
    best = max(layer["accuracy"] for layer in tasks[SHIFT]["trained"].values())
    if far or best - tasks[SHIFT]["index"] < MIN_GAIN:
        print(f"missed: bag of words {far}, {SHIFT} {best:.3f}")


if __name__ == "__main__":
    main()
