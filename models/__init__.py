"""The networks that learn from each other, one file per family.

Every model is called in one of two ways, x being a (B, 3, H, W) batch of images:

    logits = model(x)                                           (B, num_classes)
    features, logits = model(x, is_feat=True, preact=False)

`features` is a list from the stem's output to the pooled vector that the classifier reads; the last is always (B, C).
With `preact=True` the list holds, for each stage, the values before its last ReLU; stem and pooled vector stay as they
are. A submodule `pool` averages the last map into the pooled vector, so that a hook on it sees that map. The names in
the state dicts are those of the RepDistiller code base (Tian et al., "Contrastive Representation Distillation", ICLR
2020), so that teachers published for it load unchanged. Networks whose name ends in `_imagenet` are for 224 x 224
images, with the names of torchvision's weights.
"""

import difflib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from .fold import fold_batchnorm, preactivation_norms
from .mobilenetv1 import MobileNetV1
from .mobilenetv2 import MobileNetV2
from .mobilenetv2_imagenet import MobileNetV2ImageNet
from .resnet import ResNet
from .resnet50 import ResNet50
from .resnet_imagenet import ResNetImageNet
from .shufflenetv1 import ShuffleNetV1
from .shufflenetv2 import ShuffleNetV2
from .vgg import VGG
from .wrn import WideResNet

__all__ = [
    "FOR_IMAGENET",
    "FOR_SMALL_IMAGES",
    "create_model",
    "dry_run",
    "feature_shapes",
    "fold_batchnorm",
    "map_shape",
    "model_dict",
    "preactivation_norms",
    "resolve_name",
    "to_device",
]

model_dict: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{depth}": partial(ResNet, depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(ResNet, depth, widths=(32, 64, 128, 256)) for depth in (8, 32)},
    **{f"wrn_{depth}_{factor}": partial(WideResNet, depth, factor) for depth in (16, 40) for factor in (1, 2)},
    **{f"vgg{depth}": partial(VGG, depth) for depth in (8, 11, 13, 16, 19)},
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleNetV1,
    "ShuffleV2": ShuffleNetV2,
    "ResNet50": ResNet50,
    **{f"resnet{depth}_imagenet": partial(ResNetImageNet, depth) for depth in (18, 34, 50)},
    "mobilenetv1_imagenet": MobileNetV1,
    "mobilenetv2_imagenet": MobileNetV2ImageNet,
}
# What this project's networks are made for; one that is added later may be for anything.
FOR_IMAGENET = frozenset(name for name in model_dict if name.endswith("_imagenet"))
FOR_SMALL_IMAGES = frozenset(model_dict) - FOR_IMAGENET

ALIASES = {"mobilenetv2": "MobileNetV2", "shufflev1": "ShuffleV1", "shufflev2": "ShuffleV2"}


def resolve_name(name: str) -> str:
    """Return the key of `model_dict` that `name` stands for; raise ValueError if there is none."""
    canonical = ALIASES.get(name, name)
    if canonical in model_dict:
        return canonical
    lower_case = {known.lower(): known for known in model_dict}
    nearest = difflib.get_close_matches(name.lower(), lower_case, n=1)
    if f"{name}_imagenet" in model_dict:
        hint = f"ImageNet's is '{name}_imagenet'"
        if name in lower_case:
            hint += f", that for 32 x 32 images '{lower_case[name]}'"
    elif nearest:
        hint = f"did you mean '{lower_case[nearest[0]]}'?"
    else:
        hint = f"known are {', '.join(model_dict)}"
    raise ValueError(f"unknown model {name!r}: {hint}")


def create_model(name: str, num_classes: int = 100) -> nn.Module:
    """Build the model called `name` (or an alias of it) with fresh weights."""
    return model_dict[resolve_name(name)](num_classes=num_classes)


def to_device(model: nn.Module, device: torch.device | str) -> nn.Module:
    """The model itself, on the device and in channels_last, the format of the images."""
    return model.to(device).to(memory_format=torch.channels_last)


@torch.no_grad()
def dry_run(model: nn.Module, image_size: int = 32, preact: bool = False) -> tuple[list[Tensor], Tensor]:
    """(features, logits) of one square image of zeros, in eval mode and on the model's device; weights, buffers, random
    states and the training mode of every submodule stay as they are."""
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
    training = {module: module.training for module in model.modules()}
    try:
        return model.eval()(image, is_feat=True, preact=preact)
    finally:
        for module, mode in training.items():
            module.training = mode


def feature_shapes(model: nn.Module, image_size: int = 32, preact: bool = False) -> list[tuple[int, ...]]:
    """Return the shape of each feature for one square image: (C, H, W) for maps, (C,) for the pooled vector."""
    features, _ = dry_run(model, image_size, preact)
    return [tuple(feature.shape[1:]) for feature in features]


def map_shape(model: nn.Module, image_size: int = 32) -> tuple[int, int, int] | None:
    """(C, H, W) of the map that the submodule `pool` averages, as in `feature_shapes`; None if there is no `pool`."""
    if not hasattr(model, "pool"):
        return None
    maps: list[Tensor] = []
    pool = model.get_submodule("pool")
    with pool.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0])):
        feature_shapes(model, image_size)
    _, channels, height, width = maps[0].shape
    return channels, height, width
