"""How well do scores of training examples predict retraining? The linear datamodeling score, for both truths.

    python benchmarks/influence_lds.py                       all: results/influence_lds_runs.jsonl, influence_lds.json
    python benchmarks/influence_lds.py --trainings gelu,silu --seeds 0   some; what is in the file is not run again
    python benchmarks/influence_lds.py --methods gradient_dot            another method: retrainings come from --cache
    python benchmarks/influence_lds.py --summary             nothing is run: the summary of the file

5,000 MNIST images in [0, 1], as they are (centered and scaled ones make the same training harder to predict); a
perceptron 784-128-64-10 with torch's default weights; queries are the first 20 test images with their labels. One seed
sets initial weights, order and dropout. One run: subsets of 1, 10 and 50 % have weight 0 in the same training. Mean
over seeds: half of the examples, retrained from other weights and in other orders.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import unboxed as ub
from harness import RESULTS, machine, versions
from unboxed.engine.intervals import bootstrap_mean_interval
from unboxed.influence import Influence, ModelTraining
from unboxed.influence.validate import LinearDatamodelingScore, linear_datamodeling_score

MNIST = os.environ.get("UNBOXED_MNIST")  # the folder of the IDX files; None: the user's cache
RUNS, SUMMARY = RESULTS / "influence_lds_runs.jsonl", RESULTS / "influence_lds.json"
N_TRAIN, N_QUERIES, N_SUBSETS = 5000, 20, 50
FRACTIONS = (0.01, 0.1, 0.5)
SETTINGS: dict[str, Any] = {"epochs": 5, "batch_size": 128, "lr": 2e-3}  # AdamW, one-cycle
SGD: dict[str, Any] = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "schedule": "constant"}
N_TRAK_MODELS = 50
N_REAL_SEEDS, N_SCORE_SEEDS = 10, 5  # retrainings of each subset, and trainings whose scores are summed


def perceptron(activation: type[nn.Module], dropout: float = 0.0) -> nn.Sequential:
    after = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), activation(), *after, nn.Linear(128, 64), activation(), *after,
        nn.Linear(64, 10),
    )  # fmt: skip


TRAININGS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], tuple[float, ...], tuple[int, ...]]] = {
    "gelu": (lambda: perceptron(nn.GELU), {}, FRACTIONS, (0, 1, 2)),
    "silu": (lambda: perceptron(nn.SiLU), {}, FRACTIONS, (0, 1, 2)),
    "relu, sgd": (lambda: perceptron(nn.ReLU), SGD, FRACTIONS, (0, 1, 2)),
    "relu": (lambda: perceptron(nn.ReLU), {}, FRACTIONS, (0, 1, 2)),
    "gelu, dropout .1": (lambda: perceptron(nn.GELU, 0.1), {}, FRACTIONS, (0, 1, 2)),
    "gelu, 20 epochs": (lambda: perceptron(nn.GELU), {"epochs": 20}, FRACTIONS[:1], (0,)),
}
"""{name: (model, settings besides SETTINGS, fractions, seeds)}"""


def make_training(name: str, seed: int) -> ModelTraining:
    x, y = ub.data.mnist("train", MNIST).first(N_TRAIN)
    torch.manual_seed(seed)
    settings = {**SETTINGS, **TRAININGS[name][1], "seed": seed}
    return ModelTraining(TRAININGS[name][0](), ub.Pixels((1, 28, 28)), (x, y), **settings)


def queries() -> tuple[Tensor, Tensor]:
    x, y = ub.data.mnist("test", MNIST).first(N_QUERIES)
    return x, torch.as_tensor(y)


# -- methods -----------------------------------------------------------------------------------------------------------


def unrolled(training: ModelTraining, box: ub.Box, x: Tensor, y: Tensor) -> Influence:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ub.influence.unrolled(box, x, y, training, check_smoothness=False)


def unrolled_at_half(training: ModelTraining, box: ub.Box, x: Tensor, y: Tensor) -> Influence:
    """The derivative where a random half of the examples is left out, another one for each seed."""
    half = torch.randperm(N_TRAIN, generator=torch.Generator().manual_seed(training.seed)) % 2
    weights = half.float()
    box = training.box(training.run(weights))
    return ub.influence.unrolled(box, x, y, training, weights=weights, check_smoothness=False)


def gradient_dot(training: ModelTraining, box: ub.Box, x: Tensor, y: Tensor) -> Influence:
    """Inner products of loss gradients at the final weights."""
    train, query = (_gradients(box, *data) for data in ((training.x, training.y), (x, y)))
    return Influence(query @ train.T, "one run", unit="similarity", method="Gradient dot")


def _gradients(box: ub.Box, x: Tensor, y: Tensor) -> Tensor:
    """(N, P) gradients of the losses by all parameters."""
    parameters = {k: p.detach() for k, p in box.model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(box.model, parameters, (x[None],)), y[None])

    of_each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    return torch.cat([h.flatten(1) for h in of_each.values()], 1)


def card_method(name: str, **settings: Any) -> Callable[[ModelTraining, ub.Box, Tensor, Tensor], Influence]:
    """A method of the family that scores from the final model and the training data."""
    return lambda training, box, x, y: getattr(ub.influence, name)(box, x, y, (training.x, training.y), **settings)


def checkpoints(training: ModelTraining, n: int = 6) -> list[dict[str, Any]]:
    """The model at n moments of the training, evenly spaced; the last is its end."""
    wanted = {round((k + 1) * training.n_steps / n) for k in range(n)}
    states = enumerate(training.states(), start=1)
    return [training.box(state).model.state_dict() for t, state in states if t in wanted]


def tracin(training: ModelTraining, box: ub.Box, x: Tensor, y: Tensor) -> Influence:
    return card_method("tracin", checkpoints=checkpoints(training))(training, box, x, y)


def trak_of_50(training: ModelTraining, box: ub.Box, x: Tensor, y: Tensor) -> Influence:
    """TRAK as it is published: 50 models, each trained anew on a random half of the examples."""
    states = []
    for k in range(N_TRAK_MODELS):
        other = training.reseed(1000 + k)
        half = torch.randperm(N_TRAIN, generator=torch.Generator().manual_seed(1000 + k)) % 2
        states.append(other.box(other.run(half.float())).model.state_dict())
    return card_method("trak", models=states, dim=2048)(training, box, x, y)


def source(training: ModelTraining, box: ub.Box, x: Tensor, y: Tensor) -> Influence:
    """With the learning rate of SGD with momentum; for AdamW, which it is not made for, with AdamW's own mean rate."""
    is_sgd = any("momentum_buffer" in name for name in training.start)
    settings = {"lr": SGD["lr"] / (1 - SGD["momentum"]) if is_sgd else SETTINGS["lr"] / 2, "n_steps": training.n_steps}
    return card_method("source", checkpoints=checkpoints(training), **settings)(training, box, x, y)


Method = Callable[[ModelTraining, ub.Box, Tensor, Tensor], Influence]
METHODS: dict[str, Method] = {
    "unrolled": unrolled,
    "unrolled at a half": unrolled_at_half,
    "gradient dot": gradient_dot,
    "TracIn": tracin,
    "TRAK": card_method("trak"),
    "SOURCE": source,
    "EK-FAC influence": card_method("influence_functions", solver="ekfac"),
    "Gauss-Newton influence": card_method("influence_functions"),
}
"""{name: function (training, box, x, labels)}; of the mean over seeds the scores of several trainings are averaged."""
ENSEMBLES: dict[str, Method] = {"TRAK of 50 models": trak_of_50}
"""Methods that train several models themselves; for the mean over seeds alone."""
OF_OTHERS = {
    "TracIn": "tracin",
    "TRAK": "trak",
    "TRAK of 50 models": "trak",
    "SOURCE": "source",
    "Gauss-Newton influence": "influence_functions",
    "EK-FAC influence": "influence_functions",
}
AVAILABLE = [name for name in METHODS | ENSEMBLES if hasattr(ub.influence, OF_OTHERS.get(name, "unrolled"))]


# -- one run -----------------------------------------------------------------------------------------------------------


def one_run(name: str, seed: int, methods: Mapping[str, Method], cache: Path) -> Iterator[dict[str, Any]]:
    """Rows of the file: one per method, of one training."""
    training, (x, y) = make_training(name, seed), queries()
    box = training.box(training.run())
    scores, seconds = dict[str, Influence](), dict[str, float]()
    for method, function in methods.items():
        start = time.process_time()
        scores[method], seconds[method] = function(training, box, x, y), 0.0
        seconds[method] = time.process_time() - start
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of trainings that are not smooth: the ratio is in the rows
        lds = linear_datamodeling_score(
            list(scores.values()), training, x, y, truth="one run", fractions=TRAININGS[name][2], n_subsets=N_SUBSETS,
            allow_other_truth=True, checkpoint=cache / f"{name}, seed {seed}.pt",
        )  # fmt: skip
    for method, score in zip(methods, lds, strict=True):
        yield {"truth": "one run", "training": name, "seed": seed, "method": method, **_row(score),
               "estimates": scores[method].truth, "seconds": round(seconds[method], 2)}  # fmt: skip


def mean_over_seeds(name: str, methods: Mapping[str, Method], cache: Path) -> Iterator[dict[str, Any]]:
    """Rows of the file: one per method and number of trainings whose scores are summed."""
    first, (x, y) = make_training(name, 0), queries()
    trainings = [first.reseed(seed) for seed in range(1, 1 + N_SCORE_SEEDS)]
    boxes = [training.box(training.run()) for training in trainings]
    of_seeds = {
        method: [
            function(t, box, x, y)
            for t, box in [*zip(trainings, boxes, strict=True)][: 1 if method in ENSEMBLES else None]
        ]
        for method, function in methods.items()
    }
    summed = {
        (method, n): replace(ub.influence.mean_over_seeds(scores[:n]), method=method)
        for method, scores in of_seeds.items() for n in range(1, 1 + len(scores))
    }  # fmt: skip
    lds = linear_datamodeling_score(
        list(summed.values()), first, x, y, truth="mean over seeds", fractions=(0.5,), n_subsets=N_SUBSETS,
        n_seeds=N_REAL_SEEDS, checkpoint=cache / f"{name}, mean over seeds.pt",
    )  # fmt: skip
    for (method, n), score in zip(summed, lds, strict=True):
        yield {"truth": "mean over seeds", "training": name, "seed": 0, "method": method, "n_models": n, **_row(score)}


def _row(score: LinearDatamodelingScore) -> dict[str, Any]:
    row = {"fractions": score.fractions, "correlations": _rounded(score.correlations[..., 0]),
           "slopes": _rounded(score.slopes[..., 0]), "pooled_slopes": _rounded(score.pooled_slopes[:, 0])}  # fmt: skip
    if score.noise_to_signal is not None:
        row["noise_to_signal"] = _rounded(score.noise_to_signal[..., 0], 6)
    if score.ceilings is not None:
        row |= {"one_retraining": _rounded(score.ceilings[..., 0]), "n_seeds": score.n_seeds}
    return row


def _rounded(values: Tensor, digits: int = 4) -> Any:
    return json.loads(json.dumps(values.double().tolist()), parse_float=lambda text: round(float(text), digits))


# -- the summary -------------------------------------------------------------------------------------------------------


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """{truth: {training: {method: {fraction: figures}}}} over queries and seeds."""
    out: dict[str, Any] = {"one run": {}, "mean over seeds": {}}
    for row in rows:
        method = f"{row['method']}, {row['n_models']} summed" if "n_models" in row else row["method"]
        group = [r for r in rows if _key(r)[:2] == _key(row)[:2] and _key(r)[3:] == _key(row)[3:]]
        out[row["truth"]].setdefault(row["training"], {})[method] = {
            f"{fraction:g}": _figures(group, f) for f, fraction in enumerate(row["fractions"])
        }
    return out


def _figures(rows: list[dict[str, Any]], f: int) -> dict[str, Any]:
    values = torch.tensor([row["correlations"][f] for row in rows], dtype=torch.float64).T  # (Q, R)
    interval, by_seed = bootstrap_mean_interval(values), values.nanmean(0)
    figures: dict[str, Any] = {
        "lds": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "by_seed": by_seed.tolist(),
    }
    slopes = torch.tensor([row["slopes"][f] for row in rows])
    if bool(slopes.isfinite().any()):
        pooled = torch.tensor([row["pooled_slopes"][f] for row in rows])
        figures |= {"slope_median": float(slopes.nanmedian()), "slope_pooled": float(pooled.mean())}
    for name in ("noise_to_signal", "one_retraining"):
        if name in rows[0]:
            values = torch.tensor([row[name][f] for row in rows])
            figures[name] = float(values.median() if name == "noise_to_signal" else values.nanmean())
    return {k: [round(v, 4) for v in h] if isinstance(h, list) else round(h, 6) for k, h in figures.items()}


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["truth"], row["training"], row["seed"], row["method"], row.get("n_models")


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainings", default="/".join(TRAININGS), help="names, with / between them")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default="/".join(AVAILABLE), help="names, with / between them")
    parser.add_argument("--truth", choices=("one run", "mean over seeds", "both"), default="both")
    parser.add_argument("--out", type=Path, default=RUNS, help="file of the rows; what is in it is not run again")
    parser.add_argument("--cache", type=Path, default=Path("out/influence_lds"), help="folder of the retrainings")
    parser.add_argument("--summary", action="store_true")
    args, _ = parser.parse_known_args()
    torch.set_num_threads(1)
    args.cache.mkdir(parents=True, exist_ok=True)
    for truth, name, seed in [] if args.summary else _tasks(args):
        rows = _read(args.out)
        done = {_key(row)[:4] for row in rows}
        known = METHODS if truth == "one run" else METHODS | ENSEMBLES
        names = [m for m in args.methods.split("/") if m in known]
        wanted = {m: known[m] for m in names if (truth, name, seed, m) not in done}
        if not wanted:
            continue
        new = (
            one_run(name, seed, wanted, args.cache) if truth == "one run" else mean_over_seeds(name, wanted, args.cache)
        )
        for row in [*new]:
            with args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(truth, name, seed, row["method"], row.get("n_models", ""), _figures([row], 0), flush=True)
    content = {**summary(_read(args.out)), "machine": machine(), "versions": versions(("torch", "numpy"))}
    SUMMARY.write_text(json.dumps(content, indent=1) + "\n")


def _tasks(args: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    names, seeds = args.trainings.split("/"), [int(s) for s in args.seeds.split(",")]
    if args.truth != "mean over seeds":
        yield from (("one run", n, s) for n in names for s in seeds if s in TRAININGS[n][3])
    if args.truth != "one run" and "relu, sgd" in names:
        yield "mean over seeds", "relu, sgd", 0


if __name__ == "__main__":
    main()
