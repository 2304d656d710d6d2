"""Models of transformers: their own files, and the folders that `save_pretrained` writes."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

import unboxed as ub
from loading.huggingface_models import CONFIGS, OFTEN, build, image_side
from models import Bomb
from unboxed import loading
from unboxed.errors import MissingPackageError, ModelError, RuleError, UnboxedWarning
from unboxed.explaining import explain
from unboxed.report import SECTIONS

transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def _offline_and_silent(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """No test may reach for the network; ours is silent, though transformers itself shows progress."""

    def refuse(*args: Any) -> None:
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert "torchvision" not in sys.modules


def save(model: Any, folder: Path, **settings: Any) -> Path:
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder, **settings)
    transformers.utils.logging.enable_progress_bar()
    return folder


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "opened" in metafunc.fixturenames:
        every = metafunc.config.getoption("--all-pairs")
        metafunc.parametrize("opened", CONFIGS if every else OFTEN, indirect=True)


# -- every architecture ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_of_save_pretrained_loads_as_by_from_pretrained(name: str, tmp_path: Path) -> None:
    model = build(name)
    folder = save(model, tmp_path)
    wanted = type(model).from_pretrained(folder)
    fresh = type(model)(model.config)
    loading.weights(fresh, folder / "model.safetensors")
    loaded, _ = loading.model(str(folder))
    assert same(fresh, wanted)
    assert same(loaded, wanted)
    assert type(loaded) is type(model)
    assert not loaded.training


@pytest.fixture
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, ub.Box]:
    name: str = request.param
    side = image_side(name)
    processor = transformers.ViTImageProcessorPil(size={"height": side, "width": side})
    processor.save_pretrained(tmp_path)
    return name, ub.load(str(save(build(name), tmp_path)))


def test_a_folder_is_opened_explained_and_reported(
    opened: tuple[str, ub.Box], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """All sections and methods by `make contracts`; else each on one of the architectures, without the ranking.

    One method of each is judged then, and the others explain.
    """
    name, box = opened
    every = request.config.getoption("--all-pairs")
    if not every:
        request.getfixturevalue("quick_reports")
    part = slice(None) if every else slice(OFTEN.index(name), None, len(OFTEN))
    sections = [
        section for section in SECTIONS if "texts" not in section.needs and (every or section.slug != "ranking")
    ]
    side = image_side(name)
    assert box.classes == ("class a", "class b", "class c")
    assert box.inputs == ub.Pixels((3, side, side), [0.5] * 3, [0.5] * 3, resize=(side, side))
    x = torch.rand(6, 3, side, side, generator=torch.Generator().manual_seed(0))
    report = ub.report(box, (x, torch.arange(6) % 3), tmp_path / "out", sections=sections[part], quiet=True)
    assert report.failures == {}
    methods = dict(list(ub.checks.candidates(box).items())[part])
    judged = dict(list(methods.items())[: None if every else 1])
    explanation = explain(box, x[:1], methods=judged)
    assert explanation.verdicts.keys() == judged.keys()
    assert explanation.maps or not every
    for method in (methods[n] for n in methods.keys() - judged.keys()):
        with suppress(RuleError):  # there is no ReLU
            assert method(box, x[:1], None).map.isfinite().all()


# -- a folder ----------------------------------------------------------------------------------------------------------


def test_shards_by_the_index(tmp_path: Path) -> None:
    model = build("ViT")
    save(model, tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    assert same(loading.model(str(tmp_path))[0], model)
    for source in (tmp_path, tmp_path / "model.safetensors.index.json"):
        fresh = type(model)(model.config)
        loading.weights(fresh, source)
        assert same(fresh, model)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": {f"model.{n}": h for n, h in s.items()}}])
def test_a_file_under_old_names_and_a_prefix(tmp_path: Path, wrap: Any) -> None:
    """As of a file of the Hub that a Lightning module has saved again."""
    model = build("ViT")
    state = safetensors.torch.load_file(save(model, tmp_path) / "model.safetensors")
    assert not state.keys() <= model.state_dict().keys()
    fresh = type(model)(model.config)
    loading.weights(fresh, wrap(state))
    assert same(fresh, model)


class Wrapper(nn.Module):
    """A module around a model of transformers, with a layer of its own, as of Lightning."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.temperature = model, nn.Linear(3, 3)


def test_a_module_around_a_model_whose_names_were_older(tmp_path: Path) -> None:
    """As of a Lightning checkpoint that was written under transformers 4."""
    saved = Wrapper(build("ViT"))
    old = safetensors.torch.load_file(save(saved.encoder, tmp_path) / "model.safetensors")
    own = {f"temperature.{name}": tensor for name, tensor in saved.temperature.state_dict().items()}
    fresh = Wrapper(type(saved.encoder)(saved.encoder.config))
    loading.weights(fresh, {"state_dict": {**{f"encoder.{name}": h for name, h in old.items()}, **own}})
    assert same(fresh, saved)
    with pytest.raises(ModelError, match=r"2 missing in the file: temperature\.weight, temperature\.bias"):
        loading.weights(Wrapper(build("ViT")), {f"encoder.{name}": h for name, h in old.items()})


def test_the_file_of_a_model_into_a_module_around_it(tmp_path: Path) -> None:
    model = build("ViT")
    old = safetensors.torch.load_file(save(model, tmp_path) / "model.safetensors")
    fresh = nn.ModuleDict({"encoder": type(model)(model.config)})
    loading.weights(fresh, old)
    assert same(fresh["encoder"], model)


def test_the_models_own_names_and_precision(tmp_path: Path) -> None:
    model = build("ViT")
    fresh = type(model)(model.config).double()
    loading.weights(fresh, safetensors.torch.load_file(save(model, tmp_path) / "model.safetensors"))
    assert fresh.dtype == torch.float64
    assert torch.equal(fresh.classifier.weight, model.classifier.weight.double())
    loading.weights(fresh, model.state_dict())


def test_a_file_of_another_size_or_without_a_head_is_refused(tmp_path: Path) -> None:
    model = build("ViT")
    state = safetensors.torch.load_file(save(model, tmp_path) / "model.safetensors")
    small = transformers.ViTForImageClassification(transformers.ViTConfig(**{**CONFIGS["ViT"], "num_hidden_layers": 1}))
    with pytest.raises(ModelError, match=r"unexpected in the file: .*layer"):
        loading.weights(small, state)
    del state["classifier.weight"]
    with pytest.raises(ModelError, match=r": 1 missing in the file: classifier\.weight;"):
        loading.weights(build("ViT"), state)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"no weights for classifier\.weight of ViTForImageClassification"):
        loading.model(str(tmp_path))


def test_weights_beside_the_model_are_left_out_and_said(tmp_path: Path) -> None:
    model = build("ViT")
    state = safetensors.torch.load_file(save(model, tmp_path) / "model.safetensors")
    safetensors.torch.save_file(
        {**state, "loss.center": torch.ones(3)}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.warns(UnboxedWarning, match=r"left out, .*loss\.center"):
        assert same(loading.model(str(tmp_path))[0], model)


def test_the_architecture_and_other_weights(tmp_path: Path) -> None:
    model = build("ResNet")
    save(model, tmp_path)
    other = build("ResNet")
    nn.init.ones_(other.classifier[1].weight)
    torch.save(other.state_dict(), tmp_path / "best.pt")
    box = ub.load(str(tmp_path), tmp_path / "best.pt", inputs=ub.Pixels((3, 32, 32)))
    assert same(box.model, other)
    first, second = (loading.model(str(tmp_path), trained=False, seed=seed)[0] for seed in (3, 3))
    assert same(first, second)
    assert not same(first, model)


def test_without_a_config_of_its_architecture_it_is_the_classifier_of_its_type(tmp_path: Path) -> None:
    save(build("DeiT"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(loading.model(str(tmp_path))[0]).__name__ == "DeiTForImageClassification"


def test_inputs_that_are_not_known_are_asked_for_with_the_models_own_size(tmp_path: Path) -> None:
    save(build("ViT"), tmp_path)
    with pytest.raises(ModelError, match=r"ub\.Pixels\(\(3, 16, 16\), mean=.*--shape 3,16,16"):
        ub.load(str(tmp_path))
    no_processor = r"no preprocessor_config\.json .* mean and std are unknown; its config has images of \(3, 16, 16\)"
    with pytest.raises(ModelError, match=rf"{no_processor}.*most are 0\.5 and 0\.5, or ImageNet's"):
        ub.load(str(tmp_path))
    save(build("ResNet"), tmp_path)
    with pytest.raises(ModelError, match=r"has no image size, \(3, 224, 224\) is a guess"):
        ub.load(str(tmp_path))
    save(build("ViT"), tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"do_pad": true, "image_mean": [0.5], "image_std": [0.5]}')
    with pytest.warns(UnboxedWarning, match="preprocessor_config.json of .* is not taken over: .*do_pad"):
        assert ub.load(str(tmp_path), inputs=ub.Pixels((3, 16, 16))).inputs == ub.Pixels((3, 16, 16))


def test_a_processor_object_as_inputs(tmp_path: Path) -> None:
    processor = transformers.ViTImageProcessorPil(size={"height": 16, "width": 16})
    box = ub.load(str(save(build("ViT"), tmp_path)), inputs=processor)
    assert box.inputs == ub.Pixels((3, 16, 16), [0.5] * 3, [0.5] * 3, resize=(16, 16))
    assert repr(box.inputs) in repr(box)


def test_the_command_line(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from unboxed.cli import app

    save(build("ResNet"), tmp_path / "model")
    transformers.ConvNextImageProcessorPil(size={"shortest_edge": 32}).save_pretrained(tmp_path / "model")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    command = ["explain", str(tmp_path / "a.png"), "--model", str(tmp_path / "model"), "--method", "gradient", "-q"]
    done = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "class " in done.output


# -- folders that are not to be trusted, or broken ---------------------------------------------------------------------


def refused(folder: Path, *words: str) -> str:
    with pytest.raises(ModelError) as caught:
        loading.model(str(folder))
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
    return str(caught.value)


def changed_config(folder: Path, **changes: Any) -> Path:
    save(build("ViT"), folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_code_in_a_folder_is_never_run(tmp_path: Path) -> None:
    auto_map = {"AutoConfig": "code.Config", "AutoModelForImageClassification": "code.Net"}
    folder = changed_config(tmp_path, model_type="mine", architectures=["Net"], auto_map=auto_map)
    (folder / "code.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    refused(folder, "brings the code of its model, which Unboxed never runs")
    changed_config(folder, auto_map=auto_map)
    loading.model(str(folder))  # transformers' own code, whatever the folder brings
    assert not (tmp_path / "mark").exists()


def test_a_pickle_with_code_in_it_is_never_run(tmp_path: Path) -> None:
    folder = changed_config(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"classifier.weight": Bomb(tmp_path / "mark")}, folder / "pytorch_model.bin")
    refused(folder, "can't load")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_attn_implementation": "somebody/kernel"}, "code of others"),
        ({"vision_config": {"attn_implementation": "somebody/kernel"}}, "code of others"),
        ({"model_type": "unknown-of-2040"}, "unknown-of-2040"),
        ({"model_type": None}, "names no model_type"),
        ({"architectures": ["pipeline"], "model_type": "bert"}, "of the class pipeline"),
        ({"architectures": ["ViTForEverything"], "model_type": "bert"}, "ViTForEverything"),
        ({"hidden_size": "large"}, "can't load"),
        ({"hidden_size": 32}, "can't load"),
    ],
)
def test_configs_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    refused(changed_config(tmp_path, **changes), words)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "[" * 100_000])
def test_a_damaged_config(tmp_path: Path, text: str) -> None:
    folder = changed_config(tmp_path)
    (folder / "config.json").write_text(text)
    refused(folder, "config.json", "JSON")


def test_a_folder_without_weights_or_with_truncated_ones(tmp_path: Path) -> None:
    folder = changed_config(tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    refused(folder, "can't load")
    path.unlink()
    refused(folder, "can't load")


def test_an_adapter_alone_and_other_folders(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder, not a model")
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(tmp_path, "is an adapter alone")


def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = changed_config(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackageError, match="pip install transformers"):
        loading.model(str(folder))
