"""Influence functions of a CNN, which is not convex, against training again from its final parameters.

Koh & Liang 2017, section 4.2, with their published network: six convolutions of 8 (at last 10) channels with tanh,
their mean and a linear layer, weight decay .001, damping .01, on a tenth of MNIST's training images (5,500; 1,100
here). They trained for 500,000 steps of Adam, and for 30,000 more without a point, and found R = .86 over the 100
points of the largest influence on one test image. Here Adam is followed by L-BFGS on all points and by steps of the
inverse Gauss-Newton matrix. Not even these end at a minimum, so that whatever is trained on moves, without a point or
with all of them; therefore training goes on equally long from there with all points and without one, by the same
steps of gradient descent with momentum on all points, and the difference of the two ends is what leaving the point
out did. The weight decay takes in the biases.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import unboxed as ub
from harness import write
from influence_logistic import figures, rounded
from unboxed.engine.example_gradients.curvature import Curvature
from unboxed.engine.example_gradients.gradients import ExampleGradients

REAL = Path(os.environ.get("UNBOXED_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
N_TRAIN, L2, DAMPING, BATCH = 1100, 1e-3, 1e-2, 500
ADAM_STEPS, LBFGS_EVALUATIONS, POLISHING_STEPS = 1200, 250, 30
PRECONDITIONER_DAMPING = 1e-3  # of the last steps of training on all points
LEARNING_RATE, MOMENTUM, STEPS = 0.05, 0.9, 150  # of training on, with all points and without one
WANTED = {"r": 0.86}


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    sizes = [(1, 8, 3, 1), (8, 8, 3, 2), (8, 8, 3, 1), (8, 8, 3, 2), (8, 8, 3, 1), (8, 10, 1, 1)]
    layers = [layer for size in sizes for layer in (nn.Conv2d(*size), nn.Tanh())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 10))


class Trainee:
    """The model as a function of its parameters (P,), and the training objective with an example left out."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.model, self.x, self.y = model, x, y
        self.box = ub.Box(model, ub.Pixels((1, 28, 28)), outputs="logits")

    @property
    def theta(self) -> Tensor:
        return parameters_to_vector(self.model.parameters()).detach().clone()

    def at(self, theta: Tensor) -> nn.Module:
        vector_to_parameters(theta.clone(), self.model.parameters())
        return self.model

    def objective(self, theta: Tensor, left_out: int | None = None, batch: int = BATCH) -> tuple[float, Tensor]:
        """The objective and its gradient (P,); 1/n stays where an example is left out."""
        model, total = self.at(theta), 0.0
        weights = torch.ones(len(self.x))
        if left_out is not None:
            weights[left_out] = 0
        model.zero_grad()
        for rows in torch.arange(len(self.x)).split(batch):
            losses = F.cross_entropy(model(self.x[rows]), self.y[rows], reduction="none")
            loss = (weights[rows] * losses).sum() / len(self.x)
            loss.backward()
            total += float(loss.detach())
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
        return total + L2 / 2 * float(theta.square().sum()), gradient + L2 * theta

    def curvature(self, theta: Tensor) -> Tensor:
        """The Gauss-Newton matrix (P, P) with weight decay."""
        self.at(theta)
        return Curvature(ExampleGradients(self.box), self.x, self.y, kind="gauss_newton", l2=L2).matrix()

    def losses(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            return F.cross_entropy(self.at(theta)(x), y, reduction="none")


def adam(trainee: Trainee, steps: int) -> None:
    optimizer = torch.optim.Adam(trainee.model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(trainee.x), (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(trainee.model(trainee.x[rows]), trainee.y[rows])
        decay = torch.stack([p.square().sum() for p in trainee.model.parameters()]).sum()
        (loss + L2 / 2 * decay).backward()
        optimizer.step()
        schedule.step()


def lbfgs(trainee: Trainee, evaluations: int) -> None:
    """Full-batch L-BFGS, until the gradient is small or the evaluations are used up."""
    theta = trainee.theta
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=evaluations, max_eval=evaluations, tolerance_grad=1e-6, tolerance_change=0, history_size=100,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def objective() -> float:
        value, theta.grad = trainee.objective(theta)
        return value

    optimizer.step(objective)
    trainee.at(theta)


def solve(matrix: Tensor, b: Tensor, damping: float) -> Tensor:
    """(matrix + damping)^-1 b, of b (P,) or (P, K), in double precision."""
    damped = matrix.double() + damping * torch.eye(len(matrix), dtype=torch.float64)
    out = torch.cholesky_solve(b.double().reshape(len(b), -1), torch.linalg.cholesky(damped))
    return out.reshape(b.shape).to(b.dtype)


def polish(trainee: Trainee, theta: Tensor, inverse: Tensor, steps: int, small: float) -> tuple[Tensor, float]:
    """The parameters after steps of an inverse curvature, and the gradient's norm; a step that raises it is halved."""
    _, gradient = trainee.objective(theta)
    size = 1.0
    for _ in range(steps):
        if float(gradient.norm()) < small:
            break
        moved = theta - size * (inverse @ gradient)
        _, new = trainee.objective(moved)
        if float(new.norm()) < float(gradient.norm()):
            theta, gradient = moved, new
        else:
            size /= 2
    return theta, float(gradient.norm())


def train_on(trainee: Trainee, theta: Tensor, left_out: int | None, steps: int) -> Tensor:
    """The parameters (P,) after gradient descent with momentum on all points but one."""
    velocity = torch.zeros_like(theta)
    for _ in range(steps):
        velocity = MOMENTUM * velocity + trainee.objective(theta, left_out)[1]
        theta = theta - LEARNING_RATE * velocity
    return theta


def retrained(
    trainee: Trainee, theta: Tensor, rows: list[int], steps: int, queries: tuple[Tensor, Tensor], with_all: Tensor,
    file: Path | None,
) -> Tensor:  # fmt: skip
    """Changes of the queries' losses (K, Q) by leaving out each point; those of a file are not made again."""
    known = {}
    if file is not None and file.exists():
        known = {e["left_out"]: e["change"] for e in map(json.loads, file.read_text().splitlines()) if e["of"] == steps}
    for k, i in enumerate(rows):
        if i not in known:
            known[i] = (trainee.losses(train_on(trainee, theta, i, steps), *queries) - with_all).tolist()
            if file is not None:
                with file.open("a") as out:
                    out.write(json.dumps({"left_out": i, "of": steps, "change": known[i]}) + "\n")
        print(f"{k + 1} of {len(rows)}: {known[i]}", flush=True)
    return torch.tensor([known[i] for i in rows])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--train", type=int, default=N_TRAIN)
    options.add_argument("--adam-steps", type=int, default=ADAM_STEPS)
    options.add_argument("--lbfgs-evaluations", type=int, default=LBFGS_EVALUATIONS)
    options.add_argument("--queries", type=int, default=2)
    options.add_argument("--left-out", type=int, default=20)
    options.add_argument("--steps", type=int, default=STEPS, help="of training on, with all points and without one")
    options.add_argument("--resume", type=Path, help="file of the retrainings that are made, to go on from")
    chosen = options.parse_args()
    clock = time.process_time()
    (x, y), (test_x, test_y) = (ub.data.mnist(s, REAL / "mnist").tensors() for s in ("train", "test"))
    trainee = Trainee(cnn(), x[: chosen.train], y[: chosen.train])
    adam(trainee, chosen.adam_steps)
    print(f"Adam {time.process_time() - clock:.0f} s", flush=True)
    lbfgs(trainee, chosen.lbfgs_evaluations)
    matrix = trainee.curvature(trainee.theta)
    damped = matrix.double() + PRECONDITIONER_DAMPING * torch.eye(len(matrix), dtype=torch.float64)
    inverse = torch.linalg.inv(damped).float()
    value, gradient = trainee.objective(trainee.theta)
    print(f"L-BFGS {time.process_time() - clock:.0f} s: {value:.6f}, gradient {float(gradient.norm()):.1e}", flush=True)
    theta, norm = polish(trainee, trainee.theta, inverse, POLISHING_STEPS, 1e-6)
    trainee.at(theta)
    print(f"polished {time.process_time() - clock:.0f} s: gradient {norm:.1e}", flush=True)
    seconds = {"training": time.process_time() - clock}
    predicted_classes = trainee.box.predict(test_x)
    wrong = (predicted_classes != test_y).nonzero()[: chosen.queries, 0]
    queries = test_x[wrong], test_y[wrong]

    def predictions(damping: float) -> Tensor:
        def factored(curvature: Curvature, vectors: Any, damping: float) -> dict[str, Tensor]:
            g = curvature.gradients.flatten(vectors)
            return curvature.gradients.unflatten(solve(matrix, g.T.contiguous(), damping).T)

        return ub.influence.influence_functions(
            trainee.box, *queries, (trainee.x, trainee.y), solver=factored, damping=damping, l2=L2
        ).scores

    clock = time.process_time()
    by_damping = {damping: predictions(damping) for damping in (DAMPING, 1e-3, 0.0)}
    seconds["influence"] = time.process_time() - clock
    clock = time.process_time()
    largest = by_damping[DAMPING].abs().topk(chosen.left_out, dim=1).indices
    rows, where = largest.unique(return_inverse=True)
    with_all = trainee.losses(train_on(trainee, theta, None, chosen.steps), *queries)
    drift = with_all - trainee.losses(theta, *queries)
    print(f"trained on with all: {drift.tolist()}", flush=True)
    changes = retrained(trainee, theta, rows.tolist(), chosen.steps, queries, with_all, chosen.resume)
    seconds["leaving out"] = time.process_time() - clock
    real = changes[where, torch.arange(len(wrong))[:, None]]
    everything: dict[str, Any] = {
        "wanted": WANTED,
        "n_train": len(trainee.x),
        "n_parameters": len(theta),
        "l2": L2,
        "test_accuracy": float((predicted_classes == test_y).double().mean()),
        "gradient_norm": norm,
        "steps_of_training_on": chosen.steps,
        "learning_rate": LEARNING_RATE,
        "momentum": MOMENTUM,
        "change_by_training_on_with_all": drift.tolist(),
        "left_out": len(rows),
        "by_damping": {
            str(d): {
                "all": figures(scores.gather(1, largest).flatten(), real.flatten()),
                "per_test_image": {
                    int(w): figures(p, r) for w, p, r in zip(wrong, scores.gather(1, largest), real, strict=True)
                },
            }
            for d, scores in by_damping.items()
        },
        "points": {"predicted": rounded(by_damping[DAMPING].gather(1, largest)), "real": rounded(real)},
        "cpu_seconds": seconds,
    }
    write("influence_cnn", everything)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
