"""A folder that `save_pretrained` wrote: config, weights (also in shards), image processor, class names.

transformers loads it, from this folder alone: nothing is fetched, and no code of the folder's is ever run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError, MissingPackageError, ModelError, warn
from ..inputs.base import Inputs
from ..inputs.preprocessing import to_inputs
from ..inputs.text_models import takes_token_ids
from ..inputs.tokens import Tokens
from ..model.state import forking_rngs_with_lock
from ..weight_files import listed_names_text
from .own_loading import silencing_transformers

HF_CONFIG_FILE_NAME = "config.json"
HF_TOKENIZER_FILE_NAMES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")
HF_PROCESSOR_FILE_NAMES = ("preprocessor_config.json", "processor_config.json")
WRITE_FACTORY_ADVICE = (
    "write a factory that builds the model from code that you trust, and give --model file.py:factory"
)
FROM_PRETRAINED_KWARGS = {"local_files_only": True, "trust_remote_code": False}


def is_pretrained_folder(path: Path) -> bool:
    """Whether a folder holds a model of transformers."""
    return (path / HF_CONFIG_FILE_NAME).is_file()


def load_pretrained(folder: Path, *, trained: bool = True, seed: int = 0) -> tuple[nn.Module, Inputs | None]:
    """The model in a folder, and its inputs by the image processor or the tokenizer beside it; None without either.

    With `trained=False` it is made from its config, with random weights by the seed. Raises ModelError,
    MissingPackageError.
    """
    config_values = _read_checked_config(folder)
    library = _import_transformers()
    if config_values.get("auto_map") and config_values["model_type"] not in library.CONFIG_MAPPING:
        raise ModelError(f"{folder} brings the code of its model, which Unboxed never runs; {WRITE_FACTORY_ADVICE}")
    try:
        with silencing_transformers(), _working_offline():
            config = library.AutoConfig.from_pretrained(folder, **FROM_PRETRAINED_KWARGS)
            model_class = _find_model_class(library, config, folder)
            module = (
                _load_trained_model(model_class, folder) if trained else _build_seeded_model(model_class, config, seed)
            )
    except ModelError:
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ModelError(f"transformers {library.__version__} can't load {folder}: {message}") from error
    return module.eval(), _inputs_from_processor(folder, module) or _inputs_from_tokenizer(folder, module, library)


def _import_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError(
            "a Hugging Face folder is loaded by transformers, which is not installed: pip install transformers"
        ) from error
    return transformers


@contextmanager
def _working_offline() -> Iterator[None]:
    """Without the Hub, which a config may name for a backbone or a kernel."""
    import huggingface_hub.constants as constants

    old_value = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = old_value


def _read_checked_config(folder: Path) -> dict[str, Any]:
    """The values of its config. Raises ModelError for one that is damaged, or names code of others to be run."""
    config = _read_json(folder / HF_CONFIG_FILE_NAME)
    if not isinstance(config.get("model_type"), str):
        raise ModelError(f"{folder / HF_CONFIG_FILE_NAME} names no model_type of transformers; {WRITE_FACTORY_ADVICE}")
    if _is_hub_kernel_named(config):
        raise ModelError(
            f"{folder} names code of others for its attention, which Unboxed never runs; {WRITE_FACTORY_ADVICE}"
        )
    return config


def _is_hub_kernel_named(config: Mapping[str, Any]) -> bool:
    """Whether a kernel of the Hub is named, in the config or one of its parts."""
    return any(
        _is_hub_kernel_named(value) if isinstance(value, Mapping) else "_implementation" in key and "/" in str(value)
        for key, value in config.items()
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} can't be read: it is truncated or no JSON") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}; wanted a JSON object, as save_pretrained writes it")
    return content


def _find_model_class(library: Any, config: Any, folder: Path) -> Any:
    """The class that the config names; for one without, the image classifier of its type."""
    names = list(getattr(config, "architectures", None) or ())
    for name in names:
        named = getattr(library, str(name), None)
        if isinstance(named, type) and issubclass(named, library.PreTrainedModel):
            return named
    if type(config) in (classifiers := library.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING):
        found = classifiers[type(config)]
        return found[0] if isinstance(found, tuple) else found
    problem = f"{folder} is a {config.model_type} model of the class {names[0] if names else 'unknown'}"
    raise ModelError(f"{problem}, which transformers {library.__version__} does not have; {WRITE_FACTORY_ADVICE}")


def _load_trained_model(model_class: Any, folder: Path) -> nn.Module:
    module, report = model_class.from_pretrained(
        folder, **FROM_PRETRAINED_KWARGS, weights_only=True, output_loading_info=True
    )
    if lost := sorted(map(str, {*report["missing_keys"], *report["mismatched_keys"]})):
        problem = (
            f"{folder} has no weights for {listed_names_text(lost)} of {model_class.__name__}, which would be random"
        )
        raise ModelError(f"{problem}; give the folder of the model that was trained for this task")
    if unused := sorted(report["unexpected_keys"]):
        warn(f"{folder}: left out, for {model_class.__name__} has no such weights: {listed_names_text(unused)}")
    return module  # type: ignore[no-any-return]


def _build_seeded_model(model_class: Any, config: Any, seed: int) -> nn.Module:
    with forking_rngs_with_lock(seed, torch.get_default_device()):
        return model_class(config)  # type: ignore[no-any-return]


def _inputs_from_tokenizer(folder: Path, module: nn.Module, library: Any) -> Inputs | None:
    """Texts, by the tokenizer in the folder; None without one, or where the model does not take its ids."""
    if not takes_token_ids(module) or not any((folder / name).is_file() for name in HF_TOKENIZER_FILE_NAMES):
        return None
    try:
        with silencing_transformers(), _working_offline():
            tokenizer = library.AutoTokenizer.from_pretrained(folder, **FROM_PRETRAINED_KWARGS)
    except Exception as error:  # a damaged file can make the reader raise anything
        message = " ".join(str(error).split())[:300]
        warn(f"the tokenizer of {folder} can't be loaded: {type(error).__name__}: {message}")
        return None
    return Tokens(tokenizer)


def _inputs_from_processor(folder: Path, module: nn.Module) -> Inputs | None:
    """Inputs by the image processor; where they can't be, a warning says why, and they are asked for."""
    for path in filter(Path.is_file, (folder / name for name in HF_PROCESSOR_FILE_NAMES)):
        try:
            return to_inputs(_read_json(path), module)
        except (InputError, ModelError) as error:
            warn(f"{path.name} of {folder} is not taken over: {error}")
    return None
