"""Which weights of a file are taken: of averaged and raw ones, through the model's own loading, from shards."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import unboxed as ub
from unboxed import loading
from unboxed.errors import ModelError, UnboxedWarning

State = dict[str, Tensor]


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: h for name, h in state.items()}


# -- raw and averaged --------------------------------------------------------------------------------------------------

RAW, AVERAGED = net(1), net(2)
R, A = RAW.state_dict(), AVERAGED.state_dict()
BESIDE: dict[str, tuple[dict[str, Any], str, str]] = {
    "timm": ({"state_dict": R, "state_dict_ema": A, "optimizer": {}}, "state_dict_ema", "state_dict"),
    "detectron": ({"model": R, "model_ema": A}, "model_ema", "model"),
    "basicsr": ({"params": R, "params_ema": A}, "params_ema", "params"),
    "a key": ({"model": R, "ema": A}, "ema", "model"),
    "nested": ({"net": {"state_dict": R}, "ema": {"decay": 0.9, "shadow": A}}, "ema.shadow", "net.state_dict"),
    "wrapped": ({"model": prefixed(R, "module."), "ema": prefixed(A, "module.")}, "ema", "model"),
    "stylegan": ({"g": R, "g_ema": A}, "g_ema", "g"),
    "swa": ({"model": R, "swa_model": {**prefixed(A, "module."), "n_averaged": torch.tensor(3)}}, "swa_model", "model"),
    "Lightning, flat": ({"state_dict": prefixed(R, "net.") | prefixed(A, "ema_net.")}, "ema_net", "net"),
    "Lightning, model": (
        {"state_dict": prefixed(R, "model.") | prefixed(A, "ema.model.")},
        "ema.model",
        "state_dict.model",
    ),
    "Lightning's average": ({"state_dict": A, "current_model_state": R}, "state_dict", "current_model_state"),
    "beside the top level": ({**R, **prefixed(A, "ema.")}, "ema", "."),
}


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("how", BESIDE)
def test_averaged_weights_are_taken_which_is_said_with_the_way_to_take_the_others(tmp_path: Path, how: str) -> None:
    file, averaged, raw = BESIDE[how]
    path = tmp_path / "w.pt"
    torch.save(file, path)
    fresh = net()
    with pytest.warns(UnboxedWarning, match="holds several sets of weights that fit: took ") as caught:
        loading.weights(fresh, path)
    assert same(fresh, AVERAGED)
    assert f"--weights {path}:" in str(caught[0].message)
    for selector, wanted in ((raw, RAW), (averaged, AVERAGED)):
        loading.weights(fresh, f"{path}:{selector}")
        assert same(fresh, wanted)


def test_equal_sets_are_one(tmp_path: Path) -> None:
    torch.save({"model": R, "ema": R, "teacher": R}, tmp_path / "w.pt")
    fresh = net()
    loading.weights(fresh, tmp_path / "w.pt")
    assert same(fresh, RAW)


def with_buffers(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("make", "label"),
    [
        (lambda r, a: {"model": r, "ema": {"decay": 0.9, "shadow_params": [*a.values()]}}, "ema.shadow_params"),
        (
            lambda r, a: {
                "state_dict": {**prefixed(r, "model."), **{f"model_ema.{n.replace('.', '')}": h for n, h in a.items()}}
            },
            "state_dict.model_ema",
        ),
    ],
    ids=["a list", "names without dots"],
)
def test_averages_of_the_parameters_alone_are_taken_with_the_raw_buffers(
    tmp_path: Path, make: Callable[..., dict[str, Any]], label: str
) -> None:
    """As diffusers' EMAModel and LitEma keep them."""
    raw, averaged, path = with_buffers(1), with_buffers(2), tmp_path / "w.pt"
    raw[1].running_mean += 5
    torch.save(make(raw.state_dict(), dict(averaged.named_parameters())), path)
    fresh = with_buffers(3)
    with pytest.warns(UnboxedWarning, match=f"took the averaged weights, {label}"):
        loading.weights(fresh, path)
    assert torch.equal(fresh[0].weight, averaged[0].weight)
    for selector, wanted in ((label, averaged), ("model", raw)):
        loading.weights(fresh, f"{path}:{selector}")
        assert torch.equal(fresh[0].weight, wanted[0].weight)
        assert torch.equal(fresh[1].running_mean, raw[1].running_mean)


def test_averages_of_another_model_are_left_out_and_named(tmp_path: Path) -> None:
    torch.save({"model": R, "ema": {"shadow_params": [torch.ones(2)]}}, tmp_path / "w.pt")
    with pytest.warns(UnboxedWarning, match=r"left out, .*ema\.shadow_params\.0"):
        loading.weights(net(), tmp_path / "w.pt")


@pytest.mark.parametrize(("a", "b"), [("student", "teacher"), ("online_network", "target_network"), ("model", "best")])
def test_where_no_name_says_which_is_the_average_it_is_asked(tmp_path: Path, a: str, b: str) -> None:
    torch.save({a: R, b: A}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=f"w.pt:{a} or --weights .*w.pt:{b}$"):
        loading.weights(net(), tmp_path / "w.pt")


def test_a_part_that_a_file_does_not_have(tmp_path: Path) -> None:
    torch.save({"model": R, "model_ema": A}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="no weights under 'emma'; it has: model, model_ema"):
        loading.weights(net(), f"{tmp_path / 'w.pt'}:emma")


def test_a_file_name_may_have_a_colon(tmp_path: Path) -> None:
    torch.save(R, tmp_path / "w:1.pt")
    fresh = net()
    loading.weights(fresh, tmp_path / "w:1.pt")
    assert same(fresh, RAW)
    with pytest.raises(ModelError, match="there is no weights file"):
        loading.weights(fresh, tmp_path / "v:1.pt")


# -- what is left out, and what is not ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beside", "name"),
    [
        ({"n_averaged": torch.tensor(3)}, "n_averaged"),
        ({"criterion.pos_weight": torch.ones(2)}, "criterion.pos_weight"),
        ({"loss.center": torch.ones(2, 4)}, "loss.center"),
        ({"0.total_ops": torch.ones(1), "0.total_params": torch.ones(1)}, "0.total_ops"),
        ({"2.relative_index": torch.arange(3)}, "2.relative_index"),
    ],
)
def test_what_is_no_part_of_the_model_is_left_out_and_said(beside: State, name: str) -> None:
    fresh = net()
    with pytest.warns(UnboxedWarning, match=f"left out, for Sequential has no such weights: {name}"):
        loading.weights(fresh, {**R, **beside})
    assert same(fresh, RAW)


@pytest.mark.parametrize("name", ["4.weight", "0.lora_a.weight", "2.scale", "1.weight"])
def test_a_larger_model_is_refused_though_all_names_of_the_smaller_are_in_it(name: str) -> None:
    """A deeper model's first layers are no model, nor is a layer without its scale."""
    fresh = net()
    with pytest.raises(ModelError, match=f"1 unexpected in the file: {name}"):
        loading.weights(fresh, {**R, name: torch.ones(2, 2)})
    assert same(fresh, net())


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.ones(4, 3, device="meta"), "0.weight is meta float32 in the file, float32 in the model"),
        (torch.ones(4, 3).to_sparse(), "0.weight is sparse_coo float32 in the file"),
        (torch.ones(4, 3, dtype=torch.complex64), "0.weight is complex64 in the file"),
        (torch.ones(4, 3, dtype=torch.int8), "0.weight is int8 in the file"),
        (torch.ones(3, 4), r"0.weight is \(3, 4\) in the file, \(4, 3\) in the model"),
    ],
    ids=["meta", "sparse", "complex", "integers", "transposed"],
)
def test_tensors_that_are_no_weights_of_this_model(tensor: Tensor, words: str) -> None:
    """Integers of quantized weights would be copied without their scale."""
    fresh = net()
    with pytest.raises(ModelError, match=f"1 of another shape or kind: {words}"):
        loading.weights(fresh, {**R, "0.weight": tensor})
    assert same(fresh, net())


def test_average_of_torch() -> None:
    averaged, fresh = torch.optim.swa_utils.AveragedModel(RAW), net()
    with pytest.warns(UnboxedWarning, match="n_averaged"):
        loading.weights(fresh, averaged.state_dict())
    assert same(fresh, RAW)


@pytest.mark.parametrize(
    "part", ["_checkpoint_wrapped_module", "module", "_orig_mod", "_fsdp_wrapped_module", "_forward_module"]
)
def test_parts_of_wrappers_within_a_name(part: str) -> None:
    fresh = net()
    loading.weights(fresh, {name.replace(".", f".{part}.", 1): h for name, h in R.items()})
    assert same(fresh, RAW)
    wrapped = nn.ModuleDict({part: net()})
    loading.weights(wrapped, R)
    assert same(wrapped[part], RAW)


def test_a_real_activation_checkpoint_and_a_compiled_model() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    wrapped = nn.Sequential(checkpoint_wrapper(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2))
    loading.weights(wrapped, R)
    assert torch.equal(wrapped(torch.ones(1, 3)), RAW(torch.ones(1, 3)))
    compiled, fresh = torch.compile(RAW, backend="eager"), net()
    loading.weights(fresh, compiled.state_dict())
    assert same(fresh, RAW)
    compiled = torch.compile(net(), backend="eager")
    loading.weights(compiled, R)
    assert same(compiled._orig_mod, RAW)


# -- the model's own loading -------------------------------------------------------------------------------------------


class Renamed(nn.Module):
    """Translates names of an old version, as many models do."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.fc = nn.Linear(3, 2)

    def _load_from_state_dict(self, state: State, prefix: str, *rest: Any) -> None:
        for key in [k for k in state if k.startswith(f"{prefix}head.")]:
            state[key.replace("head.", "fc.")] = state.pop(key)
        super()._load_from_state_dict(state, prefix, *rest)


class Overridden(Renamed):
    """Its `load_state_dict` translates, and returns nothing."""

    def load_state_dict(self, state: State, strict: bool = True) -> None:  # type: ignore[override]
        old = {"fc.weight": state["head.weight"], "fc.bias": state["head.bias"]}  # names of today are an error
        nn.Module.load_state_dict(self, old, strict)


class Reshaped(Renamed):
    """Old files hold a 1 x 1 convolution in place of the linear layer."""

    def _load_from_state_dict(self, state: State, prefix: str, *rest: Any) -> None:
        if f"{prefix}conv.weight" in state:
            state[f"{prefix}fc.weight"] = state.pop(f"{prefix}conv.weight").flatten(1)
            state[f"{prefix}fc.bias"] = state.pop(f"{prefix}conv.bias")
        nn.Module._load_from_state_dict(self, state, prefix, *rest)


def old_names(seed: int = 7) -> State:
    return {name.replace("fc.", "head."): h for name, h in Renamed(seed).state_dict().items()}


WRAPS: dict[str, Callable[[State], dict[str, Any]]] = {
    "bare": lambda s: s,
    "key": lambda s: {"state_dict": s, "epoch": 3},
    "prefix": lambda s: prefixed(s, "module."),
    "both": lambda s: {"state_dict": prefixed(s, "model."), "optimizer": {"state": {}, "param_groups": []}},
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("kind", [Renamed, Overridden])
def test_a_model_that_translates_old_names(kind: type[Renamed], wrap: str) -> None:
    fresh = kind()
    loading.weights(fresh, WRAPS[wrap](old_names()))
    assert same(fresh, Renamed(7))


def test_a_model_that_translates_old_shapes() -> None:
    state = Renamed(7).state_dict()
    fresh = Reshaped()
    loading.weights(fresh, {"conv.weight": state["fc.weight"][..., None, None], "conv.bias": state["fc.bias"]})
    assert same(fresh, Renamed(7))


class Resampled(nn.Module):
    """Position embeddings of another length are resampled, as ViTs do, under the same name."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.arange(float(length))[None])

    def _load_from_state_dict(self, state: State, prefix: str, *rest: Any) -> None:
        length = self.positions.shape[1]
        old = state[f"{prefix}positions"][:, None]
        state[f"{prefix}positions"] = nn.functional.interpolate(old, length, mode="linear", align_corners=True)[:, 0]
        super()._load_from_state_dict(state, prefix, *rest)


def test_a_model_that_resamples_its_position_embeddings() -> None:
    fresh = Resampled(5)
    loading.weights(fresh, {"positions": torch.tensor([[0.0, 2.0, 4.0]])})
    assert torch.equal(fresh.positions, torch.arange(5.0)[None])


def test_raw_and_averaged_weights_under_old_names(tmp_path: Path) -> None:
    torch.save({"model": old_names(), "model_ema": old_names(8)}, tmp_path / "w.pt")
    fresh = Renamed()
    with pytest.warns(UnboxedWarning, match="took the averaged weights, model_ema"):
        loading.weights(fresh, tmp_path / "w.pt")
    assert same(fresh, Renamed(8))
    loading.weights(fresh, f"{tmp_path / 'w.pt'}:model")
    assert same(fresh, Renamed(7))


def test_what_the_model_itself_refuses_is_refused() -> None:
    fresh, state = Renamed(), old_names()
    with pytest.raises(ModelError, match="missing in the file"):
        loading.weights(fresh, {"head.weight": state["head.weight"]})
    with pytest.raises(ModelError, match="missing in the file"):
        loading.weights(fresh, {"head.weight": torch.ones(5, 5), "head.bias": state["head.bias"]})
    larger = {f"fc{i}.{name}": h for i in (1, 2) for name, h in Renamed().fc.state_dict().items()}
    with pytest.raises(ModelError, match=r"2 unexpected in the file: fc2\.weight"):
        loading.weights(nn.ModuleDict({"fc1": nn.Linear(3, 2)}), larger)
    assert same(fresh, Renamed())


def normed(make: Callable[[nn.Module], nn.Module], seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(make(nn.Linear(3, 2)))


def test_old_weight_norm_goes_into_new() -> None:
    old, new = normed(nn.utils.weight_norm, 1), normed(parametrizations.weight_norm, 2)
    loading.weights(new, old.state_dict())
    assert torch.equal(new(torch.ones(1, 3)), old(torch.ones(1, 3)))


def test_new_weight_norm_goes_into_old() -> None:
    old, new = normed(nn.utils.weight_norm, 1), normed(parametrizations.weight_norm, 2)
    loading.weights(old, new.state_dict())
    assert torch.equal(new(torch.ones(1, 3)), old(torch.ones(1, 3)))


@pytest.mark.parametrize(
    "make",
    [parametrizations.weight_norm, parametrizations.orthogonal, lambda m: prune.l1_unstructured(m, "weight", 0.3)],
)
def test_parametrized_weights_and_a_plain_model_are_refused_with_the_reason(make: Callable[..., nn.Module]) -> None:
    with pytest.raises(ModelError, match="with its parametrizations"):
        loading.weights(nn.Sequential(nn.Linear(3, 2)), normed(make, 1).state_dict())


# -- shards, and files of other kinds ----------------------------------------------------------------------------------


def write_shards(folder: Path, stem: str = "model", suffix: str = "safetensors") -> dict[str, str]:
    """Shards and their index, as `save_pretrained` writes them."""
    table = {name: f"{stem}-0000{1 + i % 2}-of-00002.{suffix}" for i, name in enumerate(R)}
    for shard in {*table.values()}:
        part = {name: R[name] for name in R if table[name] == shard}
        safetensors.torch.save_file(part, folder / shard) if suffix == "safetensors" else torch.save(
            part, folder / shard
        )
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return table


@pytest.mark.parametrize(
    ("stem", "suffix"), [("model", "safetensors"), ("pytorch_model", "bin"), ("mine", "safetensors")]
)
def test_shards_by_their_index_or_folder(tmp_path: Path, stem: str, suffix: str) -> None:
    write_shards(tmp_path, stem, suffix)
    for source in (tmp_path, tmp_path / f"{stem}.{suffix}.index.json"):
        fresh = net()
        loading.weights(fresh, source)
        assert same(fresh, RAW)
    with pytest.raises(ModelError, match=r"is shard 1 of 2, a part .* index"):
        loading.weights(net(), tmp_path / f"{stem}-00001-of-00002.{suffix}")


INDEX = "model.safetensors.index.json"


def test_a_lost_shard_and_a_damaged_index(tmp_path: Path) -> None:
    table = write_shards(tmp_path)
    for text in ("{}", "[]", "3", '{"weight_map": {"a": 3}}', '{"weight_map": {}}', "{", "[" * 10_000):
        (tmp_path / INDEX).write_text(text)
        with pytest.raises(ModelError, match=r"the index .* is damaged; wanted JSON"):
            loading.weights(net(), tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {**table, "4.weight": next(iter(table.values()))}}))
    with pytest.raises(ModelError, match=r"not in their shards: 4\.weight"):
        loading.weights(net(), tmp_path)
    write_shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"'model-00002-of-00002.safetensors', and there is no such file beside it"):
        loading.weights(net(), tmp_path)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "a/../../secret.safetensors", "", ".."])
def test_an_index_names_no_file_elsewhere(tmp_path: Path, shard: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    safetensors.torch.save_file(R, tmp_path / "secret.safetensors")
    (inner / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(R, shard)}))
    with pytest.raises(ModelError, match="no such file beside it"):
        loading.weights(net(), inner)


def adapter() -> State:
    return {f"base_model.model.{i}.lora_{k}.weight": torch.ones(2, 2) for i in (0, 2) for k in "AB"}


def test_each_other_kind_of_file_has_a_sentence_of_its_own(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **{name: h.numpy() for name, h in R.items()})
    (tmp_path / "w.pt").write_bytes((tmp_path / "w.npz").read_bytes())
    torch.save(adapter(), tmp_path / "lora.pt")
    safetensors.torch.save_file(adapter(), tmp_path / "adapter_model.safetensors")
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    sentences = {
        "w.npz": "an archive of NumPy arrays",
        "w.pt": "an archive of NumPy arrays",
        "lora.pt": "is an adapter alone",
        "adapter_model.safetensors": "is an adapter alone",
        "": "is an adapter alone",
        "model.onnx": "is an ONNX graph",
    }
    for name, sentence in sentences.items():
        with pytest.raises(ModelError, match=sentence):
            loading.weights(net(), tmp_path / name)


def test_folders_of_other_kinds(tmp_path: Path) -> None:
    kinds = {"__0_0.distcp": "dcp_to_torch", "zero_to_fp32.py": "DeepSpeed", "notes.txt": "is a folder without"}
    for i, (file, sentence) in enumerate(kinds.items()):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / file).write_text("")
        with pytest.raises(ModelError, match=sentence):
            loading.weights(net(), tmp_path / str(i))


@pytest.mark.parametrize("key", ["optimizer.exp_avg", "avg_grad", "ema_grad_sq", "momentum_ema"])
def test_what_an_optimizer_keeps_of_each_weight_is_no_average(key: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    raw = {name: torch.full_like(p, 0.5) for name, p in model.state_dict().items()}
    moments: Any = {name: torch.full_like(p, 7.0) for name, p in model.state_dict().items()}
    for part in reversed(key.split(".")[1:]):
        moments = {part: moments}
    torch.save({"model": raw, key.split(".")[0]: moments}, tmp_path / "c.pt")
    loading.weights(model, tmp_path / "c.pt")
    assert all(bool((p == 0.5).all()) for p in model.state_dict().values())


def test_nan_is_no_difference_between_a_tensor_and_itself(tmp_path: Path) -> None:
    """NaN in a file is reported by what is computed with it, not as two values of tied weights."""
    state = {name: h.clone() for name, h in net(1).state_dict().items()}
    state["0.weight"][0, 0] = torch.nan
    torch.save(state, tmp_path / "w.pt")
    loading.weights(net(), tmp_path / "w.pt")
    tied = net()
    tied[2] = nn.Linear(4, 4)
    tied.append(nn.Linear(4, 4))
    tied[3].weight = tied[2].weight
    broken = {name: h.clone() for name, h in tied.state_dict().items()}
    for name in ("2.weight", "3.weight"):
        broken[name][1, 1] = torch.nan
    torch.save(broken, tmp_path / "w.pt")
    loading.weights(tied, tmp_path / "w.pt")
    broken["3.weight"][0, 0] += 1
    torch.save(broken, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="tied"):
        loading.weights(tied, tmp_path / "w.pt")


def test_the_file_of_an_interrupted_training_says_what_it_is(tmp_path: Path) -> None:
    model, x, y = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.rand(6, 1, 2, 2), torch.tensor([0, 1] * 3)
    ub.training.fit(model, ub.Pixels((1, 2, 2)), (x, y), epochs=1, checkpoint=tmp_path / "run.pt", quiet=True)
    with pytest.raises(ModelError, match="from which an interrupted training goes on"):
        ub.loading.weights(model, tmp_path / "run.pt")
