"""Train the planted models, and check that each depends on the causal object and not on the distractors.

    python -m planted.train                    all of them (run it in benchmarks/)
    python -m planted.train mark-mnist-cnn     some
    python -m planted.train --check            no training: the causal checks of the stored weights

A model is right by construction when, on held-out scenes, its accuracy is 97 % or more, its answer changes in at most
3 % when the distractors are replaced by those of another scene, changes when the causal object is replaced by one of
another class, and nine tenths of what its score depends on is the causal object (`dependence`). What fails is printed,
and the command ends with an error.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from . import catalog, kinds
from .catalog import CHECKS, WEIGHTS, Entry
from .scenes import Rows, Scenes

TRAINING_SCENES = {"mnist": 8000, "cifar": 3000, "photo": 1500, "table": 6000}
PAIRS = 32  # scenes of a step; each is shown with two sets of distractors
LEFT_OUT = 0.15  # of scenes have no causal object (the answer is then to be even), and as many have no distractor
CONSISTENCY = 0.5  # weight of the squared difference of the logits of a scene under two sets of distractors
MIN_ACCURACY, MAX_CHANGED, MIN_CHANGED, MIN_DEPENDENCE = 0.97, 0.03, 0.5, 0.9


def train(entry: Entry, seed: int = 0) -> nn.Module:
    """The trained model: cross-entropy, and equal logits with other distractors and backgrounds."""
    scenes = kinds.make(entry.kind, entry.size, TRAINING_SCENES[entry.size], seed, "left")
    model = catalog.build(entry, seed).train()
    inputs = catalog.open_box(entry, catalog.build(entry, seed)).inputs
    optimizer = torch.optim.AdamW(model.parameters(), lr=entry.lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, entry.lr, total_steps=entry.steps)
    g = torch.Generator().manual_seed(seed + 1)
    for _ in range(entry.steps):
        batch = scenes[torch.randint(0, len(scenes), (PAIRS,), generator=g)]
        loss = _loss(model, inputs, entry, batch, scenes, g)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def _loss(
    model: nn.Module, inputs: Any, entry: Entry, batch: Scenes | Rows, scenes: Scenes | Rows, g: torch.Generator
) -> Tensor:
    """Of a batch shown twice, with the distractors and backgrounds of two other batches; some objects are left out."""
    n = len(batch)
    chance = 0.5 if batch.several else LEFT_OUT  # of several labels, scenes with any number of objects are shown
    causal = (torch.rand(n, generator=g) >= chance).float()
    views, shown = [], []
    for _ in range(2):
        others = scenes[torch.randint(0, len(scenes), (n,), generator=g)]
        views.append(batch.with_distractors_of(others).with_background_of(others))
        shown.append((torch.rand(n, batch.n_distractors, generator=g) >= chance).float())
    x = torch.cat([view.render(causal, distractors) for view, distractors in zip(views, shown, strict=True)])
    logits = model(inputs.encode(x))
    k = logits.shape[1]
    if batch.several:
        targets = torch.cat([view.present(k, causal, d) for view, d in zip(views, shown, strict=True)])
        own = logits.gather(1, batch.labels.repeat(2)[:, None])[:, 0]
        once = [(view.distractor_labels() != batch.labels[:, None]).all(1) for view in views]
        difference = (own[:n] - own[n:])[once[0] & once[1] & (causal > 0)]
        consistency = difference.pow(2).sum() / n
        return 3 * F.binary_cross_entropy_with_logits(logits, targets) + CONSISTENCY * consistency
    target = torch.where(causal[:, None] > 0, F.one_hot(batch.labels, k).float(), torch.full((n, k), 1 / k))
    first, second = logits.chunk(2)
    return F.cross_entropy(logits, target.repeat(2, 1)) + CONSISTENCY * (first - second).pow(2).mean()


def causal_check(entry: Entry, model: nn.Module, n: int = 1000) -> dict[str, float]:
    """Figures of what the answers depend on, over n held-out scenes.

    `distractor_changes`: the share of answers that change with the distractors of another scene; `causal_changes`: with
    the causal object of a scene of another class. `dependence`: the mean absolute change of the score by the causal
    object, as a share of the changes by both. The score is the label's logit less the mean of the others (with several
    labels, the logit itself).
    """
    box, scenes = catalog.open_box(entry, model), catalog.held_out(entry, n)
    others = scenes[_without_label(scenes)]
    logits, by_distractor, by_causal = (
        box(s.render()) for s in (scenes, scenes.with_distractors_of(others), scenes.with_causal_of(others))
    )
    scores = [_score(h, scenes) for h in (logits, by_distractor, by_causal)]
    causal_change, distractor_change = ((scores[0] - h).abs().mean() for h in (scores[2], scores[1]))
    answers = [h > 0 if scenes.several else h.argmax(1) for h in (logits, by_distractor, by_causal)]
    if scenes.several:  # the answer for the class of the causal object
        answers = [a.gather(1, scenes.labels[:, None])[:, 0] for a in answers]
    right = answers[0] if scenes.several else answers[0] == scenes.labels
    return {
        "accuracy": round(float(right.float().mean()), 4),
        "distractor_changes": round(float((answers[0] != answers[1]).float().mean()), 4),
        "causal_changes": round(float((answers[0] != answers[2]).float().mean()), 4),
        "dependence": round(float(causal_change / (causal_change + distractor_change)), 4),
    }


def _without_label(scenes: Scenes | Rows) -> Tensor:
    """For each scene the number of one of another class; with several labels, of one in which its class is absent."""
    n = len(scenes)
    labels = (
        torch.cat([scenes.labels[:, None], scenes.distractor_labels()], 1) if scenes.several else scenes.labels[:, None]
    )
    index = torch.arange(n).roll(1)
    while bool((same := (labels[index] == scenes.labels[:, None]).any(1)).any()):
        index[same] = (index[same] + 1) % n
    return index


def _score(logits: Tensor, scenes: Scenes | Rows) -> Tensor:
    own = logits.gather(1, scenes.labels[:, None])[:, 0]
    return own if scenes.several else own - (logits.sum(1) - own) / (logits.shape[1] - 1)


def is_planted(figures: dict[str, float]) -> bool:
    """Whether the model is right by construction."""
    return (
        figures["accuracy"] >= MIN_ACCURACY
        and figures["distractor_changes"] <= MAX_CHANGED
        and figures["causal_changes"] >= MIN_CHANGED
        and figures["dependence"] >= MIN_DEPENDENCE
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models; all by default")
    parser.add_argument("--check", action="store_true", help="no training: the causal checks of the stored weights")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    failed = []
    for name in chosen.names or (catalog.names() if chosen.check else list(catalog.BY_NAME)):
        entry, start = catalog.BY_NAME[name], time.process_time()
        model = catalog.load(name).box.model if chosen.check else _halved(train(entry, chosen.seed))
        figures = causal_check(entry, model)
        if not chosen.check:
            _save(name, model, figures | {"training_seconds": round(time.process_time() - start, 1)})
        seconds = f"{time.process_time() - start:5.1f} s"
        print(f"{name:28s}", figures, seconds, "" if is_planted(figures) else "NOT PLANTED", flush=True)
        failed += [] if is_planted(figures) else [name]
    if failed:
        sys.exit(f"not right by construction: {', '.join(failed)}")


def _halved(model: nn.Module) -> nn.Module:
    """The model with the weights that are stored: in half precision."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())
    return model


def _save(name: str, model: nn.Module, figures: dict[str, float]) -> None:
    WEIGHTS.mkdir(exist_ok=True)
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(state, WEIGHTS / f"{name}.safetensors")
    known = json.loads(CHECKS.read_text(encoding="utf-8")) if CHECKS.exists() else {}
    text = json.dumps(dict(sorted((known | {name: figures}).items())), indent=2)
    CHECKS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
