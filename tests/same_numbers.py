"""Whether a change that should change no number changes none: every card's example on three models.

    python tests/same_numbers.py write before.json
    python tests/same_numbers.py check before.json

`write` keeps, of each tensor and number in each result, its shape, sum and norm in double precision; `check` computes
them again and prints what differs.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch

from unboxed.cards import cards
from unboxed.errors import UnboxedError
from unboxed.testing.cases import call_example, make_case, result_tensors

MODELS = ("plain", "batchnorm", "attention")


def numbers() -> dict[str, list[float]]:
    """By "family.method model part": the sizes, the sum and the norm; an empty list for what is refused."""
    torch.set_num_threads(1)
    result: dict[str, list[float]] = {}
    for card in cards():
        for model in MODELS:
            name = f"{card.family}.{card.method.__name__} {model}"
            try:
                parts = result_tensors(call_example(card, make_case(model, torch.float64)))
            except UnboxedError:
                result[name] = []
                continue
            for at, tensor in parts.items():
                values = tensor.double()
                result[f"{name} {at}"] = [*tensor.shape, float(values.sum()), float(values.norm())]
    return result


def differences(before: dict[str, list[float]], after: dict[str, list[float]]) -> list[str]:
    """The names of parts that are new, gone, or off by more than rounding."""
    changed = sorted(before.keys() ^ after.keys())
    for name in before.keys() & after.keys():
        a, b = (torch.tensor(side[name], dtype=torch.float64) for side in (before, after))
        if a.shape != b.shape or not torch.allclose(a, b, rtol=1e-9, atol=1e-9, equal_nan=True):
            changed.append(name)
    return changed


def main(what: str, file: str) -> int:
    warnings.simplefilter("ignore")
    if what == "write":
        Path(file).write_text(json.dumps(numbers(), indent=0), encoding="utf-8")
        return 0
    changed = differences(json.loads(Path(file).read_text(encoding="utf-8")), numbers())
    print(*(changed or ["no number differs"]), sep="\n")
    return int(bool(changed))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
