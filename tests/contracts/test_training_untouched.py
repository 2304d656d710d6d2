"""Training with `ConfusedLogits` ends as without it: in the same weights, optimizer and RNG states, bit for bit.

Every model has dropout (as a module and as a function) and BatchNorm, is trained by Adam, and is looked at after each
batch with confusion forced, so that every look runs all there is: both passes, the drawing and the hand-over.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from unboxed.errors import UnboxedWarning
from unboxed.training import ConfusedLogits

STEPS, SIZE = 12, 8
FORCED: dict[str, Any] = {
    "min_logit_value": -float("inf"),
    "logging_batch_interval": 1,
    "max_logit_difference": float("inf"),
}


class Net(nn.Module):
    """`frozen`: a part that stays in eval whatever is said, as people do who fine-tune."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.ReLU(inplace=True))
        self.fc, self.frozen = nn.Linear(4 * 4 * 4, 3), frozen
        self.train()

    def train(self, mode: bool = True) -> Net:
        super().train(mode)
        if self.frozen:
            self.body.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(F.relu(self.norm(self.conv(x))))
        return self.fc(F.dropout(h.flatten(1), 0.2, self.training))


class Sheets:
    """Where the sheets of a run go."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def __call__(self, sheet: Any, step: int) -> None:
        assert min(sheet.size) > 100
        self.steps.append(step)


def start() -> None:
    torch.manual_seed(0), np.random.seed(0), random.seed(0)


def examples() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    n = STEPS * SIZE
    return TensorDataset(torch.randn(n, 1, 8, 8, generator=generator), torch.randint(3, (n,), generator=generator))


def flags(model: nn.Module) -> list[bool]:
    return [m.training for m in model.modules()]


def ending(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """All that training made: what follows from it (the next step, the next epoch) is then the same too."""
    moments = {} if optimizer is None else optimizer.state_dict()["state"]
    return {
        **{f"weight {k}": v.clone() for k, v in model.state_dict().items()},
        **{f"grad {k}": None if p.grad is None else p.grad.clone() for k, p in model.named_parameters()},
        **{f"optimizer {i} {k}": v for i, state in moments.items() for k, v in state.items()},
        "flags": flags(model),
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "torch RNG": torch.get_rng_state(),
        "NumPy RNG": np.random.get_state()[1].tobytes(),
        "Python RNG": random.getstate(),
    }


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    def same(u: Any, v: Any) -> bool:
        return torch.equal(u, v) if isinstance(u, Tensor) and isinstance(v, Tensor) else bool(u == v)

    return sorted((a.keys() ^ b.keys()) | {k for k in a.keys() & b.keys() if not same(a[k], b[k])})


def changed(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether the runs did something at all: a training that changes nothing proves nothing."""
    return any(k.startswith("weight") and not torch.equal(a[k], b[k]) for k in a)


def noisy(x: Tensor) -> Tensor:
    """An augmentation that draws from all three RNGs: an evaluation that moves one of them shows in the weights."""
    return x * (1 + 0.1 * random.random()) + 0.1 * np.random.rand() + 0.1 * torch.randn_like(x)


# -- a hand-written loop ---------------------------------------------------------------------------------------------


def by_hand(watch: Callable[..., object], frozen: bool, every: int, amp: bool) -> dict[str, Any]:
    start()
    model = Net(frozen)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step, (x, y) in enumerate(DataLoader(examples(), SIZE, shuffle=True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            z = noisy(x)
            loss = F.cross_entropy(model(z), y)
            watch(model, z, y, step)  # the graph stands, gradients have accumulated, and autocast is on
        loss.backward()
        if (step + 1) % every == 0:
            optimizer.step()
            optimizer.zero_grad()
    return ending(model, optimizer)


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@pytest.mark.parametrize("every", [1, 3], ids=["", "accumulated"])
@pytest.mark.parametrize("amp", [False, True], ids=["", "autocast"])
def test_a_loop_by_hand(frozen: bool, every: int, amp: bool) -> None:
    sheets = Sheets()
    watched = by_hand(ConfusedLogits(2, to=sheets, **FORCED).watch, frozen, every, amp)
    plain = by_hand(lambda *args: None, frozen, every, amp)
    assert sheets.steps == list(range(STEPS))
    assert differing(watched, plain) == []
    assert changed(plain, by_hand(lambda model, x, y, step: torch.rand(1), frozen, every, amp))


def test_what_the_published_callback_does_is_seen() -> None:
    """The law can fail: each of these is one thing that a callback of that kind does to a training."""

    def unfreezes(model: nn.Module, x: Tensor, y: Tensor, step: int) -> None:
        model.eval()
        nn.Module.train(model)

    def leaves_grad(model: nn.Module, x: Tensor, y: Tensor, step: int) -> None:
        model(x.detach().requires_grad_()).amax(1).sum().backward()

    def draws(model: nn.Module, x: Tensor, y: Tensor, step: int) -> None:
        with torch.no_grad():
            model(x)

    plain = by_hand(lambda *args: None, True, 3, False)
    for fault in (unfreezes, leaves_grad, draws):
        assert any(k.startswith("weight") for k in differing(by_hand(fault, True, 3, False), plain)), fault.__name__


@contextmanager
def theirs_ignored() -> Iterator[None]:
    """The trainers' own warnings, which are no part of this, and none of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", UnboxedWarning)
        yield


# -- Lightning -------------------------------------------------------------------------------------------------------


def by_lightning(
    folder: Path, confused: ConfusedLogits | None, frozen: bool, every: int, precision: str
) -> dict[str, Any]:
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Net(frozen)

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            return F.cross_entropy(self(noisy(x)), y)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 1e-2)

    start()
    module = Module()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", precision=precision, accumulate_grad_batches=every, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[] if confused is None else [confused.lightning()],
    )  # fmt: skip
    trainer.fit(module, DataLoader(examples(), SIZE, shuffle=True))
    return ending(module, trainer.optimizers[0])


@pytest.mark.parametrize(
    ("frozen", "every", "precision"),
    [(False, 1, "32-true"), (True, 1, "32-true"), (False, 3, "32-true"), (True, 3, "bf16-mixed")],
    ids=["plain", "frozen", "accumulated", "all at once"],
)
def test_lightning(tmp_path: Path, frozen: bool, every: int, precision: str) -> None:
    pytest.importorskip("lightning", reason="the extra `training` is not installed")
    sheets = Sheets()
    with theirs_ignored():
        watched = by_lightning(tmp_path, ConfusedLogits(2, to=sheets, **FORCED), frozen, every, precision)
        plain = by_lightning(tmp_path, None, frozen, every, precision)
    assert sheets.steps == list(range(STEPS))
    assert differing(watched, plain) == []


# -- transformers ----------------------------------------------------------------------------------------------------


class Named(Dataset[dict[str, Any]]):
    def __init__(self) -> None:
        self.confused_pairs = examples()

    def __len__(self) -> int:
        return len(self.confused_pairs)

    def __getitem__(self, i: int) -> dict[str, Any]:
        x, y = self.confused_pairs[i]
        return {"pixel_values": x, "labels": y}


class WithLoss(Net):
    """As transformers want it: by name, with the loss."""

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:  # type: ignore[override]
        x = noisy(pixel_values) if self.training else pixel_values
        logits = super().forward(x)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def by_transformers(
    folder: Path, confused: ConfusedLogits | None, frozen: bool, every: int, bf16: bool
) -> dict[str, Any]:
    from transformers import Trainer, TrainingArguments

    start()
    model = WithLoss(frozen)
    args = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=SIZE, num_train_epochs=1, gradient_accumulation_steps=every,
        learning_rate=1e-2, use_cpu=True, bf16=bf16, report_to="none", save_strategy="no", disable_tqdm=True, seed=0,
    )  # fmt: skip
    trainer = Trainer(
        model, args, train_dataset=Named(), callbacks=[] if confused is None else [confused.huggingface()]
    )
    trainer.train()
    return ending(model, trainer.optimizer)


@pytest.mark.parametrize(
    ("frozen", "every", "bf16"),
    [(False, 1, False), (True, 3, True)],
    ids=["plain", "frozen and accumulated in bfloat16"],
)
def test_transformers(tmp_path: Path, frozen: bool, every: int, bf16: bool) -> None:
    pytest.importorskip("transformers", reason="the extra `training` is not installed")
    pytest.importorskip("accelerate", reason="accelerate, which the Trainer of transformers needs, is not installed")
    sheets = Sheets()
    with theirs_ignored():
        watched = by_transformers(tmp_path, ConfusedLogits(2, to=sheets, **FORCED), frozen, every, bf16)
        plain = by_transformers(tmp_path, None, frozen, every, bf16)
    assert sheets.steps == list(range(STEPS))
    assert differing(watched, plain) == []
