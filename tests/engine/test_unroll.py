"""Trainings that can be run again, and differentiated through: finite differences, torch's optimizers, segments."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import unboxed as ub
from unboxed.engine.unroll.reverse import Trajectory, example_weight_gradients, plan_unroll
from unboxed.engine.unroll.second_order import MIN_QUERIES_FOR_SECOND_ORDER_MODE
from unboxed.engine.unroll.smoothness import MAX_NOISE_TO_SIGNAL, Smoothness, measure_smoothness
from unboxed.engine.unroll.training import Training
from unboxed.errors import DataError, InputError, ModelError
from unboxed.influence import ModelTraining

N, QUERIES = 24, 5  # as many queries as go back in one pass
INPUTS = ub.Pixels((1, 4, 4))


def flat(*hidden: nn.Module) -> nn.Module:
    """Without a bias before batch norm: Adam would normalize the rounding noise that is its gradient."""
    torch.manual_seed(1)
    bias = not any(isinstance(m, nn.BatchNorm1d) for m in hidden)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8, bias=bias), *hidden, nn.GELU(), nn.Linear(8, 3)).double()


def conv() -> nn.Module:
    torch.manual_seed(1)
    body = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.SiLU(), nn.MaxPool2d(2)
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(16, 3)).double()


class CalledTwice(nn.Module):
    """A batch norm that runs twice in a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fc, self.norm, self.out = nn.Linear(16, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(F.gelu(self.norm(self.fc(x.flatten(1))))))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gelu": flat,
    "dropout": lambda: flat(nn.Dropout(0.3)),
    "batchnorm": lambda: flat(nn.BatchNorm1d(8)),
    "cumulative batchnorm": lambda: flat(nn.BatchNorm1d(8, momentum=None)),
    "batchnorm without statistics": lambda: flat(nn.BatchNorm1d(8, track_running_stats=False)),
    "batchnorm called twice": CalledTwice,
    "conv": conv,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "lr": 0.1, "schedule": "constant"},
    "momentum": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2},
    "nesterov": {"optimizer": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=1e-2)},
    "dampening": {"optimizer": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.3), "schedule": "constant"},
    "adam": {"optimizer": "adam", "lr": 1e-2, "weight_decay": 1e-2},
    "adamw": {"optimizer": "adamw", "lr": 1e-2, "weight_decay": 1e-1},
}


def data(n: int = N) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, 1, 4, 4, generator=generator, dtype=torch.float64)
    x[:, :, 0, 0] = 0  # its weights never get a gradient: the root of Adam's average of squares is zero there
    return x, torch.randint(3, (n,), generator=generator)


def training(model: str, settings: str, **others: Any) -> ModelTraining:
    return ModelTraining(
        MODELS[model](), INPUTS, data(), **{"epochs": 3, "batch_size": 8, **SETTINGS[settings], **others}
    )


def scores(run: Training, segment: int | None = None) -> Tensor:
    x, y = data()
    return example_weight_gradients(run, Trajectory(run, segment or run.n_steps), x[:QUERIES], y[:QUERIES])


PAIRS = [*((m, "adamw") for m in MODELS), *(("batchnorm", s) for s in SETTINGS), ("dropout", "momentum")]


@pytest.mark.parametrize(("model", "settings"), PAIRS)
def test_gradients_are_finite_differences_of_the_whole_training(model: str, settings: str) -> None:
    run, (x, y) = training(model, settings, epochs=2), data()
    direction = torch.randn(N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    by_weight = scores(run) @ direction

    def error(h: float) -> float:
        high, low = (run.query_loss(run.run(1 + s * h * direction), x[:QUERIES], y[:QUERIES]) for s in (1, -1))
        difference = (high - low) / (2 * h)
        return float((difference - by_weight).norm() / difference.norm())

    assert any(error(h) < 1e-6 for h in (1e-4, 1e-5, 1e-3))


@pytest.mark.parametrize("settings", ["momentum", "adamw"])
def test_gradients_where_examples_are_left_out_are_finite_differences(settings: str) -> None:
    run, (x, y) = training("gelu", settings), data()
    weights = (torch.arange(N) % 3 > 0).double()
    trajectories = [Trajectory(run, segment, weights) for segment in (run.n_steps, 3)]
    by_weight, recomputed = (example_weight_gradients(run, t, x[:QUERIES], y[:QUERIES]) for t in trajectories)
    assert torch.equal(by_weight, recomputed)
    direction = torch.randn(N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    h = 1e-4
    high, low = (run.query_loss(run.run(weights + s * h * direction), x[:QUERIES], y[:QUERIES]) for s in (1, -1))
    difference = (high - low) / (2 * h)
    assert (difference - by_weight @ direction).norm() < 1e-6 * difference.norm()
    assert (by_weight - scores(run)).norm() > 1e-3 * by_weight.norm()


class Sequences(nn.Module):
    """Rows as a sequence: attention, layer norm, linear layers of three axes with and without a bias, one frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.attention = nn.Linear(4, 6, bias=False), nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm, self.mix, self.head = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.mix.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x[:, 0])
        h = self.norm(h + self.attention(h, h, h, need_weights=False)[0])
        return self.head(F.silu(self.mix(h)).mean(1))


ACTIVATIONS: dict[str, nn.Module] = {
    "relu in place": nn.ReLU(inplace=True), "relu6": nn.ReLU6(), "leaky_relu": nn.LeakyReLU(), "elu": nn.ELU(),
    "selu": nn.SELU(), "celu": nn.CELU(), "gelu": nn.GELU(), "gelu by tanh": nn.GELU("tanh"), "silu": nn.SiLU(),
    "mish": nn.Mish(), "softplus": nn.Softplus(beta=2), "softsign": nn.Softsign(), "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(), "logsigmoid": nn.LogSigmoid(), "hardtanh": nn.Hardtanh(-0.5, 0.5),
    "hardswish": nn.Hardswish(), "prelu": nn.PReLU(),
}  # fmt: skip


@pytest.mark.parametrize("model", [*ACTIVATIONS, "sequences"])
def test_many_queries_at_once_are_the_queries_one_by_one(model: str) -> None:
    """The second derivatives that are written out are torch's."""
    module = Sequences() if model == "sequences" else flat(ACTIVATIONS[model], nn.Linear(8, 8))
    run = ModelTraining(module.double(), INPUTS, data(), epochs=1, batch_size=8, lr=1e-2)
    x, y = data()
    trajectory = Trajectory(run, run.n_steps)
    first, last = (example_weight_gradients(run, trajectory, x[i : i + 1], y[i : i + 1]) for i in (0, QUERIES - 1))
    single = torch.cat([first, last])
    many = example_weight_gradients(run, trajectory, x[:QUERIES], y[:QUERIES])[[0, -1]]
    assert QUERIES >= MIN_QUERIES_FOR_SECOND_ORDER_MODE
    assert (many - single).norm() < 1e-10 * single.norm()


def test_weights_of_examples_that_are_seen_are_not_zero() -> None:
    by_weight = scores(training("gelu", "adamw"))
    assert by_weight.isfinite().all()
    assert (by_weight != 0).all()


@pytest.mark.parametrize("settings", ["sgd", "momentum", "nesterov", "dampening", "adam", "adamw"])
@pytest.mark.parametrize("model", ["gelu", "batchnorm"])
def test_the_step_is_that_of_torch(model: str, settings: str) -> None:
    """The same batches through torch's own optimizer, with its schedule."""
    run, (x, y) = training(model, settings), data()
    plain = MODELS[model]().train()
    made = SETTINGS[settings]["optimizer"]
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    named = {k: v for k, v in SETTINGS[settings].items() if k in ("lr", "weight_decay", "momentum")}
    optimizer = made(plain.parameters()) if callable(made) else kinds[made](plain.parameters(), **named)
    lr = optimizer.param_groups[0]["lr"]
    one_cycle = SETTINGS[settings].get("schedule", "one-cycle") == "one-cycle"
    cycles = not isinstance(optimizer, torch.optim.SGD)  # whose momentum stays what was asked for
    schedule = (
        torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=run.n_steps, cycle_momentum=cycles)
        if one_cycle
        else None
    )
    for batch in run.batches:
        optimizer.zero_grad()
        F.cross_entropy(plain(x[batch]), y[batch]).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    state = run.run()
    for name, h in plain.state_dict().items():
        found = state.get("parameter." + name, state.get("buffer." + name))
        assert torch.allclose(found.double(), h.double(), rtol=0, atol=1e-12), name


def test_fit_is_the_same_training() -> None:
    """`training.fit` with the same settings gives the same weights, dropout and order included."""
    model, (x, y) = MODELS["dropout"]().float(), data()
    x = x.float()
    run = ModelTraining(model, INPUTS, (x, y), epochs=2, batch_size=8, lr=1e-2, weight_decay=1e-2, seed=3)
    fitted = copy.deepcopy(model)
    dataset = list(zip(x, y.tolist(), strict=True))
    ub.training.fit(fitted, INPUTS, dataset, epochs=2, batch_size=8, lr=1e-2, weight_decay=1e-2, seed=3, quiet=True)  # type: ignore[arg-type]
    state = run.run()
    for name, h in fitted.state_dict().items():
        assert torch.allclose(state["parameter." + name], h, atol=1e-6), name


@cache
def training_with_dropout_and_scores() -> tuple[Training, Tensor]:
    run = training("dropout", "adamw")
    return run, scores(run)


@pytest.mark.parametrize("segment", [1, 2, 4, 5, 9])
def test_recomputed_states_are_the_stored_ones_bit_for_bit(segment: int) -> None:
    run, stored = training_with_dropout_and_scores()
    assert torch.equal(stored, scores(run, segment))


@pytest.mark.parametrize("model", ["dropout", "batchnorm", "cumulative batchnorm"])
def test_many_runs_at_once_are_the_runs_one_by_one(model: str) -> None:
    run, (x, y) = training(model, "adamw"), data()
    weights = torch.rand(3, N, dtype=torch.float64)
    states, single = run.run_many(weights), [run.run(w) for w in weights]
    for name, h in states.items():
        assert torch.allclose(h, torch.stack([s[name] for s in single]), rtol=0, atol=1e-12), name
    losses = torch.stack([run.query_loss(s, x, y) for s in single])
    assert torch.allclose(run.query_losses(states, x, y), losses, rtol=0, atol=1e-12)


def test_a_step_that_cannot_be_vectorized_runs_one_by_one() -> None:
    class Scaled(torch.autograd.Function):  # no setup_context, which torch.func asks for
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return 2 * g

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return Scaled.apply(self.fc(x.flatten(1)))

    torch.manual_seed(0)
    run = ModelTraining(Net().double(), INPUTS, data(), epochs=1, batch_size=8)
    weights = torch.rand(2, N, dtype=torch.float64)
    assert torch.equal(run.run_many(weights)["parameter.fc.weight"][1], run.run(weights[1])["parameter.fc.weight"])


def test_a_step_of_ones_own() -> None:
    """Gradient descent to a mean, in closed form: what an example's weight does after T steps."""
    values, steps, rate = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64), 20, 0.3

    def step(state: dict[str, Tensor], t: int, weights: Tensor) -> dict[str, Tensor]:
        return {"mean": state["mean"] - rate * (weights * (state["mean"] - values)).mean()}

    run = Training(step, {"mean": torch.zeros((), dtype=torch.float64)}, [torch.arange(3)] * steps,
                   lambda state, x, y: (state["mean"] - x[:, 0]))  # fmt: skip
    x = torch.zeros(2, 1, dtype=torch.float64)
    found = example_weight_gradients(run, Trajectory(run, 4), x, None)
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    mean = torch.zeros((), dtype=torch.float64)
    for _ in range(steps):
        mean = mean - rate * (w * (mean - values)).mean()
    (expected,) = torch.autograd.grad(mean, w)
    assert torch.allclose(found, expected.expand(2, 3), rtol=0, atol=1e-14)


def test_augmentation_is_keyed_by_the_step() -> None:
    def augment(x: Tensor, generator: torch.Generator) -> Tensor:
        return x + 0.1 * torch.rand(x.shape, generator=generator, dtype=x.dtype)

    plain, augmented, again = (training("gelu", "adamw", augment=a) for a in (None, augment, augment))
    assert torch.equal(scores(augmented), scores(again))
    assert not torch.allclose(scores(augmented), scores(plain))


def test_a_reseeded_training_starts_elsewhere_in_another_order() -> None:
    run = training("batchnorm", "adamw")
    other, again = run.reseed(5), run.reseed(5)
    assert not torch.equal(other.start["parameter.1.weight"], run.start["parameter.1.weight"])
    assert [b.tolist() for b in other.batches] != [b.tolist() for b in run.batches]
    assert torch.equal(other.run()["parameter.1.weight"], again.run()["parameter.1.weight"])


def test_the_plan_keeps_to_its_memory() -> None:
    run = training("gelu", "adamw")
    ample = plan_unroll(run, 20, 10**9)
    assert ample.stores_all_states
    assert ample.queries_per_pass == 20
    tight = plan_unroll(run, 20, 12 * run.state_bytes)
    assert tight.peak_bytes <= 12 * run.state_bytes
    assert not tight.stores_all_states
    assert tight.queries_per_pass < 20
    assert plan_unroll(run, 1, 10**9, store=False).peak_bytes < plan_unroll(run, 1, 10**9, store=True).peak_bytes
    with pytest.raises(InputError, match="takes at least"):
        plan_unroll(run, 20, 2 * run.state_bytes)


@pytest.mark.parametrize(("ratio", "smooth"), [(MAX_NOISE_TO_SIGNAL - 1e-3, True), (MAX_NOISE_TO_SIGNAL + 1e-3, False)])
def test_the_bound_of_smoothness(ratio: float, smooth: bool) -> None:
    assert Smoothness(torch.full((3,), ratio)).is_smooth is smooth


def test_a_smooth_training_has_little_noise_and_scores_that_predict() -> None:
    run, (x, y) = training("gelu", "sgd"), data()
    found = measure_smoothness(run, x[:QUERIES], y[:QUERIES], -scores(run))
    assert found.is_smooth
    assert found.prediction_error < 0.1
    wrong = measure_smoothness(run, x[:QUERIES], y[:QUERIES], scores(run))
    assert wrong.prediction_error > 1


def test_what_can_not_be_unrolled_is_refused() -> None:
    with pytest.raises(InputError, match="SGD, Adam and AdamW can be unrolled; got RMSprop"):
        training("gelu", "adam", optimizer=lambda p: torch.optim.RMSprop(p))
    with pytest.raises(InputError, match="amsgrad"):
        training("gelu", "adam", optimizer=lambda p: torch.optim.Adam(p, amsgrad=True))
    with pytest.raises(InputError, match="schedule must be"):
        training("gelu", "adam", schedule="cosine")
    with pytest.raises(InputError, match="optimizer must be one of"):
        training("gelu", "adam", optimizer="lion")
    with pytest.raises(InputError, match="ReduceLROnPlateau sets rates by losses"):
        training("gelu", "adam", schedule=torch.optim.lr_scheduler.ReduceLROnPlateau)
    with pytest.raises(InputError, match="the optimizer has none of the parameters"):
        training("gelu", "adam", optimizer=lambda p: torch.optim.SGD(flat().parameters(), 0.1))
    with pytest.raises(DataError, match="no labels"):
        ModelTraining(flat(), INPUTS, data()[0], epochs=1)
    with pytest.raises(InputError, match="nothing to train"):
        ModelTraining(flat().requires_grad_(False), INPUTS, data(), epochs=1)
    with pytest.raises(InputError, match="weights of the training examples"):
        training("gelu", "adam").run(torch.ones(5))
    with pytest.raises(InputError, match="indices of the 2 training examples"):
        Training(lambda s, t, w: s, {"a": torch.zeros(1)}, [torch.arange(3)], lambda s, x, y: x, n_examples=2)


def test_a_buffer_that_the_model_writes_is_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(16, 3)
            self.register_buffer("average", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            z = self.fc(x.flatten(1))
            if self.training:
                self.average.mul_(0.9).add_(0.1 * z.detach().mean(0))
            return z

    with pytest.raises(ModelError, match="writes its buffer 'average'"):
        ModelTraining(Counting(), INPUTS, (data()[0].float(), data()[1]), epochs=1)


def test_many_runs_warn_of_nothing() -> None:
    """torch remarks that an LSTM has no batching rule; what it does instead is right."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.lstm, self.fc = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.lstm(x[:, 0])[0][:, -1])

    training = ModelTraining(Recurrent(), INPUTS, (torch.rand(8, 1, 4, 4), torch.arange(8) % 3), epochs=1, batch_size=4)
    states = training.run_many(training.unit_example_weights(2))
    for name, h in training.run().items():
        torch.testing.assert_close(states[name][1], h)


class ScaledOnce(nn.Module):
    """A model with a buffer that is not saved, as position ids of transformers are."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.scale  # type: ignore[no-any-return]


def test_buffers_that_are_not_saved_stay_with_the_model() -> None:
    x, y = torch.rand(12, 4), torch.arange(12) % 3
    inputs = ub.Features(("a", "b", "c", "d"))
    training = ub.influence.ModelTraining(ScaledOnce(), inputs, (x, y), epochs=1, batch_size=4)
    state = training.run()
    box = training.box(state)
    weight = next(value for name, value in state.items() if str(name).endswith("linear.weight"))
    assert torch.equal(box.model.linear.weight, weight)
    assert box.model.scale == 2


@pytest.mark.parametrize("loss", [
        nn.CrossEntropyLoss(), lambda z, y: F.cross_entropy(z, y, reduction="none")[:, None], lambda z, y: z.square(),
])  # fmt: skip
def test_a_loss_gives_a_number_per_example(loss: Any) -> None:
    """A mean, or a column, would weight all examples alike."""
    with pytest.raises(InputError, match=r"a number per example, \(\d+,\)"):
        training("gelu", "sgd", loss=loss)


def test_what_the_optimizer_leaves_out_is_not_trained() -> None:
    some = training("gelu", "sgd", optimizer=lambda p: torch.optim.SGD(p[2:], 0.1))
    model = flat()
    model[1].requires_grad_(False)
    frozen = ModelTraining(model, INPUTS, data(), epochs=3, batch_size=8, optimizer="sgd", lr=0.1, schedule="constant")
    torch.testing.assert_close(scores(some), scores(frozen))
    assert torch.equal(some.box(some.run()).model[1].weight, flat()[1].weight)


class Branches(nn.Module):
    """With a layer that is never used, and one that is used for bright batches alone."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.main, self.unused, self.bright = nn.Linear(16, 3), nn.Linear(16, 3), nn.Linear(16, 3)
        self.threshold = threshold
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        z = self.main(x.flatten(1))
        return z + self.bright(x.flatten(1)) if x.mean() > self.threshold else z


@pytest.mark.parametrize("settings", ["momentum", "adam", "adamw"])
def test_parameters_without_a_gradient_do_not_decay(settings: str) -> None:
    """torch's optimizers skip them."""
    run = ModelTraining(Branches(0), INPUTS, data(), epochs=3, batch_size=8, **SETTINGS[settings])
    fitted = Branches(0)
    box = run.box(run.run())
    assert torch.equal(box.model.unused.weight, fitted.unused.weight)
    assert not torch.equal(box.model.bright.weight, fitted.bright.weight)
    assert not any("unused" in name for name in run.start)
    many = run.run_many(torch.ones(2, N, dtype=torch.float64))
    assert torch.allclose(many["parameter.main.weight"][1], box.model.main.weight, rtol=0, atol=1e-12)


def test_parameters_that_some_steps_do_not_use_are_refused_by_name() -> None:
    threshold = float(torch.stack([data()[0][b].mean() for b in training("gelu", "sgd").batches]).median())
    with pytest.raises(ModelError, match=r"'bright.weight' has (a|no) gradient in step \d"):
        ModelTraining(Branches(threshold), INPUTS, data(), epochs=3, batch_size=8, **SETTINGS["adamw"]).run()
    plain = {"optimizer": "sgd", "schedule": "constant", "lr": 0.1}
    run = ModelTraining(Branches(threshold), INPUTS, data(), epochs=3, batch_size=8, **plain)
    fitted, (x, y) = Branches(threshold), data()
    optimizer = torch.optim.SGD(fitted.parameters(), 0.1)
    for batch in run.batches:
        optimizer.zero_grad()
        F.cross_entropy(fitted(x[batch]), y[batch]).backward()
        optimizer.step()
    for name, h in fitted.named_parameters():
        assert torch.allclose(run.run()["parameter." + name], h, rtol=0, atol=1e-12), name
