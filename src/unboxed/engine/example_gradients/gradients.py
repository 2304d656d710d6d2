"""Per-example gradients: one row per example over the parameters of a choice of layers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from ...box import Box
from ...errors import NaNError
from ...model.batching import BatchSize, check_batch_size, is_out_of_memory_error, map_in_batches
from ...model.nan_checks import NAN_HINT, row_numbers_text
from ...model.state import leaving_inference_mode
from ..cpu_cache import gradient_batch_size_and_max_rows
from .losses import ExampleLoss, resolve_loss
from .parameters import LossesAsFunctionOfParameters, Parameters, parameter_names_of_layers
from .routes import (
    ClosedFormRoute,
    GradientRoute,
    GradientsByParameter,
    OneByOneRoute,
    VmapRoute,
    as_leaves,
    gradients_of_summed_losses,
)
from .terms import PerExampleGradients

LOG = logging.getLogger("unboxed")
T = TypeVar("T")
MAX_CHUNK_BYTES = 2**27  # of gradients, or their factors, that are held at a time
N_ROUTE_TRIAL_EXAMPLES, N_ROUTE_TRIAL_NOISE_ROWS = 4, 3  # of the batch on which routes are verified


class ExampleGradients:
    """Gradients of each example's loss with respect to a model's parameters.

    Closed forms from the inputs and output gradients of layers, where a layer has one; else `vmap` of `grad`; else one
    example at a time. Which of them is right for a parameter is verified on the first batch: a sum of the examples'
    gradients, with another weight for each, must be autograd's gradient of the weighted loss. That catches weights that
    are used in a function, shared with another layer, or computed from others. No parameter is left out.

    Args:
        box: The opened model.
        layers: Modules whose parameters are meant. None: all parameters that require a gradient; where none does, all.
        loss: (outputs, labels) -> losses (N,). None: the one that fits `box.outputs`.
        state: Values of all parameters and buffers, as in `state_dict()`: a checkpoint. None: the model's own.
        batch_size: Examples per forward pass at most; "auto" takes as many as fit in memory.

    Raises:
        LayerError: where there are no parameters.
        OutputError: for a model whose examples depend on one another.
    """

    def __init__(
        self, box: Box, layers: Sequence[str] | str | None = None, loss: ExampleLoss | None = None,
        state: Parameters | None = None, batch_size: BatchSize = "auto",
    ) -> None:  # fmt: skip
        self.batch_size = check_batch_size(batch_size)
        self.box, self.loss = box, resolve_loss(box, loss)
        self._losses = LossesAsFunctionOfParameters(box, self.loss, state)
        with box.isolated():  # raises where the model was made in inference_mode
            self.parameters = self._losses.values(parameter_names_of_layers(box, layers))  # without a graph
        self._routes: list[GradientRoute] = []
        self._bytes_per_row = 1

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters.values())

    def with_loss(self, loss: ExampleLoss) -> ExampleGradients:
        """The same parameters, with another loss."""
        other = copy(self)
        other.loss, other._losses, other._routes = (
            loss,
            LossesAsFunctionOfParameters(self.box, loss, self._losses.state),
            [],
        )
        return other

    def outputs(self, x: Tensor, parameters: Parameters | None = None) -> Tensor:
        """What the loss is of, (N, ...): logits, or the output of a regression model; inside `box.isolated()`."""
        return self._losses.outputs(parameters or self.parameters, x)

    def losses(self, x: Tensor, y: Tensor, parameters: Parameters | None = None) -> Tensor:
        """Losses (N,) of a batch, with a graph into `parameters`, inside `box.isolated()`."""
        return self._losses(parameters or self.parameters, x, y)

    def matrix(self, x: Tensor, y: Tensor) -> Tensor:
        """Gradients (N, P) of each example's loss, all parameters side by side."""
        return torch.cat(
            self.map_gradients_in_parts(lambda terms: torch.cat([t.rows() for t in terms.values()], 1), x, y)
        )

    def dot(self, x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
        """Inner products (N1, N2) of the gradients of two batches; those of the second are computed in parts.

        Where the first does not fit in memory, the gradients of the second are computed for each part of it.
        """
        return torch.cat(
            self.map_gradients_in_parts(
                lambda terms: torch.cat(self.map_gradients_in_parts(partial(_dot_over_parameters, terms), x2, y2), 1),
                x1,
                y1,
            )
        )

    def project(self, vectors: Parameters, x: Tensor, y: Tensor) -> Tensor:
        """Inner products (K, N) of vectors {name: (K, ...)} with each example's gradient."""
        v = {name: vectors[name].to(self.box.dtype) for name in self.parameters}
        return torch.cat(
            self.map_gradients_in_parts(
                lambda terms: _sum_tensors(t.project(v[name]) for name, t in terms.items()), x, y
            ),
            1,
        )

    def norms(self, x: Tensor, y: Tensor) -> Tensor:
        """Lengths (N,) of the gradients; squared, they are the diagonal of `dot(x, y, x, y)`."""
        squares = self.map_gradients_in_parts(
            lambda terms: _sum_tensors(t.squared_norms() for t in terms.values()), x, y
        )
        return torch.cat(squares).sqrt()

    def mean(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The gradient {name: tensor} of the mean loss of a batch, in the parameters' dtype."""
        with leaving_inference_mode():
            leaves = as_leaves(self.parameters)
        total = {name: torch.zeros_like(p) for name, p in self.parameters.items()}

        def add_gradients_of(rows: slice) -> None:
            with self.box.isolated():
                grads = gradients_of_summed_losses(self._losses(leaves, x[rows], y[rows]), list(leaves.values()))
            for sum_, g in zip(total.values(), grads, strict=True):
                sum_ += 0 if g is None else g

        map_in_batches(add_gradients_of, len(x), *gradient_batch_size_and_max_rows(self.box, len(x), self.batch_size))
        return {name: g / len(x) for name, g in total.items()}

    def flatten(self, vectors: Parameters) -> Tensor:
        """Vectors {name: (K, ...)} side by side, (K, P)."""
        return torch.cat([vectors[name].flatten(1) for name in self.parameters], 1)

    def unflatten(self, matrix: Tensor) -> dict[str, Tensor]:
        """The inverse of `flatten`."""
        parts = torch.split(matrix, [p.numel() for p in self.parameters.values()], 1)
        return {n: part.reshape(-1, *p.shape) for (n, p), part in zip(self.parameters.items(), parts, strict=True)}

    def closed_form_route(self, x: Tensor, y: Tensor) -> ClosedFormRoute:
        """The closed forms of layers; their `names` are the parameters for which they are right on these examples."""
        self._routes = self._routes or self._routes_verified_in_memory(x, y)
        verified = [route for route in self._routes if isinstance(route, ClosedFormRoute)]
        forms = verified[0] if verified else ClosedFormRoute(self._losses, self.parameters)
        forms.names = forms.names if verified else ()
        return forms

    def map_gradients_in_parts(self, func: Callable[[GradientsByParameter], T], x: Tensor, y: Tensor) -> list[T]:
        """Call `func` on {parameter: gradients of some examples}, for parts of a batch that fit in memory, in order.

        Raises NaNError that names the examples whose loss is NaN or infinite.
        """
        with leaving_inference_mode():
            x, y = x.clone() if x.is_inference() else x, y.clone() if y.is_inference() else y
            self._routes = self._routes or self._routes_verified_in_memory(x, y)
        max_rows = max(1, min(self._max_batch_rows(len(x)), MAX_CHUNK_BYTES // max(1, self._bytes_per_row)))

        def check_losses_and_apply_func(rows: slice) -> T:
            losses, terms = self._losses_and_gradients(self._routes, x[rows], y[rows])
            check_finite_losses_per_example(losses, rows.start)
            return func(terms)

        return map_in_batches(check_losses_and_apply_func, len(x), "auto", max_rows)

    def _losses_and_gradients(
        self, routes: Sequence[GradientRoute], x: Tensor, y: Tensor
    ) -> tuple[Tensor, GradientsByParameter]:
        """Losses (N,) and gradients of a batch, in the order of the parameters."""
        found: GradientsByParameter = {}
        for route in routes:
            with self.box.isolated():
                losses, terms = route.losses_and_gradients(x, y)
            found |= {name: terms[name] for name in route.names}
        return losses, {name: found[name] for name in self.parameters}

    def _max_batch_rows(self, n: int) -> int:
        """The most rows of a batch: those that fit in memory, and no more than the caller allows."""
        size, max_rows = gradient_batch_size_and_max_rows(self.box, n, self.batch_size)
        return max_rows if size == "auto" else min(size, max_rows)

    def _routes_verified_in_memory(self, x: Tensor, y: Tensor) -> list[GradientRoute]:
        """Routes that are verified on a trial batch, which is halved while memory runs out."""
        n_rows = min(N_ROUTE_TRIAL_EXAMPLES + N_ROUTE_TRIAL_NOISE_ROWS, self.box.max_rows, self._max_batch_rows(len(x)))
        while True:
            try:
                return list(self._fastest_correct_routes(*self._trial_batch(x, y, n_rows)))
            except RuntimeError as error:
                if n_rows == 1 or not is_out_of_memory_error(error):
                    raise
                n_rows //= 2

    def _fastest_correct_routes(self, trial_x: Tensor, trial_y: Tensor) -> Iterator[GradientRoute]:
        """For each parameter the fastest route that is right for it."""
        weights = torch.linspace(0.5, 1.5, len(trial_x), dtype=self.box.dtype, device=self.box.device)
        left = dict(self.parameters)
        expected: dict[str, Tensor] | None = None
        for make in (ClosedFormRoute, VmapRoute):
            route: GradientRoute = make(self._losses, left)
            if not route.names:
                continue
            expected = expected or self._weighted_gradient(trial_x, trial_y, weights)
            terms = self._try_route(route, trial_x, trial_y)
            route.names = tuple(n for n, t in terms.items() if self._matches_autograd(t, weights, expected[n]))
            if route.names:
                self._bytes_per_row += sum(terms[name].bytes_per_example for name in route.names)
                left = {n: p for n, p in left.items() if n not in route.names}
                yield route
        if left:
            yield OneByOneRoute(self._losses, left)

    def _trial_batch(self, x: Tensor, y: Tensor, max_rows: int) -> tuple[Tensor, Tensor]:
        """Some of the examples, and noise with their labels: with several rows, and where a loss is zero by chance."""
        n_rows = min(N_ROUTE_TRIAL_EXAMPLES, len(x), (max_rows + 1) // 2)
        trial_x = torch.cat([x[:n_rows], self.box.noise(N_ROUTE_TRIAL_NOISE_ROWS).to(x)])[:max_rows]
        return trial_x, y[torch.arange(len(trial_x), device=y.device) % n_rows]

    def _try_route(self, route: GradientRoute, x: Tensor, y: Tensor) -> GradientsByParameter:
        """The terms of a route; none where it fails: a slower one then does the work, or raises what is wrong."""
        try:
            with self.box.isolated():
                return route.losses_and_gradients(x, y)[1]
        except Exception:
            LOG.info("%s failed; slower routes follow", type(route).__name__, exc_info=True)
            return {}

    def _weighted_gradient(self, x: Tensor, y: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Autograd's gradient (P,) of the weighted sum of losses."""
        leaves = as_leaves(self.parameters)
        with self.box.isolated():
            grads = gradients_of_summed_losses(weights * self._losses(leaves, x, y), list(leaves.values()))
        return {
            name: (torch.zeros_like(p) if g is None else g).flatten().to(self.box.dtype)
            for (name, p), g in zip(self.parameters.items(), grads, strict=True)
        }

    def _matches_autograd(self, term: PerExampleGradients, weights: Tensor, expected: Tensor) -> bool:
        """Whether the weighted sum of an example's gradients is autograd's, up to rounding."""
        scale = torch.maximum((weights * term.squared_norms().clamp_min(0).sqrt()).sum(), expected.norm())
        error = (weights @ term.rows() - expected).norm()
        return bool(error <= torch.finfo(self.box.model_dtype).eps ** 0.5 * scale)


def check_finite_losses_per_example(losses: Tensor, start: int) -> None:
    """Raise NaNError that names the examples, counted from `start`, whose loss is NaN or infinite."""
    if bad := [start + i for i in (~losses.isfinite()).nonzero()[:, 0].tolist()]:
        raise nonfinite_loss_error(bad)


def nonfinite_loss_error(rows: list[int]) -> NaNError:
    """The error that names the examples whose loss is NaN or infinite."""
    problem = f"the loss is NaN or infinite for {row_numbers_text(rows)}, so that there is no gradient of it"
    return NaNError(f"{problem}. {NAN_HINT}", rows, "the loss")


def _dot_over_parameters(left: GradientsByParameter, right: GradientsByParameter) -> Tensor:
    return _sum_tensors(term.dot(right[name]) for name, term in left.items())


def _sum_tensors(parts: Iterator[Tensor]) -> Tensor:
    total = next(parts)
    for part in parts:
        total = total + part
    return total
