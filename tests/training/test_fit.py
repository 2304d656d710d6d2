"""The plain training loop, the recipes, and weights to files."""

import json
import os
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from unboxed import data, loading, training, zoo
from unboxed.box import Box
from unboxed.errors import DataError, InputError, ModelError, OutputError, UnboxedWarning, WriteError
from unboxed.influence import ModelTraining
from unboxed.inputs.pixels import Pixels
from unboxed.inputs.tokens import Tokens
from unboxed.training import PGD, Fast, Trades, accuracy, fit, recipe, recipes, robust_accuracy, save_weights, train

QUICK = {"epochs": 2, "batch_size": 32, "quiet": True}


def part(split, n):
    return Subset(data.digits(split), range(n))


@pytest.fixture
def parts():
    return part("train", 100), part("test", 50)


def fresh(name="digits-cnn", seed=0):
    return zoo.load(name, weights=None, seed=seed)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def fitted(parts, **more):
    model, inputs = fresh()
    history = fit(model, inputs, *parts, **QUICK | more)
    return weights(model), history


def blobs(n=64, classes=2, seed=0):
    """Images 1x6x6 of class 0 are darker than those of class 1."""
    y = torch.arange(n) % classes
    noise = torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed)) / 2
    return TensorDataset(noise + y.view(-1, 1, 1, 1) / 2, y)


def tiny(*, dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(36, 2)), Pixels((1, 6, 6), mean=0.5, std=0.25)


def test_what_is_assumed_of_labels_is_said_once(tmp_path):
    for i in range(12):
        path = tmp_path / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (6, 6), 20 * i).save(path)
    model, inputs = tiny()
    for examples in (str(tmp_path), data.folder(tmp_path, inputs)):
        with pytest.warns(UnboxedWarning, match="in the order of their names: 0 is a, 1 is b") as caught:
            fit(model, inputs, examples, str(tmp_path), epochs=3, batch_size=4, quiet=True)
        assert len(caught) <= 4  # of the training and of the test data, where each is opened and matched


def test_learns():
    model, inputs = tiny()
    history = fit(model, inputs, blobs(), blobs(seed=1), epochs=10, batch_size=16, lr=0.05, quiet=True)
    assert history.accuracy[-1] == 1.0
    assert history.loss[-1] < history.loss[0] / 2
    assert (len(history.loss), len(history.accuracy), history.steps) == (10, 10, 40)
    assert history.seconds > 0
    assert not history.interrupted
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_steps_are_adamw_on_encoded_pixels():
    """Four steps written out: inputs normalized once, the mean cross-entropy, one cycle of the learning rate."""
    (model, inputs), (twin, _) = tiny(), tiny()
    examples = blobs(8)
    fit(model, inputs, examples, epochs=4, batch_size=8, lr=0.1, weight_decay=0.5, quiet=True)
    optimizer = torch.optim.AdamW(twin.parameters(), 0.1, weight_decay=0.5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=4)
    x, y = examples.tensors
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin((x - 0.5) / 0.25), y).backward()
        optimizer.step()
        schedule.step()
    assert torch.allclose(weights(model), weights(twin), atol=1e-5)
    assert not torch.allclose(weights(model), weights(tiny()[0]), atol=1e-2)


def test_same_seed_same_weights(parts):
    """Dropout, order and augmentation all follow the seed, whatever the global state is."""
    more = {"augment": recipe("digits-cnn")["augment"]}
    torch.manual_seed(1)
    first, history = fitted(parts, **more)
    torch.manual_seed(2)
    again, same = fitted(parts, **more)
    other, _ = fitted(parts, **more, seed=1)
    assert torch.equal(first, again)
    assert history.loss == same.loss
    assert not torch.equal(first, other)


def test_global_rngs_are_left_alone(parts):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    fitted(parts, defend=PGD(0.1, steps=1), ema_decay=0.9)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def test_works_where_gradients_are_off(parts):
    with torch.no_grad():
        off, _ = fitted(parts)
    assert torch.equal(off, fitted(parts)[0])


def test_data_sets_of_ours_and_of_torch_are_alike(parts):
    x, y = (torch.stack([torch.as_tensor(e[i]) for e in parts[0]]) for i in (0, 1))
    ours, _ = fitted(parts)
    plain, history = fitted((TensorDataset(x, y), None))
    assert torch.equal(ours, plain)
    assert history.accuracy == ()


@pytest.mark.parametrize(
    "form",
    [
        lambda x, y: (x, y),
        lambda x, y: (x.numpy(), y.numpy()),
        lambda x, y: (list(x), y.tolist()),
        lambda x, y: zip(x, y, strict=True),
    ],
)
def test_examples_in_any_form_train_the_same_model(form):
    examples, (model, inputs), (twin, _) = blobs(), tiny(), tiny()
    fit(model, inputs, examples, epochs=2, batch_size=16, quiet=True)
    fit(twin, inputs, (x := form(*examples.tensors)), epochs=2, batch_size=16, quiet=True)
    assert torch.equal(weights(model), weights(twin))
    if not isinstance(x, zip):
        assert accuracy(Box(model, inputs), x) == accuracy(Box(model, inputs), examples)
        assert robust_accuracy(Box(model, inputs), x, 0.1, quiet=True) > 0


def test_labels_that_are_names():
    """They are matched once: not every batch has every name."""
    x, y = blobs(9).tensors
    (model, inputs), (twin, _) = tiny(), tiny()
    fit(twin, inputs, (x, y), epochs=1, batch_size=2, quiet=True)
    for examples in ((x, [("dark", "light")[k] for k in y]), (list(x), [("dark", "light")[k] for k in y])):
        model, _ = tiny()
        with pytest.warns(UnboxedWarning, match="0 is dark, 1 is light"):
            fit(model, inputs, examples, epochs=1, batch_size=2, quiet=True)
        assert torch.equal(weights(model), weights(twin))


def test_a_loader_keeps_its_batches_and_their_order():
    examples, seen, (model, inputs) = blobs(), [], tiny()
    loader = DataLoader(examples, 24, shuffle=True)
    watch = lambda m, z, y, s: seen.append(z)  # noqa: E731
    history = fit(model, inputs, loader, loader, epochs=2, quiet=True, watch=watch)
    assert [len(z) for z in seen] == [24, 24, 16] * 2
    assert history.steps == 6
    assert len(history.accuracy) == 2
    assert not torch.equal(seen[0], seen[3])
    twin, _ = tiny()
    fit(twin, inputs, loader, epochs=2, quiet=True)
    assert torch.equal(weights(model), weights(twin))  # the order is by the seed


def test_a_loader_goes_on_from_a_checkpoint(tmp_path):
    def trained(epochs, checkpoint):
        model, inputs = tiny()
        loader = DataLoader(blobs(), 16, shuffle=True, generator=torch.Generator().manual_seed(5))

        def stop(m, z, y, step):
            if step == epochs * 4 + 1:
                raise KeyboardInterrupt

        fit(model, inputs, loader, epochs=3, quiet=True, checkpoint=checkpoint, watch=stop)
        return weights(model)

    trained(1, tmp_path / "a.ckpt")
    assert torch.equal(trained(3, tmp_path / "a.ckpt"), trained(3, tmp_path / "b.ckpt"))


def test_images_that_cannot_be_read_are_left_out(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (6, 6), 90).save(tmp_path / name / "good.png")
    (tmp_path / "b" / "broken.png").write_bytes((tmp_path / "b" / "good.png").read_bytes()[:50])
    model, inputs = tiny()
    examples = data.folder(tmp_path, inputs)
    assert len(examples) == 3
    with pytest.warns(UnboxedWarning, match="0 is a, 1 is b|can't be read and is left out"):
        assert fit(model, inputs, examples, epochs=1, batch_size=1, quiet=True).steps == 2


@pytest.mark.parametrize("defend", ["pgd", PGD])
def test_a_defense_needs_its_eps(defend):
    with pytest.raises(InputError, match=r"such as ub\.training\.PGD\(eps=8/255\).*There are .*Trades"):
        fit(*tiny(), blobs(), epochs=1, quiet=True, defend=defend)


def test_frozen_parameters_stay():
    model, inputs = tiny()
    model[2].bias.requires_grad_(False)
    bias, weight = model[2].bias.clone(), model[2].weight.detach().clone()
    fit(model, inputs, blobs(), epochs=1, lr=0.1, quiet=True)
    assert torch.equal(model[2].bias, bias)
    assert not torch.equal(model[2].weight, weight)


def test_double_model():
    model, inputs = tiny()
    history = fit(model.double(), inputs, blobs(), blobs(), epochs=5, batch_size=16, lr=0.05, quiet=True)
    assert history.accuracy[-1] == 1.0
    assert model[2].weight.dtype == torch.float64


def test_watch_sees_each_batch_as_the_model_does(parts):
    seen, stepped = [], []

    def watch(model, z, y, step):
        seen.append((step, z.clone(), y.clone(), model.training))
        stepped.append(weights(model))

    final, history = fitted(parts, watch=watch)
    assert [s[0] for s in seen] == list(range(1, history.steps + 1))
    assert torch.equal(stepped[-1], final)  # after the step
    assert all(training for *_, training in seen)
    assert seen[0][1].shape == (32, 1, 28, 28)
    inputs = zoo.entry("digits-cnn").inputs
    assert inputs.decode(seen[0][1]).clamp(0, 1).allclose(inputs.decode(seen[0][1]), atol=1e-5)
    assert seen[0][1].min() < -0.1  # normalized
    assert sorted(seen[3][2].tolist()) != sorted(seen[4][2].tolist())


def test_each_epoch_sees_everything_in_an_order_of_its_own():
    def orders(seed):
        model, inputs = tiny()
        examples, seen = (
            TensorDataset(torch.arange(64.0).view(-1, 1, 1, 1).expand(-1, 1, 6, 6) / 64, blobs().tensors[1]),
            [],
        )
        watch = lambda m, z, y, s: seen.extend((64 * inputs.decode(z)[:, 0, 0, 0]).round().tolist())  # noqa: E731
        fit(model, inputs, examples, epochs=2, batch_size=20, seed=seed, quiet=True, watch=watch)
        return seen[:64], seen[64:]

    first, second = orders(0)
    assert sorted(first) == sorted(second) == list(range(64))
    assert first != second
    assert first != list(range(64))
    assert orders(1)[0] != first


def test_augmentation_changes_what_is_learned(parts):
    shifted = []
    more = {"augment": lambda x, generator: torch.roll(x, 3, -1) * 2, "watch": lambda m, z, y, s: shifted.append(z)}
    moved, _ = fitted(parts, **more)
    assert not torch.equal(moved, fitted(parts)[0])
    assert zoo.entry("digits-cnn").inputs.decode(shifted[0]).max() <= 1 + 1e-5  # clipped


# -- against attacks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Fast, PGD, Trades])
def test_attacks_stay_in_a_ball_that_grows(parts, make):
    clean, attacked = [], []
    inputs = zoo.entry("digits-cnn").inputs
    fitted(parts, epochs=1, watch=lambda m, z, y, s: clean.append(inputs.decode(z)))
    fitted(parts, epochs=1, defend=make(0.2, ramp=1.0), watch=lambda m, z, y, s: attacked.append(inputs.decode(z)))
    far = [(a - c).abs().max().item() for a, c in zip(attacked, clean, strict=True)]
    assert far == pytest.approx([0.05, 0.1, 0.15, 0.2], abs=1e-4)
    assert all(a.min() >= -1e-5 and a.max() <= 1 + 1e-5 for a in attacked)


@pytest.mark.parametrize("defense", [PGD(0.1, steps=2), Trades(0.1, steps=2)])
def test_defended_steps_are_those_of_a_loop_of_ones_own(defense):
    (model, inputs), (twin, _) = tiny(), tiny()
    examples = blobs(8)
    fit(model, inputs, examples, epochs=3, batch_size=8, lr=0.1, defend=defense, quiet=True)
    optimizer, box = torch.optim.AdamW(twin.parameters(), 0.1, weight_decay=0), Box(twin, inputs)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=3)
    batches = torch.utils.data.DataLoader(examples, 8, shuffle=True, generator=torch.Generator().manual_seed(0))
    for step in range(3):
        for x, y in batches:
            loss = defense(box, x, y, (step + 1) / 3, seed=step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    assert torch.allclose(weights(model), weights(twin), atol=1e-6)


def test_attacked_training_withstands_attacks():
    """Two classes a half apart, shades of 6x6: attacks within .2 are to be learned against."""
    test = blobs(seed=1)
    (robust, inputs), (plain, _) = tiny(), tiny()
    fit(robust, inputs, blobs(), epochs=15, batch_size=16, lr=0.05, quiet=True, defend=PGD(0.15, steps=5))
    with torch.no_grad():
        plain[2].weight[:, 0] += torch.tensor([20.0, -20.0])  # leans on one pixel
    held, fallen = (robust_accuracy(Box(n, inputs), test, 0.15, quiet=True) for n in (robust, plain))
    assert held > 0.9
    assert fallen < 0.9


def test_ctrl_c_in_an_attack_stops_the_training(parts):
    calls = []
    model, inputs = fresh()

    def stop(*_):
        calls.append(model.training)
        if not model.training and True in calls:  # in the second attack, after a step was learned
            raise KeyboardInterrupt

    model.conv1.register_forward_hook(stop)
    history = fit(model, inputs, *parts, **QUICK, defend=PGD(0.1, steps=3))
    assert history.interrupted
    assert not calls[-1]  # in an attack
    assert history.steps < 2


# -- the average of the weights, and mixed precision -------------------------------------------------------------------


def test_average_is_the_moving_average_of_the_weights(parts):
    """After step t the average keeps min(decay, (1 + t) / (10 + t)) of itself."""
    passed = [weights(fresh()[0])]
    final, _ = fitted(parts, epochs=3, ema_decay=0.5, watch=lambda m, z, y, s: passed.append(weights(m)))
    want = passed[0]
    for t, w in enumerate(passed[1:], start=1):
        decay = min(0.5, (1 + t) / (10 + t))
        want = decay * want + (1 - decay) * w
    assert torch.allclose(final, want, atol=1e-6)
    assert not torch.allclose(final, passed[-1], atol=1e-4)
    plain = []
    fitted(parts, epochs=3, watch=lambda m, z, y, s: plain.append(weights(m)))
    assert all(torch.equal(a, b) for a, b in zip(passed[1:], plain, strict=True))  # the training itself is the same


def test_the_average_is_evaluated_and_kept(parts):
    model, inputs = fresh()
    looked, learned = [], []

    class HeldOut(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, i):
            looked.append(weights(model))
            return parts[1][i]

    fit(model, inputs, parts[0], HeldOut(), **QUICK, ema_decay=0.9, watch=lambda m, z, y, s: learned.append(weights(m)))
    assert len(looked) == 2
    assert torch.equal(looked[-1], weights(model))
    assert not torch.equal(looked[-1], learned[-1])
    assert not torch.equal(looked[0], learned[3])


def test_average_takes_statistics_along():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 2))
    passed = [model[1].running_mean.clone()]
    watch = lambda m, z, y, s: passed.append(m[1].running_mean.clone())  # noqa: E731
    fit(model, Pixels((1, 6, 6)), blobs(), epochs=2, batch_size=16, quiet=True, ema_decay=0.9, watch=watch)
    want = passed[0]
    for t, mean in enumerate(passed[1:], start=1):
        want = torch.lerp(want, mean, 1 - (1 + t) / (10 + t))
    assert torch.allclose(model[1].running_mean, want, atol=1e-6)
    assert model[1].num_batches_tracked == 8


def test_ctrl_c_leaves_the_average_of_what_was_passed(parts):
    def stop(model, z, y, step):
        if step == 6:
            raise KeyboardInterrupt

    passed = [weights(fresh()[0])]
    kept, history = fitted(parts, ema_decay=0.5, watch=lambda m, z, y, s: passed.append(weights(m)) or stop(m, z, y, s))
    want = passed[0]
    for t, w in enumerate(passed[1:], start=1):
        want = torch.lerp(want, w, 1 - min(0.5, (1 + t) / (10 + t)))
    assert history.interrupted
    assert torch.allclose(kept, want, atol=1e-6)


def test_mixed_precision_keeps_weights_and_images_whole(parts):
    seen = []
    narrow, _ = fitted(parts, autocast=torch.bfloat16, watch=lambda m, z, y, s: seen.append(z.dtype))
    wide, _ = fitted(parts)
    assert narrow.dtype == torch.float32
    assert set(seen) == {torch.float32}
    assert not torch.equal(narrow, wide)
    assert (narrow - wide).norm() < 0.5 * (wide - weights(fresh()[0])).norm()
    with pytest.raises(InputError, match="autocast must be torch"):
        fitted(parts, autocast=torch.float64)


def test_both_times_are_reported(parts):
    _, history = fitted(parts)
    assert history.seconds > 0
    assert history.cpu_seconds > 0


# -- interrupted, and wrong --------------------------------------------------------------------------------------------


def test_ctrl_c_keeps_the_model_and_says_so(parts):
    at_stop = []

    def watch(model, z, y, step):
        if step == 6:
            at_stop.append(weights(model))
            raise KeyboardInterrupt

    kept, history = fitted(parts, watch=watch)
    assert history.interrupted
    assert torch.equal(kept, at_stop[0])
    assert history.steps == 6
    assert len(history.loss) == len(history.accuracy) == 1  # whole epochs


def test_an_error_of_the_watcher_is_passed_on(parts):
    model, inputs = fresh()
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        fit(model, inputs, *parts, **QUICK, watch=lambda m, z, y, step: 1 / 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"epochs": 0}, "epochs must be a whole number, 1 or more; got 0"),
        ({"epochs": 1.5}, r"epochs .* got 1\.5"),
        ({"batch_size": -1}, "batch_size .* got -1"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": float("nan")}, "lr must be positive"),
        ({"ema_decay": 1.0}, r"ema_decay is the decay .*; got 1\.0"),
        ({"ema_decay": 0}, "ema_decay is the decay .*; got 0"),
    ],
)
def test_bad_settings(parts, more, said):
    with pytest.raises(InputError, match=said):
        fitted(parts, **more)


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ([(torch.full((1, 28, 28), 255.0), 1)], "divide them by 255"),
        ([(torch.zeros(1, 8, 8), 1)], r"got shape \(1, 1, 8, 8\)"),
        ([(torch.full((1, 28, 28), float("nan")), 1)], "NaN"),
        ([(torch.zeros(1, 28, 28), 10)], "10"),
    ],
)
def test_bad_data(examples, said):
    with pytest.raises(InputError, match=said):
        fitted((examples, None))


def test_data_without_labels(parts):
    with pytest.raises(DataError, match="no labels; wanted"):
        fitted(([(torch.zeros(1, 28, 28), -1)], None))
    with pytest.raises(InputError, match="one for each of 8 examples"):
        fitted(((torch.zeros(8, 1, 28, 28), torch.zeros(3).long()), None))


def test_empty_data(parts):
    with pytest.raises(DataError, match="empty"):
        fitted(([], None))
    with pytest.raises(DataError, match="empty"):
        fitted((parts[0], []))


def test_a_model_without_parameters_or_logits():
    inputs = Pixels((1, 6, 6))
    model, _ = tiny()
    with pytest.raises(InputError, match="no parameter"):
        fit(model.requires_grad_(False), inputs, blobs(), epochs=1, quiet=True)
    with pytest.raises(OutputError, match="log-probabilities; its outputs are probs"):
        fit(nn.Sequential(model.requires_grad_(True), nn.Softmax(1)), inputs, blobs(), epochs=1, quiet=True)


def test_a_loss_that_runs_away():
    model, inputs = tiny()
    with pytest.raises(InputError, match="smaller lr"):
        fit(model, inputs, blobs(), epochs=2, batch_size=4, lr=1e38, quiet=True)


# -- looks at the data -------------------------------------------------------------------------------------------------


def test_accuracy_counts_all_examples():
    model, inputs = tiny()
    box, examples = Box(model, inputs), blobs(1003)
    x, y = examples.tensors
    assert accuracy(box, examples) == pytest.approx((box.predict(x) == y).float().mean().item())


def test_progress_goes_to_stderr(parts, capsys):
    fitted(parts, quiet=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert "training" in err
    assert "8/8" in err
    assert "test accuracy" in err
    fitted(parts)
    assert capsys.readouterr().err == ""


# -- to files ----------------------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path):
    model, _ = fresh(seed=5)
    path = save_weights(model, tmp_path / "new" / "model.safetensors", {"accuracy": 0.5, "name": "mine"})
    again, _ = fresh(seed=6)
    loading.weights(again, path)
    assert torch.equal(weights(model), weights(again))
    assert json.loads(path.with_suffix(".json").read_text()) == {"accuracy": 0.5, "name": "mine"}
    assert sorted(os.listdir(path.parent)) == ["model.json", "model.safetensors"]


def test_save_tied_weights(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    path = save_weights(model, tmp_path / "tied.safetensors", {})
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    loading.weights(other, path)
    assert torch.equal(other[1].weight, model[0].weight)


def test_save_where_nothing_can_be_written(tmp_path):
    model, _ = fresh()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteError, match=r"can't write .*file"):
        save_weights(model, tmp_path / "file" / "model.safetensors", {})
    with pytest.raises(WriteError, match=r"Name it model\.safetensors"):
        save_weights(model, tmp_path / "model.pt", {})
    assert os.listdir(tmp_path) == ["file"]


def test_a_card_that_json_cannot_hold(tmp_path):
    with pytest.raises(InputError, match="card"):
        save_weights(fresh()[0], tmp_path / "model.safetensors", {"x": torch.zeros(1)})
    assert os.listdir(tmp_path) == []


# -- by name -----------------------------------------------------------------------------------------------------------


def test_every_model_has_a_recipe_that_fit_takes():
    assert set(recipes.FIT_ARGUMENTS_BY_MODEL_NAME) == set(zoo.names())
    for name in zoo.names():
        assert recipe(name)["epochs"] >= 1
        assert ("defend" in recipe(name)) == name.endswith(("judge", "robust"))
    with pytest.raises(ModelError, match="digits-cnn"):
        recipe("digits-cn")


def test_train_writes_what_the_card_says(tmp_path, parts):
    path = tmp_path / "mine.safetensors"
    made = train("digits-cnn", data=parts, epochs=2, out=path, seed=4, quiet=True)
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["name"] == "digits-cnn"
    assert (card["train_examples"], card["test_examples"], card["seed"]) == (100, 50, 4)
    assert card["recipe"]["epochs"] == len(card["test_accuracy_by_epoch"]) == 2
    assert card["recipe"]["augment"] == recipes.AFFINE_AUGMENTATION_SETTINGS
    assert card["command"] == "unboxed train digits-cnn --epochs 2 --seed 4"
    assert card["versions"]["torch"] == torch.__version__
    assert card["inputs"]["mean"] == zoo.entry("digits-cnn").inputs.mean
    assert str(made) == f"{path}: {card['accuracy']:.2%} of 50 held-out images right"
    model, inputs = fresh()
    loading.weights(model, path)
    assert torch.equal(weights(model), weights(made.model))
    assert accuracy(Box(model, inputs), parts[1]) == card["accuracy"]


def test_figures_are_those_of_the_rounded_weights(tmp_path, parts, monkeypatch):
    looked_at = []
    monkeypatch.setattr(recipes, "accuracy", lambda box, test: looked_at.append(weights(box.model)) or 0.5)
    path = tmp_path / "model.safetensors"
    made = train("digits-cnn", data=parts, epochs=1, out=path, quiet=True)
    assert torch.equal(looked_at[0], looked_at[0].half().float())
    assert torch.equal(looked_at[0], weights(made.model))
    assert path.stat().st_size < 2.2 * len(looked_at[0])  # two bytes a weight


def test_train_a_judge(tmp_path, parts, monkeypatch):
    monkeypatch.setattr(recipes, "EVALUATION_PGD_STEPS", 5)
    made = train("digits-judge", data=parts, epochs=1, out=tmp_path / "judge.safetensors", quiet=True)
    robust = made.card["robust"]
    assert robust["attack"] == "PGD-5"
    assert robust["eps"] == made.card["recipe"]["defend"]["eps"]
    assert made.card["recipe"]["defend"]["name"] == "PGD"
    assert 0 <= robust["accuracy"] <= made.card["accuracy"]
    assert "under attack" in str(made)


def test_train_keeps_what_an_interrupted_training_learned(tmp_path, parts):
    def watch(model, z, y, step):
        if step == 3:
            raise KeyboardInterrupt

    path = tmp_path / "model.safetensors"
    made = train("digits-judge", data=parts, epochs=2, out=path, quiet=True, watch=watch)
    assert made.card["interrupted"]
    assert "robust" not in made.card  # who stops wants no long look
    assert "(interrupted)" in str(made)
    assert json.loads(path.with_suffix(".json").read_text())["interrupted"]
    assert path.exists()


def test_train_on_a_folder(tmp_path):
    from PIL import Image

    for split, n in (("train", 200), ("test", 50)):
        for i, (x, label) in enumerate(part(split, n)):
            folder = tmp_path / "scans" / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((255 * x[0]).byte().numpy()).save(folder / f"{i}.png")
    scans = tmp_path / "scans"
    shutil.rmtree(scans / "test" / "0")  # the numbers of the other classes stay
    made = train("digits-cnn", data=str(scans), epochs=1, out=tmp_path / "model.safetensors", quiet=True)
    assert made.card["train_examples"] == 200
    assert made.card["test_examples"] < 50
    learn, test = recipes._load_train_test_data(str(scans), None, made.inputs, quiet=True)
    assert learn.classes == test.classes == tuple("0123456789")
    assert min(label for _, label in test) == 1


def test_train_refuses_before_it_trains(tmp_path, parts, monkeypatch):
    monkeypatch.setattr(recipes, "fit", lambda *args, **kwargs: pytest.fail("trained all the same"))
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    with pytest.raises(ModelError, match="did you mean"):
        train("digits-cn", data=parts, quiet=True)
    with pytest.raises(DataError, match=r"'mnist:train' can't be trained on.*train/ and test/"):
        train("mnist-cnn", data="mnist:train", quiet=True)
    with pytest.raises(WriteError, match=r"\.safetensors"):
        train("digits-cnn", data=parts, out=tmp_path / "model.bin", quiet=True)
    with pytest.raises(WriteError, match="a folder"):
        train("digits-cnn", data=parts, out=folder, quiet=True)
    with pytest.raises(WriteError, match="can't write"):
        train("digits-cnn", data=parts, out="/proc/net.safetensors", quiet=True)
    folder.rmdir()
    assert os.listdir(tmp_path) == []


def test_public_names():
    assert {"fit", "train", "save_weights", "recipe", "PGD", "Fast", "Trades", "DEFENSES", "History"} <= set(
        dir(training)
    )


class _TextModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(20, 6), nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[..., None].to(self.out.weight.dtype)
        logits: Tensor = self.out((self.embed(input_ids) * mask).sum(1) / mask.sum(1))
        return logits


def test_models_of_texts_are_refused_where_their_embedding_would_not_learn() -> None:
    ids, y = torch.arange(40).reshape(10, 4) % 20, torch.arange(10) % 3
    inputs = Tokens(lambda text: [int(word) for word in text.split()])
    with pytest.raises(InputError, match="leave the embedding as it is"):
        fit(_TextModel(), inputs, TensorDataset(ids, y), epochs=1, quiet=True)
    with pytest.raises(InputError, match="leave the embedding as it is"):
        ModelTraining(_TextModel(), inputs, (ids, y), epochs=1, outputs="logits")
