"""Influence functions of convex models in double precision, against the models trained again."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from convex import Convex, logistic, ridge
from unboxed.engine.example_gradients.curvature import Curvature
from unboxed.errors import DataError, InputError, LayerError, NaNError, OutputError, UnboxedWarning
from unboxed.influence import Arnoldi, ConjugateGradient, Exact, LiSSA, group, influence_functions, perturb, upweight
from unboxed.testing.cases import make_case

pytestmark = pytest.mark.filterwarnings("ignore:scores of up to")

SMALL = ConjugateGradient(tolerance=1e-13)


def queries(problem: Convex, n: int = 3) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, *problem.x.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    regression = problem.outputs == "regression"
    return x, torch.linspace(-1, 2, n, dtype=torch.float64) if regression else torch.arange(n) % problem.n_outputs


def changes_by_weight(problem: Convex, theta: Tensor, x: Tensor, y: Tensor, rows: range, eps: float) -> Tensor:
    """Derivatives (Q, M) of the queries' losses in the weight of training examples, by training again."""
    columns = []
    for i in rows:
        at = []
        for sign in (1, -1):
            weights = problem.ones
            weights[i] += sign * eps
            at.append(problem.losses(problem.optimum(weights, theta), x, y))
        columns.append((at[0] - at[1]) / (2 * eps))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("problem", [logistic(), ridge()], ids=["logistic", "ridge"])
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_a_score_is_minus_the_derivative_in_the_weight(problem: Convex, curvature: Any) -> None:
    theta = problem.optimum()
    x, y = queries(problem)
    found = influence_functions(
        problem.box(theta), x, y, (problem.x, problem.y), l2=problem.l2, curvature=curvature, solver=SMALL
    )
    assert found.settings["damping"] == 0
    assert found.truth == "one run"
    expected = -changes_by_weight(problem, theta, x, y, range(3), 1e-4)
    torch.testing.assert_close(found.scores[:, :3], expected, rtol=1e-6, atol=1e-9)


def test_divided_by_one_minus_leverage_it_is_ridges_leave_one_out() -> None:
    problem = ridge()
    theta, n = problem.optimum(), len(problem.x)
    box, train = problem.box(theta), (problem.x, problem.y)
    x, y = queries(problem)
    moves = -problem.flat(upweight(box, train, range(n), l2=problem.l2, solver="exact"))  # (N, P)
    design, inverse = problem.design(problem.x), torch.linalg.inv(problem.hessian(theta))
    leverage = torch.einsum("ip,pq,iq->i", design, inverse, design) / n
    left_out = []  # in closed form, while lambda and 1/n stay
    for i in range(n):
        rest = torch.arange(n) != i
        gram = design[rest].T @ design[rest] / n + problem.l2 * torch.eye(len(theta), dtype=torch.float64)
        left_out.append(torch.linalg.solve(gram, design[rest].T @ problem.y[rest] / n))
    real = torch.stack(left_out) - theta
    torch.testing.assert_close(moves / (1 - leverage)[:, None], real, rtol=1e-8, atol=1e-10)
    scores = influence_functions(box, x, y, train, l2=problem.l2, solver=SMALL).scores
    slopes = torch.func.jacrev(lambda t: problem.losses(t, x, y))(theta)  # (Q, P)
    torch.testing.assert_close(scores / (1 - leverage), slopes @ real.T, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("solver", ["cg", "exact", "arnoldi", Exact(), Arnoldi(n_iterations=1000), SMALL])
def test_solvers_agree(solver: Any) -> None:
    problem = logistic()
    theta = problem.optimum()
    x, y = queries(problem)
    found = influence_functions(
        problem.box(theta), x, y, (problem.x, problem.y), l2=problem.l2, damping=0.02, solver=solver
    )
    h = problem.hessian(theta) + 0.02 * torch.eye(len(theta), dtype=torch.float64)
    slopes = torch.func.jacrev(problem.losses)(theta, torch.cat([x, problem.x]), torch.cat([y, problem.y]))
    expected = slopes[: len(x)] @ torch.linalg.solve(h, slopes[len(x) :].T) / len(problem.x)
    torch.testing.assert_close(found.scores, expected, rtol=1e-8, atol=1e-11)


def test_lissa_comes_near() -> None:
    """Its steps converge for the mean batch, and batches of a few examples scatter around that."""
    problem = logistic()
    x, y = queries(problem)
    args = (problem.box(problem.optimum()), x, y, (problem.x, problem.y))
    exact = influence_functions(*args, l2=0.2, solver="exact").scores
    few = LiSSA(scale=6, depth=120, repeats=3, batch_size=8)
    sampled = influence_functions(*args, l2=0.2, solver=few).scores
    assert (sampled - exact).norm() < 0.2 * exact.norm()
    shorter = LiSSA(scale=6, depth=8, repeats=1)
    one, again, other = (influence_functions(*args, l2=0.2, solver=shorter, seed=k).scores for k in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    with pytest.raises(InputError, match=r"LiSSA diverges with scale=0.1.*Give LiSSA\(scale="):
        influence_functions(*args, l2=0.2, solver=LiSSA(scale=0.1, depth=200))


def test_arnoldi_keeps_the_leading_eigenvectors() -> None:
    problem = logistic()
    theta = problem.optimum()
    x, y = queries(problem)
    args = (problem.box(theta), x, y, (problem.x, problem.y))
    found = influence_functions(*args, l2=problem.l2, solver=Arnoldi(n_iterations=1000, n_eigenvectors=3)).scores
    values, vectors = torch.linalg.eigh(problem.hessian(theta))
    e = vectors[:, -3:]
    slopes = torch.func.jacrev(problem.losses)(theta, torch.cat([x, problem.x]), torch.cat([y, problem.y])) @ e
    expected = slopes[: len(x)] / values[-3:] @ slopes[len(x) :].T / len(problem.x)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)


def test_a_solver_of_ones_own() -> None:
    problem = logistic()
    box = problem.box(problem.optimum())

    def scaled(curvature: Curvature, vectors: Any, damping: float) -> dict[str, Tensor]:
        assert curvature.n_examples == 40
        return {name: v / damping for name, v in vectors.items()}

    found = influence_functions(box, *queries(problem), (problem.x, problem.y), damping=0.5, solver=scaled)
    plain = influence_functions(box, *queries(problem), (problem.x, problem.y), damping=1.0, solver=scaled)
    torch.testing.assert_close(found.scores, 2 * plain.scores)


# -- pixels, groups, parameters ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [logistic(), ridge()], ids=["logistic", "ridge"])
def test_a_pixel_map_is_the_derivative_by_training_again(problem: Convex) -> None:
    theta = problem.optimum()
    x, y = queries(problem)
    index, eps = torch.tensor([4, 4, 9]), 1e-5
    found = perturb(problem.box(theta), x, y, (problem.x, problem.y), index, l2=problem.l2, solver=SMALL)
    expected = torch.zeros_like(found.map)
    for i in {4, 9}:
        for pixel in range(problem.x[0].numel()):
            at = []
            for sign in (1, -1):
                image = problem.x[i].clone()
                image.view(-1)[pixel] += sign * eps
                moved = problem.with_image(i, image)
                at.append(problem.losses(moved.optimum(start=theta), x, y))
            rows = index == i
            expected[rows].flatten(1)
            expected.flatten(1)[rows, pixel] = ((at[0] - at[1]) / (2 * eps))[rows]
    torch.testing.assert_close(found.map, expected, rtol=1e-5, atol=1e-8)
    assert torch.equal(found.input, problem.x[index])
    scores = influence_functions(problem.box(theta), x, y, (problem.x, problem.y), l2=problem.l2, solver=SMALL).scores
    torch.testing.assert_close(found.score, scores[torch.arange(3), index])


def random_groups(n: int, share: float, n_groups: int = 8) -> list[Tensor]:
    draws = [torch.randperm(n, generator=torch.Generator().manual_seed(k)) for k in range(n_groups)]
    return [draw[: round(share * n)] for draw in draws]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
def test_the_second_order_is_nearer_to_training_without_the_group(share: float) -> None:
    problem = logistic(n=120)
    theta = problem.optimum()
    box, (x, y), train = problem.box(theta), queries(problem, 6), (problem.x, problem.y)
    groups = random_groups(120, share)
    first, second = (group(box, x, y, train, groups, order=k, l2=problem.l2, solver="exact") for k in (1, 2))  # type: ignore[arg-type]
    real = []
    for rows in groups:
        weights = problem.ones
        weights[rows] = 0
        real.append(problem.losses(problem.optimum(weights, theta), x, y) - problem.losses(theta, x, y))
    changes = torch.stack(real, 1)
    errors = [float((r.scores - changes).norm() / changes.norm()) for r in (first, second)]
    assert errors[1] < 0.6 * errors[0]
    single = influence_functions(box, x, y, train, l2=problem.l2, solver="exact").scores
    torch.testing.assert_close(first.scores, torch.stack([single[:, rows].sum(1) for rows in groups], 1))
    h, slopes = problem.hessian(theta), torch.func.jacrev(problem.losses)(theta, x, y)  # as the paper writes it
    weights = torch.zeros(120, dtype=torch.float64).index_fill_(0, groups[0], 1)
    of_group = problem.hessian(theta, weights) - problem.l2 * torch.eye(len(theta), dtype=torch.float64)
    g = torch.func.grad(lambda t: problem.objective(t, weights) - problem.l2 / 2 * t.square().sum())(theta)
    step = torch.linalg.solve(h, g)
    expected = slopes @ (step + torch.linalg.solve(h, of_group @ step))
    torch.testing.assert_close(second.scores[:, 0], expected, rtol=1e-8, atol=1e-11)
    assert second.unit == "nats per group left out"


@pytest.mark.parametrize("groups", [[], [[]], [[0.5]], [[0, 0]], [[40]], [[-1]], "ab", 3, [[True]], [[[1]]], [["a"]]])
def test_groups_that_are_none(groups: Any) -> None:
    problem = logistic()
    with pytest.raises(InputError, match="groups must"):
        group(problem.box(problem.optimum()), *queries(problem), (problem.x, problem.y), groups, l2=0.1)


@pytest.mark.parametrize("index", [[], 0.5, True, 40, -1, [1, 2], "a", [[1, 2, 3]], None])
def test_an_index_that_is_none(index: Any) -> None:
    problem = logistic()
    with pytest.raises(InputError, match="index must"):
        perturb(problem.box(problem.optimum()), *queries(problem), (problem.x, problem.y), index, l2=0.1)


# -- damping -----------------------------------------------------------------------------------------------------------


def deep(seed: int = 0) -> tuple[ub.Box, Tensor, Tensor]:
    """A model that is not at an optimum: its Hessian has negative eigenvalues."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    problem = logistic()
    return ub.Box(model, problem.inputs), problem.x, problem.y


@pytest.mark.parametrize("solver", ["cg", "exact"])
def test_an_indefinite_hessian_is_refused_with_a_damping_that_works(solver: str) -> None:
    box, x, y = deep()
    args: Any = {"curvature": "hessian", "solver": solver}
    with pytest.raises(InputError, match="is not positive definite") as caught:
        influence_functions(box, x[:2], y[:2], (x, y), damping=1e-4, **args)
    damping = float(str(caught.value).split("Give damping=")[1].split()[0])
    assert influence_functions(box, x[:2], y[:2], (x, y), damping=damping, **args).scores.isfinite().all()
    with pytest.raises(InputError, match="is not positive definite"):  # and not much more than what is needed
        influence_functions(box, x[:2], y[:2], (x, y), damping=damping / 1.5, **args)
    chosen = influence_functions(box, x[:2], y[:2], (x, y), **args)
    assert chosen.settings["damping"] > damping / 1.5
    assert influence_functions(box, x[:2], y[:2], (x, y), damping=0.01, solver=solver).scores.isfinite().all()


def test_the_default_damping() -> None:
    """0 where l2 makes it positive definite; else a tenth of the mean eigenvalue."""
    box, x, y = deep()
    mean = float(Curvature(gradients_of(box), x, y, kind="gauss_newton").matrix().diagonal().mean())
    chosen = influence_functions(box, x[:1], y[:1], (x, y)).settings["damping"]
    assert chosen == pytest.approx(0.1 * mean, rel=0.4)  # the trace is estimated
    assert influence_functions(box, x[:1], y[:1], (x, y), l2=0.1).settings["damping"] == 0
    problem = logistic()
    found = influence_functions(
        problem.box(problem.optimum()), *queries(problem), (problem.x, problem.y), l2=problem.l2, curvature="hessian"
    )
    assert found.settings["damping"] == 0


def test_the_default_damping_of_a_hessian_leaves_half_of_l2() -> None:
    box, x, y = deep()
    smallest = float(torch.linalg.eigvalsh(Curvature(gradients_of(box), x, y, kind="hessian").matrix())[0])
    assert smallest < 0

    def damping(l2: float) -> float:
        args = {"curvature": "hessian", "solver": "exact", "l2": l2}
        return influence_functions(box, x[:1], y[:1], (x, y), **args).settings["damping"]  # type: ignore[arg-type]

    assert damping(-1.5 * smallest) > 0  # positive definite, but by a third of l2
    assert damping(-2.5 * smallest) == 0


def gradients_of(box: ub.Box) -> Any:
    from unboxed.engine.example_gradients.gradients import ExampleGradients

    return ExampleGradients(box)


def test_conjugate_gradients_that_stop_early_say_so() -> None:
    box, x, y = deep()
    with pytest.warns(UnboxedWarning, match=r"stopped after 2 iterations at a relative residual of"):
        influence_functions(box, x[:2], y[:2], (x, y), damping=0.01, solver=ConjugateGradient(max_iterations=2))


# -- what is refused ---------------------------------------------------------------------------------------------------


class NaNOnWhite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.flatten(1).amax(1, keepdim=True) >= 1, torch.nan, self.fc(x.flatten(1)))


def test_a_loss_that_is_nan_names_the_example() -> None:
    problem = logistic()
    box = ub.Box(NaNOnWhite().double(), problem.inputs, outputs="logits")
    x = problem.x.clamp(max=0.9)
    x[[3, 17], 0, 1, 1] = 1
    with pytest.raises(NaNError, match=r"2 of 40 training examples \(rows 3, 17\)") as caught:
        influence_functions(box, x[:2], problem.y[:2], (x, problem.y), damping=1.0)
    assert caught.value.rows == [3, 17]
    rest = torch.ones(40, dtype=torch.bool).index_fill_(0, torch.tensor([3, 17]), False)
    with pytest.raises(NaNError, match=r"1 of 4 queries.*row 3"):
        influence_functions(box, x[:4], problem.y[:4], (x[rest], problem.y[rest]), damping=1.0)


def test_what_is_missing_or_unknown() -> None:
    problem = logistic()
    box, (x, y) = problem.box(problem.optimum()), queries(problem)
    with pytest.raises(DataError, match="have no labels"):
        influence_functions(box, x, y, problem.x)
    with pytest.raises(InputError, match="there is no solver 'gc'"):
        influence_functions(box, x, y, (problem.x, problem.y), solver="gc")
    with pytest.raises(InputError, match="max_parameters=10"):
        influence_functions(box, x, y, (problem.x, problem.y), solver=Exact(max_parameters=10))
    with pytest.raises(LayerError, match="no parameters"):
        influence_functions(box, x, y, (problem.x, problem.y), layers="0")
    numbers = ridge()
    other = numbers.box(numbers.optimum())
    with pytest.raises(InputError, match="labels are missing"):
        influence_functions(other, numbers.x, None, (numbers.x, numbers.y))
    with pytest.raises(DataError, match="no labels; wanted tensors"):
        influence_functions(other, numbers.x, numbers.y, numbers.x)
    with pytest.raises(InputError, match="labels of 30 examples"):
        influence_functions(other, numbers.x, numbers.y, (numbers.x, numbers.y[:7]))


def test_predicted_classes_are_explained_where_no_labels_are_given() -> None:
    problem = logistic()
    box, (x, _) = problem.box(problem.optimum()), queries(problem)
    a, b = (influence_functions(box, x, y, (problem.x, problem.y), l2=0.1) for y in (None, box.predict(x)))
    assert torch.equal(a.scores, b.scores)
    assert torch.equal(a.target, box.predict(x))


def test_dropout_and_batch_norm_run_in_eval() -> None:
    for name in ("dropout_in_train_mode", "batchnorm_in_train_mode"):
        c = make_case(name, torch.float64)
        train = (c.x, c.y)
        in_train_mode = influence_functions(c.box, c.x, c.y, train).scores
        flags = [m.training for m in c.box.model.modules()]
        c.box.model.eval()
        assert torch.equal(
            influence_functions(ub.Box(c.box.model, c.box.inputs), c.x, c.y, train).scores, in_train_mode
        )
        assert any(flags)


def test_examples_that_depend_on_one_another_are_refused() -> None:
    c = make_case("batchnorm_without_statistics")
    with pytest.raises(OutputError, match="depend on one another"):
        influence_functions(c.box, c.x, c.y, (c.x, c.y))


def test_groups_are_drawn_as_a_table_and_settings_are_stated() -> None:
    """Columns are groups: no training example of that number is shown for them."""
    problem = logistic()
    box, train = problem.box(problem.optimum()), (problem.x, problem.y)
    found = group(box, *queries(problem), train, [range(3), [5, 7]], l2=0.1)
    assert [rows.tolist() for rows in found.members] == [[0, 1, 2], [5, 7]]
    assert found.settings["order"] == 2
    assert list(ub.plots.figures(found, box, data=train)) == ["groups"]
    single = influence_functions(box, *queries(problem), train, l2=0.1, solver=Arnoldi(n_iterations=30))
    solver = "Arnoldi(n_iterations=30, n_eigenvectors=None)"
    assert single.settings == {"damping": 0.0, "l2": 0.1, "curvature": "gauss_newton", "solver": solver}


@pytest.mark.parametrize(("scale", "warns"), [(0.99, False), (1.01, True)])
def test_scores_that_no_derivative_can_mean_are_warned_of(scale: float, warns: bool) -> None:
    from unboxed.influence.influence_functions import MAX_PLAUSIBLE_SCORE_NATS, _warn_of_implausible_scores

    scores = torch.tensor([[0.1, -scale * MAX_PLAUSIBLE_SCORE_NATS]])
    with pytest.warns(UnboxedWarning, match="as a ranking") if warns else nullcontext():
        _warn_of_implausible_scores(scores)
