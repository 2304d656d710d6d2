"""Small random image classifiers of transformers, one of each architecture: what their configs are made from."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

SMALL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20}
CONV: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1]}
WINDOWS = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
PYRAMID: dict[str, Any] = {
    "hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "mlp_ratios": [2] * 4, "image_size": 32,
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "Beit": SMALL,
    "Bit": {**CONV, "embedding_size": 8, "num_groups": 2},
    "CLIP": {"vision_config": {**SMALL, "projection_dim": 16}, "text_config": TEXT, "projection_dim": 16},
    "ConvNext": {**CONV, "num_stages": 2, "patch_size": 2},
    "ConvNextV2": {**CONV, "num_stages": 2, "patch_size": 2},
    "Data2VecVision": SMALL,
    "DeiT": SMALL,
    "Dinov2": SMALL,
    "Dinov2WithRegisters": SMALL,
    "DonutSwin": WINDOWS,
    "FocalNet": {
        **CONV, "image_size": 16, "patch_size": 2, "embed_dim": 8, "focal_levels": [1, 1], "focal_windows": [3, 3],
    },
    "Hiera": {
        "image_size": [32, 32], "patch_size": [7, 7], "patch_stride": [4, 4], "patch_padding": [3, 3], "embed_dim": 8,
        "depths": [1, 1], "num_heads": [1, 2], "masked_unit_size": [2, 2], "query_stride": [2, 2], "num_query_pool": 1,
    },
    "IJepa": SMALL,
    "Levit": {
        "image_size": 64, "hidden_sizes": [16] * 3, "num_attention_heads": [1] * 3, "depths": [1] * 3,
        "key_dim": [8] * 3, "attention_ratio": [2] * 3, "mlp_ratio": [2] * 3,
    },
    "MobileNetV1": {"depth_multiplier": 0.25, "image_size": 32},
    "MobileNetV2": {"depth_multiplier": 0.25, "image_size": 32},
    "MobileViT": {
        "image_size": 32, "hidden_sizes": [16] * 3, "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16],
        "num_attention_heads": 2, "patch_size": 2,
    },
    "PoolFormer": {
        **CONV, "num_encoder_blocks": 2, "patch_sizes": [3, 3], "strides": [2, 2], "padding": [1, 1], "mlp_ratio": 2.0,
    },
    "Pvt": {**PYRAMID, "sequence_reduction_ratios": [1] * 4},
    "PvtV2": {**PYRAMID, "sr_ratios": [1] * 4},
    "RegNet": {**CONV, "embedding_size": 8, "groups_width": 4},
    "ResNet": {**CONV, "embedding_size": 8, "layer_type": "basic"},
    "Segformer": {**PYRAMID, "sr_ratios": [1] * 4, "decoder_hidden_size": 8},
    "Siglip": {"vision_config": SMALL, "text_config": TEXT},
    "SwiftFormer": {"image_size": 32, "depths": [1] * 4, "embed_dims": [8] * 4, "mlp_ratio": 2},
    "Swin": WINDOWS,
    "Swinv2": WINDOWS,
    "TextNet": {"stem_out_channels": 8, "hidden_sizes": [8] * 5},
    "ViT": SMALL,
    "ViTMSN": SMALL,
}  # fmt: skip
OFTEN = ("ViT", "DeiT", "Dinov2", "Swin", "Beit", "Segformer", "ResNet", "ConvNext")
"""Those that are opened, explained and reported at each run of the tests; the others by `make contracts`."""


def build(name: str, n_classes: int = 3) -> Any:
    """The classifier of an architecture in eval mode, with random weights that depend on its name alone."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**CONFIGS[name], num_labels=n_classes)
    config.id2label = {k: f"class {'abcdefgh'[k]}" for k in range(n_classes)}
    model = getattr(transformers, f"{name}ForImageClassification")(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:  # its own initial weights give outputs near 0
            nn.init.kaiming_normal_(parameter)
    return model.eval()


def image_side(name: str) -> int:
    """Side of the images that the classifier takes."""
    config = CONFIGS[name].get("vision_config", CONFIGS[name])
    side = config.get("image_size", 32)
    return int(side[0] if isinstance(side, list) else side)
