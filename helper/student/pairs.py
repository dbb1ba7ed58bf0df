"""The pairs of the tables, with TopKD's weights for each, marked published or assumed.

Published (the authors' released logs): ResNet56 > ResNet20 and WRN-40-2 > ShuffleNetV1. No source gives the others, so
an unknown pair of one family takes the values of the first and an unknown pair of two families those of the second.
On ImageNet, of which TopKD's code has nothing, delta and pooling are these too, alpha is 1 and the temperature that of
KD for the pair: 1 where its settings are published.
"""

import re
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class PairSettings:
    """alpha (KD), delta (topology) and RipsNet's pooling for one teacher and student; where they come from."""

    alpha: float
    delta: float
    operator: str
    source: str


# The pairs of the paper's two CIFAR-100 tables, (teacher, student).
HOMOGENEOUS = (
    ("wrn_40_2", "wrn_16_2"),
    ("wrn_40_2", "wrn_40_1"),
    ("resnet56", "resnet20"),
    ("resnet110", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet32x4", "resnet8x4"),
    ("vgg13", "vgg8"),
)
HETEROGENEOUS = (
    ("vgg13", "MobileNetV2"),
    ("ResNet50", "MobileNetV2"),
    ("ResNet50", "vgg8"),
    ("resnet32x4", "ShuffleV1"),
    ("resnet32x4", "ShuffleV2"),
    ("wrn_40_2", "ShuffleV1"),
)
PAIRS = HOMOGENEOUS + HETEROGENEOUS

# The pairs of ImageNet in the field. Papers that print MobileNetV2 for the student mean MobileNetV1, so say their
# authors; MobileNetV2 is the one of which TopKD's authors have a network for ImageNet.
IMAGENET_HOMOGENEOUS = (("resnet34_imagenet", "resnet18_imagenet"),)
IMAGENET_HETEROGENEOUS = (
    ("resnet50_imagenet", "mobilenetv1_imagenet"),
    ("resnet50_imagenet", "mobilenetv2_imagenet"),
)

PUBLISHED = {
    ("resnet56", "resnet20"): PairSettings(2.0, 5.0, "mean", "published: the authors' released log"),
    ("wrn_40_2", "ShuffleV1"): PairSettings(4.0, 5.0, "sum", "published: the authors' released log"),
}


def family(arch: str) -> str:
    """'resnet32x4' -> 'resnet', 'ResNet50' -> 'resnet', 'wrn_40_2' -> 'wrn', 'ShuffleV1' -> 'shufflev'."""
    found = re.match("[a-z]*", arch.lower())
    return found.group() if found else ""


def pair_settings(teacher: str, student: str) -> PairSettings:
    if (teacher, student) in PUBLISHED:
        return PUBLISHED[teacher, student]
    like = ("resnet56", "resnet20") if family(teacher) == family(student) else ("wrn_40_2", "ShuffleV1")
    if teacher.endswith("_imagenet"):
        return replace(PUBLISHED[like], alpha=1.0, source=f"assumed: delta as {like[0]} > {like[1]}, alpha 1, T of KD")
    return replace(PUBLISHED[like], source=f"assumed: as {like[0]} > {like[1]}")
