"""What the contract tests share: every card, every awkward model, and which method refuses which model."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

import unboxed as ub
from check_each import check_each
from unboxed.cards import Card
from unboxed.errors import InputError, LayerError, OutputError, RuleError, UnboxedError
from unboxed.testing import models
from unboxed.testing.cases import (
    MethodCase,
    call_example,
    call_example_with_warnings,
    case_labels,
    has_parameters,
    make_case,
    open_box,
    result_difference_texts,
    result_tensors,
)
from unboxed.testing.contracts import cached_result

__all__ = [
    "CARDS",
    "MODELS",
    "REFUSED",
    "MethodCase",
    "cached_result",
    "call_example",
    "call_example_with_warnings",
    "case_labels",
    "each_method",
    "has_parameters",
    "make_case",
    "open_box",
    "result_difference_texts",
    "result_tensors",
    "shared_case",
]  # fmt: skip

CARDS: dict[str, Card] = {c.method.__name__: c for c in ub.cards() if c.method.__module__.startswith("unboxed.")}
"""The methods of Unboxed; cards that other tests attach to methods of their own do not enter."""
MODELS = tuple(models.MODELS)
RULED = ("guided_backprop", "deconvnet")
GRADIENTS = ("gradient", *RULED, "morph", "class_image", "pgd", "inversion", "inversions", "minimal_deactivation")

REFUSED: dict[tuple[str, str], type[UnboxedError]] = {}
"""Which method refuses which model, by which error. Any other refusal is a defect, and so is a result in its place."""


def refuse(methods: tuple[str, ...], models: tuple[str, ...], error: type[UnboxedError]) -> None:
    REFUSED.update({(m, n): error for m in methods for n in models if (m, n) not in REFUSED})


refuse(RULED, ("lstm", "parameterless"), RuleError)  # no ReLU at all
refuse(RULED, ("checkpointed_reentrant",), RuleError)
refuse(GRADIENTS, ("checkpointed_reentrant",), UnboxedError)  # torch refuses autograd.grad there
PATHS = ("gradient_x_input", "smoothgrad", "integrated_gradients", "expected_gradients")
refuse(PATHS, ("checkpointed_reentrant",), UnboxedError)  # likewise
refuse(("feature", "channels", "caricature"), ("checkpointed_reentrant",), UnboxedError)
refuse(("maps", "filters"), ("parameterless", "exported_flat"), LayerError)  # no module runs
refuse(
    ("nearest_neighbors", "nearest_training_examples", "prototypes", "discover", "dictionary"),
    ("parameterless", "exported_flat"),
    LayerError,
)  # no layer to compare in
refuse(("discover", "dictionary"), ("relu_logits",), LayerError)  # no hidden layer to rebuild
refuse(("rewrite", "ablation", "patching", "cka"), ("parameterless", "exported_flat"), LayerError)  # likewise
refuse(("deep_visualization", "deepdream", "texture", "style_transfer"), ("checkpointed_reentrant",), OutputError)
refuse(("filters",), ("lstm",), LayerError)  # no weights on pixels
UNITS = ("statistics", "top_examples", "receptive_field", "projections")
refuse(UNITS, ("parameterless", "exported_flat"), LayerError)  # no module runs
refuse(("projections",), ("checkpointed_reentrant",), UnboxedError)  # torch refuses autograd.grad there
CAMS = tuple(n for n, c in CARDS.items() if c.family == "attribution" and "layer" in c.settings)
refuse(("guided_grad_cam",), ("lstm", "parameterless"), RuleError)  # as guided backprop
refuse(CAMS, ("mlp", "relu_logits", "lstm", "parameterless", "exported_flat"), LayerError)  # no positions
refuse(CAMS, ("checkpointed_reentrant",), UnboxedError)  # torch refuses autograd.grad there
SCRIPTED = ("scripted_part", "scripted_and_optimized")
refuse(("deep_lift",), ("lstm", "checkpointed", "checkpointed_reentrant", *SCRIPTED), RuleError)  # ops out of sight
refuse(("deep_lift",), ("batch_maximum", "batch_gate"), RuleError)  # no rule for the largest of a batch
NEED_ATTENTION = tuple(n for n, c in CARDS.items() if "attention" in c.needs)
refuse(NEED_ATTENTION, tuple(n for n in MODELS if n not in ("transformer", "attention")), LayerError)  # no attention
refuse(("legrad", "logit_lens", "tuned_lens"), ("attention",), LayerError)  # its residual is added outside of a block

refuse(
    ("attn_lrp", "lrp"), ("scripted_part", "scripted_and_optimized", "checkpointed_reentrant"), RuleError
)  # hidden ops
refuse(("fab", "lbfgs", "ddn", "fmn"), ("checkpointed_reentrant",), OutputError)  # torch refuses autograd.grad there
refuse(("patch", "universal", "fooling"), ("checkpointed_reentrant",), OutputError)  # likewise
refuse(("fgsm", "bim", "mi_fgsm"), ("checkpointed_reentrant",), UnboxedError)  # torch refuses autograd.grad there
refuse(("deepfool", "carlini_wagner"), ("checkpointed_reentrant",), OutputError)  # likewise
refuse(("apgd", "auto_attack"), ("checkpointed_reentrant",), UnboxedError)  # likewise

EXAMPLE_GRADIENTS = ("gradient_dot", "tracin", "source", "trak", "influence_functions", "group", "perturb")
BATCH_DEPENDENT = (
    "batchnorm_without_statistics", "batchnorm_on_batch_statistics", "batch_maximum", "batch_gate",
    "random_noise_per_row",
)  # fmt: skip
refuse(EXAMPLE_GRADIENTS, BATCH_DEPENDENT, OutputError)  # no example has a loss of its own
refuse(EXAMPLE_GRADIENTS, ("checkpointed_reentrant",), OutputError)  # torch refuses autograd.grad there
refuse(EXAMPLE_GRADIENTS, ("parameterless",), LayerError)
refuse(("representer_points",), ("parameterless", "exported_flat", "relu_logits"), LayerError)  # no linear last layer


_case_of = cache(make_case)


def shared_case(model: str, dtype: torch.dtype | None = None, n: int = 3) -> MethodCase:
    """A box that tests share, for those which change nothing in its model, and a batch of the test's own."""
    c = _case_of(model, dtype, n)
    return MethodCase(c.box, c.x.clone(), c.y.clone())


def each_method(
    contract: str, chosen: Callable[[Card], bool] = lambda card: True
) -> Callable[[Callable[[str], None]], Any]:
    """Makes a check of one method a test of each family: of all methods, or the chosen, that take the plain model.

    Those exempt from the contract are left out. The check of one method stays reachable, as `check` of the test.
    """
    families: dict[str, list[str]] = {}
    for name, card in CARDS.items():
        if chosen(card) and (name, "plain") not in REFUSED and contract not in card.exempt:
            families.setdefault(card.family, []).append(name)

    def decorate(check: Callable[[str], None]) -> Any:
        @pytest.mark.parametrize("family", families)
        def test(family: str) -> None:
            check_each(families[family], check)

        test.__doc__, test.check = check.__doc__, check  # type: ignore[attr-defined]
        return test

    return decorate


refuse(
    ("unrolled", "removal"), ("frozen", "parameterless", "refuses_train", "exported", "exported_flat"), UnboxedError
)  # no training
refuse(("unrolled", "removal"), ("spectral_normed", "checkpointed_reentrant"), UnboxedError)  # no second derivative

refuse(("self_influence",), ("parameterless",), LayerError)  # no parameters
refuse(
    ("self_influence",),
    (
        "batchnorm_without_statistics",
        "batchnorm_on_batch_statistics",
        "batch_maximum",
        "batch_gate",
        "random_noise_per_row",
    ),
    OutputError,
)  # no gradient of one example
refuse(("self_influence",), ("checkpointed_reentrant",), UnboxedError)  # torch refuses autograd.grad there
refuse(("probe",), ("parameterless", "exported_flat"), LayerError)  # no module runs
refuse(("shortcuts",), ("checkpointed_reentrant",), OutputError)  # torch refuses autograd.grad there
refuse(("dissect",), ("mlp", "relu_logits", "lstm", "parameterless", "exported_flat"), LayerError)  # no positions
NEED_TEXTS = tuple(n for n, c in CARDS.items() if "texts" in c.needs)
refuse(NEED_TEXTS, MODELS, InputError)  # these models take images
refuse(("causal_units",), ("mlp", "relu_logits", "lstm", "parameterless", "exported_flat"), LayerError)  # no positions
