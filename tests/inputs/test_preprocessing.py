"""Preprocessing that people have, as `Pixels`: image processors, torchvision's transforms by their shape, timm configs.

Images made by a real image processor are the reference; torchvision is not installed, so its transforms are stood in
for by classes of the same names and attributes.
"""

import enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import unboxed as ub
from unboxed.errors import InputError
from unboxed.inputs import images
from unboxed.inputs.preprocessing import to_inputs

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def photo(width: int = 460, height: int = 300) -> Image.Image:
    """Colored squares: other in each channel, and not symmetric."""
    squares = np.random.default_rng(0).integers(0, 255, (height // 20, width // 20, 3), dtype=np.uint8)
    return Image.fromarray(np.kron(squares, np.ones((20, 20, 1), np.uint8)))


# -- Hugging Face ------------------------------------------------------------------------------------------------------

PROCESSORS = (
    "ViT", "Beit", "Bit", "CLIP", "ConvNext", "DeiT", "EfficientNet", "Levit", "MobileNetV1", "MobileNetV2",
    "MobileViT", "PoolFormer", "Pvt", "Segformer", "Siglip",
)  # fmt: skip


def processor(name: str, **settings: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    made = getattr(transformers, f"{name}ImageProcessorPil", None) or getattr(transformers, f"{name}ImageProcessor")
    return made(**settings)


def assert_same_values(made: Any, inputs: Any, image: Image.Image, tolerance: float = 1e-5) -> None:
    wanted = torch.as_tensor(np.array(made(image)["pixel_values"]))[0].float()
    got = inputs.encode(images.pil_to_tensor(image, inputs))
    assert got.shape == wanted.shape == inputs.shape
    assert float((got - wanted).abs().mean()) <= tolerance


@pytest.mark.parametrize("size", [(460, 300), (300, 500), (200, 200)], ids=str)
@pytest.mark.parametrize("name", PROCESSORS)
def test_images_are_made_as_by_the_image_processor(name: str, size: tuple[int, int]) -> None:
    made = processor(name)
    assert_same_values(made, to_inputs(made), photo(*size))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ViT", {"do_normalize": False}),
        ("ViT", {"do_rescale": False}),
        ("ViT", {"do_rescale": False, "do_normalize": False}),
        ("ViT", {"size": {"height": 32, "width": 48}, "resample": 0, "image_mean": [0.1, 0.2, 0.3]}),
        ("CLIP", {"size": {"shortest_edge": 40}, "crop_size": {"height": 24, "width": 32}}),
        ("ConvNext", {"size": {"shortest_edge": 64}, "crop_pct": 0.8}),
        ("EfficientNet", {"rescale_factor": 1 / 127.5, "rescale_offset": True, "size": {"height": 32, "width": 32}}),
        ("DeiT", {"do_center_crop": False}),
    ],
    ids=str,
)
def test_settings_of_image_processors(name: str, settings: dict[str, Any]) -> None:
    made = processor(name, **settings)
    assert_same_values(made, to_inputs(made), photo(), 1e-4)


def test_the_same_from_its_dict_its_file_and_from_a_processor_of_images_and_text(tmp_path: Path) -> None:
    made = processor("CLIP")
    made.save_pretrained(tmp_path)
    import json

    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())

    class Processor:
        image_processor = made

    assert to_inputs(made) == to_inputs(made.to_dict()) == to_inputs(saved) == to_inputs(Processor())
    assert to_inputs({"image_processor": saved}) == to_inputs(saved)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (  # of google/vit-base-patch16-224
            {"do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2,
             "size": 224},
            ub.Pixels((3, 224, 224), [0.5] * 3, [0.5] * 3, resize=(224, 224)),
        ),
        (  # of microsoft/resnet-50
            {"crop_pct": 0.875, "feature_extractor_type": "ConvNextFeatureExtractor", "image_mean": IMAGENET[0],
             "image_std": IMAGENET[1], "resample": 3, "size": 224, "do_resize": True, "do_normalize": True},
            ub.Pixels((3, 224, 224), *IMAGENET, resize=256, interpolation="bicubic"),
        ),
        (  # of openai/clip-vit-base-patch32
            {"crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True, "size": 224,
             "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": IMAGENET[0], "image_std": IMAGENET[1],
             "resample": 3},
            ub.Pixels((3, 224, 224), *IMAGENET, resize=224, interpolation="bicubic"),
        ),
    ],
    ids=["vit", "resnet", "clip"],
)  # fmt: skip
def test_configs_of_old_files(config: dict[str, Any], wanted: ub.Pixels) -> None:
    assert to_inputs(config) == wanted


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ImageGPT", "do_color_quantize"),
        ("Siglip2", "patches of any size"),
        ("TextNet", "no fixed size"),
        ("Donut", "do_thumbnail"),
        ("MaskFormer", "no fixed size"),
        ("Mask2Former", "no fixed size"),
        ("OneFormer", "no fixed size"),
        ("Eomt", "no fixed size"),
        ("Qwen2VL", "no fixed size"),
        ("VitPose", "do_affine_transform"),
        ("Perceiver", "a crop before the resize"),
    ],
)
def test_what_pixels_cannot_do_is_refused_with_the_numbers_to_pass(name: str, words: str) -> None:
    with pytest.raises(InputError, match=rf"{words}.*pass ub\.Pixels\(\(3, height, width\), mean="):
        to_inputs(processor(name), Sized())


class Sized:
    """A model whose config has a size: what a processor does to reach it counts all the same."""

    config = type("Config", (), {"image_size": 224, "num_channels": 3})()


@pytest.mark.parametrize("name", ["VideoMAE", "Vivit"])
def test_videos_are_refused_with_the_volumes_to_pass(name: str) -> None:
    made = processor(name, image_mean=[0.5] * 3, image_std=[0.25] * 3, offset=False, rescale_factor=1 / 255)
    advice = r"pass ub\.Pixels\(\(3, frames, height, width\), mean=\(0\.5, .*std=\(0\.25, .*x\.transpose\(1, 2\)"
    for value in (made, made.to_dict()):
        with pytest.raises(InputError, match=f"the {name}ImageProcessor does what Pixels cannot: videos; {advice}"):
            to_inputs(value, Sized())


# -- torchvision -------------------------------------------------------------------------------------------------------


class InterpolationMode(enum.Enum):
    BICUBIC = "bicubic"
    EXACT = "nearest-exact"


def step(name: str, **attributes: Any) -> Any:
    """A transform of this class name."""
    return type(name, (), {"__init__": lambda self: self.__dict__.update(attributes), "__call__": lambda self, x: x})()


def compose(*steps: Any) -> Any:
    return step("Compose", transforms=list(steps))


NORMALIZE = step("Normalize", mean=IMAGENET[0], std=IMAGENET[1])
RESIZE = step("Resize", size=256, interpolation=InterpolationMode.BICUBIC, max_size=None)
CROP = step("CenterCrop", size=(224, 224))


@pytest.mark.parametrize(
    ("transform", "wanted"),
    [
        (
            compose(RESIZE, CROP, step("ToTensor"), NORMALIZE),
            ub.Pixels((3, 224, 224), *IMAGENET, resize=256, interpolation="bicubic"),
        ),
        (
            compose(step("Resize", size=(96, 128)), step("PILToTensor"), step("ConvertImageDtype"), NORMALIZE),
            ub.Pixels((3, 96, 128), *IMAGENET, resize=(96, 128)),
        ),
        (
            compose(step("Grayscale", num_output_channels=1), step("Resize", size=[28], interpolation=0),
                    step("CenterCrop", size=28), step("ToTensor"), step("Normalize", mean=[0.13], std=[0.31])),
            ub.Pixels((1, 28, 28), 0.13, 0.31, resize=28, interpolation="nearest"),
        ),
        (
            compose(compose(step("Resize", size=32), step("CenterCrop", size=32)), step("ToTensor"),
                    step("Normalize", mean=(0.5,), std=(0.5,)),
                    step("Normalize", mean=torch.zeros(3), std=np.full(3, 2.0))),
            ub.Pixels((3, 32, 32), [0.5] * 3, [1.0] * 3, resize=32),
        ),
        (
            step("ImageClassification", crop_size=[224], resize_size=[232], mean=list(IMAGENET[0]),
                 std=list(IMAGENET[1]), interpolation=InterpolationMode.BICUBIC, antialias=True),
            ub.Pixels((3, 224, 224), *IMAGENET, resize=232, interpolation="bicubic"),
        ),
    ],
    ids=["evaluation", "exact", "gray", "nested", "preset of weights"],
)  # fmt: skip
def test_transforms_of_torchvision(transform: Any, wanted: ub.Pixels) -> None:
    assert to_inputs(transform) == wanted


def test_a_sequential_of_transforms() -> None:
    class Resize(nn.Module):
        size, interpolation, max_size = (16, 16), "bilinear", None

    class Normalize(nn.Module):
        mean, std = IMAGENET

    assert to_inputs(nn.Sequential(Resize(), Normalize())) == ub.Pixels((3, 16, 16), *IMAGENET, resize=(16, 16))


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([step("RandomResizedCrop", size=224), step("ToTensor")], "RandomResizedCrop"),
        ([step("Resize", size=256), CROP, step("Lambda", lambd=None), NORMALIZE], "Lambda"),
        ([step("Resize", size=256, max_size=300), NORMALIZE], "Resize"),
        ([CROP, step("Resize", size=256), NORMALIZE], "CenterCrop"),
        ([step("Resize", size=256), CROP, step("Resize", size=256), NORMALIZE], "Resize"),
        ([CROP, step("ToTensor")], "CenterCrop"),
        ([step("Resize", size=256), step("ToTensor"), NORMALIZE], "no fixed size"),
        ([step("ToTensor"), NORMALIZE], "no fixed size"),
        ([step("ToDtype", scale=False), NORMALIZE], "ToDtype"),
    ],
)
def test_transforms_that_cannot_be_taken_over(steps: list[Any], words: str) -> None:
    with pytest.raises(InputError, match=rf"{words}.*pass ub\.Pixels\("):
        to_inputs(compose(*steps))


@pytest.mark.parametrize(
    ("normalize", "words"),
    [
        (step("Normalize", mean=IMAGENET[0], std=(0.1, 0.2)), "2 values for 3 channels"),
        (step("Normalize", mean="x", std=1.0), "no numbers as its mean"),
        (step("Normalize", mean=0.5, std=0.0), "std of 0"),
        (compose(step("Resize", size=8, interpolation="cubic"), CROP), "interpolates by 'cubic'"),
        (compose(step("Resize", size="large"), CROP, NORMALIZE), "does what Pixels cannot"),
    ],
)
def test_broken_transforms(normalize: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        to_inputs(normalize)


# -- timm --------------------------------------------------------------------------------------------------------------

CONFIG = {
    "input_size": (3, 224, 224),
    "mean": IMAGENET[0],
    "std": IMAGENET[1],
    "interpolation": "bicubic",
    "crop_pct": 0.9,
}


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, {"resize": 248}),
        ({"crop_pct": None}, {"resize": 256}),
        ({"crop_pct": 1.0}, {"resize": 224}),
        ({"crop_mode": "squash"}, {"resize": (248, 248)}),
        ({"interpolation": "bilinear", "crop_mode": "center"}, {"resize": 248, "interpolation": "bilinear"}),
    ],
)
def test_configs_of_timm(changed: dict[str, Any], wanted: dict[str, Any]) -> None:
    made = to_inputs({**CONFIG, **changed})
    assert made == ub.Pixels((3, 224, 224), *IMAGENET, **{"interpolation": "bicubic", **wanted})


def test_what_timm_does_and_pixels_do_not() -> None:
    for changed in ({"crop_mode": "border"}, {"input_size": (3, 224, 112)}):
        with pytest.raises(InputError, match="crop_mode"):
            to_inputs({**CONFIG, **changed})
    assert to_inputs({**CONFIG, "input_size": (3, 224, 112), "crop_pct": 1.0}).shape == (3, 224, 112)


# -- in a box ----------------------------------------------------------------------------------------------------------


def model(channels: int = 3, size: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, 4)).eval()


def test_a_box_takes_them_and_shows_what_it_took() -> None:
    transform = compose(step("Resize", size=18), step("CenterCrop", size=16), step("ToTensor"), NORMALIZE)
    box = ub.Box(model(), transform)
    wanted = ub.Pixels((3, 16, 16), *IMAGENET, resize=18)
    assert box.inputs == wanted
    assert repr(wanted) in repr(box)
    assert "resize=18" in repr(wanted)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(box(x), ub.Box(model(), wanted)(x))


def test_a_size_is_taken_from_the_model_where_the_transform_has_none() -> None:
    net = model()
    net.config = type("Config", (), {"image_size": 16, "num_channels": 3})()  # type: ignore[assignment]
    assert ub.Box(net, NORMALIZE).inputs == ub.Pixels((3, 16, 16), *IMAGENET)
    net = model()
    net.pretrained_cfg = {"input_size": (3, 16, 16)}  # type: ignore[assignment]
    assert ub.Box(net, NORMALIZE).inputs.shape == (3, 16, 16)


def test_a_model_of_timm_knows_its_inputs(tmp_path: Path) -> None:
    source = f"""
from torch import nn

def make(width=4):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    model.pretrained_cfg = { ({**CONFIG, "input_size": (3, 16, 16)})!r}
    return model
"""
    (tmp_path / "mine.py").write_text(source)
    assert ub.load(f"{tmp_path}/mine.py:make").inputs == ub.Pixels((3, 16, 16), *IMAGENET, 17, "bicubic")
    other = ub.Pixels((3, 16, 16))
    assert ub.load(f"{tmp_path}/mine.py:make", inputs=other).inputs == other


@pytest.mark.parametrize("inputs", [3, "imagenet", None, {}, {"mean": 0.5}, object(), torch.zeros(1), ub.Pixels])
def test_what_is_no_preprocessing_is_refused(inputs: Any) -> None:
    with pytest.raises(InputError, match=r"inputs must be Pixels\(\.\.\.\), .*got "):
        ub.Box(model(), inputs)


# -- the new settings of Pixels ----------------------------------------------------------------------------------------


def test_blue_first() -> None:
    rgb, bgr = ub.Pixels((3, 4, 4), *IMAGENET), ub.Pixels((3, 4, 4), *IMAGENET, bgr=True)
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(bgr.encode(x), rgb.encode(x).flip(1))
    assert torch.allclose(bgr.decode(bgr.encode(x)), x)
    assert "bgr=True" in repr(bgr)


def test_a_map_of_a_model_that_takes_blue_first_is_of_red_green_blue() -> None:
    net = model(size=4)
    x = torch.rand(2, 3, 4, 4)
    a = ub.attribution.gradient(ub.Box(net, ub.Pixels((3, 4, 4), bgr=True)), x, target=1).map
    b = ub.attribution.gradient(ub.Box(net, ub.Pixels((3, 4, 4))), x, target=1).map
    assert torch.allclose(a, b.flip(1))


@pytest.mark.parametrize(
    "bad",
    [{"resize": 0}, {"resize": (3,)}, {"resize": "8"}, {"resize": (3, 0)}, {"interpolation": "cubic"}, {"bgr": 1}],
    ids=str,
)
def test_bad_settings(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(bad))}"):
        ub.Pixels((3, 4, 4), **bad)
