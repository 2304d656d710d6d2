"""A call that does not fit a function is refused by one error, which names the argument that was meant."""

from __future__ import annotations

import copy
import inspect
import traceback
from typing import Any

import pytest

import unboxed as ub
from contracts.common import CARDS
from unboxed.argument_names import PEER_NAMES, naming_arguments
from unboxed.errors import ArgumentError, InputError, ModelError

CHECKS = (ub.checks.verdict, ub.checks.rank_methods, ub.checks.deletion, ub.checks.insertion, ub.checks.infidelity)
EVALUATIONS = (ub.robustness.evaluate, ub.robustness.evaluate_outputs)
FUNCTIONS = (ub.Box, ub.load, ub.report, ub.explain, ub.doctor, *EVALUATIONS, *CHECKS)


@pytest.mark.parametrize(
    ("function", "name", "meant"),
    [
        (ub.adversarial.pgd, "epsilon", "eps="),  # foolbox
        (ub.adversarial.pgd, "epsilons", "eps="),
        (ub.adversarial.pgd, "abs_stepsize", "step="),
        (ub.adversarial.pgd, "alpha", "step="),  # torchattacks
        (ub.adversarial.pgd, "iters", "steps="),
        (ub.adversarial.square, "n_queries", "queries="),
        (ub.adversarial.carlini_wagner, "stepsize", "lr="),
        (ub.attribution.gradient, "targets", "target="),
        (ub.attribution.integrated_gradients, "n_step", "n_steps="),
        (ub.attribution.lime, "n_sample", "n_samples="),
        (ub.attribution.kernel_shap, "nsamples", "n_samples="),  # shap
        (ub.attribution.occlusion, "sliding_window_shapes", "window="),  # captum
        (ub.attribution.grad_cam, "target_layers", "layer="),  # pytorch-grad-cam
        (ub.attribution.grad_cam, "upsampl", "upsample="),
        (ub.robustness.evaluate, "epsilons", "eps="),
        (ub.robustness.calibration, "bins", "n_bins="),
        (ub.Box, "class_names", "classes="),
        (ub.load, "checkpoint", "weights="),
        (ub.report, "output_dir", "out="),
        (ub.explain, "method", "methods="),
    ],
)
def test_of_a_wrong_name_the_right_one_is_said(function: Any, name: str, meant: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        function(**{name: 1})
    assert str(caught.value) == f"{function.__name__}() takes no {name}=; did you mean {meant}?"


def test_labels_beside_the_data_are_led_to_their_place() -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    x, y = ub.data.digits("test").first(4)
    others = (ub.robustness.calibration, ub.robustness.corruptions, ub.report, ub.activations.top_examples)
    functions: list[Any] = [*EVALUATIONS, *others]
    for function in functions:
        for labels in (y, y.numpy()):
            with pytest.raises(ArgumentError, match=r"takes the labels with the examples, as \(x, y\)"):
                function(box, x, labels)


@pytest.mark.parametrize("key", CARDS)
def test_every_method_leads_from_the_names_of_others_to_its_own(key: str) -> None:
    method, taken = CARDS[key].method, {a for n, s in CARDS[key].settings.items() for a in (n, *s.aliases)}
    for name in {peer for peers in PEER_NAMES.values() for peer in peers.split()} - {*taken, "box"}:
        meant = {f"{ours}=" for ours, peers in PEER_NAMES.items() if name in peers.split() and ours in taken}
        with pytest.raises(ArgumentError, match=rf"\b{name}=") as caught:
            method(**{name: 1})
        assert not meant or any(f"did you mean {setting}?" in str(caught.value) for setting in meant)
    with pytest.raises(ArgumentError, match=r"takes no no_such_setting=; (there are|did you mean) \w+="):
        method(no_such_setting=1)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_functions_without_a_card_refuse_so_too(function: Any) -> None:
    with pytest.raises(ArgumentError, match="takes no no_such_setting="):
        function(no_such_setting=1)


def test_the_known_names_lead_to_settings_that_there_are() -> None:
    settings = {n for card in CARDS.values() for n in card.settings}
    settings |= {n for function in FUNCTIONS for n in inspect.signature(function).parameters}
    assert {*PEER_NAMES} <= settings


def test_what_a_call_lacks_or_has_twice_is_said() -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    x, _ = ub.data.digits("test").first(2)
    gradient: Any = ub.attribution.gradient
    opened: Any = ub.Box
    with pytest.raises(ArgumentError, match=r"^gradient\(\) needs x=, too$"):
        gradient(box)
    with pytest.raises(ArgumentError, match=r"^Box\(\) needs inputs=, too: ub.Pixels\(.*ub.Features\("):
        opened(box.model)
    with pytest.raises(ArgumentError, match=r"^gradient\(\) got x twice"):
        gradient(box, x, x=x)
    with pytest.raises(ArgumentError, match=r"^gradient\(\) takes box, x, target.* by their position, and by name"):
        gradient(box, x, *range(20))
    with pytest.raises(ArgumentError, match=r"iters=; did you mean steps=\?.*alpha=; did you mean step=\?"):
        ub.adversarial.pgd(box, x, iters=3, alpha=0.1, eps=0.1)  # type: ignore[call-arg]


def test_the_error_is_a_type_error_and_an_error_of_inputs_without_another_below() -> None:
    with pytest.raises(TypeError) as caught:
        ub.attribution.gradient(targets=1)  # type: ignore[call-arg]
    assert isinstance(caught.value, InputError)
    assert "unexpected keyword" not in "".join(traceback.format_exception(caught.value))


def test_type_errors_of_the_work_itself_stay_as_they_are() -> None:
    def inner(a: int) -> int:
        return a

    @naming_arguments
    def outer(a: int, *, fail: str = "") -> int:
        return inner(a, epsilon=1) if fail else a + "1"  # type: ignore

    with pytest.raises(TypeError, match="unexpected keyword argument 'epsilon'") as caught:
        outer(1, fail="inner")
    assert not isinstance(caught.value, ArgumentError)
    with pytest.raises(TypeError, match="unsupported operand") as caught:
        outer(1)
    assert not isinstance(caught.value, ArgumentError)


def test_a_device_leads_to_the_model() -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    for call in (lambda: ub.Box(box.model, box.inputs, device="cuda"), lambda: box.to("cuda"), lambda: box.cuda()):
        with pytest.raises(
            (ArgumentError, AttributeError), match=r'a box runs where its model is.* model\.to\("cuda"\)'
        ):
            call()
    assert not hasattr(box, "to")
    with pytest.raises(AttributeError, match=r"its model has: box\.model\.parameters$"):
        box.parameters()
    with pytest.raises(AttributeError, match=r"^a box has no attribute 'prametrs'$"):
        box.prametrs  # noqa: B018
    assert repr(copy.copy(box)) == repr(copy.deepcopy(box)) == repr(box)


def test_a_method_without_a_target_says_so() -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    x = box.noise(2)
    for call in (lambda: ub.attribution.rollout(box, x, 1), lambda: ub.attribution.rollout(box, x, target=1)):
        with pytest.raises(ArgumentError, match=r"no target.* the same for each"):
            call()
    others = [card for card in ub.cards() if card.family == "attribution" and card.method is not ub.attribution.rollout]
    assert all([*inspect.signature(card.method).parameters][:3] == ["box", "x", "target"] for card in others)


def test_load_of_a_module_says_what_opens_it() -> None:
    model, _ = ub.zoo.load("digits-cnn")
    for given in (model, type(model)):
        with pytest.raises(ModelError, match=r"open a module by ub\.Box\(model, inputs\), after ub\.loading\.weights"):
            ub.load(given, "best.pt")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="got dict: a model is zoo:NAME"):
        ub.load({})  # type: ignore[arg-type]
