"""Loading what is right: models from every kind of spec, weights under every wrapper, data by name."""

import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

import unboxed as ub
from models import SmallConv as Net
from models import small_conv as model
from real_data import MNIST, needs_mnist
from unboxed import loading
from unboxed.errors import ModelError, UnboxedWarning


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A user's file next to a module of its own."""
    (tmp_path / "layers_of_mine.py").write_text("WIDTH = 3\n")
    source = """
        import functools
        from layers_of_mine import WIDTH
        from torch import nn
        import unboxed as ub

        class Small(nn.Sequential):
            def __init__(self, width=WIDTH):
                super().__init__(nn.Flatten(), nn.Linear(4, width))

        def make():
            return Small()

        def with_inputs():
            return Small(), ub.Pixels((1, 2, 2))

        ready = Small(5)
        wide = functools.partial(Small, 7)

        class Factories:
            make = staticmethod(make)
    """
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(source))
    return path


@pytest.mark.parametrize(
    ("name", "width"), [("Small", 3), ("make", 3), ("with_inputs", 3), ("ready", 5), ("wide", 7), ("Factories.make", 3)]
)
def test_a_factory_in_a_file_may_be_a_class_a_function_or_a_module(file: Path, name: str, width: int) -> None:
    made, inputs = loading.model(f"{file}:{name}")
    assert made(torch.zeros(2, 1, 2, 2)).shape == (2, width)
    assert inputs == (ub.Pixels((1, 2, 2)) if name == "with_inputs" else None)


def test_a_factory_says_how_its_model_is_opened(tmp_path: Path) -> None:
    (tmp_path / "opened.py").write_text(
        textwrap.dedent("""
        import torch, unboxed as ub
        def named(): return torch.nn.Linear(2, 2), ub.Features(["a", "b"]), ["cat", "dog"]
        def box(): return ub.Box(*named()[:2], classes=["cat", "dog"], outputs="multilabel", mode="as-is")
        ready = box()
        def four(): return (*named(), "more")
        """)
    )
    for name in ("named", "box", "ready"):
        made = ub.load(f"{tmp_path / 'opened.py'}:{name}")
        assert (made.classes, made.inputs.names) == (("cat", "dog"), ("a", "b"))
        assert (made.outputs, made.mode) == (("logits", "eval") if name == "named" else ("multilabel", "as-is"))
    torch.save({"weight": torch.ones(2, 2), "bias": torch.zeros(2)}, tmp_path / "w.pt")
    given = ub.load(f"{tmp_path / 'opened.py'}:box", tmp_path / "w.pt", classes=["x", "y"], outputs="regression")
    assert (given.classes, given.outputs, given.mode) == (("x", "y"), "regression", "as-is")
    assert torch.equal(given.model.weight, torch.ones(2, 2))
    assert torch.equal(given(torch.tensor([[1.0, 2.0]])), torch.tensor([[3.0, 3.0]]))
    with pytest.raises(ModelError, match=r"made a tuple; wanted a torch\.nn\.Module, \(Module, inputs\), .*or a Box"):
        ub.load(f"{tmp_path / 'opened.py'}:four")


def test_a_file_is_imported_under_a_private_name_and_leaves_the_path_as_it_was(file: Path) -> None:
    path, modules = list(sys.path), set(sys.modules)
    loading.model(f"{file}:make")
    assert sys.path == path
    assert all(name.startswith("_unboxed_mine_") for name in set(sys.modules) - modules)


def test_neighbors_of_the_same_name_in_two_folders_are_not_mixed_up(tmp_path: Path) -> None:
    for width in (2, 9):
        folder = tmp_path / str(width)
        folder.mkdir()
        (folder / "layers_of_mine.py").write_text(f"WIDTH = {width}\n")
        source = "from torch import nn\nfrom layers_of_mine import WIDTH\nmodel = nn.Linear(1, WIDTH)\n"
        (folder / "model.py").write_text(source)
    widths = [loading.model(f"{tmp_path / str(width)}/model.py:model")[0].out_features for width in (2, 9)]
    assert widths == [2, 9]


def test_an_edited_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    for width in (2, 30):
        path.write_text(f"from torch import nn\nmodel = nn.Linear(1, {width})\n")
        assert loading.model(f"{path}:model")[0].out_features == width


def test_a_factory_in_a_module_of_the_working_folder(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    made, _ = loading.model("mine:make")
    assert made(torch.zeros(1, 1, 2, 2)).shape == (1, 3)


def test_load_opens_a_box_with_the_inputs_of_the_factory_or_of_the_caller(file: Path) -> None:
    assert ub.load(f"{file}:with_inputs").inputs == ub.Pixels((1, 2, 2))
    box = ub.load(f"{file}:make", inputs=ub.Pixels((1, 2, 2), std=0.5), classes=["a", "b", "c"], outputs="logits")
    assert box.inputs.std == 0.5
    assert box.classes == ("a", "b", "c")


# -- weights -----------------------------------------------------------------------------------------------------------


def put(state: object, path: Path) -> Net:
    """A fresh model with what was saved."""
    torch.save(state, path)
    fresh = model(1)
    loading.weights(fresh, path)
    return fresh


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: h for name, h in model().state_dict().items()}


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "model.", "_orig_mod.", "module.module.", "model._orig_mod.module.", "net.", "mine.backbone."],
)
def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path, prefix: str) -> None:
    assert same(put(prefixed(prefix), tmp_path / "w.pt"), model())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3, "hyper_parameters": {"lr": 0.1}},
        lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {0: {"step": torch.ones(1)}}}},
        lambda s: {"model": {"state_dict": s}, "loss": torch.tensor(0.3)},
        lambda s: {"epoch": 3, "accuracy": 0.9, **s},
        lambda s: {"my_weights": s, "note": "best"},
    ],
    ids=["lightning", "tutorial", "nested", "flat", "own key"],
)
def test_checkpoints_that_hold_more_than_weights(tmp_path: Path, wrap: object) -> None:
    assert same(put(wrap(model().state_dict()), tmp_path / "w.ckpt"), model())  # type: ignore[operator]


def test_a_lightning_checkpoint_may_hold_a_loss_next_to_the_model(tmp_path: Path) -> None:
    state = {**prefixed("model."), "criterion.weight": torch.ones(10)}
    with pytest.warns(UnboxedWarning, match=r"left out, .*criterion.weight"):
        fresh = put({"state_dict": state, "pytorch-lightning_version": "2.6"}, tmp_path / "w.ckpt")
    assert same(fresh, model())


def other(prefix: str, *names: str) -> dict[str, Tensor]:
    """Weights that are not the ones wanted, all of them or some, under a prefix."""
    state = model(5).state_dict()
    return {prefix + name: h for name, h in state.items() if not names or name in names}


@pytest.mark.parametrize(
    "beside",
    [
        other("net.", "conv.weight", "conv.bias"),
        other("network.", "conv.weight", "conv.bias"),
        other("ema.", "conv.weight", "conv.bias"),
        other("", "fc.weight"),
    ],
    ids=["part of another", "part of one with a longer name", "part of an average", "a stray"],
)
def test_of_several_prefixes_the_one_that_fits_is_taken(tmp_path: Path, beside: dict[str, Tensor]) -> None:
    """Wherever it is in the file; the others are left out, which is said."""
    state = prefixed("model.")
    for file in ({**beside, **state}, {**state, **beside}):
        with pytest.warns(UnboxedWarning, match=f"left out, .*{next(iter(beside))}"):
            assert same(put({"state_dict": file}, tmp_path / "w.ckpt"), model())


@pytest.mark.parametrize(
    "prefixes", [("model.", "net."), ("", "model."), ("model.", "model.net."), ("model.", "teacher.")]
)
def test_two_sets_that_fit_alike_are_refused_with_the_way_to_take_one(
    tmp_path: Path, prefixes: tuple[str, str]
) -> None:
    """Which one is meant can't be known: the model stays as it was."""
    torch.save({**other(prefixes[0]), **prefixed(prefixes[1])}, tmp_path / "w.pt")
    fresh = model(1)
    with pytest.raises(ModelError, match="fit alike") as caught:
        loading.weights(fresh, tmp_path / "w.pt")
    assert same(fresh, model(1))
    for prefix, weights in zip(prefixes, (model(5), model()), strict=True):
        choice = f"{tmp_path / 'w.pt'}:{prefix[:-1] or '.'}"
        assert f"--weights {choice}" in str(caught.value)
        loading.weights(fresh, choice) if prefix == prefixes[1] else _load_warned(fresh, choice)
        assert same(fresh, weights)


def _load_warned(fresh: nn.Module, choice: str) -> None:
    """The choice alone is taken; where the other set lies within it, it is left out with a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnboxedWarning)
        loading.weights(fresh, choice)


def test_two_names_of_the_same_weights_are_one_set(tmp_path: Path) -> None:
    """As of a module that keeps its model under two names."""
    assert same(put({**prefixed("model."), **prefixed("net.")}, tmp_path / "w.pt"), model())


def test_a_prefix_that_is_no_wrappers_counts_if_the_whole_model_is_under_it(tmp_path: Path) -> None:
    file = {**prefixed("encoder."), "head.weight": torch.ones(2, 2)}
    with pytest.warns(UnboxedWarning, match=r"left out, .*head.weight"):
        assert same(put(file, tmp_path / "w.pt"), model())
    del file["encoder.fc.weight"]
    torch.save(file, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="missing"):
        loading.weights(model(1), tmp_path / "w.pt")


def test_a_model_whose_own_parts_are_called_as_wrappers(tmp_path: Path) -> None:
    """Its names begin with words that wrappers put there: nothing is taken off that it has itself."""

    def doubled(seed: int) -> nn.ModuleDict:
        return nn.ModuleDict({"model": model(seed), "head": nn.Linear(2, 2)})

    saved, fresh = doubled(0), doubled(1)
    torch.save(saved.state_dict(), tmp_path / "w.pt")
    loading.weights(fresh, tmp_path / "w.pt")
    assert same(fresh, saved)


def test_a_wrapped_part_of_the_model(tmp_path: Path) -> None:
    state = {name.replace("conv.", "conv.module."): h for name, h in model().state_dict().items()}
    assert same(put(state, tmp_path / "w.pt"), model())


def test_weights_of_the_bare_model_go_into_a_wrapped_one(tmp_path: Path) -> None:
    torch.save(model().state_dict(), tmp_path / "w.pt")
    wrapped = nn.ModuleDict({"model": model(1)})
    loading.weights(wrapped, tmp_path / "w.pt")
    assert same(wrapped["model"], model())


def test_safetensors(tmp_path: Path) -> None:
    safetensors.torch.save_file(prefixed("module."), tmp_path / "w.safetensors")
    fresh = model(1)
    loading.weights(fresh, tmp_path / "w.safetensors")
    assert same(fresh, model())


def test_half_precision_weights_and_old_checkpoints_without_counters(tmp_path: Path) -> None:
    half = {n: h.half() for n, h in model().state_dict().items() if not n.endswith("num_batches_tracked")}
    fresh = put(half, tmp_path / "w.pt")
    assert fresh.fc.weight.dtype == torch.float32
    assert torch.equal(fresh.fc.weight, model().fc.weight.half().float())


def test_the_second_name_of_a_tied_weight_may_be_missing(tmp_path: Path) -> None:
    one, other = tied_model(), tied_model()
    torch.save({"embedding.weight": one["embedding"].weight}, tmp_path / "w.pt")
    loading.weights(other, tmp_path / "w.pt")
    assert torch.equal(other["head"].weight, one["embedding"].weight)


def tied_model() -> nn.ModuleDict:
    parts = nn.ModuleDict({"head": nn.Linear(4, 6, bias=False), "embedding": nn.Embedding(6, 4)})
    parts["head"].weight = parts["embedding"].weight
    return parts


def test_tied_weights_that_differ_in_the_file_are_refused(tmp_path: Path) -> None:
    made = tied_model()
    before = made["head"].weight.detach().clone()
    torch.save({"head.weight": torch.ones(6, 4), "embedding.weight": torch.zeros(6, 4)}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"head.weight and embedding.weight are one tensor in the model \(tied\)"):
        loading.weights(made, tmp_path / "w.pt")
    assert torch.equal(made["head"].weight, before)
    torch.save({"head.weight": torch.ones(6, 4), "embedding.weight": torch.ones(6, 4)}, tmp_path / "w.pt")
    loading.weights(made, tmp_path / "w.pt")
    assert torch.equal(made["embedding"].weight, torch.ones(6, 4))


def test_averages_of_tied_weights_are_those_of_both_names(tmp_path: Path) -> None:
    raw = {name: torch.zeros(6, 4) for name in ("head.weight", "embedding.weight")}
    torch.save({"model": raw, "ema": {"shadow_params": [torch.ones(6, 4)]}}, tmp_path / "w.pt")
    made = tied_model()
    with pytest.warns(UnboxedWarning, match="took the averaged weights"):
        loading.weights(made, tmp_path / "w.pt")
    assert torch.equal(made["head"].weight, torch.ones(6, 4))


def test_weights_saved_on_a_gpu_load_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:3")
        torch.save(model().state_dict(), tmp_path / "w.pt")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(tmp_path / "w.pt", weights_only=True)
    fresh = model(1)
    loading.weights(fresh, tmp_path / "w.pt")
    assert same(fresh, model())


# -- data --------------------------------------------------------------------------------------------------------------


def test_data_from_a_factory(tmp_path: Path) -> None:
    source = """
        import torch
        from torch.utils.data import Dataset, TensorDataset

        class Mine(Dataset):
            def __len__(self):
                return 3
            def __getitem__(self, i):
                return torch.zeros(1, 2, 2), i

        ready = TensorDataset(torch.zeros(5, 1, 2, 2), torch.arange(5))
    """
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(source))
    assert len(loading.data(f"{path}:Mine")) == 3
    assert len(loading.data(f"{path}:ready")) == 5


@pytest.mark.parametrize(("spec", "n"), [("digits", 1797), ("digits:train", 1438), ("digits:test", 359)])
def test_data_by_name(spec: str, n: int) -> None:
    assert len(loading.data(spec)) == n


@needs_mnist
def test_mnist_is_asked_for_by_split() -> None:
    assert len(loading.data("mnist", root=MNIST)) == 70_000
    assert len(loading.data("mnist:test", root=MNIST)) == 10_000
    assert len(loading.data("mnist:train", root=MNIST)) == 60_000


def test_a_folder_becomes_what_the_box_takes(tmp_path: Path) -> None:
    for name in ("cat", "ant"):
        (tmp_path / name).mkdir()
        Image.new("L", (30, 20), 255).save(tmp_path / name / "one.png")
    like = ub.Pixels((1, 8, 8))
    assert loading.data(str(tmp_path), like).first(2).x.shape == (2, 1, 8, 8)
    numbered = loading.data(str(tmp_path), like, classes=("cat", "dog", "ant"))
    assert sorted(numbered.first(2).y.tolist()) == [0, 2]


def test_a_model_of_the_zoo_without_its_weights() -> None:
    made, inputs = loading.model("zoo:digits-cnn", trained=False)
    assert made(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert inputs.shape == (1, 28, 28)


def check_weights_are_refused(path: Path, content: bytes, text: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ModelError, match=text):
        loading.weights(nn.Linear(2, 2), path)


@pytest.mark.parametrize(
    ("start", "text"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><head>", "is a web page"), (b"<HTML>", "is a web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "holds weights of Keras"), (b"GGUF\3" + bytes(64), "is a GGUF file"),
        (b"\x93NUMPY\1" + bytes(64), "is a NumPy array"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_came_in_place_of_weights_is_named(tmp_path: Path, start: bytes, text: str, suffix: str) -> None:
    check_weights_are_refused(tmp_path / f"w{suffix}", start, text)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            b"ash,magnesium,label\n1,2,no\n",
            "is a file of text, not weights; wanted a file that torch.save or safetensors wrote",
        ),
        ("h\u00f6he;gr\u00f6\u00dfe\n".encode() * 9, "is a file of text, not weights"),
        (b"a\x00\x01\x02", "truncated or no checkpoint; wanted a file that torch.save or safetensors wrote"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".csv"])
def test_what_is_no_checkpoint_is_told_in_words(tmp_path: Path, content: bytes, text: str, suffix: str) -> None:
    """And not as "pop from empty list", where the unpickler got lost."""
    check_weights_are_refused(tmp_path / f"w{suffix}", content, text)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.bin"])
@pytest.mark.parametrize("save", [safetensors.torch.save_file, torch.save])
def test_a_file_is_read_by_what_it_holds_whatever_it_is_called(tmp_path: Path, name: str, save: Any) -> None:
    saved, model = nn.Linear(2, 2), nn.Linear(2, 2)
    save(saved.state_dict(), str(tmp_path / name))
    loading.weights(model, tmp_path / name)
    assert torch.equal(model.weight, saved.weight)
