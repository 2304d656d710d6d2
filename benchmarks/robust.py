"""How robust a model is on MNIST's test images, L-inf 0.3: clean, PGD, AutoAttack stage by stage, Square alone.

    python benchmarks/robust.py                                     zoo's mnist-robust, all 10,000 images, AutoAttack
    python benchmarks/robust.py --net mnist-judge --images 500      a look: figures are printed, none is written
    python benchmarks/robust.py --net weights.safetensors --square --pgd

An hour or more on two cores, so it goes on where it stood: give the same command again. Where it stands is written
after each 1000 images of each attack to --state (a folder). Batches of some 200 are the quickest on a CPU: what they
hold stays in its caches.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

import unboxed as ub
from harness import write
from unboxed.adversarial import Adversarial
from unboxed.engine.proportion import Proportion

CHUNK = 1000
ALL = 10_000
Attack = Callable[[Tensor, Tensor], Adversarial]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--net", default="mnist-robust", help="a name of the zoo, or a file of weights")
    parser.add_argument("--like", default="mnist-robust", help="the zoo's model that a file of weights is for")
    parser.add_argument("--eps", type=float, default=0.3)
    parser.add_argument("--images", type=int, default=ALL)
    parser.add_argument("--batch", type=int, help="images at a time (192 on a CPU)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--square", action="store_true", help="Square alone (without --no-auto it is told anyway)")
    parser.add_argument("--pgd", action="store_true", help="PGD-40 and PGD-100 as well")
    parser.add_argument("--no-auto", dest="auto", action="store_false", help="leave AutoAttack out")
    parser.add_argument("--mnist", default=os.environ.get("UNBOXED_MNIST"), help="the folder of MNIST's files")
    parser.add_argument("--state", type=Path, default=Path("robust-state"), help="where to write how far it is")
    return parser.parse_args()


def opened(given: argparse.Namespace) -> ub.Box:
    if not Path(given.model).is_file():
        model, inputs = ub.zoo.load(given.model)
    else:
        kind = ub.zoo.entry(given.like)
        model, inputs = kind.factory().eval(), kind.inputs
        model.load_state_dict(weights(Path(given.model)))
    return ub.Box(model.to(given.device), inputs)


def weights(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return safetensors.torch.load_file(file)
    held: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return held


class State:
    """What is done, in a file: counts and seconds by attack and chunk."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        self.done: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}

    def put(self, attack: str, key: str, value: Any) -> None:
        self.done.setdefault(attack, {})[key] = value
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.done))
        os.replace(part, self.file)


def chunks(x: Tensor, y: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    for i in range(0, len(x), CHUNK):
        yield str(i), x[i : i + CHUNK], y[i : i + CHUNK]


def stood(state: State, name: str, attack: Attack, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Accuracy under one attack, chunk by chunk."""
    done = state.done.setdefault(name, {})
    for key, part, labels in chunks(x, y):
        if key not in done:
            start = time.perf_counter()
            left = int((~attack(part, labels).success).sum())
            state.put(name, key, [left, time.perf_counter() - start])
            print(f"{name}: {left} of {len(part)} stand, images from {key}, {done[key][1]:.0f} s", flush=True)
    counts, seconds = zip(*(done[key] for key, _, _ in chunks(x, y)), strict=True)
    return {**Proportion(sum(counts), len(x)).to_dict(), "seconds": sum(seconds)}


def auto(state: State, box: ub.Box, x: Tensor, y: Tensor, file: Path, **settings: Any) -> dict[str, Any]:
    """Accuracy after each stage of AutoAttack, and under Square alone. Seconds count from the last interruption."""
    start = [time.perf_counter()]

    def tell(name: str, left: int) -> None:
        state.put("seconds", name, time.perf_counter() - start[0])
        start[0] = time.perf_counter()
        print(f"{name}: {left} stand, {state.done['seconds'][name]:.0f} s", flush=True)

    got = ub.adversarial.auto_attack(box, x, y, checkpoint=file, callback=tell, **settings)
    if got.interrupted:
        raise SystemExit("interrupted; the same command goes on from here")
    shares = {name: Proportion(int(left.sum()), len(x)).to_dict() for name, left in got.robust_after.items()}
    told = {name: {**share, "seconds": state.done["seconds"].get(name)} for name, share in shares.items()}
    return {"autoattack": told, **alone(box, x, y, got.robust_after, got.initially_misclassified, **settings)}


def alone(
    box: ub.Box, x: Tensor, y: Tensor, stages: Mapping[str, Tensor], wrong: Tensor, **settings: Any
) -> dict[str, Any]:
    """Accuracy under Square alone: it was asked of what stood before it, so only the others are asked anew."""
    if "square" not in stages:
        return {}
    before = list(stages)[list(stages).index("square") - 1]
    rest = ~stages[before] & ~wrong
    left = int((~ub.adversarial.square(box, x[rest], y[rest], **settings).success).sum()) if rest.any() else 0
    return {"square alone": Proportion(int(stages["square"].sum()) + left, len(x)).to_dict()}


def attacks(given: argparse.Namespace, box: ub.Box, batch: int | str) -> dict[str, Attack]:
    room, how = ub.adversarial, {"eps": given.eps, "batch_size": batch}
    found: dict[str, Attack] = {}
    if given.pgd:
        for steps in (40, 100):
            found[f"pgd-{steps}"] = lambda x, y, steps=steps: room.pgd(box, x, y, steps=steps, **how)
    if given.square and not given.auto:
        found["square alone"] = lambda x, y: room.square(box, x, y, **how)
    return found


def main() -> None:
    given = options()
    torch.set_num_threads(given.threads)
    box = opened(given)
    batch = given.batch or (192 if given.device == "cpu" else "auto")
    x, y = ub.data.mnist("test", given.mnist).first(given.images)
    x, y = x.to(given.device), y.to(given.device)
    name = f"{Path(given.net).stem}-{given.eps:g}-{len(x)}"
    state = State(given.state / f"{name}.json")
    right = Proportion(int((box.predict(x) == y).sum()), len(x))
    print(f"{given.net}: clean {right}", flush=True)
    figures: dict[str, Any] = {"clean": right.to_dict()}
    for attack, work in attacks(given, box, batch).items():
        figures[attack] = stood(state, attack, work, x, y)
    if given.auto:
        file = given.state / f"{name}.pt"
        figures |= auto(state, box, x, y, file, eps=given.eps, batch_size=batch)
    report(given, figures, len(x))


def report(given: argparse.Namespace, figures: dict[str, Any], n: int) -> None:
    head = {"what": f"L-inf {given.eps:g} on {n} of MNIST's test images", "model": Path(given.model).name}
    if n == ALL and given.auto:
        write("robust", {**head, **figures}, packages=["unboxed"])
    else:
        print(json.dumps({**head, **figures}, indent=2))


if __name__ == "__main__":
    main()
