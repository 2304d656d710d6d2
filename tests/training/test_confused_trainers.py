"""Confused inputs in other people's loops: Lightning, transformers, several processes."""

from __future__ import annotations

import copy
import math
import pickle
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from unboxed.errors import InputError, MissingPackageError, UnboxedWarning
from unboxed.training import ConfusedInputs, ConfusedLogits

FORCED: dict[str, Any] = {"min_logit_value": -math.inf, "logging_batch_interval": 2, "max_logit_difference": math.inf}
BATCHES, SIZE = 4, 6


@pytest.fixture(autouse=True)
def only_ours() -> Iterator[None]:
    """The trainers' own warnings are no part of this."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", UnboxedWarning)
        yield


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(4 * 36, 3))


def images(n: int = BATCHES * SIZE) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.rand(n, 1, 8, 8, generator=generator), torch.randint(3, (n,), generator=generator))


class Noting(ConfusedLogits):
    """Keeps what each step found."""

    found: list[ConfusedInputs]

    def watch(self, *args: Any, **kwargs: Any) -> ConfusedInputs | None:
        found = super().watch(*args, **kwargs)
        self.found = [*getattr(self, "found", []), *([] if found is None else [found])]
        return found


# -- Lightning -------------------------------------------------------------------------------------------------------


def fit(
    folder: Path,
    confused: ConfusedLogits,
    *,
    loggers: Any = False,
    model: nn.Module | None = None,
    collate: Callable[..., Any] | None = None,
    batch_fn: Any = None,
    **more: Any,
) -> None:
    pl = pytest.importorskip("lightning.pytorch", reason="the extra `training` is not installed")

    class Module(pl.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = model or net()

        def forward(self, x: Tensor) -> Any:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = (batch["image"], batch["label"]) if isinstance(batch, dict) else batch[:2]
            return F.cross_entropy(self(x), y)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 1e-2)

    trainer = pl.Trainer(
        accelerator="cpu", logger=loggers, enable_checkpointing=False, enable_progress_bar=False, log_every_n_steps=1,
        enable_model_summary=False, default_root_dir=folder, callbacks=[confused.lightning(batch_fn)],
        **{"max_epochs": 1, **more},
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(images(), SIZE, collate_fn=collate))


def named(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {"image": torch.stack([x for x, _ in rows]), "label": torch.stack([y for _, y in rows])}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_no_logger_files_in_the_root(tmp_path: Path) -> None:
    fit(tmp_path, ConfusedLogits(2, **FORCED))
    assert names(tmp_path / "confused") == ["confused-000001.png", "confused-000003.png"]


def test_a_folder_of_ones_own_comes_first(tmp_path: Path) -> None:
    fit(tmp_path, ConfusedLogits(2, to=tmp_path / "mine", **FORCED))
    assert names(tmp_path) == ["mine"]


def test_csv_logger_files_in_its_folder(tmp_path: Path) -> None:
    loggers = pytest.importorskip("lightning.pytorch.loggers", reason="the extra `training` is not installed")
    logger = loggers.CSVLogger(tmp_path, name="run", version=3)
    fit(tmp_path, ConfusedLogits(2, **FORCED), loggers=logger)
    assert names(tmp_path / "run" / "version_3" / "confused") == ["confused-000001.png", "confused-000003.png"]


def test_tensorboard_gets_images(tmp_path: Path) -> None:
    loggers = pytest.importorskip("lightning.pytorch.loggers", reason="the extra `training` is not installed")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    confused = Noting(1, **FORCED)
    fit(tmp_path, confused, loggers=loggers.TensorBoardLogger(tmp_path, name="run", version=0))
    read = events.EventAccumulator(str(tmp_path / "run" / "version_0"), size_guidance={"images": 0})
    read.Reload()
    shown = read.Images("confused inputs")
    assert [event.step for event in shown] == [1, 3]
    (tmp_path / "last.png").write_bytes(shown[-1].encoded_image_string)
    with Image.open(tmp_path / "last.png") as sheet:
        assert np.array_equal(np.asarray(sheet), np.asarray(confused.draw(confused.last_confused)))
    assert not (tmp_path / "confused").exists()


def test_weights_and_biases_gets_images_without_its_package(tmp_path: Path) -> None:
    loggers = pytest.importorskip("lightning.pytorch.loggers", reason="the extra `training` is not installed")
    seen = []

    class Stub(loggers.CSVLogger):  # type: ignore[name-defined, misc]
        def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
            seen.append((key, images, step))

    own = loggers.WandbLogger.log_image
    assert list(own.__wrapped__.__annotations__)[:3] == ["key", "images", "step"]
    other = loggers.CSVLogger(tmp_path, name="other", version=0)
    fit(tmp_path, ConfusedLogits(1, **FORCED), loggers=[Stub(tmp_path, name="run"), other])
    assert [(key, step) for key, _, step in seen] == [("confused inputs", 1), ("confused inputs", 3)]
    assert all(isinstance(sheet, Image.Image) for _, (sheet,), _ in seen)
    assert len(names(tmp_path / "other" / "version_0" / "confused")) == 2  # every logger gets them
    assert "wandb" not in sys.modules


def test_batches_count_through_epochs(tmp_path: Path) -> None:
    confused = Noting(1, **{**FORCED, "logging_batch_interval": 5})
    fit(tmp_path, confused, max_epochs=3, accumulate_grad_batches=2)
    assert [found.step for found in confused.found] == [4, 9]


def test_dict_batches_need_a_batch_fn(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a dict with image, label\. .*batch_fn="):
        fit(tmp_path, ConfusedLogits(**FORCED), collate=named)
    confused = Noting(1, **FORCED)
    fit(tmp_path, confused, collate=named, batch_fn=lambda batch: (batch["image"], batch["label"]))
    assert len(confused.found) == 2
    x, y = images().tensors
    (row,) = confused.found[0].batch_index.tolist()
    assert torch.equal(confused.found[0].inputs[0], x[SIZE + row])
    assert confused.found[0].labels[0] == y[SIZE + row]


class First(nn.Module):
    """Writes over what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sub_(0.5).mul_(3)


def test_a_model_that_writes_over_its_input_is_given_the_batch_as_it_was(tmp_path: Path) -> None:
    confused = Noting(SIZE, **FORCED)
    fit(tmp_path, confused, model=nn.Sequential(First(), *net()))
    assert len(confused.found) == 2
    for found in confused.found:
        assert torch.equal(found.inputs, images().tensors[0][found.step * SIZE :][found.batch_index])


def test_a_module_without_forward_is_refused(tmp_path: Path) -> None:
    class Bare(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise NotImplementedError("no forward here")

    with pytest.raises(InputError, match=r"can't take a batch.*no forward here"):
        fit(tmp_path, ConfusedLogits(), model=Bare(2, 2))


# -- transformers ----------------------------------------------------------------------------------------------------


class WithLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, labels: Tensor | None = None, pixel_values: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(pixel_values)
        return {"loss": logits.sum() if labels is None else F.cross_entropy(logits, labels), "logits": logits}


def train(
    folder: Path,
    confused: ConfusedLogits,
    *,
    model: nn.Module | None = None,
    trainer: Any = None,
    batch_fn: Any = None,
    rows: list[dict[str, Any]] | None = None,
    **more: Any,
) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="the extra `training` is not installed")
    pytest.importorskip("accelerate", reason="accelerate, which the Trainer of transformers needs, is not installed")
    model = model or WithLoss()
    rows = rows or [{"pixel_values": x, "labels": y} for x, y in images()]
    args = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=SIZE, use_cpu=True, report_to="none", save_strategy="no",
        disable_tqdm=True, seed=0, num_train_epochs=1, **more,
    )  # fmt: skip
    make = trainer(transformers.Trainer) if trainer else transformers.Trainer
    made = make(model, args, train_dataset=rows, eval_dataset=rows[:6], callbacks=[confused.huggingface(batch_fn)])
    with pytest.MonkeyPatch.context() as patch:  # else accelerate collects the garbage of all tests
        patch.setattr("accelerate.utils.memory.gc", SimpleNamespace(collect=lambda: 0))
        made.train()
    return model


def test_transformers_files_in_the_output_folder(tmp_path: Path) -> None:
    model = train(tmp_path, ConfusedLogits(2, **FORCED), eval_strategy="steps", eval_steps=1)
    assert names(tmp_path / "confused") == ["confused-000001.png", "confused-000003.png"]
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_parts_of_an_accumulated_step_are_batches(tmp_path: Path) -> None:
    confused = Noting(1, **{**FORCED, "logging_batch_interval": 3})
    train(tmp_path, confused, gradient_accumulation_steps=2, max_steps=5)
    assert [found.step for found in confused.found] == [2, 5, 8]


def test_a_step_by_transformers_is_in_float32_at_the_weights_of_its_step(tmp_path: Path) -> None:
    """Against a copy of the weights taken before each step; bf16=True puts autocast into the model's own forward."""
    copies: list[dict[str, Tensor]] = []

    def keeping(base: Any) -> Any:
        class Keeping(base):  # type: ignore[misc]
            def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
                loss = super().compute_loss(model, *args, **kwargs)
                copies.append(copy.deepcopy(self.model.state_dict()))  # BatchNorm has seen the batch
                return loss

        return Keeping

    confused = Noting(3, **{**FORCED, "logging_batch_interval": 1})
    model = train(tmp_path, confused, trainer=keeping, bf16=True)
    assert model.forward.__func__ is not WithLoss.forward  # wrapped, and still so
    assert len(confused.found) == BATCHES
    for found, state in zip(confused.found, copies, strict=True):
        twin = WithLoss().eval()
        twin.load_state_dict(state)
        torch.testing.assert_close(found.logits, twin.net(found.inputs).detach())


def test_transformers_show_the_batch_as_it_was_given(tmp_path: Path) -> None:
    model, (x, y) = WithLoss(), images().tensors
    model.net = nn.Sequential(First(), *model.net)
    confused = Noting(SIZE, **FORCED)
    train(tmp_path, confused, model=model)
    assert len(confused.found) == 2
    for found in confused.found:  # in an order of the trainer's own
        (places,) = torch.where((x[:, None] == found.inputs).flatten(2).all(2).any(1))
        assert len(places) == SIZE
        assert sorted(found.labels.tolist()) == sorted(y[places].tolist())


def test_the_input_may_have_another_name(tmp_path: Path) -> None:
    class Other(WithLoss):
        main_input_name = "image"

        def forward(self, scale: float = 1.0, image: Tensor | None = None, labels: Any = None) -> dict[str, Tensor]:
            return super().forward(labels, image * scale)

    rows = [{"image": x, "labels": y} for x, y in images()]
    confused = Noting(1, **FORCED)
    train(tmp_path, confused, model=Other(), rows=rows)
    Other.main_input_name = "none"
    train(tmp_path, confused, model=Other(), rows=rows, batch_fn=lambda given: (given["image"], given["labels"]))
    assert [found.step for found in confused.found] == [1, 3, 1, 3]
    with pytest.raises(InputError, match=r"given image, labels, and no 'none'\. .*batch_fn="):
        train(tmp_path, confused, model=Other(), rows=rows)


def test_a_model_whose_hooks_do_not_run_says_so(tmp_path: Path) -> None:
    def bypassing(base: Any) -> Any:
        class Bypassing(base):  # type: ignore[misc]
            def compute_loss(self, model: nn.Module, inputs: Any, **kwargs: Any) -> Tensor:
                return model.forward(**inputs)["loss"]

        return Bypassing

    with pytest.warns(UnboxedWarning, match="no batch came by"):
        train(tmp_path, ConfusedLogits(**FORCED), trainer=bypassing)


# -- what need not be installed --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("adapter", "package"), [("lightning", "lightning"), ("huggingface", "transformers")])
def test_a_missing_package_says_how_to_get_it(adapter: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"unboxed.training.{adapter}", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf'pip install "unboxed\[training\]" \(or pip install {package}'):
        getattr(ConfusedLogits(), adapter)()


# -- several processes -----------------------------------------------------------------------------------------------


def one_rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    address, patience = f"tcp://127.0.0.1:{port}", timedelta(seconds=60)
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=2, timeout=patience)
    with_, without = (distributed(rank, folder, watched) for watched in (True, False))
    assert all(torch.equal(with_[k], without[k]) for k in without)
    assert any(not torch.equal(v, net().state_dict()[k]) for k, v in without.items())
    torch.distributed.barrier()  # a process that is gone first aborts the other one, now and then
    torch.distributed.destroy_process_group()


def distributed(rank: int, folder: str, watched: bool) -> dict[str, Tensor]:
    model = nn.parallel.DistributedDataParallel(net().train())
    confused = ConfusedLogits(1, to=Path(folder) / f"rank{rank}", **FORCED)
    torch.manual_seed(rank)
    x, y = images().tensors
    for step in range(BATCHES):
        rows = slice(step * SIZE + rank * SIZE // 2, step * SIZE + (rank + 1) * SIZE // 2)
        model.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        with torch.no_grad():  # by hand: torch.optim imports half of torch, in each process
            for p in model.parameters():
                p -= 0.1 * p.grad
        found = confused.watch(model, x[rows], y[rows], step) if watched else None
        assert (found is not None) == (watched and rank == 0 and step % 2 == 1)
    return model.module.state_dict()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_rank_zero_watches_and_the_others_go_on(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    other = torch.multiprocessing.get_context("fork").Process(target=one_rank, args=(1, port, str(tmp_path)))
    other.start()
    one_rank(0, port, str(tmp_path))  # in this process: the other one imports everything again
    other.join(60)
    assert other.exitcode == 0
    assert names(tmp_path / "rank0") == ["confused-000001.png", "confused-000003.png"]
    assert not (tmp_path / "rank1").exists()


def test_callbacks_travel_to_the_processes_that_a_trainer_starts() -> None:
    confused = ConfusedLogits(2, to="sheets")
    again = pickle.loads(pickle.dumps(confused))
    assert (again.rule, again.to, again.interval) == (confused.rule, confused.to, confused.interval)
