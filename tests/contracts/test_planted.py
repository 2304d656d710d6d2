"""The laws can fail: a fault is planted, the law catches it. First in methods made up here, then in the product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from contracts import (
    common,
    test_awkward,
    test_bad_input,
    test_bounds,
    test_computes_less,
    test_contracts,
    test_dtype_device,
    test_interrupt,
    test_leaves_no_trace,
    test_seed,
    trace,
)
from references import test_gradients
from unboxed import rng
from unboxed.cards import Card
from unboxed.engine.optimize import constraints
from unboxed.errors import UnboxedError
from unboxed.model import buffer_writes, first_forward, hooks, relu_rules, state
from unboxed.testing import contracts

Fault = pytest.raises((AssertionError, pytest.fail.Exception))


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Enter a method of our own making among the cards; gives its name."""

    def enter(work: Callable[..., Any], example: Callable[..., Any] = lambda method, box, x, y: method(box, x)) -> str:
        card = Card(work, "attribution", "Planted", "", "", "", example)
        monkeypatch.setitem(common.CARDS, "planted", card)
        return "planted"

    return enter


def check_run_contracts(name: str, model: str) -> None:
    contracts.check_run_contracts(common.CARDS[name], model)


def check_double_precision_contracts(name: str, model: str) -> None:
    contracts.check_double_precision_contracts(common.CARDS[name], model)


def covered(check: Callable[[str, str], None], model: str) -> None:
    """The covering set's own pairs of a model: one of them sees a fault, if there is one."""
    pairs = [(name, m) for name, m in test_contracts.chosen() if m == model]
    assert pairs
    for name, m in pairs:
        try:
            check(name, m)
        except UnboxedError as error:  # DeepLIFT itself sees that its shares don't add up, and refuses
            pytest.fail(f"{name} refuses {m}, which it can take: {error}")


@dataclass(frozen=True)
class Images:
    images: Tensor


# ---- methods with a fault --------------------------------------------------------------------------------------------


def test_a_correct_method_passes(method: Callable[..., str]) -> None:
    """What the faults below are deviations from."""

    def honest(box: ub.Box, x: Tensor, *, batch_size: Any = "auto") -> Tensor:
        return box.read(x, ["conv1"], batch_size=batch_size)["conv1"]

    name = method(honest)
    check_run_contracts(name, "plain")
    check_double_precision_contracts(name, "plain")
    check_double_precision_contracts(name, "inplace_relu")
    test_computes_less.test_bounded_batches.check(name)
    test_bad_input.test_inputs.check(name)


def leaves_eval(box: ub.Box, x: Tensor) -> None:
    box.model.eval()


def leaves_a_hook(box: ub.Box, x: Tensor) -> None:
    box.model.conv1.register_forward_hook(lambda *args: None)


def leaves_gradients(box: ub.Box, x: Tensor) -> None:
    box.model(box.inputs.encode(x)).sum().backward()


def leaves_frozen(box: ub.Box, x: Tensor) -> None:
    box.model.requires_grad_(False)


def leaves_no_grad(box: ub.Box, x: Tensor) -> None:
    torch.set_grad_enabled(False)


def leaves_statistics(box: ub.Box, x: Tensor) -> None:
    box.model.train()
    box.model(box.inputs.encode(x))


def leaves_a_new_buffer(box: ub.Box, x: Tensor) -> None:
    box.model.norm.running_mean = box.model.norm.running_mean.clone()


def leaves_a_drawn_number(box: ub.Box, x: Tensor) -> None:
    torch.rand(1)


def leaves_a_seed(box: ub.Box, x: Tensor) -> None:
    torch.manual_seed(0)


def leaves_x_changed(box: ub.Box, x: Tensor) -> None:
    x.mul_(0.5)


def leaves_x_requiring_a_gradient(box: ub.Box, x: Tensor) -> None:
    x.requires_grad_()


def leaves_a_mode(box: ub.Box, x: Tensor) -> None:
    state.SharedDropoutMaskMode().__enter__()


LEAVING = [f for n, f in list(globals().items()) if n.startswith("leaves_")]


@pytest.mark.parametrize("work", LEAVING, ids=lambda f: f.__name__)
def test_traces_are_seen(method: Callable[..., str], work: Callable[..., None]) -> None:
    try:
        with Fault:
            check_run_contracts(method(work), "batchnorm_in_train_mode")
    finally:
        torch.set_grad_enabled(True)
        while torch.overrides._get_current_function_mode_stack():
            torch.overrides._pop_mode()


def test_a_trace_after_a_failure_is_seen(method: Callable[..., str]) -> None:
    def careless(box: ub.Box, x: Tensor) -> Tensor:
        flags = [m.training for m in box.model.modules()]
        box.model.eval()
        out = box.model(box.inputs.encode(x))
        for m, flag in zip(box.model.modules(), flags, strict=True):
            m.training = flag
        return out.detach()

    name = method(careless)
    with pytest.raises(AssertionError, match="after an exception in module call 1 of"):
        check_run_contracts(name, "batchnorm_in_train_mode")


def test_rows_that_see_one_another_are_seen(method: Callable[..., str]) -> None:
    def mixes(box: ub.Box, x: Tensor, *, batch_size: Any = "auto") -> Tensor:
        parts = x.split(batch_size if batch_size != "auto" else len(x))
        return torch.cat([part - part.mean(0) for part in parts])

    with Fault:
        check_double_precision_contracts(method(mixes), "plain")


def test_global_randomness_is_seen(method: Callable[..., str]) -> None:
    with Fault:
        check_run_contracts(method(lambda box, x: x + torch.rand(())), "plain")


def test_an_unused_seed_is_seen(method: Callable[..., str]) -> None:
    def deaf(box: ub.Box, x: Tensor, *, seed: int = 0) -> Tensor:
        return x

    with Fault:
        test_seed.test_another_seed_another_draw.check(method(deaf))


def test_low_precision_results_are_seen(method: Callable[..., str]) -> None:
    with Fault:
        check_run_contracts(method(lambda box, x: x.half()), "plain")


@pytest.mark.parametrize("wrong", [torch.zeros_like, lambda x: x / 0, lambda x: x * 1.001])
def test_wrong_images_are_seen(method: Callable[..., str], wrong: Callable[[Tensor], Tensor]) -> None:
    """Blank, not finite, or different from that on the plain model."""

    def paints(box: ub.Box, x: Tensor) -> Tensor:
        return wrong(x) if isinstance(box.model, nn.Sequential) else x

    with Fault:
        check_double_precision_contracts(method(paints), "sequential")


def test_bare_errors_are_seen(method: Callable[..., str]) -> None:
    def fails(box: ub.Box, x: Tensor) -> Tensor:
        raise ValueError(f"bad input: {x}")

    with pytest.raises(ValueError):
        test_bad_input.test_inputs.check(method(fails))


def test_accepted_nonsense_is_seen(method: Callable[..., str]) -> None:
    with Fault:
        test_bad_input.test_inputs.check(method(lambda box, x: x))


def test_invalid_images_are_seen(method: Callable[..., str]) -> None:
    with Fault:
        check_run_contracts(method(lambda box, x: Images(x + 1e-6 + 0.5)), "plain")


def test_unbounded_batches_are_seen(method: Callable[..., str]) -> None:
    def greedy(box: ub.Box, x: Tensor, *, batch_size: Any = "auto") -> Tensor:
        return box(x, batch_size=len(x))

    with Fault:
        test_computes_less.test_bounded_batches.check(method(greedy))


def test_a_second_forward_is_seen(method: Callable[..., str]) -> None:
    def twice(box: ub.Box, x: Tensor) -> Tensor:
        return box(x) + box(x)

    with Fault:
        test_computes_less.test_one_evaluation_per_gradient.check(method(twice))


def test_a_swallowed_ctrl_c_is_seen(method: Callable[..., str]) -> None:
    def swallows(box: ub.Box, x: Tensor) -> Tensor:
        try:
            return box(x)
        except KeyboardInterrupt:
            return x

    with Fault:
        test_interrupt.test_short_work_lets_ctrl_c_through.check(method(swallows))


# ---- faults in the product -------------------------------------------------------------------------------------------


@contextmanager
def nothing(*args: Any, **kwargs: Any) -> Iterator[None]:
    yield


def test_flags_that_are_not_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def flags(modules: Any, mode: str) -> Iterator[None]:
        for m in modules:
            m.training = False
        yield

    monkeypatch.setattr(state, "setting_train_flags", flags)
    with Fault:
        test_leaves_no_trace.test_opening_a_model.check("batchnorm_in_train_mode")


def test_flags_put_back_by_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """The obvious way: remember the root's flag, call eval() and train(flag)."""

    @contextmanager
    def flags(modules: Any, mode: str) -> Iterator[None]:
        training = modules[0].training
        modules[0].eval()
        yield
        modules[0].train(training)

    monkeypatch.setattr(state, "setting_train_flags", flags)
    with Fault:
        test_leaves_no_trace.test_opening_a_model.check("overrides_train")


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("counts_calls", "preserving_tensor_values"),
        ("reassigns_buffer", "preserving_buffer_registration"),
        ("registers_buffer", "preserving_buffer_registration"),
    ],
)
def test_buffers_that_are_not_put_back(monkeypatch: pytest.MonkeyPatch, model: str, part: str) -> None:
    monkeypatch.setattr(buffer_writes, part, nothing)
    with Fault:
        test_leaves_no_trace.test_opening_a_model.check(model)
    if model != "registers_buffer":  # that is over once the box is open
        with Fault:
            covered(check_run_contracts, model)


def test_generators_that_are_not_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "forking_rngs_with_lock", nothing)
    with Fault:
        covered(check_run_contracts, "random_noise")


def test_one_dropout_mask_for_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "SharedDropoutMaskMode", nothing)
    monkeypatch.setattr(first_forward, "is_batch_dependent", lambda *args: False)  # which would see it
    with Fault:
        covered(check_double_precision_contracts, "dropout_always_on")


def test_rows_that_couple_and_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_forward, "is_batch_dependent", lambda *args: False)
    with Fault:
        covered(check_double_precision_contracts, "random_noise_per_row")
    with Fault:
        covered(check_double_precision_contracts, "batchnorm_without_statistics")


def test_a_hook_that_keeps_no_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    meet = hooks._ActivationRecorder.on_op

    def careless(self: Any, path: str, op: str | None, h: Tensor) -> Tensor | None:
        before = set(self.acts)
        new = meet(self, path, op, h)
        self.acts.update(dict.fromkeys(set(self.acts) - before, h))
        return new

    monkeypatch.setattr(hooks._ActivationRecorder, "on_op", careless)
    with Fault:
        test_awkward.test_layers_read_as_they_were_given.check("inplace_relu")


def maps_by_hand() -> dict[str, torch.Tensor]:
    x, k = test_gradients.images(), torch.tensor([2, 0, 3])
    return {name: test_gradients.plain_by_hand(x, k, signal) for name, signal in test_gradients.SIGNALS.items()}


def test_a_rule_that_misses_a_relu(monkeypatch: pytest.MonkeyPatch) -> None:
    relus = relu_rules._rectifier_nodes
    monkeypatch.setattr(relu_rules, "_rectifier_nodes", lambda *args: relus(*args)[:1])
    with Fault:
        test_gradients.test_every_spelling_against_the_chain_rule("functional_relu", maps_by_hand())


def test_a_rule_for_modules_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer's guided backprop with F.relu: silently the plain gradient."""
    monkeypatch.setattr(relu_rules, "_rectifier_nodes", lambda *args: [])
    with Fault:
        test_gradients.test_every_spelling_against_the_chain_rule("functional_relu", maps_by_hand())


def test_rows_that_draw_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    def alike(fill: Any, like: Tensor, parts: tuple[int | str, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(rng.derive_seed(*parts))
        return fill(torch.empty_like(like[0]), generator=generator).expand_as(like).clone()

    monkeypatch.setattr(rng, "_fill_rows_with_own_generators", alike)
    with Fault:
        test_seed.test_rows_draw_for_themselves.check("pgd")


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("l2", 0.5), ("l1", 0.3)])
def test_a_ball_that_holds_nothing(norm: str, eps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for ball in constraints.BALL_BY_NORM.values():
        monkeypatch.setattr(ball, "project", lambda self, x, center: x)
    monkeypatch.setattr(constraints.Constraint, "apply", lambda self, x: x)
    with Fault:
        test_bounds.test_pgd_stays_in_its_ball.check("plain", norm, eps, {"step": 10.0})


def test_inputs_that_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ub.Pixels, "check", lambda self, x: x)
    with Fault:
        test_bad_input.test_inputs.check("gradient")


def test_work_in_the_models_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 the small steps vanish."""
    accept = ub.Box.validate_inputs
    monkeypatch.setattr(ub.Box, "validate_inputs", lambda self, x: accept(self, x).to(self.model_dtype))
    with Fault:
        test_dtype_device.test_small_steps_survive_a_bfloat16_model()


def test_a_snapshot_sees_each_of_its_parts() -> None:
    """Every kind of entry differs when it should: a snapshot that always agrees is none."""
    model = common.make_case("batchnorm").box.model
    before = trace.snapshot(model)
    assert trace.changes(before, trace.snapshot(model)) == []
    model.norm.running_mean.add_(1)
    model.conv1.weight.data.mul_(2)
    model.conv2.weight.grad = torch.zeros_like(model.conv2.weight)
    model.fc.bias.requires_grad_(False)
    model.relu1.training = True
    model.extra = 1
    seen = trace.changes(before, trace.snapshot(model))
    wanted = {"norm.running_mean", "conv1.weight", "conv2.weight grad", "fc.bias requires_grad", "relu1 training"}
    assert {*wanted, " attributes"} == set(seen)
