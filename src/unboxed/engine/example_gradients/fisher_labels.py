"""Labels under which the gradients of examples have the Fisher information as their second moment.

The Fisher of a model is the mean over its inputs of E[g g^T], for labels that the model itself draws: for the losses
that fit `box.outputs` it equals the Gauss-Newton matrix (Martens 2020, section 9). Each kind of it is a sum over pairs
of labels and weights, so that everything else needs gradients of a loss at labels, and nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from ...box import Box
from ...errors import InputError
from ...rng import hashed_uniform
from .gradients import ExampleGradients
from .losses import resolve_loss

FisherKind = Literal["sampled", "exact", "empirical"]
WeightedLabels = tuple[Tensor, Tensor]  # labels (N,) or (N, K), weights (N,) or () for all


def check_fisher_kind_fits_loss(gradients: ExampleGradients, kind: FisherKind) -> None:
    """Raise InputError where the loss is the caller's own: a model draws labels of its own loss alone."""
    if kind != "empirical" and gradients.loss is not resolve_loss(gradients.box, None):
        wanted = 'fisher="empirical" with a loss of your own, or no loss'
        raise InputError(f"fisher={kind!r} draws labels from what the outputs mean, which a loss may not fit; {wanted}")


def fisher_labels(
    box: Box, z: Tensor, y: Tensor, rows: Tensor, kind: FisherKind, seed: int = 0
) -> Iterator[WeightedLabels]:
    """Pairs of labels and weights w whose sum of w g g^T is, or has as its mean, the Fisher of each example.

    Args:
        box: The opened model.
        z: Logits (N, K), or outputs of a regression model.
        y: The examples' labels (N, ...), for "empirical".
        rows: (N,) indices of the examples in their data, by which labels are drawn: batches change nothing.
        kind: "sampled" draws one label per example from the model; "exact" sums over all that it could draw, one
            backward pass per output; "empirical" takes the labels of the data, and is no Fisher.
        seed: Seed of the labels that are drawn.
    """
    if kind == "empirical":
        return iter([(y, z.new_ones(()))])
    z = z.detach()
    if kind == "sampled":
        return iter([(_sample_labels_from_model(box, z, rows, seed), z.new_ones(()))])
    return _all_weighted_labels(box, z)


def _sample_labels_from_model(box: Box, z: Tensor, rows: Tensor, seed: int) -> Tensor:
    """One label per example, drawn from the model's own distribution of it."""
    flat = z.flatten(1)
    if box.outputs == "regression":  # half a squared error is the loss of a normal distribution of variance 1
        u = hashed_uniform(seed, rows, 0, 2 * flat.shape[1]).to(z).double()
        radius, angle = (-2 * torch.log1p(-u[:, ::2])).sqrt(), 2 * math.pi * u[:, 1::2]  # Box-Muller
        return z + (radius * angle.cos()).to(z).view_as(z)
    u = hashed_uniform(seed, rows, 0, flat.shape[1]).to(z.device)
    if box.outputs == "multilabel":
        return (u < flat.sigmoid()).to(z).view_as(z)
    below = flat.double().softmax(1).cumsum(1) < u[:, :1]
    return below.sum(1).clamp(max=flat.shape[1] - 1)


def _all_weighted_labels(box: Box, z: Tensor) -> Iterator[WeightedLabels]:
    """All labels, with their probabilities; or labels with the same second moment of the gradient, one per output."""
    if box.outputs == "regression":
        yield from ((z - _one_hot_outputs(z, k), z.new_ones(())) for k in range(z[0].numel()))
    elif box.outputs == "multilabel":
        p = z.sigmoid()
        sd = (p * (1 - p)).sqrt()
        yield from ((p - sd * _one_hot_outputs(z, k), z.new_ones(())) for k in range(z[0].numel()))
    else:
        p = z.softmax(1)  # (N, K)
        yield from ((torch.full(z.shape[:1], k, device=z.device), p[:, k]) for k in range(z.shape[1]))


def _one_hot_outputs(z: Tensor, k: int) -> Tensor:
    """Shaped like z: 1 at the k-th output of each example."""
    unit = torch.zeros_like(z)
    unit.flatten(1)[:, k] = 1
    return unit
