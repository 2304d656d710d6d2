"""K-FAC, EK-FAC and the diagonal of the Fisher against their definitions, written out with materialized matrices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unboxed as ub
from unboxed.engine.example_gradients import fisher_passes
from unboxed.engine.example_gradients.gradients import ExampleGradients
from unboxed.engine.example_gradients.kronecker import Approximation, fit_fisher
from unboxed.engine.example_gradients.spectral import SpectralCurvature
from unboxed.errors import InputError, NaNError


def features_box(model: nn.Module, n: int = 5, **kwargs: object) -> ub.Box:
    return ub.Box(model.double(), ub.Features(tuple(map(str, range(n)))), **{"outputs": "logits", **kwargs})  # type: ignore[arg-type]


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return build()


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def labels(n: int, k: int = 3) -> Tensor:
    return torch.randint(k, (n,), generator=torch.Generator().manual_seed(6))


def matrix_of(curvature: SpectralCurvature, gradients: ExampleGradients) -> Tensor:
    """The matrix (P, P) itself, by its products with unit vectors."""
    unit = torch.eye(gradients.n_parameters, dtype=torch.float64)
    return gradients.flatten(curvature.apply(gradients.unflatten(unit), lambda e: e))


def true_fisher(gradients: ExampleGradients, x: Tensor) -> Tensor:
    """mean_n sum_k p_k g_nk g_nk^T (P, P), one example and one label at a time."""
    total = torch.zeros(gradients.n_parameters, gradients.n_parameters, dtype=torch.float64)
    for row in x:
        p = gradients.box.probs(row[None])[0]
        for k, weight in enumerate(p):
            g = gradients.matrix(row[None], torch.tensor([k]))[0]
            total += weight * torch.outer(g, g)
    return total / len(x)


def literal_ekfac(example_weight_gradients: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """(U_S x U_A) diag(E[(U_S^T G U_A)^2]) (U_S x U_A)^T, (O I, O I), of G (N, O, I), a (N, I), s (N, O)."""
    u_a, u_s = torch.linalg.eigh(a.T @ a / len(a))[1], torch.linalg.eigh(s.T @ s / len(s))[1]
    eigenvectors = torch.kron(u_s, u_a)  # (O I, O I), of matrices flattened row by row
    squares = torch.stack([(eigenvectors.T @ g.flatten()).square() for g in example_weight_gradients]).mean(0)
    return eigenvectors @ torch.diag(squares) @ eigenvectors.T


def test_ekfac_of_a_linear_model_is_its_definition() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 3)))
    box, x, y = features_box(model), rand(40, 5), labels(40)
    gradients = ExampleGradients(box)
    a = torch.cat([x, torch.ones(40, 1)], 1).double()
    s = torch.autograd.functional.jacobian(
        lambda z: F.cross_entropy(z, y, reduction="sum"), model(x).detach())  # fmt: skip
    literal = literal_ekfac(torch.einsum("no,ni->noi", s, a), a, s)  # of (O, I + 1): the bias is the last column
    order = torch.arange(18).view(3, 6)
    rows = torch.cat([order[:, :5].flatten(), order[:, 5]])  # as the parameters are: the weight, then the bias
    found = matrix_of(fit_fisher(gradients, x, y, fisher="empirical"), gradients)
    torch.testing.assert_close(found, literal[rows][:, rows], rtol=0, atol=1e-10)
    kfac = torch.kron(s.T @ s / 40, a.T @ a / 40)[rows][:, rows]
    found = matrix_of(fit_fisher(gradients, x, y, fisher="empirical", approximation="kfac"), gradients)
    torch.testing.assert_close(found, kfac, rtol=0, atol=1e-10)
    assert float((literal - torch.kron(s.T @ s / 40, a.T @ a / 40)).abs().max()) > 1e-3  # or nothing was compared


@pytest.mark.parametrize("approximation", ["ekfac", "kfac"])
def test_where_the_gauss_newton_matrix_is_a_kronecker_product_it_is_found(approximation: Approximation) -> None:
    """Half a squared error has the second derivative 1 for all outputs of all examples: F = 1 x E[a a^T]."""
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 3)))
    box, x = features_box(model, outputs="regression"), rand(30, 5)
    gradients = ExampleGradients(box)
    found = matrix_of(fit_fisher(gradients, x, rand(30, 3), fisher="exact", approximation=approximation), gradients)
    a = torch.cat([x, torch.ones(30, 1)], 1).double()
    moment = a.T @ a / 30
    expected = torch.zeros(18, 18, dtype=torch.float64)
    for o in range(3):
        at = torch.tensor([*range(5 * o, 5 * o + 5), 15 + o])
        expected[at[:, None], at] = moment
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_dense_is_the_true_fisher() -> None:
    box, x = features_box(seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))), rand(12, 5)
    gradients = ExampleGradients(box)
    found = matrix_of(fit_fisher(gradients, x, labels(12), fisher="exact", approximation="dense"), gradients)
    torch.testing.assert_close(found, true_fisher(gradients, x), rtol=0, atol=1e-10)


def test_labels_that_are_sampled_have_the_true_fisher_as_their_mean() -> None:
    box = features_box(seeded(lambda: nn.Sequential(nn.Linear(5, 3))))
    gradients, x = ExampleGradients(box), rand(2, 5).repeat(4000, 1)
    sampled = fit_fisher(gradients, x, labels(8000), approximation="dense")
    difference = matrix_of(sampled, gradients) - true_fisher(gradients, x[:2])
    assert float(difference.abs().max()) < 0.03
    again = fit_fisher(gradients, x[:50], labels(50), seed=1)
    other = fit_fisher(gradients, x[:50], labels(50), seed=2)
    assert not torch.equal(again.blocks[0].eigenvalues, other.blocks[0].eigenvalues)


@pytest.mark.parametrize("outputs", ["regression", "multilabel", "binary"])
def test_samples_of_other_outputs_have_the_exact_second_moment(outputs: str) -> None:
    n_outputs = 1 if outputs == "binary" else 2
    box = features_box(seeded(lambda: nn.Sequential(nn.Linear(5, n_outputs))), outputs=outputs)
    gradients, x = ExampleGradients(box), rand(2, 5).repeat(4000, 1)
    y = torch.zeros(8000, dtype=torch.long) if outputs == "binary" else torch.zeros(8000, n_outputs)
    sampled = matrix_of(fit_fisher(gradients, x, y, approximation="dense"), gradients)
    exact = matrix_of(fit_fisher(gradients, x[:2], y[:2], approximation="dense", fisher="exact"), gradients)
    assert float((sampled - exact).abs().max()) < 0.05 * float(exact.abs().max()) + 0.02
    assert float(exact.abs().max()) > 0.1


class Sequence(nn.Module):
    """A Linear over positions (N, T, D), called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(3, 3), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.mix(x.view(-1, 4, 3)).tanh()
        return self.head(self.mix(h).flatten(1))


CONVOLUTIONS = {
    "1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, groups=2, padding=1), (4, 9)),
    "2d": (lambda: nn.Conv2d(2, 4, (3, 2), dilation=(2, 1), padding="same", padding_mode="circular"), (2, 5, 6)),
    "2d-no-bias": (lambda: nn.Conv2d(2, 4, 3, stride=2, bias=False), (2, 6, 6)),
    "3d": (lambda: nn.Conv3d(2, 2, 2, padding=1, groups=2), (2, 3, 3, 3)),
}


class Reshaped(nn.Module):
    def __init__(self, conv: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.conv, self.shape = conv, shape
        self.head = nn.Linear(int(conv(torch.zeros(1, *shape)).numel()), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x.view(-1, *self.shape)).tanh().flatten(1))


def positions_box(name: str) -> ub.Box:
    if name == "sequence":
        return features_box(seeded(Sequence), 12)
    build, shape = CONVOLUTIONS[name]
    n = int(torch.zeros(shape).numel())
    return features_box(seeded(lambda: Reshaped(build(), shape)), n)


@pytest.mark.parametrize("name", ["sequence", *CONVOLUTIONS])
def test_layers_with_positions(name: str) -> None:
    """Their factors are sums over positions, and the squares are those of each example's whole gradient."""
    box = positions_box(name)
    x, y, gradients = rand(7, len(box.inputs.names)), labels(7), ExampleGradients(box)  # type: ignore[attr-defined]
    rows = gradients.matrix(x, y)
    diagonal = fit_fisher(gradients, x, y, fisher="empirical", approximation="diagonal")
    torch.testing.assert_close(matrix_of(diagonal, gradients), torch.diag(rows.square().mean(0)), rtol=0, atol=1e-10)
    curvature = fit_fisher(gradients, x, y, fisher="empirical")
    assert curvature.diagonal_parameters == ()
    trace = sum(float(block.eigenvalues.sum()) for block in curvature.blocks)
    assert trace == pytest.approx(float(rows.square().sum(1).mean()), rel=1e-10)  # an orthogonal basis keeps it
    found, exact = matrix_of(curvature, gradients), rows.T @ rows / 7
    assert float((found - exact).norm()) < float((torch.diag(exact.diagonal()) - exact).norm())


def test_factors_of_positions_are_their_definition() -> None:
    """A = sum_t E[a_t a_t^T], S = mean_t E[s_t s_t^T] of the first layer of a model, position by position."""
    model = seeded(lambda: nn.Sequential(nn.Unflatten(1, (4, 3)), nn.Linear(3, 2), nn.Flatten(), nn.Linear(8, 3)))
    box, x, y = features_box(model, 12), rand(9, 12), labels(9)
    gradients = ExampleGradients(box, "1")
    h = model[1](x.view(-1, 4, 3)).detach().requires_grad_()
    (s,) = torch.autograd.grad(F.cross_entropy(model[3](h.flatten(1)), y, reduction="sum"), h)
    a = torch.cat([x.view(-1, 4, 3), torch.ones(9, 4, 1)], 2)
    moment_a, moment_s = torch.zeros(4, 4).double(), torch.zeros(2, 2).double()
    for n in range(9):
        for t in range(4):
            moment_a += torch.outer(a[n, t], a[n, t]) / 9
            moment_s += torch.outer(s[n, t], s[n, t]) / (9 * 4)
    order = torch.arange(8).view(2, 4)
    rows = torch.cat([order[:, :3].flatten(), order[:, 3]])
    found = matrix_of(fit_fisher(gradients, x, y, fisher="empirical", approximation="kfac"), gradients)
    torch.testing.assert_close(found, torch.kron(moment_s, moment_a)[rows][:, rows], rtol=0, atol=1e-10)


class UsedElsewhere(nn.Module):
    """A norm, a bare parameter, a weight that is used as a function, and one shared by two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.tied, self.head = nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.again = nn.Linear(4, 4)
        self.again.weight, self.scale, self.functional = self.tied.weight, nn.Parameter(torch.ones(4)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.first(x)) * self.scale
        h = self.again(self.tied(h).tanh())
        return self.head(F.linear(self.functional(h).tanh(), self.functional.weight))


def test_what_is_no_product_of_a_layer_has_its_diagonal_and_is_named() -> None:
    box, x, y = features_box(seeded(UsedElsewhere)), rand(8, 5), labels(8)
    gradients = ExampleGradients(box)
    curvature = fit_fisher(gradients, x, y, fisher="empirical")
    assert {n for n in gradients.parameters if not n.startswith(("first", "head"))} == {*curvature.diagonal_parameters}
    squares = gradients.unflatten(gradients.matrix(x, y).square().mean(0, keepdim=True))
    unit = {name: torch.ones(1, *p.shape).double() for name, p in gradients.parameters.items()}
    product = curvature.apply(unit, lambda e: e)
    assert list(product.keys() - gradients.parameters.keys()) == []
    for name in curvature.diagonal_parameters:
        torch.testing.assert_close(product[name], squares[name], rtol=0, atol=1e-10)
    assert fit_fisher(gradients, x, y, approximation="diagonal").diagonal_parameters == ()  # as asked for


def test_solve_inverts_with_the_stated_damping() -> None:
    box, x, y = features_box(seeded(lambda: nn.Sequential(nn.Linear(5, 3)))), rand(20, 5), labels(20)
    gradients = ExampleGradients(box)
    curvature = fit_fisher(gradients, x, y)
    matrix, v = matrix_of(curvature, gradients), gradients.unflatten(rand(2, 18))
    for damping in (None, 0.3):
        added = 0.1 * float(matrix.trace()) / 18 if damping is None else damping  # a tenth of the mean eigenvalue
        expected = torch.linalg.solve(matrix + added * torch.eye(18).double(), gradients.flatten(v).T).T
        torch.testing.assert_close(gradients.flatten(curvature.solve(v, damping)), expected, rtol=1e-9, atol=1e-9)
        if damping is None:
            assert curvature.damping() == pytest.approx(dict.fromkeys(gradients.parameters, added))


def test_a_model_that_is_one_layer() -> None:
    """Its address is empty; it has factors all the same."""
    alone, inside = seeded(lambda: nn.Linear(5, 3)), seeded(lambda: nn.Sequential(nn.Linear(5, 3)))
    x, y = rand(10, 5), labels(10)
    curvatures = [fit_fisher(ExampleGradients(features_box(model)), x, y) for model in (alone, inside)]
    assert curvatures[0].diagonal_parameters == ()
    torch.testing.assert_close(curvatures[0].blocks[0].eigenvalues, curvatures[1].blocks[0].eigenvalues)


def test_several_states_give_the_mean_of_their_moments() -> None:
    models = [seeded(lambda: nn.Sequential(nn.Linear(5, 3))), nn.Sequential(nn.Linear(5, 3))]
    models[1].load_state_dict({n: p * 2 for n, p in models[0].state_dict().items()})
    states = [ExampleGradients(features_box(m)) for m in models]
    x, y = rand(10, 5), labels(10)
    both = fit_fisher(states, x, y, fisher="exact", approximation="dense")
    separate = [matrix_of(fit_fisher(s, x, y, fisher="exact", approximation="dense"), s) for s in states]
    torch.testing.assert_close(matrix_of(both, states[0]), (separate[0] + separate[1]) / 2)


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    box = positions_box("2d")
    x, y, gradients = rand(9, len(box.inputs.names)), labels(9), ExampleGradients(box)  # type: ignore[attr-defined]
    whole = fit_fisher(gradients, x, y)
    monkeypatch.setattr(fisher_passes, "gradient_batch_size_and_max_rows", lambda *args: (2, 2))
    parts = fit_fisher(gradients, x, y)
    for a, b in zip(whole.blocks, parts.blocks, strict=True):
        torch.testing.assert_close(a.eigenvalues, b.eigenvalues, rtol=1e-9, atol=1e-12)


def test_a_loss_of_ones_own_has_no_labels_to_sample() -> None:
    box, x, y = features_box(seeded(lambda: nn.Sequential(nn.Linear(5, 3)))), rand(4, 5), labels(4)
    gradients = ExampleGradients(box, loss=lambda z, y: z[:, 0] ** 2)
    with pytest.raises(InputError, match='fisher="empirical"'):
        fit_fisher(gradients, x, y)
    assert fit_fisher(gradients, x, y, fisher="empirical").blocks


def test_an_example_without_a_finite_loss_is_named() -> None:
    box, x, y = features_box(seeded(lambda: nn.Sequential(nn.Linear(5, 3)))), rand(9, 5), labels(9)
    gradients = ExampleGradients(box, loss=lambda z, y: z[:, 0] / (y != 7))
    y[6] = 7
    with pytest.raises(NaNError, match="row 6"):
        fit_fisher(gradients, x, y, fisher="empirical")


def test_a_large_model_is_refused_for_the_dense_matrix() -> None:
    box = features_box(nn.Linear(5, 1000))
    with pytest.raises(InputError, match="6,000 parameters"):
        fit_fisher(ExampleGradients(box), rand(2, 5), labels(2), approximation="dense")
