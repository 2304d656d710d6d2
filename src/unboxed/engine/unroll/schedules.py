"""What orders a training: the batches of its steps, its optimizer, and that optimizer's settings at each step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader

from ...errors import DataError, InputError
from .optimizers import HyperparametersOfStep

OptimizerName = Literal["sgd", "adam", "adamw"]
ScheduleName = Literal["constant", "one-cycle"]
OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
ScheduleFactory = Callable[[torch.optim.Optimizer], LRScheduler]


def shuffled_batch_indices(n: int, batch_size: int, epochs: int, seed: int) -> list[Tensor]:
    """The order of `training.fit`: indices of each step's batch."""
    if n == 0:
        raise DataError("the data set is empty: there is nothing to learn from")
    order = torch.Generator().manual_seed(seed)
    loader: DataLoader[Tensor] = DataLoader(range(n), batch_size, shuffle=True, generator=order)  # type: ignore[arg-type]
    return [batch for _ in range(epochs) for batch in loader]


def make_optimizer(
    optimizer: OptimizerName | OptimizerFactory,
    parameters: list[nn.Parameter],
    lr: float,
    weight_decay: float,
    momentum: float,
) -> torch.optim.Optimizer:
    """An optimizer by its name, or as a factory makes it. Raises InputError."""
    if callable(optimizer):
        return optimizer(parameters)
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if optimizer not in kinds:
        raise InputError(f"optimizer must be one of {', '.join(kinds)}, or a function of parameters; got {optimizer!r}")
    settings = {"momentum": momentum} if optimizer == "sgd" else {}
    return kinds[optimizer](parameters, lr=lr, weight_decay=weight_decay, **settings)  # type: ignore[no-any-return]


def hyperparameters_by_step(
    optimizer: torch.optim.Optimizer,
    schedule: ScheduleName | ScheduleFactory,
    n_steps: int,
    parameters: Mapping[str, nn.Parameter],
) -> list[dict[str, HyperparametersOfStep]]:
    """The settings of each parameter that the optimizer has, at each step, read from torch's own schedule."""
    scheduler = _make_lr_scheduler(optimizer, schedule, n_steps)
    by_step = list[dict[str, HyperparametersOfStep]]()
    for p in parameters.values():
        p.grad = None  # a step without gradients changes nothing
    for t in range(n_steps):
        groups: dict[int, HyperparametersOfStep] = {id(p): {k: v for k, v in group.items() if k != "params"}
                  for group in optimizer.param_groups for p in group["params"]}  # fmt: skip
        by_step.append({name: groups[id(p)] for name, p in parameters.items() if id(p) in groups})
        optimizer.step()
        if scheduler is not None and t + 1 < n_steps:
            scheduler.step()
    return by_step


def _make_lr_scheduler(
    optimizer: torch.optim.Optimizer, schedule: ScheduleName | ScheduleFactory, n_steps: int
) -> LRScheduler | None:
    if callable(schedule):
        return _check_lr_scheduler(schedule(optimizer))
    if schedule not in get_args(ScheduleName):
        raise InputError(f"schedule must be constant, one-cycle, or a function of an optimizer; got {schedule!r}")
    if schedule == "constant":
        return None
    cycles = not isinstance(optimizer, torch.optim.SGD)  # it would replace the momentum that was asked for
    rates = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, rates, total_steps=n_steps, cycle_momentum=cycles)


def _check_lr_scheduler(scheduler: LRScheduler) -> LRScheduler:
    if isinstance(scheduler, ReduceLROnPlateau):
        raise InputError("ReduceLROnPlateau sets rates by losses, so that they are not known before the training; give "
                         "a schedule of steps alone, or the step as a pure function")  # fmt: skip
    return scheduler
