"""Which tensors of a checkpoint are a model's: by their names, under whatever prefixes wrappers have put there.

A checkpoint may hold several sets that fit, as raw weights beside averaged ones: which is taken is always said.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import ModelError, warn
from ..weight_files import TensorDict, listed_names_text

INNER_WRAPPER_MODULE_NAMES = {
    "module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module",
}  # fmt: skip
"""From DataParallel, torch.compile, Lightning Fabric, FSDP and activation checkpointing, anywhere in a name."""
WRAPPER_MODULE_NAMES = {"model", "net", "network", *INNER_WRAPPER_MODULE_NAMES}  # and prefixes, as of Lightning modules
AVERAGED_WEIGHTS_NAMES = {"ema", "emamodel", "modelema", "averaged", "average", "avg", "swa", "shadow", "polyak"}
RAW_WEIGHTS_NAMES = {"current", "raw"}  # "current_model_state" is Lightning's, beside averaged weights
NON_WEIGHT_BUFFER_NAMES = {"total_ops", "total_params", "attn_mask"}  # buffers that thop and Swin leave in modules
NON_WEIGHT_NAME_PATTERN = re.compile(
    r"optim|sched|scaler|rng|callback|loops"
)  # in names of a checkpoint that are no weights
OPTIMIZER_NAME_PATTERN = re.compile(r"optim|exp_avg|moment|grad")  # shaped like weights, and none
TOP_LEVEL_SELECTOR = "."  # selects the weights that are under no key of a file


@dataclass(frozen=True)
class WeightSet:
    """Tensors of a file that fit a model, {the model's name: tensor}.

    `label` is where they are in the file, "" for its top level, and `file_names` their names there. `is_own_choice`
    tells that the model's own loading took them, not their names.
    """

    label: str
    tensors: TensorDict
    file_names: frozenset[str]
    is_own_choice: bool = False

    @property
    def averaging_rank(self) -> int:
        """1 for averaged weights, by their label, -1 for raw ones, else 0."""
        words = {*re.split(r"[^a-z0-9]+", self.label.lower().replace("_", " "))}
        return bool(words & AVERAGED_WEIGHTS_NAMES) - bool(words & RAW_WEIGHTS_NAMES)

    def has_same_values(self, other: WeightSet) -> bool:
        """Whether another set has the same values."""
        shared = self.tensors.keys() & other.tensors.keys()
        return all(torch.equal(self.tensors[name], other.tensors[name]) for name in shared)


def state_tensors(model: nn.Module) -> TensorDict:
    """The state dict of a model, without extra states that are no tensors."""
    return {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}


def tensors_of_part(flat: TensorDict, selector: str) -> TensorDict:
    """The tensors of a file in the part that a selector names; all of them for "" and ".", the top level."""
    if selector in ("", TOP_LEVEL_SELECTOR):
        return flat
    return {name: tensor for name, tensor in flat.items() if f".{selector}." in f".{name}"}


def matching_weight_sets(flat: TensorDict, state: TensorDict) -> list[WeightSet]:
    """All sets of tensors in a file that have all names and shapes of a model's state dict, under some prefix."""
    file_names = strip_wrapper_names(flat)
    sets = [
        _make_weight_set(prefix, matched, flat)
        for prefix, matched in _matches_by_prefix(file_names, strip_wrapper_names(state, strip_common=True))
    ]
    return _keep_complete_weight_sets(sets, state)


def _make_weight_set(
    prefix: str, matched: Mapping[str, str], flat: TensorDict, base: TensorDict | None = None
) -> WeightSet:
    tensors = {own: flat[real] for own, real in matched.items()}
    return WeightSet(prefix.rstrip("."), (base or {}) | tensors, frozenset(matched.values()))


def _keep_complete_weight_sets(sets: Iterable[WeightSet], state: TensorDict) -> list[WeightSet]:
    return [
        s
        for s in sets
        if not missing_tensor_names(s.tensors, state) and not wrong_shape_or_kind_sentences(s.tensors, state)
    ]


def weight_sets_from_unnamed_averages(
    flat: TensorDict, state: TensorDict, parameters: Sequence[str], base: TensorDict
) -> list[WeightSet]:
    """Averages that are kept as a list of all parameters (`shadow_params`) or by their names without dots (LitEma).

    Buffers, which such averages lack, are those of `base`, the raw weights.
    """
    tied = _other_names_of_tied_parameters(parameters, state)
    base = {name: tensor for name, tensor in base.items() if name not in tied}
    numbered = {str(i): name for i, name in enumerate(parameters)}
    dotless = {name.replace(".", ""): name for name in parameters}
    file_names = strip_wrapper_names(flat)
    matches = [match for names in (numbered, dotless) for match in _matches_by_prefix(file_names, names)]
    sets = [
        _make_weight_set(prefix, matched, flat, base) for prefix, matched in matches if len(matched) == len(parameters)
    ]
    return _keep_complete_weight_sets(sets, state)


def _other_names_of_tied_parameters(parameters: Sequence[str], state: TensorDict) -> set[str]:
    """The further names of tied parameters."""
    storages = {_storage_key(state[name]) for name in parameters if name in state and _has_values(state[name])}
    return {n for n, h in state.items() if n not in parameters and _has_values(h) and _storage_key(h) in storages}


def _has_values(h: Tensor) -> bool:
    return not is_lazy(h) and not h.is_meta and h.numel() > 0


def tied_names_with_different_values(tensors: TensorDict, state: TensorDict) -> list[tuple[str, str]]:
    """The pairs of names that are one tensor in a model, and have different values in a set."""
    first: dict[tuple[object, ...], str] = {}
    pairs = []
    for name in (name for name, h in state.items() if name in tensors and _has_values(h)):
        other = first.setdefault(_storage_key(state[name]), name)
        if not _is_equal_with_nan(tensors[name], tensors[other]):
            pairs.append((other, name))
    return pairs


def _is_equal_with_nan(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same, NaN being the same as NaN."""
    if torch.equal(a, b) or a.shape != b.shape or not (a.is_floating_point() and b.is_floating_point()):
        return torch.equal(a, b)
    return torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isnan(), b.isnan())


def closest_weight_match(flat: TensorDict, state: TensorDict) -> tuple[TensorDict, list[str]]:
    """Where no set fits, the one that fits best, and the names of the file under its prefix that the model lacks."""
    file_names = strip_wrapper_names(flat)
    matches = dict(_matches_by_prefix(file_names, strip_wrapper_names(state, strip_common=True)))
    allowed = [p for p in matches if _is_wrapper_prefix(p) or all(name.startswith(p) for name in file_names)]
    prefix = max(allowed, key=lambda p: (len(matches[p]), -len(p)), default="")
    matched = matches.get(prefix, {})
    used = {*matched.values()}
    unused = [name for name, real in file_names.items() if name.startswith(prefix) and real not in used]
    return {own: flat[real] for own, real in matched.items()}, [name[len(prefix) :] for name in unused]


def _is_wrapper_prefix(prefix: str) -> bool:
    return {*prefix.split(".")[:-1]} <= WRAPPER_MODULE_NAMES


def _matches_by_prefix(
    file_names: Mapping[str, str], model_names: Mapping[str, str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """(prefix, {the model's name: the file's name}) of every prefix under which a name of the model is found."""
    counts = Counter(
        prefix for name in file_names for prefix in dotted_prefixes(name) if name[len(prefix) :] in model_names
    )
    for prefix in counts:
        shared = [name for name in model_names if prefix + name in file_names]
        yield prefix, {model_names[name]: file_names[prefix + name] for name in shared}


def dotted_prefixes(name: str) -> list[str]:
    """The prefixes of a dotted name: of "a.b.c" they are "", "a." and "a.b."."""
    parts = name.split(".")
    return ["".join(f"{part}." for part in parts[:n_parts]) for n_parts in range(len(parts))]


def strip_wrapper_names(names: Iterable[str], strip_common: bool = False) -> dict[str, str]:
    """{name without wrappers' parts: name}; `strip_common` also drops wrapper names that all names begin with.

    A name that would then be another's keeps its parts.
    """
    names = list(names)
    short = {name: _canonical_tensor_name(name) for name in names}
    counts = Counter(short.values())
    stripped = {short[name] if counts[short[name]] == 1 else name: name for name in names}
    while (
        strip_common
        and len(first := {name.partition(".")[0] for name in stripped}) == 1
        and first <= WRAPPER_MODULE_NAMES
    ):
        stripped = {name.partition(".")[2]: real for name, real in stripped.items()}
    return stripped


def _canonical_tensor_name(name: str) -> str:
    """A name without the parts that wrappers put into it; today's weight norm as of old, `weight_g` and `weight_v`."""
    unwrapped = ".".join(part for part in name.split(".") if part not in INNER_WRAPPER_MODULE_NAMES)
    return re.sub(r"parametrizations\.(\w+)\.original([01])$", lambda m: f"{m[1]}_{'gv'[int(m[2])]}", unwrapped)


# -- the choice between several ----------------------------------------------------------------------------------------


def choose_weight_set(sets: Sequence[WeightSet], source: str, selector: str = "") -> WeightSet:
    """The set that is meant. Averaged weights are taken before raw ones, with a warning that says how to take others.

    Raises ModelError where it can't be known which is meant.
    """
    if selector:
        sets = [s for s in sets if _is_selected(s.label, selector)] or sets
    else:
        sets = [s for s in sets if not OPTIMIZER_NAME_PATTERN.search(s.label)] or sets
    different = [s for i, s in enumerate(sets) if not any(s.has_same_values(other) for other in sets[:i])]
    first, *others = sorted(different, key=lambda s: -s.averaging_rank)
    if others and others[0].averaging_rank == first.averaging_rank:
        labels = listed_names_text(_weight_set_label_text(s) for s in different)
        problem = f"{source} holds several sets of weights that fit alike, and differ ({labels})"
        raise ModelError(f"{problem}; say which you mean: {_selector_options_text(source, different)}")
    if others:
        taken = f"took {'the averaged weights, ' * (first.averaging_rank > 0)}{_weight_set_label_text(first)}"
        how = _selector_options_text(source, others)
        warn(f"{source} holds several sets of weights that fit: {taken}. To take the other: {how}")
    return first


def _is_selected(label: str, selector: str) -> bool:
    return not label if selector == TOP_LEVEL_SELECTOR else f".{label}".endswith(f".{selector}")


def _weight_set_label_text(weight_set: WeightSet) -> str:
    return weight_set.label or "those at its top level"


def _selector_options_text(source: str, sets: Iterable[WeightSet]) -> str:
    if not Path(source).exists():  # a state dict
        return f"pass {listed_names_text(s.label or 'the top level' for s in sets)} alone"
    return " or ".join(f"--weights {shlex.quote(f'{source}:{s.label or TOP_LEVEL_SELECTOR}')}" for s in sets)


# -- what is missing, and what is left over ----------------------------------------------------------------------------


def unused_tensor_names(taken: WeightSet, flat: TensorDict) -> tuple[list[str], list[str]]:
    """The names of a file that a set does not use: those of a larger model, and those beside the model.

    Beside it are a loss's weights, a counter, another model. Layers that continue the numbers of the model's own
    ("layer1.2" after "layer1.1"), or lie inside of its modules, are those of another architecture.
    """
    names, prefix = strip_wrapper_names(flat), f"{taken.label}." if taken.label else ""
    paths = {
        path
        for name, real in names.items()
        if real in taken.file_names
        for path in _module_prefixes(name[len(prefix) :])
    }
    unused = {name: flat[real] for name, real in names.items() if real not in taken.file_names}
    inside = {name[len(prefix) :]: tensor for name, tensor in unused.items() if name.startswith(prefix)}
    larger = [
        name for name, tensor in inside.items() if _belongs_to_larger_model(name, tensor, paths, taken.is_own_choice)
    ]
    outside = [name for name, tensor in unused.items() if not name.startswith(prefix) and _may_be_weights(name, tensor)]
    return larger, [name for name in inside if name not in larger] + outside


def _may_be_weights(name: str, tensor: Tensor) -> bool:
    return tensor.ndim > 0 and not NON_WEIGHT_NAME_PATTERN.search(name)


def _module_prefixes(name: str) -> list[str]:
    """The modules that a name goes through and itself: of "a.b" they are "", "a." and "a.b."."""
    return dotted_prefixes(f"{name}.")


def _digits_to_hash_signs(text: str) -> str:
    return re.sub(r"\d+", "#", text)


def _belongs_to_larger_model(name: str, tensor: Tensor, paths: set[str], is_own_choice: bool) -> bool:
    owner = max((p for p in dotted_prefixes(name) if p in paths), key=len)
    part = name[len(owner) :].partition(".")[0]
    siblings = {path[len(owner) :].partition(".")[0] for path in paths if path.startswith(owner)}
    if any(c.isdigit() for c in part) and _digits_to_hash_signs(part) in map(_digits_to_hash_signs, siblings):
        return True
    is_counter = not tensor.is_floating_point() or name.rpartition(".")[2] in NON_WEIGHT_BUFFER_NAMES
    return bool(owner) and not is_counter and not is_own_choice


def missing_tensor_names(fitted: TensorDict, state: TensorDict) -> list[str]:
    """The names of a model that a set lacks and needs."""
    loaded_storage = {_storage_key(state[name]) for name in fitted}
    return [
        name
        for name, tensor in state.items()
        if name not in fitted and not _may_be_missing_from_file(name, tensor, loaded_storage)
    ]


def wrong_shape_or_kind_sentences(fitted: TensorDict, state: TensorDict) -> list[str]:
    """Sentences on the tensors of a set that have another shape, or another kind of numbers, in the model."""
    return [
        f"{name} is {_shape_text(h, state[name])} in the file, {_shape_text(state[name], h)} in the model"
        for name, h in fitted.items()
        if not is_lazy(state[name]) and (h.shape != state[name].shape or not has_same_tensor_kind(h, state[name]))
    ]


def has_same_tensor_kind(h: Tensor, own: Tensor) -> bool:
    """Whether a tensor is dense, with numbers for a model's tensor: floats, not the integers of quantized weights."""
    is_number = h.is_floating_point() or h.is_complex() or not own.is_floating_point()
    return h.layout == torch.strided and not h.is_meta and is_number and h.is_complex() == own.is_complex()


def _shape_text(h: Tensor, other: Tensor) -> str:
    """The shape of a tensor, and where that is the other's, too, what kind of tensor it is."""
    kind = "meta " * h.is_meta + f"{str(h.layout).removeprefix('torch.')} " * (h.layout != torch.strided)
    return str(tuple(h.shape)) if h.shape != other.shape else f"{kind}{str(h.dtype).removeprefix('torch.')}"


def _may_be_missing_from_file(name: str, tensor: Tensor, loaded_storage: set[tuple[object, ...]]) -> bool:
    """Whether a name may be missing: a counter that old checkpoints lack, a tied weight's second name."""
    return name.endswith("num_batches_tracked") or (_storage_key(tensor) in loaded_storage and tensor.numel() > 0)


def _storage_key(tensor: Tensor) -> tuple[object, ...]:
    return () if is_lazy(tensor) else (tensor.data_ptr(), tensor.shape, tensor.stride())
