"""A training that ended early goes on from its checkpoint, to the same weights bit for bit."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from typer.testing import CliRunner

from unboxed import cli, training, zoo
from unboxed.data import digits
from unboxed.engine.optimize.transforms import random_affine
from unboxed.errors import InputError, ModelError, WriteError
from unboxed.inputs.pixels import Pixels
from unboxed.training import PGD, Fast, Trades, TrainedModel, fit, train
from unboxed.zoo.models import RobustCNN

EVERYTHING = {
    "epochs": 4, "batch_size": 8, "lr": 0.02, "weight_decay": 0.01, "seed": 3, "augment": random_affine(jitter=0.1),
    "defend": PGD(0.1, steps=2), "ema_decay": 0.9, "quiet": True,
}  # fmt: skip
INPUTS = Pixels((1, 6, 6), mean=0.5, std=0.25)


def model(seed=0, hidden=8):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, hidden), nn.ReLU(), nn.Dropout(),
            nn.Linear(hidden, 2),
        )  # fmt: skip


class Noisy(Dataset):
    """Draws from every global RNG, as people's own data sets do."""

    def __init__(self, n=20):
        generator = torch.Generator().manual_seed(1)
        self.x = torch.rand(n, 1, 6, 6, generator=generator) / 2

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        noise = torch.rand(1, 6, 6) + np.random.rand() + random.random() + np.random.randn()
        return (self.x[i] + i % 2 / 2 + 0.01 * noise).clamp(0, 1), i % 2


def held_out():
    x = torch.rand(12, 1, 6, 6, generator=torch.Generator().manual_seed(2))
    return TensorDataset(x, torch.arange(12) % 2)


def state(model):
    return torch.cat([h.detach().double().flatten() for h in model.state_dict().values()])


def stopping(at):
    def watch(model, z, y, step):
        if step == at:
            raise KeyboardInterrupt

    return watch


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"autocast": torch.bfloat16},
        {"defend": Fast(0.1), "ema_decay": None},
        {"defend": Trades(0.1, steps=2), "augment": None},
        {"defend": None, "epochs": 3},
    ],
)
def test_goes_on_to_the_same_weights(tmp_path, more):
    """Three batches an epoch: stopped in the third epoch, and gone on from the end of the second."""
    settings, file = EVERYTHING | more, tmp_path / "sub" / "model.checkpoint"
    whole, stopped, again = model(), model(), model(seed=9)  # what it starts from on the second time does not matter
    want = fit(whole, INPUTS, Noisy(), held_out(), **settings)
    first = fit(stopped, INPUTS, Noisy(), held_out(), **settings, checkpoint=file, watch=stopping(8))
    assert first.interrupted
    assert len(first.loss) == 2
    assert os.listdir(file.parent) == ["model.checkpoint"]
    got = fit(again, INPUTS, Noisy(), held_out(), **settings, checkpoint=file)
    assert torch.equal(state(again), state(whole))
    assert not torch.equal(state(stopped), state(whole))
    assert (got.loss, got.accuracy, got.steps) == (want.loss, want.accuracy, want.steps)
    assert not got.interrupted
    assert not again.training
    assert all(p.grad is None for p in again.parameters())


def test_times_are_those_of_all_parts(tmp_path):
    settings = EVERYTHING | {"checkpoint": tmp_path / "c"}
    fit(model(), INPUTS, Noisy(), **settings, watch=stopping(8))
    before = torch.load(tmp_path / "c", weights_only=True)["state"]["done"]
    after = fit(model(), INPUTS, Noisy(), **settings)
    assert after.seconds > before["seconds"] > 0
    assert after.cpu_seconds > before["cpu_seconds"] > 0


def test_a_finished_training_is_not_done_again(tmp_path):
    settings = EVERYTHING | {"checkpoint": tmp_path / "c"}
    whole, again = model(), model(seed=1)
    first = fit(whole, INPUTS, Noisy(), held_out(), **settings)
    second = fit(again, INPUTS, Noisy(), held_out(), **settings, watch=lambda *_: pytest.fail("trained"))
    assert torch.equal(state(again), state(whole))
    assert second == first


def test_global_rngs_are_left_alone(tmp_path):
    settings = EVERYTHING | {"checkpoint": tmp_path / "c"}
    fit(model(), INPUTS, Noisy(), **settings, watch=stopping(8))
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    fit(model(), INPUTS, Noisy(), **settings)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"lr": 0.01}, r"lr was 0\.02, and is now 0\.01"),
        ({"seed": 4}, "seed was 3, and is now 4"),
        ({"epochs": 5}, "epochs was 4, and is now 5"),
        ({"defend": PGD(0.2, steps=2)}, r"defend was .*PGD\(eps=0\.1.*, and is now .*PGD\(eps=0\.2"),
        ({"defend": None}, r"defend was .*, and is now None"),
        ({"augment": random_affine(jitter=0.2)}, r"augment was .*0\.1.*, and is now .*0\.2"),
        ({"ema_decay": None}, r"ema_decay was 0\.9, and is now None"),
        ({"autocast": torch.bfloat16}, "autocast was None, and is now torch.bfloat16"),
    ],
)
def test_of_other_settings_is_refused(tmp_path, more, said):
    settings = EVERYTHING | {"checkpoint": tmp_path / "c"}
    fit(model(), INPUTS, Noisy(), **settings, watch=stopping(4))
    other = model()
    with pytest.raises(ModelError, match=f"checkpoint of other settings .*{said}.*remove this one to start again"):
        fit(other, INPUTS, Noisy(), **settings | more)
    assert torch.equal(state(other), state(model()))


def test_of_another_model_or_other_data_is_refused(tmp_path):
    settings = EVERYTHING | {"checkpoint": tmp_path / "c"}
    fit(model(), INPUTS, Noisy(), **settings, watch=stopping(4))
    with pytest.raises(ModelError, match=r"model was Sequential|its model differ"):
        fit(model(hidden=9), INPUTS, Noisy(), **settings)
    with pytest.raises(ModelError, match="examples was 20, and is now 21"):
        fit(model(), INPUTS, Noisy(21), **settings)
    with pytest.raises(ModelError, match="held_out was 0, and is now 12"):
        fit(model(), INPUTS, Noisy(), held_out(), **settings)


class Between(nn.Module):
    """The same modules and weights, and another function between them."""

    def __init__(self, f):
        super().__init__()
        self.layers, self.f = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Linear(8, 2)), f

    def forward(self, x):
        return self.layers[2](self.f(self.layers[1](self.layers[0](x))))


def shifted(by):
    return lambda x, generator: x + by


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"inputs": Pixels((1, 6, 6), mean=0.4, std=0.25)}, r"inputs was .*mean=0\.5.*, and is now .*mean=0\.4"),
        ({"model": Between(torch.sin)}, "the model's answers have changed"),
        ({"train": TensorDataset(held_out().tensors[0].flip(0), held_out().tensors[1])}, "its training data differ"),
        ({"train": TensorDataset(held_out().tensors[0], 1 - held_out().tensors[1])}, "its training data differ"),
        ({"test": TensorDataset(held_out().tensors[0] / 2, held_out().tensors[1])}, "its test data differ"),
        ({"augment": shifted(torch.full((1, 6, 6), 0.2))}, "augment"),
    ],
)
def test_of_another_question_under_the_same_names_is_refused(tmp_path, given, said):
    first = {
        "model": Between(torch.relu), "inputs": INPUTS, "train": held_out(), "test": held_out(), "epochs": 2,
        "augment": shifted(torch.full((1, 6, 6), 0.1)), "checkpoint": tmp_path / "c", "quiet": True,
    }  # fmt: skip
    fit(**first)
    assert fit(**first).steps == 2
    asked = first | given
    before = state(asked["model"])
    with pytest.raises(ModelError, match=said):
        fit(**asked)
    assert torch.equal(state(asked["model"]), before)


def test_another_dropout_is_another_model(tmp_path):
    settings, other = EVERYTHING | {"checkpoint": tmp_path / "c"}, model()
    fit(model(), INPUTS, Noisy(), **settings, watch=stopping(4))
    other[5].p = 0.1
    with pytest.raises(ModelError, match=r"model was Sequential|its model differ"):
        fit(other, INPUTS, Noisy(), **settings)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-checkpoint",)


@pytest.mark.parametrize("content", [b"", b"no zip at all", "cut", "other", "hostile"])
def test_broken_files_are_refused(tmp_path, content, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, settings = tmp_path / "c", EVERYTHING | {"checkpoint": tmp_path / "c"}
    if content == "cut":
        fit(model(), INPUTS, Noisy(), **settings, watch=stopping(4))
        content = file.read_bytes()[:-1000]
    if content == "other":
        torch.save({"weights": torch.zeros(2)}, file)
    elif content == "hostile":
        torch.save(Hostile(), file)
    else:
        file.write_bytes(content)
    with pytest.raises(ModelError, match=r"can't read the checkpoint .*c:|is not a checkpoint of this task"):
        fit(model(), INPUTS, Noisy(), **settings)
    assert os.listdir(tmp_path) == ["c"]


def test_where_nothing_can_be_written_nothing_is_trained(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteError, match="can't write"):
        fit(model(), INPUTS, Noisy(), **EVERYTHING, checkpoint=tmp_path / "file" / "c", watch=stopping(1))
    assert os.listdir(tmp_path) == ["file"]


# -- by name -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def parts():
    return [torch.utils.data.Subset(digits(split), range(n)) for split, n in (("train", 128), ("test", 30))]


def test_train_goes_on_and_says_how(tmp_path, parts):
    how = {"data": parts, "epochs": 2, "defend": "fast", "eps": 0.1, "quiet": True}
    file = tmp_path / "c"
    stopped = train("digits-cnn", **how, checkpoint=file, out=tmp_path / "a.safetensors", watch=stopping(3))
    assert str(stopped).endswith(f"(interrupted; the same command goes on from {file})")
    on = train("digits-cnn", **how, checkpoint=file, out=tmp_path / "a.safetensors")
    once = train("digits-cnn", **how, out=tmp_path / "b.safetensors")
    assert torch.equal(state(on.model), state(once.model))
    assert "interrupted" not in str(on)
    assert on.card["recipe"]["defend"] == {"name": "Fast", "eps": 0.1, "norm": "linf", "step": None, "ramp": 0.3}
    assert on.card["robust"]["eps"] == 0.1
    assert on.card["robust"] == once.card["robust"]
    assert on.card["command"] == "unboxed train digits-cnn --epochs 2 --defend fast --eps 0.1 --seed 0"
    assert on.card["cpu_seconds"] > 0


def test_train_stopped_before_the_first_epoch_promises_nothing(tmp_path, parts):
    out, file = tmp_path / "a.safetensors", tmp_path / "c"
    stopped = train("digits-cnn", data=parts, checkpoint=file, out=out, watch=stopping(1), quiet=True)
    assert str(stopped).endswith("(interrupted)")


def test_train_refuses_defenses_that_there_are_not(tmp_path, parts):
    with pytest.raises(InputError, match="fast, pgd, trades; got 'pdg'"):
        train("digits-cnn", data=parts, defend="pdg", out=tmp_path / "a.safetensors", quiet=True)
    with pytest.raises(InputError, match="give one of fast, pgd, trades"):
        train("digits-cnn", data=parts, eps=0.1, out=tmp_path / "a.safetensors", quiet=True)
    with pytest.raises(InputError, match="eps must"):
        train("digits-cnn", data=parts, defend="pgd", eps=-1.0, out=tmp_path / "a.safetensors", quiet=True)
    assert os.listdir(tmp_path) == []


def test_the_robust_model_is_built_as_the_judge():
    robust, judge, wider = (
        zoo.entry("mnist-robust").factory(),
        zoo.entry("mnist-judge").factory(),
        RobustCNN((32, 64, 256)),
    )
    assert [p.shape for p in robust.parameters()] == [p.shape for p in judge.parameters()]
    assert wider.state_dict().keys() == judge.state_dict().keys()
    assert wider(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_the_command_hands_everything_over(monkeypatch):
    given = {}

    def made(name, **how):
        given.update(how, name=name)
        return TrainedModel(
            Path("a"), model(), INPUTS, {"interrupted": True, "accuracy": 0.5, "test_examples": 9}, Path("c")
        )

    monkeypatch.setattr(training, "train", made)
    words = ["train", "digits-cnn", "--defend", "trades", "--eps", "51/255", "--checkpoint", "c", "--epochs", "3", "-q"]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 130
    assert "the same command goes on from c" in done.output
    assert given == {
        "name": "digits-cnn", "data": None, "epochs": 3, "defend": "trades", "eps": 0.2, "checkpoint": Path("c"),
        "out": None, "root": None, "seed": 0, "quiet": True,
    }  # fmt: skip
