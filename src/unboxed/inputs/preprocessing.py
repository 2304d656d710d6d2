"""Inputs from the preprocessing that people have: a Hugging Face image processor, a transform of torchvision, a timm
config. They are read by their attributes and class names: nothing is imported, and nothing of theirs is run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import Any, cast

from ..errors import InputError
from .base import Inputs, misplaced_inputs_hint, to_number_or_list
from .pixels import INTERPOLATIONS, Pixels
from .tokens import Tokens

Preprocessing = Mapping[str, Any] | Callable[..., Any]
"""An image processor, a transform or a config, by its attributes."""
ChannelValues = tuple[float, ...]
HeightWidth = tuple[int, int]
RESAMPLING_NAME_BY_PIL_NUMBER = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers
SHORT_SIDE_PROCESSOR_NAME_PREFIXES = (
    "CLIP", "ConvNext", "Levit", "PoolFormer", "MobileNet", "Bit", "MobileViT", "VideoMAE",
)  # fmt: skip
"""Hugging Face processors that take a size of one number as that of the short side."""
VIDEO_PROCESSOR_NAME_PREFIXES = ("Vivit", "VideoMAE", "Tvp", "Tvlt")  # and whatever has "Video" in its name
UNSUPPORTED_PROCESSOR_FLAGS = (
    "do_color_quantize", "do_thumbnail", "do_pad", "do_align_long_axis", "do_image_splitting", "do_split_image",
    "crop_to_patches", "do_affine_transform",
)  # fmt: skip
TRANSFORMS_WITHOUT_EFFECT = {
    "ToTensor", "ToImage", "ToPILImage", "PILToTensor", "ToImagePIL", "Identity", "ToPureTensor", "RGB",
}  # fmt: skip
TRANSFORMS_TO_UNIT_RANGE = {"ConvertImageDtype", "ToDtype", "ConvertDtype", "MaybeToTensor"}
TORCHVISION_PRESET_ATTRIBUTES = ("crop_size", "resize_size", "mean", "std")  # of torchvision's `weights.transforms()`


@dataclass(frozen=True)
class _PreprocessingSteps:
    """What a preprocessing does: files are resized and cropped, then z = scale * x + offset for pixels x in [0, 1]."""

    resize: int | HeightWidth | None = None  # the short side, or (height, width)
    crop: HeightWidth | None = None
    interpolation: str = "bilinear"
    scale: ChannelValues = (1.0,)  # one, or one per channel
    offset: ChannelValues = (0.0,)
    n_channels: int | None = None
    bgr: bool = False
    unknown: tuple[str, ...] = field(default=())  # steps that can't be taken over
    is_video: bool = False
    name: str = ""  # of a processor, as its config says

    def with_normalization_appended(self, mean: Any, std: Any) -> _PreprocessingSteps:
        """With a step (z - mean) / std after all others."""
        means, stds = _to_float_tuple("mean", mean), _to_float_tuple("std", std)
        if 0 in stds:
            raise InputError("the preprocessing divides by a std of 0; wanted numbers above 0")
        n = max(map(len, (self.scale, means, stds)))
        rows = zip(*(_repeat_to_length(v, n) for v in (self.scale, self.offset, means, stds)), strict=True)
        pairs = [(scale / s, (offset - m) / s) for scale, offset, m, s in rows]
        channels = n if n > 1 else self.n_channels
        return replace(self, scale=tuple(a for a, _ in pairs), offset=tuple(b for _, b in pairs), n_channels=channels)


def to_inputs(value: object, model: object = None) -> Inputs:
    """What inputs are, as `Pixels` where it is a preprocessing: of Hugging Face, torchvision or timm.

    A size that it does not have is taken from the model's own config. Raises InputError.
    """
    if isinstance(value, Tokens):
        return value.bind_to_model(cast(Any, model))
    if isinstance(value, Inputs):
        return value
    steps = _parse_preprocessing(value)
    if steps is None:
        wanted = "Pixels(...), Features(...) or MultiInput(...), an image processor, a transform or a timm config"
        raise InputError(f"inputs must be {wanted}; got {type(value).__name__}{misplaced_inputs_hint(value)}")
    return _steps_to_pixels(steps, steps.name or type(value).__name__, model)


def inputs_in_timm_config(model: object) -> Inputs | None:
    """The inputs that a model of timm has in its `pretrained_cfg`; None for a model without."""
    config = _to_mapping_or_none(getattr(model, "pretrained_cfg", None))
    return to_inputs(config, model) if config and {"input_size", "mean", "std"} <= config.keys() else None


def _steps_to_pixels(steps: _PreprocessingSteps, name: str, model: object) -> Pixels:
    if steps.unknown:
        raise InputError(
            f"the {name} does what Pixels cannot: {', '.join(steps.unknown)}; {_pixels_advice_text(steps)}"
        )
    known_shape = image_shape_in_config(model)
    size = steps.crop or ((known_shape or (0, None))[1:] if steps.resize is None else steps.resize)
    if not isinstance(size, tuple) or len(size) != 2:
        raise InputError(f"the {name} gives images of no fixed size; {_pixels_advice_text(steps)}")
    n_channels = known_shape[0] if known_shape else _channels_in_config(model) or steps.n_channels
    mean, std = _pixel_mean_and_std(steps)
    return Pixels((n_channels or 3, *size), mean, std, steps.resize, cast(Any, steps.interpolation), steps.bgr)


def _pixel_mean_and_std(steps: _PreprocessingSteps) -> tuple[Any, Any]:
    """The mean and the std of Pixels: a number, or one per channel."""
    pairs = list(zip(_repeat_to_length(steps.offset, len(steps.scale)), steps.scale, strict=True))
    mean = [_round_last_bits(-offset / scale) for offset, scale in pairs]
    std = [_round_last_bits(1 / scale) for _, scale in pairs]
    return (tuple(mean), tuple(std)) if len(pairs) > 1 else (mean[0], std[0])


def _round_last_bits(value: float) -> float:
    """Without the last bits of the arithmetic: 0.485 instead of 0.48500000000000004."""
    return float(f"{value:.12g}") + 0.0


def _pixels_advice_text(steps: _PreprocessingSteps) -> str:
    mean, std = _pixel_mean_and_std(steps)
    if steps.is_video:
        volumes = f"ub.Pixels(({steps.n_channels or 3}, frames, height, width), mean={mean}, std={std})"
        return (
            f"pass {volumes} and a module that calls the model with x.transpose(1, 2), the frames before the channels"
        )
    return f"pass ub.Pixels(({steps.n_channels or 3}, height, width), mean={mean}, std={std}) and images made so"


def _parse_preprocessing(value: object) -> _PreprocessingSteps | None:
    """The steps of a preprocessing; None for what is none."""
    value = getattr(value, "image_processor", value)  # of a processor of images and text
    if (transforms := _flatten_compose(value)) is not None:
        return _parse_transforms(transforms)
    if all(hasattr(value, name) for name in TORCHVISION_PRESET_ATTRIBUTES):
        return _parse_torchvision_preset(value)
    if type(value).__name__ == "Normalize":
        return _parse_transforms([value])
    config = _to_mapping_or_none(value)
    if config is None:
        return None
    if "image_processor" in config:
        return _parse_preprocessing(config["image_processor"])
    if "input_size" in config and "mean" in config:
        return _parse_timm_config(config)
    return (
        _parse_hf_processor(config, type(value).__name__) if "image_mean" in config or "do_resize" in config else None
    )


def _to_mapping_or_none(value: object) -> Mapping[str, Any] | None:
    if isinstance(value, Mapping):
        return value
    to_dict = getattr(value, "to_dict", None)
    if callable(to_dict) and not isinstance(value, type):
        converted = to_dict()
        return converted if isinstance(converted, Mapping) else None
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else None


# -- Hugging Face ------------------------------------------------------------------------------------------------------


def _parse_hf_processor(config: Mapping[str, Any], class_name: str) -> _PreprocessingSteps:
    """An image processor: `preprocessor_config.json`, or the object's `to_dict()`."""
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or class_name)
    unknown = [name for name in UNSUPPORTED_PROCESSOR_FLAGS if config.get(name)]
    unknown += ["patches of any size"] if config.get("max_num_patches") else []
    is_video = "Video" in kind or kind.startswith(VIDEO_PROCESSOR_NAME_PREFIXES)
    unknown += ["videos"] * is_video
    steps = _with_processor_resize(
        _PreprocessingSteps(unknown=tuple(unknown), is_video=is_video, name=kind), config, kind
    )
    scale = 255 * float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 255.0
    steps = replace(steps, scale=(scale,), bgr=bool(config.get("do_flip_channel_order", False)))
    if config.get("rescale_offset") or config.get("offset"):
        steps = replace(steps, offset=(-1.0,))
    if not config.get("do_normalize", "MobileViT" not in kind):
        return steps
    if config.get("image_mean") is None or config.get("image_std") is None:
        raise InputError(
            f"the config of this {kind} normalizes and has no image_mean and image_std; {_pixels_advice_text(steps)}"
        )
    steps = steps.with_normalization_appended(config["image_mean"], config["image_std"])
    return (
        steps.with_normalization_appended(0.0, config["image_std"]) if config.get("include_top") else steps
    )  # EfficientNet's own


def _with_processor_resize(steps: _PreprocessingSteps, config: Mapping[str, Any], kind: str) -> _PreprocessingSteps:
    crops = bool(config.get("do_center_crop", "crop_size" in config and "do_center_crop" not in config))
    crop = _parse_size_pair(config.get("crop_size")) if crops else None
    if not config.get("do_resize", True):
        return replace(steps, crop=crop, unknown=(*steps.unknown, *["a crop without a resize"] * (crop is not None)))
    resize = _parse_processor_size(config.get("size"), kind)
    if resize is None and config.get("size"):
        steps = replace(steps, unknown=(*steps.unknown, "a resize to no fixed size"))
    if "Perceiver" in kind and crop:
        steps = replace(steps, unknown=(*steps.unknown, "a crop before the resize"))
    if isinstance(resize, int) and ("ConvNext" in kind or (config.get("crop_pct") and crop is None)):
        crop = (resize, resize)
        is_warped = "ConvNext" in kind and resize >= 384
        resize = crop if is_warped else int(resize / (config.get("crop_pct") or 224 / 256))
    elif isinstance(resize, int) and config.get("crop_pct"):
        resize = int(resize / config["crop_pct"])
    elif isinstance(resize, int) and "Levit" in kind:
        resize = int(256 / 224 * resize)
    return replace(steps, resize=resize, crop=crop, interpolation=_interpolation_name(config.get("resample", 2)))


def _parse_processor_size(size: Any, kind: str) -> int | HeightWidth | None:
    """The short side, or (height, width); None where a size is not fixed."""
    sizes = _to_mapping_or_none(size)
    if sizes is not None and sizes.get("shortest_edge") and not sizes.get("longest_edge"):
        return int(sizes["shortest_edge"])
    if isinstance(size, int) and kind.startswith(SHORT_SIDE_PROCESSOR_NAME_PREFIXES):
        return size
    return _parse_size_pair(size)


def _parse_size_pair(size: Any) -> HeightWidth | None:
    """(height, width) of a number, a pair or a dict; None for what is neither, as bounds of the two sides."""
    sizes = _to_mapping_or_none(size)
    if sizes is not None and sizes.get("longest_edge"):
        return None
    if sizes is not None:
        size = (sizes.get("height") or sizes.get("shortest_edge"), sizes.get("width") or sizes.get("shortest_edge"))
    pair = tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else (size, size)
    pair = pair * 2 if len(pair) == 1 else pair
    is_pair = len(pair) == 2 and all(isinstance(s, int) and s > 0 for s in pair)
    return cast(HeightWidth, pair) if is_pair else None


# -- timm --------------------------------------------------------------------------------------------------------------


def _parse_timm_config(config: Mapping[str, Any]) -> _PreprocessingSteps:
    """A `pretrained_cfg`, or what `timm.data.resolve_model_data_config` gives."""
    n_channels, *sides = map(int, config["input_size"])
    size, crop_pct = (sides[0], sides[-1]), float(config.get("crop_pct") or 0.875)
    mode, scaled = config.get("crop_mode") or "center", tuple(math.floor(s / crop_pct) for s in (sides[0], sides[-1]))
    is_known = mode == "squash" or (mode == "center" and (size[0] == size[1] or crop_pct == 1))
    resize = None if mode == "center" and size[0] != size[1] else scaled[0] if mode == "center" else scaled
    unknown = () if is_known else (f"crop_mode {mode!r} to {size[0]} x {size[1]}",)
    name = _interpolation_name(config.get("interpolation") or "bilinear")
    steps = _PreprocessingSteps(cast(Any, resize), size, name, n_channels=n_channels, unknown=unknown)
    return replace(steps.with_normalization_appended(config["mean"], config["std"]), n_channels=n_channels)


# -- torchvision -------------------------------------------------------------------------------------------------------


def _flatten_compose(value: object) -> list[Any] | None:
    """The steps of a `Compose`, or of an nn.Sequential of transforms."""
    steps = getattr(value, "transforms", None)
    if isinstance(steps, (list, tuple)):
        return list(steps)
    return list(cast(Iterable[Any], value)) if type(value).__name__ == "Sequential" else None


def _parse_torchvision_preset(value: Any) -> _PreprocessingSteps:
    """torchvision's `ResNet50_Weights.DEFAULT.transforms()`."""
    steps = _PreprocessingSteps(_parse_torchvision_size(value.resize_size), _parse_size_pair(value.crop_size))
    interpolation = _interpolation_name(getattr(value, "interpolation", "bilinear"))
    return replace(steps, interpolation=interpolation).with_normalization_appended(value.mean, value.std)


def _parse_transforms(transforms: Sequence[Any]) -> _PreprocessingSteps:
    steps = _PreprocessingSteps()
    for transform in transforms:
        steps = _add_transform(steps, transform)
    return steps


def _add_transform(steps: _PreprocessingSteps, transform: Any) -> _PreprocessingSteps:
    name = type(transform).__name__
    if (inner := _flatten_compose(transform)) is not None:
        for step in inner:
            steps = _add_transform(steps, step)
        return steps
    if name == "Normalize":
        return steps.with_normalization_appended(transform.mean, transform.std)
    if name == "Resize" and steps.crop is None and getattr(transform, "max_size", None) is None:
        interpolation = _interpolation_name(getattr(transform, "interpolation", "bilinear"))
        return replace(steps, resize=_parse_torchvision_size(transform.size), interpolation=interpolation)
    if name == "CenterCrop" and steps.resize is not None:
        return replace(steps, crop=_parse_size_pair(transform.size))
    if name == "Grayscale":
        return replace(steps, n_channels=int(getattr(transform, "num_output_channels", 1)))
    if name in TRANSFORMS_WITHOUT_EFFECT or (name in TRANSFORMS_TO_UNIT_RANGE and getattr(transform, "scale", True)):
        return steps
    return replace(steps, unknown=(*steps.unknown, name))


def _parse_torchvision_size(size: Any) -> int | HeightWidth | None:
    """One number is the short side."""
    sides = tuple(size) if isinstance(size, Sequence) else (size,)
    return sides[0] if len(sides) == 1 and isinstance(sides[0], int) else _parse_size_pair(size)


# -- numbers and names -------------------------------------------------------------------------------------------------


def _interpolation_name(value: Any) -> str:
    """The name of an interpolation: of a name, Pillow's number, or an enum of either."""
    value = getattr(value, "value", value)
    if isinstance(value, int) and 0 <= value < len(RESAMPLING_NAME_BY_PIL_NUMBER):
        return RESAMPLING_NAME_BY_PIL_NUMBER[value]
    name = str(value).lower().removesuffix("-exact")
    if name not in INTERPOLATIONS:
        raise InputError(f"the preprocessing interpolates by {value!r}; wanted one of {', '.join(INTERPOLATIONS)}")
    return name


def _to_float_tuple(name: str, value: Any) -> ChannelValues:
    value = to_number_or_list(value)
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    try:
        return tuple(float(v) for v in values)
    except (TypeError, ValueError):
        raise InputError(f"the preprocessing has no numbers as its {name}: {value!r}") from None


def _repeat_to_length(values: ChannelValues, n: int) -> ChannelValues:
    if len(values) not in (1, n):
        raise InputError(f"the preprocessing has {len(values)} values for {n} channels; wanted one, or one per channel")
    return values * n if len(values) == 1 else values


def image_shape_in_config(model: object) -> tuple[int, int, int] | None:
    """(channels, height, width) of an image, as a model's own config says: of Hugging Face, of timm, or exported."""
    timm_config = getattr(model, "pretrained_cfg", None) or {}
    shape = getattr(model, "input_shape", None) or timm_config.get("input_size")
    if shape is not None and len(shape) == 3:
        return tuple(shape)
    size = _parse_size_pair(getattr(_vision_config(model), "image_size", None))
    return None if size is None else (_channels_in_config(model) or 3, *size)


def _channels_in_config(model: object) -> int | None:
    n_channels = getattr(_vision_config(model), "num_channels", None)
    return n_channels if isinstance(n_channels, int) else None


def _vision_config(model: object) -> object:
    """The config of a Hugging Face model, or its part for images."""
    config = getattr(model, "config", None)
    return getattr(config, "vision_config", None) or config
