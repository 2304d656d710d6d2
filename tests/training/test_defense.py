"""Adversarial training as a function on any loop: three losses, and all that they leave alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from contracts.trace import changes, snapshot
from unboxed.box import Box
from unboxed.errors import InputError, OutputError
from unboxed.inputs.pixels import Pixels
from unboxed.training import DEFENSES, PGD, Fast, Trades
from unboxed.training.defense import resolve_defense

INPUTS = Pixels((1, 6, 6), mean=0.5, std=0.25)
ALL = [Fast(0.1), PGD(0.1, steps=3), Trades(0.1, steps=3), PGD(0.5, steps=2, norm="l2")]
each = pytest.mark.parametrize("defense", ALL, ids=["fast", "pgd", "trades", "pgd-l2"])


def curved(*, dropout: float = 0.0, norm: bool = False) -> nn.Sequential:
    """A small model that is not linear."""
    middle = nn.BatchNorm1d(12) if norm else nn.Identity()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 12), middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(12, 3))


def batch(n: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 6, 6, generator=generator), torch.randint(3, (n,), generator=generator)


def flat(tensors: Any) -> Tensor:
    return torch.cat([h.detach().flatten() for h in tensors])


def gradients_of(model: nn.Module, loss: Tensor) -> Tensor:
    return flat(torch.autograd.grad(loss, list(model.parameters())))


# -- twins: the papers' equations, one example at a time ---------------------------------------------------------------


def kl(p: Tensor, q: Tensor) -> Tensor:
    return sum(p[k] * (p[k].log() - q[k].log()) for k in range(len(p)))  # type: ignore[return-value]


def climbed(model: nn.Module, x: Tensor, start: Tensor, score: Any, eps: float, steps: int, step: float) -> Tensor:
    """Sign steps up `score(probabilities)` of one example x (1, 6, 6), inside the ball and [0, 1]."""
    z = start.clamp(0, 1)
    for _ in range(steps):
        z = z.detach().requires_grad_()
        (uphill,) = torch.autograd.grad(score(model((z[None] - 0.5) / 0.25).softmax(1)[0]), z)
        z = torch.min(torch.max(z.detach() + step * uphill.sign(), x - eps), x + eps).clamp(0, 1)
    return z


def noise(draw: Any, x: Tensor, seed: int) -> Tensor:
    return draw(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)


@pytest.mark.parametrize(("defense", "steps", "step"), [(Fast(0.1), 1, 0.125), (PGD(0.1, steps=4), 4, 0.0625)])
def test_fast_and_pgd_are_the_cross_entropy_after_steps_up_it(defense: Any, steps: int, step: float) -> None:
    model, (x, y) = curved().double(), batch()
    x = x.double()
    starts = x + 0.1 * (2 * noise(torch.rand, x, seed=7) - 1)
    moved = [climbed(model, x[i], starts[i], lambda p, i=i: -p[y[i]].log(), 0.1, steps, step) for i in range(5)]
    want = sum(-model((moved[i][None] - 0.5) / 0.25).softmax(1)[0, y[i]].log() for i in range(5)) / 5
    box = Box(model, INPUTS)
    assert torch.allclose(defense.attack(box, x, y, seed=7), torch.stack(moved), atol=1e-9)
    loss = defense(box, x, y, seed=7)
    assert loss.item() == pytest.approx(want.item(), abs=1e-9)
    assert torch.allclose(gradients_of(model, loss), gradients_of(model, want), atol=1e-9)


def test_trades_is_cross_entropy_and_beta_times_the_divergence() -> None:
    model, (x, y) = curved().double(), batch()
    x, defense = x.double(), Trades(0.1, steps=4, beta=5.0)
    starts, step = x + 1e-3 * noise(torch.randn, x, seed=7), 0.0625
    probs = [model((x[i : i + 1] - 0.5) / 0.25).softmax(1)[0] for i in range(5)]
    moved = [climbed(model, x[i], starts[i], lambda q, i=i: kl(probs[i].detach(), q), 0.1, 4, step) for i in range(5)]
    want = torch.zeros(())
    for i in range(5):
        q = model((moved[i][None] - 0.5) / 0.25).softmax(1)[0]
        want = want + (-probs[i][y[i]].log() + 5.0 * kl(probs[i], q)) / 5
    box = Box(model, INPUTS)
    assert torch.allclose(defense.attack(box, x, y, seed=7), torch.stack(moved), atol=1e-9)
    loss = defense(box, x, y, seed=7)
    assert loss.item() == pytest.approx(want.item(), abs=1e-9)
    assert torch.allclose(gradients_of(model, loss), gradients_of(model, want), atol=1e-9)


def test_the_attack_of_trades_ignores_labels() -> None:
    (x, y), box, defense = batch(), Box(curved(), INPUTS), Trades(0.1)
    assert torch.equal(defense.attack(box, x, y, seed=0), defense.attack(box, x, (y + 1) % 3, seed=0))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_linear_model_gets_its_worst_case(norm: str) -> None:
    """Of two classes of a linear model the worst point of the ball is known."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).double()
    x, y = 0.3 + 0.4 * batch(8)[0].double(), torch.arange(8) % 2
    w = (model[1].weight[1] - model[1].weight[0]).detach().view(1, 6, 6)
    direction = w.sign() if norm == "linf" else w / w.norm()
    worst = x + 0.1 * (1 - 2 * y).view(-1, 1, 1, 1) * direction
    found = PGD(0.1, steps=30, step=0.1, norm=norm).attack(Box(model, Pixels((1, 6, 6))), x, y)
    assert torch.allclose(found, worst, atol=1e-7)


# -- manners -----------------------------------------------------------------------------------------------------------


@each
def test_an_attack_leaves_no_trace(defense: Any) -> None:
    model, (x, y) = curved(dropout=0.5, norm=True), batch()
    model.train()
    model[4].eval()
    model[1].weight.requires_grad_(False)
    model[5].weight.grad = torch.ones_like(model[5].weight)
    box = Box(model, INPUTS)
    before = snapshot(model, x, y)
    found = defense.attack(box, x, y)
    assert changes(before, snapshot(model, x, y)) == []
    assert not found.requires_grad
    assert found.min() >= 0
    assert found.max() <= 1
    assert (found != x).any()


@each
def test_only_the_loss_moves_batch_norm_and_draws(defense: Any) -> None:
    """Of a step, statistics and RNGs see what the loss's own forwards do: those on x, if any, and on the examples."""
    model, twin, (x, y) = curved(dropout=0.5, norm=True), curved(dropout=0.5, norm=True), batch()
    model.train()
    twin.train()
    box = Box(model, INPUTS)
    found = defense.attack(box, x, y, seed=3)
    torch.manual_seed(5)
    loss = defense(box, x, y, seed=3)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    for z in (x, found) if isinstance(defense, Trades) else (found,):
        twin(INPUTS.encode(z))
    assert torch.equal(drawn, torch.rand(3))
    assert torch.equal(flat(model.buffers()), flat(twin.buffers()))
    assert not torch.equal(flat(model.buffers()), flat(curved(norm=True).buffers()))
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for name, p in model.named_parameters() if name != "1.bias"
    )


@each
def test_an_attack_runs_no_more_than_its_steps_and_no_gradient_of_a_parameter(defense: Any) -> None:
    model, (x, y), ran, reached = curved(), batch(), [], []
    box = Box(model, INPUTS)
    model[1].register_forward_hook(lambda *_: ran.append(torch.is_grad_enabled()))
    for p in model.parameters():
        p.register_hook(lambda g: reached.append(g) or g)
    defense.attack(box, x, y)
    steps = getattr(defense, "steps", 1)
    assert ran.count(True) == steps
    assert ran.count(False) == isinstance(defense, Trades)  # p(x), once
    assert reached == []
    defense(box, x, y).backward()
    assert len(ran) == 2 * (steps + isinstance(defense, Trades)) + 1 + isinstance(defense, Trades)
    assert len(reached) == len(list(model.parameters()))


@each
def test_the_model_is_attacked_in_eval(defense: Any) -> None:
    """The examples are those against the model that will be used, whatever dropout does in training."""
    model, (x, y) = curved(dropout=0.5), batch()
    box = Box(model.eval(), INPUTS)
    found = defense.attack(box, x, y, seed=1)
    model.train()
    assert torch.equal(found, defense.attack(box, x, y, seed=1))


@each
def test_same_seed_same_examples_and_every_batch_its_own(defense: Any) -> None:
    box, (x, y), (other, _) = Box(curved(), INPUTS), batch(), batch(seed=1)
    start = (x * 0 + 0.5, y)  # batches alike but for their values' sum
    assert torch.equal(defense.attack(box, x, y, seed=4), defense.attack(box, x, y, seed=4))
    assert not torch.equal(defense.attack(box, x, y, seed=4), defense.attack(box, x, y, seed=5))
    assert torch.equal(defense.attack(box, x, y), defense.attack(box, x, y))
    assert not torch.allclose(defense.attack(box, other, y) - other, defense.attack(box, x, y) - x, atol=1e-2)
    if isinstance(defense, Fast):
        shifted = defense.attack(box, start[0] + 0.01, y) - 0.01
        assert not torch.allclose(shifted, defense.attack(box, *start), atol=1e-3)


@pytest.mark.parametrize("make", [Fast, PGD, Trades])
def test_eps_grows_with_progress(make: Any) -> None:
    box, (x, y) = Box(curved(), INPUTS), batch(20)
    x = 0.3 + 0.4 * x
    defense = make(0.2, ramp=0.5)

    def far(progress: float) -> float:
        found: Tensor = defense.attack(box, x, y, progress)
        return (found - x).abs().max().item()

    assert [far(p) for p in (0.0, 0.1, 0.25, 0.5, 1.0)] == pytest.approx([0, 0.04, 0.1, 0.2, 0.2], abs=1e-6)
    assert (make(0.2, ramp=0.0).attack(box, x, y, 0.0) - x).abs().max().item() == pytest.approx(0.2, abs=1e-6)
    assert torch.equal(defense.attack(box, x, y, 1.0, seed=0), defense.attack(box, x, y, seed=0))


@each
def test_mixed_precision_is_only_in_the_model(defense: Any) -> None:
    model, (x, y) = curved(), batch(40)
    wide, narrow = Box(model, INPUTS), Box(model, INPUTS, autocast=torch.bfloat16)
    found, loss = defense.attack(narrow, x, y, seed=0), defense(narrow, x, y, seed=0)
    assert found.dtype == loss.dtype == torch.float32
    assert wide(found).softmax(1).log()[range(40), y].mean() < wide(x).softmax(1).log()[range(40), y].mean()
    assert loss.item() == pytest.approx(defense(wide, x, y, seed=0).item(), rel=0.02)
    assert loss.item() != loss.bfloat16().item()  # the loss itself is not rounded
    assert not torch.is_autocast_enabled("cpu")
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


class _Structured(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.model(x), "features": x.flatten(1)}


@each
def test_log_probabilities_and_structures_are_as_good_as_logits(defense: Any) -> None:
    model, (x, y) = curved(), batch()
    want = defense(Box(model, INPUTS), x, y, seed=0).item()
    for same in (nn.Sequential(model, nn.LogSoftmax(1)), _Structured(model)):
        assert defense(Box(same, INPUTS), x, y, seed=0).item() == pytest.approx(want, rel=1e-4)


@each
def test_ctrl_c_in_an_attack_reaches_the_training(defense: Any) -> None:
    model, (x, y) = curved().train(), batch()
    box = Box(model, INPUTS)
    before = snapshot(model)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with model[1].register_forward_hook(stop), pytest.raises(KeyboardInterrupt):
        defense(box, x, y)
    assert changes(before, snapshot(model)) == []


def test_works_on_a_data_parallel_model() -> None:
    """Its forwards wait for gradients of parameters, which an attack never asks for."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model, (x, y) = curved(), batch()
        parallel = nn.parallel.DistributedDataParallel(model)
        box = Box(parallel, INPUTS)
        for defense in (PGD(0.1, steps=3), Trades(0.1, steps=3)):
            for seed in range(2):
                want = flat(torch.autograd.grad(defense(Box(model, INPUTS), x, y, seed=seed), list(model.parameters())))
                model.zero_grad()
                defense(box, x, y, seed=seed).backward()  # type: ignore[no-untyped-call]
                assert torch.allclose(flat(p.grad for p in model.parameters()), want, atol=1e-6)
    finally:
        torch.distributed.destroy_process_group()


def test_a_plain_training_loop_becomes_robust() -> None:
    """The first half of the pixels says the class by a hair, the second by a lot: only one survives an attack."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(128) % 2
    x = 0.5 + 0.02 * torch.randn(128, 1, 6, 6, generator=generator)
    x[:, :, :3] += (0.03 * (2 * y - 1)).view(-1, 1, 1, 1)
    x[:, :, 3:, 0] += (0.3 * (2 * y - 1)).view(-1, 1, 1)
    weights = {}
    for name, defense in (("plain", None), ("pgd", PGD(0.1, ramp=0.0)), ("trades", Trades(0.1, ramp=0.0))):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
        box, optimizer = Box(model, Pixels((1, 6, 6))), torch.optim.Adam(model.parameters(), 0.02)
        for step in range(100):
            loss = F.cross_entropy(model(x), y) if defense is None else defense(box, x, y, seed=step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        w = (model[1].weight[1] - model[1].weight[0]).detach().view(6, 6)
        weights[name] = (w[:3].abs().sum() / w[3:, 0].abs().sum()).item()  # how much it leans on what can be undone
    assert max(weights["pgd"], weights["trades"]) < 0.3 * weights["plain"]


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", DEFENSES.values(), ids=DEFENSES)
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"eps": -0.1}, r"eps must .*; got -0\.1"),
        ({"eps": float("nan")}, "eps must .*; got nan"),
        ({"norm": "l7"}, "norm is one of .*'l7'"),
        ({"step": 0.0}, r"step must .* above 0; got 0\.0"),
        ({"ramp": 2}, r"0 to 1; got 2"),
    ],
)
def test_bad_settings_are_refused(make: Any, setting: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make(**{"eps": 0.1} | setting)


def test_more_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="steps must be a whole number, 1 or more; got 0"):
        PGD(0.1, steps=0)
    with pytest.raises(InputError, match="beta must"):
        Trades(0.1, beta=-1.0)


@each
def test_bad_calls_are_refused(defense: Any) -> None:
    box, (x, y) = Box(curved(), INPUTS), batch()
    with pytest.raises(InputError, match=r"progress .*; got 1\.5"):
        defense(box, x, y, 1.5)
    with pytest.raises(InputError, match="divide them by 255"):
        defense(box, 255 * x, y)
    with pytest.raises(InputError, match="3"):
        defense(box, x, y + 3)
    with pytest.raises(InputError, match="seed must be a whole number"):
        defense(box, x, y, seed=0.5)
    with pytest.raises(OutputError, match="its outputs are probs"):
        defense(Box(nn.Sequential(curved(), nn.Softmax(1)), INPUTS), x, y)
    with pytest.raises(OutputError, match="one row of class scores"):
        defense(Box(nn.Sequential(nn.Conv2d(1, 3, 3)), INPUTS, outputs="logits"), x, y)


def test_by_name() -> None:
    assert resolve_defense(None) is None
    assert resolve_defense("fast") == Fast(0.3)
    assert resolve_defense("trades", 0.2) == Trades(0.2)
    assert resolve_defense("fast", None, PGD(0.1)) == Fast(0.1)
    assert resolve_defense("pgd", 0.2, PGD(0.1, steps=9)) == PGD(0.2, steps=9)  # the recipe's own, further
    assert resolve_defense(None, 0.2, PGD(0.1, steps=9)) == PGD(0.2, steps=9)
    assert resolve_defense(Trades(0.1), None, PGD(0.1)) == Trades(0.1)
    with pytest.raises(InputError, match="defend must be one of fast, pgd, trades; got 'pdg'"):
        resolve_defense("pdg")
    with pytest.raises(InputError, match="give one of"):
        resolve_defense(None, 0.2)
    with pytest.raises(InputError, match="has its own eps"):
        resolve_defense(Fast(0.1), 0.2)


# -- Lightning ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def lightning(tmp_path: Path) -> Iterator[Any]:
    """Fits a module of `curved` with these callbacks; `step(module, x, y)` is its training step."""
    pl = pytest.importorskip("lightning.pytorch", reason="the extra `training` is not installed")

    class Module(pl.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self, step: Any, examples: TensorDataset) -> None:
            super().__init__()
            self.model, self.step, self.examples = curved(dropout=0.2, norm=True), step, examples

        def forward(self, z: Tensor) -> Any:
            return self.model(z)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss: Tensor = self.step(self, *batch)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 1e-2)

    def fitted(step: Any, *callbacks: Any, **more: Any) -> Any:
        x, y = batch(24)
        module = Module(step, TensorDataset(INPUTS.encode(x), y))
        trainer = pl.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, callbacks=list(callbacks),
            **{"max_epochs": 2} | more,
        )  # fmt: skip
        trainer.fit(module, DataLoader(module.examples, 6))
        return module

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the trainer's own
        yield fitted


@pytest.mark.parametrize("defense", [Fast(0.1), PGD(0.1, steps=3, ramp=0.5)])
def test_lightning_trains_on_adversarial_inputs(lightning: Any, defense: Any) -> None:
    from unboxed.rng import derive_seed
    from unboxed.training.lightning import AdversarialTrainingCallback

    pixels, labels = batch(24)
    seen = []

    def step(module: Any, z: Tensor, y: Tensor) -> Tensor:
        i, training = len(seen), module.model.training
        rows = slice(i % 4 * 6, i % 4 * 6 + 6)
        want = defense.attack(
            Box(module, INPUTS), pixels[rows], labels[rows], (i + 1) / 8, seed=derive_seed("batch", i, 0)
        )
        assert torch.allclose(INPUTS.decode(z), want, atol=1e-5)
        assert training
        seen.append((INPUTS.decode(z) - pixels[rows]).abs().max().item())
        return F.cross_entropy(module(z), y)

    module = lightning(step, AdversarialTrainingCallback(defense, INPUTS))
    grown = [min(1.0, (i + 1) / 8 / defense.ramp) for i in range(8)]
    assert seen == pytest.approx([0.1 * g for g in grown], abs=1e-5)
    assert torch.equal(module.examples.tensors[0], INPUTS.encode(pixels))  # the data stay as they are


def test_lightning_without_an_end_uses_the_full_eps(lightning: Any) -> None:
    from unboxed.training.lightning import AdversarialTrainingCallback

    pixels, _ = batch(24)
    seen = []

    def step(module: Any, z: Tensor, y: Tensor) -> Tensor:
        seen.append((INPUTS.decode(z) - pixels[:6]).abs().max().item())
        module.trainer.should_stop = True
        return F.cross_entropy(module(z), y)

    lightning(step, AdversarialTrainingCallback(PGD(0.1), INPUTS), max_epochs=-1)
    assert seen[0] == pytest.approx(0.1, abs=1e-5)


def test_lightning_takes_batches_by_name_and_refuses_others(lightning: Any) -> None:
    from unboxed.training.lightning import AdversarialTrainingCallback

    def step(module: Any, z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(module(z), y)

    called = []
    lightning(
        step,
        AdversarialTrainingCallback(Fast(0.1), INPUTS, lambda both: called.append(1) or (both[0], both[1])),
        max_epochs=1,
    )
    assert len(called) == 4
    with pytest.raises(InputError, match="need the classes y"):
        lightning(step, AdversarialTrainingCallback(Fast(0.1), INPUTS, lambda both: (both[0], None)))
    with pytest.raises(InputError, match=r"batch_fn=lambda"):
        lightning(step, AdversarialTrainingCallback(Fast(0.1), INPUTS, lambda both: pair_of(both[0])))


def pair_of(batch: Any) -> Any:
    from unboxed.training.lightning import inputs_and_labels_of_batch

    return inputs_and_labels_of_batch(batch)


@each
def test_a_defense_is_a_lightning_training_step(lightning: Any, defense: Any) -> None:
    losses = []

    def step(module: Any, z: Tensor, y: Tensor) -> Tensor:
        progress = module.global_step / module.trainer.estimated_stepping_batches
        losses.append(defense(Box(module, INPUTS), INPUTS.decode(z).clamp(0, 1), y, progress))
        return losses[-1]

    module = lightning(step, max_epochs=6)
    assert torch.stack(losses[-4:]).mean() < torch.stack(losses[:4]).mean()
    assert module.model[2].num_batches_tracked == len(losses) * (1 + isinstance(defense, Trades))


def test_lightning_refuses_trades_and_suggests_a_step() -> None:
    pytest.importorskip("lightning.pytorch", reason="the extra `training` is not installed")
    from unboxed.training.lightning import AdversarialTrainingCallback

    with pytest.raises(InputError, match=r"call it in training_step, return defense\(box, x, y, progress=\.\.\.\)"):
        AdversarialTrainingCallback(Trades(0.1), INPUTS)  # type: ignore[arg-type]
