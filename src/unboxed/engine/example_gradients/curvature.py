"""Products of the curvature of the mean training loss with vectors: of its Hessian, or of its Gauss-Newton matrix.

Martens 2010, "Deep learning via Hessian-free optimization"; Schraudolph 2002 for the Gauss-Newton matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...checkpointing import tensor_digest
from ...errors import OutputError
from ...model.batching import BatchSize, map_in_batches
from ...model.state import leaving_inference_mode
from ..batched_vjp import batched_vjp, vjp_one_by_one
from ..box_fingerprint import box_fingerprint
from ..cpu_cache import gradient_batch_size_and_max_rows
from .gradients import ExampleGradients
from .parameters import Parameters

CurvatureKind = Literal["gauss_newton", "hessian"]
MAX_VECTORS_PER_BACKWARD = 64  # vectors that go through one graph at once
SECOND_DERIVATIVE_MEMORY_FACTOR = 4  # activations of a second derivative, in those of a forward pass


class Curvature:
    """The Hessian or Gauss-Newton matrix H of the mean training loss, plus l2 times the identity, as an operator.

    It is never formed: a product with K vectors costs about four passes over the training examples, in batches of
    bounded memory. The Gauss-Newton matrix, the mean of J^T (d2 loss / d outputs^2) J, has no negative eigenvalues, and
    equals the Hessian where the outputs are linear in the parameters.

    Args:
        gradients: The parameters and the loss.
        x: Training inputs (N, ...), checked.
        y: Their labels (N,).
        kind: "hessian" or "gauss_newton".
        l2: The training's weight decay: its loss has the term l2 / 2 times the sum of the squared parameters.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.
        seed: Seed of the random draws of what works with it.
    """

    def __init__(
        self, gradients: ExampleGradients, x: Tensor, y: Tensor, *, kind: CurvatureKind = "hessian", l2: float = 0.0,
        batch_size: BatchSize = "auto", seed: int = 0,
    ) -> None:  # fmt: skip
        self.gradients, self.x, self.y = gradients, x, y
        self.kind, self.l2, self.batch_size, self.seed = kind, l2, batch_size, seed
        self._vmaps = True  # until an op of the model is seen to have no rule for it

    @property
    def n_examples(self) -> int:
        return len(self.x)

    @property
    def n_parameters(self) -> int:
        return self.gradients.n_parameters

    @cached_property
    def fingerprint(self) -> tuple[Any, ...]:
        """Equal for curvatures of the same parameters, examples and loss, up to l2.

        The outputs stand for what no digest of the box sees: the output that it picks, and plain attributes of modules.
        """
        g = self.gradients
        tensors = tensor_digest(*g.parameters.values(), self.x, self.y, self._outputs_of_examples())
        return tuple(g.parameters), tensors, box_fingerprint(g.box), g.loss, self.kind, self.seed

    def _outputs_of_examples(self) -> Tensor:
        """What the loss is of, (N, ...), without a graph."""
        box = self.gradients.box

        def outputs_of_rows(rows: slice) -> Tensor:
            with box.isolated(grad=False):
                return self.gradients.outputs(self.x[rows])

        return torch.cat(
            map_in_batches(
                outputs_of_rows, self.n_examples, *box.batch_size_and_max_rows(self.n_examples, self.batch_size)
            )
        )

    def make_seeded_generator(self) -> torch.Generator:
        """A generator that starts from the seed, on the model's device."""
        return torch.Generator(self.gradients.box.device).manual_seed(self.seed)

    def subset(self, rows: Tensor, l2: float | None = None) -> Curvature:
        """The curvature of the mean loss of some of the examples, (M,) indices; with its own `l2` if given."""
        return Curvature(
            self.gradients, self.x[rows], self.y[rows], kind=self.kind, l2=self.l2 if l2 is None else l2,
            batch_size=self.batch_size, seed=self.seed,
        )  # fmt: skip

    def hvp(self, vectors: Parameters) -> dict[str, Tensor]:
        """Products {name: (K, ...)} with K vectors {name: (K, ...)}, in the vectors' dtype."""
        total = {name: self.l2 * v for name, v in vectors.items()}

        def add_products_of(rows: slice) -> None:
            products = self._hvp_of_batch(rows, list(vectors.values()))
            for t, p in zip(total.values(), products, strict=True):
                t.add_(p.to(t.dtype), alpha=1 / self.n_examples)

        map_in_batches(
            add_products_of, self.n_examples, *self._batch_size_and_max_rows(len(next(iter(vectors.values()))))
        )
        return total

    def matvec(self, matrix: Tensor) -> Tensor:
        """Products (K, P) with K vectors (K, P), all parameters side by side."""
        return self.gradients.flatten(self.hvp(self.gradients.unflatten(matrix)))

    def matrix(self) -> Tensor:
        """The matrix (P, P) itself, for few parameters."""
        total = self.l2 * torch.eye(self.n_parameters, dtype=self.gradients.box.dtype, device=self.x.device)
        if self.kind == "hessian":
            return self.matvec(torch.eye(len(total)).to(total))

        def add_matrix_of(rows: slice) -> None:
            z, j = self._outputs_and_jacobian(self.x[rows])  # j (N, M, P)
            s, j = self._loss_hessians_in_outputs(z, self.y[rows]).to(total.dtype), j.to(total.dtype)  # s (N, M, M)
            total.addmm_(j.flatten(0, 1).T, (s @ j).flatten(0, 1), alpha=1 / self.n_examples)

        box = self.gradients.box
        size, max_rows = gradient_batch_size_and_max_rows(box, self.n_examples, self.batch_size)
        bytes_per_example = 3 * box.n_outputs * self.n_parameters * total.element_size()
        map_in_batches(add_matrix_of, self.n_examples, size, min(max_rows, box.max_rows_in_memory(bytes_per_example)))
        return total

    def _loss_hessians_in_outputs(self, z: Tensor, y: Tensor) -> Tensor:
        """Second derivatives (N, M, M) of each example's loss in its outputs z (N, ...), flattened."""
        with self.gradients.box.isolated():
            z = z.detach().requires_grad_()
            slopes = torch.autograd.grad(self.gradients.loss(z, y).sum(), z, create_graph=True)
            n_outputs = z[0].numel()
            units = torch.eye(n_outputs).to(z).reshape(n_outputs, 1, *z.shape[1:]).expand(n_outputs, *z.shape)
            return self._vjps(slopes, [z], [units])[0].flatten(2).movedim(0, 1)

    def _outputs_and_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (N, ...) of examples, and their derivatives (N, M, P)."""
        gradients = self._gradients_of_outputs
        forms = gradients.closed_form_route(x, torch.zeros(len(x), dtype=torch.long, device=x.device))
        with leaving_inference_mode(), gradients.box.isolated():
            if set(forms.names) == set(gradients.parameters):
                return forms.jacobian(x)
            z = gradients.outputs(x)
        m = z[0].numel()
        labels = torch.arange(m, device=x.device).repeat(len(x))  # gradients of a "loss" that is the label's output
        return z, gradients.matrix(x.repeat_interleave(m, 0), labels).reshape(len(x), m, -1)

    @cached_property
    def _gradients_of_outputs(self) -> ExampleGradients:
        return self.gradients.with_loss(_output_at_label)

    def _batch_size_and_max_rows(self, n_vectors: int) -> tuple[BatchSize, int]:
        box = self.gradients.box
        size, _ = box.batch_size_and_max_rows(self.n_examples, self.batch_size)
        n_copies = SECOND_DERIVATIVE_MEMORY_FACTOR + min(n_vectors, MAX_VECTORS_PER_BACKWARD)
        return size, box.max_rows_in_memory(box.profile.bytes_per_example * n_copies)

    def _hvp_of_batch(self, rows: slice, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Products (K, ...) with the sum over a batch of the curvatures of its examples' losses."""
        parameters = {name: p.detach().requires_grad_() for name, p in self.gradients.parameters.items()}
        leaves = list(parameters.values())
        vectors = [v.to(p.dtype) for v, p in zip(vectors, leaves, strict=True)]
        x, y = self.x[rows], self.y[rows]
        with self.gradients.box.isolated(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            try:
                if self.kind == "hessian":
                    return self._hessian_products(self.gradients.losses(x, y, parameters).sum(), leaves, vectors)
                return self._gauss_newton_products(self.gradients.outputs(x, parameters), y, leaves, vectors)
            except RuntimeError as error:
                if "use_reentrant" in str(error) or "derivative" in str(error):
                    raise OutputError(f"the model has no second derivatives: {str(error).splitlines()[0]}") from error
                raise

    def _hessian_products(self, loss: Tensor, leaves: list[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
        check_depends_on_parameters(loss)
        grads = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
        return self._vjps(grads, leaves, vectors)

    def _gauss_newton_products(
        self, outputs: Tensor, y: Tensor, leaves: list[Tensor], vectors: Sequence[Tensor]
    ) -> list[Tensor]:
        """J^T S J v: J v is the gradient of J^T u, which is linear in u, along v."""
        check_depends_on_parameters(outputs)
        u = torch.zeros_like(outputs, requires_grad=True)
        jtu = torch.autograd.grad(outputs, leaves, u, create_graph=True, materialize_grads=True)
        jv = self._vjps(jtu, [u], vectors)  # (K, N, ...)
        z = outputs.detach().requires_grad_()
        slopes = torch.autograd.grad(self.gradients.loss(z, y).sum(), z, create_graph=True)
        return self._vjps([outputs], leaves, self._vjps(slopes, [z], jv))

    def _vjps(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
        """Gradients (K, ...) of the inputs for K vectors (K, ...) per output; zeros where none reaches an input."""
        pairs = [(o, v) for o, v in zip(outputs, vectors, strict=True) if o.requires_grad]
        n = len(vectors[0])
        if not pairs:
            return [i.new_zeros(n, *i.shape) for i in inputs]
        parts = [
            self._vjps_without_chunking(
                [o for o, _ in pairs], inputs, [v[k : k + MAX_VECTORS_PER_BACKWARD] for _, v in pairs]
            )
            for k in range(0, n, MAX_VECTORS_PER_BACKWARD)
        ]
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    def _vjps_without_chunking(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor]
    ) -> list[Tensor]:
        if self._vmaps:
            try:
                return batched_vjp(outputs, inputs, vectors)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # an op without a batching rule; what else fails, fails again below
                self._vmaps = False
        return vjp_one_by_one(outputs, inputs, vectors)


def check_depends_on_parameters(loss: Tensor) -> None:
    """Raise OutputError where no path with a gradient leads from the parameters to the loss."""
    if not loss.requires_grad:
        raise OutputError(
            "the loss does not depend on the chosen parameters by any path with a gradient (detached, or no_grad?)"
        )


def _output_at_label(outputs: Tensor, label: Tensor) -> Tensor:
    return outputs.flatten(1).gather(1, label[:, None])[:, 0]
