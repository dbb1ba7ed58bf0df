"""The distillation methods: one file each, and the registry by which `train_student.py --distill <name>` finds them.

Every student is trained with  gamma * CE + alpha * KD + beta * L_other + delta * L_top.  A method says what L_other is
and with which weights it is run when nothing else is asked for. To add one, register it before training starts:

    class MyLoss(nn.Module):
        def __init__(self, pair):                       # Pair: the shapes of the features, and more
            ...
        def forward(self, student, teacher, batch):     # Output, Output, Batch -> scalar
            ...
    distiller_dict["mine"] = Method("Mine", "citation", MyLoss, beta=1.0, source="assumed: ...", features=(-1,))

Parameters of the loss module train with the student, are saved with the run, and are no part of the deployed student.
Keyword-only parameters of its constructor are options of the method: `--set name=value`. `batch.epoch` is there for a
loss that changes over a run, `Method(schedule=...)` for a weight that does, `Method(strong=True)` for a second view of
each image (`student.strong.logits`), and `Method(student=...)` for a part that is put into the student and deployed.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from .ab import AB
from .at import AT
from .catkd import CATKD
from .cc import CC
from .crcd import CRCD
from .crd import CRD
from .ctkd import CTKD
from .dist import DIST
from .dkd import DKD
from .fitnet import FitNet
from .fsp import FSP
from .ft import FT
from .kd import KD
from .kdsvd import KDSVD
from .logit_standardization import standardize
from .method import ABSENT, AS_CIFAR, Batch, ByPair, FirstStaged, Method, Output, Pair, classifier, forward
from .mgd import MGD
from .mlkd import MLKD
from .norm import NORM, NORMStudent
from .nst import NST
from .ofd import OFD
from .pkt import PKT
from .reviewkd import ReviewKD
from .rkd import RKD
from .semckd import SemCKD
from .simkd import SimKD, SimKDStudent
from .sp import SP
from .srrl import SRRL
from .vid import VID

__all__ = [
    "ABSENT",
    "AS_CIFAR",
    "KD",
    "Batch",
    "FirstStaged",
    "Method",
    "Output",
    "Pair",
    "classifier",
    "distiller_dict",
    "forward",
    "resolve_method",
    "standardize",
]

STAGES = slice(1, -1)  # every stage's output: neither the stem's nor the pooled vector
REPDISTILLER = "published: RepDistiller's scripts"
STANDARDIZATION = "published: logit-standardization-KD's README"

# The six pairs for which RepDistiller's tables have FSP: those of equal widths.
EQUAL_WIDTHS = (
    ("wrn_40_2", "wrn_16_2"),
    ("resnet56", "resnet20"),
    ("resnet110", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet32x4", "resnet8x4"),
    ("vgg13", "vgg8"),
)

# The pairs whose last maps are of one size.
EQUAL_SIZES = (*EQUAL_WIDTHS, ("wrn_40_2", "wrn_40_1"), ("ResNet50", "vgg8"))

REVIEWKD: ByPair = {
    ("resnet56", "resnet20"): {"beta": 0.6},
    ("resnet110", "resnet32"): {"beta": 1.0},
    ("wrn_40_2", "wrn_16_2"): {"beta": 5.0},
    ("wrn_40_2", "wrn_40_1"): {"beta": 5.0},
    ("wrn_40_2", "ShuffleV1"): {"beta": 5.0},
    ("resnet32x4", "resnet8x4"): {"beta": 5.0},
    ("resnet32x4", "ShuffleV1"): {"beta": 5.0},
    ("resnet32x4", "ShuffleV2"): {"beta": 8.0},
}
DKD_NCKD: ByPair = {
    ("resnet56", "resnet20"): {"nckd": 2.0},
    ("resnet110", "resnet32"): {"nckd": 2.0},
    ("vgg13", "vgg8"): {"nckd": 6.0},
    ("vgg13", "MobileNetV2"): {"nckd": 6.0},
    ("wrn_40_2", "wrn_16_2"): {"nckd": 6.0},
    ("wrn_40_2", "wrn_40_1"): {"nckd": 6.0},
}
CATKD_WEIGHTS: ByPair = {
    ("resnet56", "resnet20"): {"beta": 0.7, "form": "raw"},
    ("resnet110", "resnet32"): {"beta": 1.8, "form": "raw"},
    ("wrn_40_2", "wrn_40_1"): {"beta": 1.5, "form": "raw"},
    ("wrn_40_2", "wrn_16_2"): {"beta": 12.0, "form": "raw"},
    ("vgg13", "vgg8"): {"beta": 4.5, "form": "raw"},
    ("vgg13", "MobileNetV2"): {"beta": 15.0},
    ("resnet32x4", "resnet8x4"): {"beta": 15.0, "form": "raw"},
    ("ResNet50", "MobileNetV2"): {"beta": 40.0},
    ("wrn_40_2", "ShuffleV1"): {"beta": 80.0, "resolution": 4},
    ("resnet32x4", "ShuffleV1"): {"beta": 600.0, "resolution": 4},
    ("resnet32x4", "ShuffleV2"): {"beta": 600.0, "resolution": 4},
}

NORM_ASSUMED = "assumed: NORM's README for resnet32x4 > resnet8x4 (other weights of CE were searched and are not said)"
NORM_PLACES: ByPair = {
    ("resnet32x4", "resnet8x4"): {"segments": 8},
    ("wrn_40_2", "wrn_16_2"): {"before": "bn1", "source": NORM_ASSUMED},
    ("wrn_40_2", "wrn_40_1"): {"before": "bn1", "source": NORM_ASSUMED},
}
CRCD_ASSUMED = "assumed: an incomplete code that is not by the authors"
CRCD_UNEQUAL_WIDTHS: ByPair = {
    pair: {"gradient": "contrast"}
    for pair in (
        ("wrn_40_2", "wrn_40_1"),
        ("vgg13", "MobileNetV2"),
        ("ResNet50", "MobileNetV2"),
        ("ResNet50", "vgg8"),
        ("resnet32x4", "ShuffleV1"),
        ("resnet32x4", "ShuffleV2"),
        ("wrn_40_2", "ShuffleV1"),
    )
}

# ImageNet's pairs. No source has MobileNetV2, whose name some printed for MobileNetV1: it takes the latter's values.
RESNET18 = ("resnet34_imagenet", "resnet18_imagenet")
MOBILENETV1 = ("resnet50_imagenet", "mobilenetv1_imagenet")
MOBILENETV2 = ("resnet50_imagenet", "mobilenetv2_imagenet")
MDISTILLER = "published: mdistiller's configurations for ImageNet"


def imagenet(source: str, resnet18: Mapping[str, Any], mobilenet: Mapping[str, Any] | None) -> ByPair:
    """The values of one source for ImageNet's pairs. mobilenet: None where it has none for them."""
    found: ByPair = {RESNET18: {"source": source, **resnet18}}
    if mobilenet is not None:
        found[MOBILENETV1] = {"source": source, **mobilenet}
        found[MOBILENETV2] = {**mobilenet, "source": "assumed: as for MobileNetV1"}
    return found


KD_IMAGENET = {"gamma": 0.5, "alpha": 0.5, "kd_T": 1.0}
DIST_IMAGENET = {"beta": 2.0, "inter": 1.0, "intra": 1.0, "kd_T": 1.0}
MLKD_IMAGENET = {"gamma": 0.5, "ce": 0.5, "kd": 0.5, "kd_T": 1.0}
DKD_IMAGENET = {"kd_T": 1.0, "warmup": 1}
OFD_IMAGENET = {"beta": 1e-4, "source": "assumed: mdistiller's for ResNet-50 > MobileNetV1, of the last three stages"}
NORM_IMAGENET = {"schedule": {"other": ((0.05, 0.1), (0.15, 0.5), (0.6, 0.9), (0.8, 0.5), (1.0, 0.1))}}

distiller_dict: dict[str, Method] = {
    "kd": Method(
        "KD",
        "Hinton et al., NIPS workshop 2014",
        gamma=0.1,
        alpha=0.9,
        beta=0.0,
        source=f"{REPDISTILLER}, mdistiller",
        by_pair=imagenet(MDISTILLER, KD_IMAGENET, KD_IMAGENET),
        standardized={"alpha": 9.0, "source": STANDARDIZATION},
    ),
    "fitnet": Method(
        "FitNet",
        "Romero et al., ICLR 2015",
        FitNet,
        beta=100.0,
        source=f"{REPDISTILLER}, mdistiller",
        features=slice(0, -1),
        trainable=True,
    ),
    "at": Method(
        "AT",
        "Zagoruyko and Komodakis, ICLR 2017",
        AT,
        beta=1000.0,
        source=REPDISTILLER,
        by_pair=imagenet(
            MDISTILLER, {}, {"source": "assumed: mdistiller's for ImageNet, where it compares other stages"}
        ),
        features=STAGES,
    ),
    "sp": Method("SP", "Tung and Mori, ICCV 2019", SP, beta=3000.0, source=REPDISTILLER, features=(-2,), relates=True),
    "cc": Method(
        "CC", "Peng et al., ICCV 2019", CC, beta=0.02, source=REPDISTILLER, features=(-1,), trainable=True, relates=True
    ),
    "vid": Method("VID", "Ahn et al., CVPR 2019", VID, source=REPDISTILLER, features=STAGES, trainable=True),
    "rkd": Method("RKD", "Park et al., CVPR 2019", RKD, source=REPDISTILLER, features=(-1,), relates=True),
    "pkt": Method(
        "PKT", "Passalis and Tefas, ECCV 2018", PKT, beta=30000.0, source=REPDISTILLER, features=(-1,), relates=True
    ),
    "ab": Method(
        "AB",
        "Heo et al., AAAI 2019",
        AB,
        source=REPDISTILLER,
        features=STAGES,
        preact_s=True,
        preact_t=True,
        trainable=True,
        first_epochs=30,
        first_only=True,
    ),
    "ft": Method(
        "FT",
        "Kim et al., NeurIPS 2018",
        FT,
        beta=200.0,
        source=REPDISTILLER,
        features=(-2,),
        trainable=True,
        first_epochs=30,
        first_lr={"resnet": 0.01, "wrn": 0.01},
    ),
    "fsp": Method(
        "FSP",
        "Yim et al., CVPR 2017",
        FSP,
        source=f"{REPDISTILLER} (1 in the first stage; their 50 acts on nothing)",
        features=slice(0, -1),
        first_epochs=30,
        first_only=True,
        pairs=EQUAL_WIDTHS,
    ),
    "nst": Method("NST", "Huang and Wang, arXiv 2017", NST, beta=50.0, source=REPDISTILLER, features=STAGES),
    "kdsvd": Method(
        "KD-SVD",
        "Lee et al., ECCV 2018",
        KDSVD,
        source="assumed: mdistiller's default, whose term is another",
        features=STAGES,
        host_bound="KD-SVD's eigenvectors are found by a routine that waits for the host",
    ),
    "crd": Method(
        "CRD",
        "Tian et al., ICLR 2020",
        CRD,
        beta=0.8,
        source=REPDISTILLER,
        by_pair=imagenet(MDISTILLER, {}, {}),
        features=(-1,),
        trainable=True,
        relates=True,
        several=False,
    ),
    "ofd": Method(
        "OFD",
        "Heo et al., ICCV 2019",
        OFD,
        beta=0.001,
        source="published: mdistiller",
        by_pair=imagenet(MDISTILLER, OFD_IMAGENET, OFD_IMAGENET),
        features=STAGES,
        preact_s=True,
        preact_t=True,
        trainable=True,
    ),
    "srrl": Method(
        "SRRL",
        "Yang et al., ICLR 2021",
        SRRL,
        alpha=1.0,
        source="published: SimKD's scripts",
        features=(-1,),
        trainable=True,
    ),
    "semckd": Method(
        "SemCKD",
        "Chen et al., AAAI 2021",
        SemCKD,
        alpha=1.0,
        beta=400.0,
        source="published: SimKD's scripts",
        features=STAGES,
        trainable=True,
        relates=True,
    ),
    "reviewkd": Method(
        "ReviewKD",
        "Chen et al., CVPR 2021",
        ReviewKD,
        beta=5.0,
        source="published: ReviewKD's script",
        by_pair={
            **REVIEWKD,
            **imagenet(
                MDISTILLER,
                {"beta": 1.0, "warmup": 1, "preact_s": True},
                {
                    "beta": 8.0,
                    "warmup": 1,
                    "preact_s": True,
                    "width": 256,
                    "source": f"{MDISTILLER}; the width: ReviewKD's script",
                },
            ),
        },
        elsewhere="assumed: ReviewKD's most frequent weight",
        features=slice(1, None),
        preact_t=True,
        trainable=True,
        warmup=20,
    ),
    "simkd": Method(
        "SimKD",
        "Chen et al., CVPR 2022",
        SimKD,
        gamma=0.0,
        source="published: SimKD's scripts",
        last_map=True,
        student=SimKDStudent,
    ),
    "dkd": Method(
        "DKD",
        "Zhao et al., CVPR 2022",
        DKD,
        source="published: mdistiller",
        by_pair={
            **DKD_NCKD,
            **imagenet(MDISTILLER, DKD_IMAGENET | {"nckd": 0.5}, DKD_IMAGENET | {"nckd": 2.0}),
        },
        elsewhere="published: mdistiller's default",
        standardized={"beta": 9.0, "source": STANDARDIZATION, "elsewhere": STANDARDIZATION},
        warmup=20,
    ),
    "dist": Method(
        "DIST",
        "Huang et al., NeurIPS 2022",
        DIST,
        source="published: the authors' configuration for CIFAR-100",
        relates=True,
        by_pair=imagenet("published: the authors' configuration for ImageNet", DIST_IMAGENET, DIST_IMAGENET),
    ),
    "catkd": Method(
        "CAT-KD",
        "Guo et al., CVPR 2023",
        CATKD,
        beta=15.0,
        source="published: CAT-KD's configurations",
        by_pair=CATKD_WEIGHTS,
        elsewhere="assumed: a weight of the middle of the published ones",
        last_map=True,
    ),
    "crcd": Method(
        "CRCD",
        "Zhu et al., CVPR 2021",
        CRCD,
        alpha=0.9,
        source=CRCD_ASSUMED,
        by_pair={
            **CRCD_UNEQUAL_WIDTHS,
            **{pair: {"gradient": "contrast", "source": AS_CIFAR} for pair in (MOBILENETV1, MOBILENETV2)},
        },
        elsewhere=CRCD_ASSUMED,
        features=(-1,),
        trainable=True,
        schedule={"kd": ((240 / 250, 1.0), (1.0, 0.0)), "other": ((240 / 250, 1.0), (1.0, 0.0))},
        relates=True,
        several=False,
    ),
    "mgd": Method(
        "MGD",
        "Yang et al., ECCV 2022",
        MGD,
        beta=7e-5,
        source="assumed: the weight published for ImageNet, none is for CIFAR-100",
        by_pair=imagenet("published: MGD's configurations", {}, {}),
        last_map=True,
        trainable=True,
        pairs=(*EQUAL_SIZES, RESNET18, MOBILENETV1, MOBILENETV2),
    ),
    "ctkd": Method(
        "CTKD",
        "Li et al., AAAI 2023",
        CTKD,
        gamma=0.1,
        beta=0.9,
        source="published: CTKD's script",
        by_pair={
            ("resnet56", "resnet20"): {"ramp": 10},
            **imagenet("published: CTKD's script (120 epochs)", {"gamma": 1.0, "beta": 1.0, "ramp": 5}, None),
        },
        elsewhere="assumed: CTKD's script for resnet56 > resnet20",
        trainable=True,
        own_T=True,
        in_epochs=("ramp",),
    ),
    "mlkd": Method(
        "MLKD",
        "Jin et al., CVPR 2023",
        MLKD,
        gamma=0.1,
        source="published: MLKD's configurations (which train for longer)",
        by_pair=imagenet("published: MLKD's configurations (batches of 512)", MLKD_IMAGENET, MLKD_IMAGENET),
        strong=True,
        relates=True,
    ),
    "norm": Method(
        "NORM",
        "Liu et al., ICLR 2023",
        NORM,
        gamma=0.1,
        source="published: NORM's README",
        by_pair={
            **NORM_PLACES,
            **imagenet(
                "published: NORM's script (with a cosine learning rate)",
                {**NORM_IMAGENET, "gamma": 1.0},
                {**NORM_IMAGENET, "gamma": 0.125},
            ),
        },
        elsewhere=NORM_ASSUMED,
        features=(-2,),
        schedule={"other": ((10 / 240, 0.1), (20 / 240, 0.5), (180 / 240, 1.0), (210 / 240, 0.5), (1.0, 0.1))},
        student=NORMStudent,
    ),
}

# The names that users of RepDistiller know.
ALIASES = {
    "hint": "fitnet",
    "attention": "at",
    "similarity": "sp",
    "correlation": "cc",
    "abound": "ab",
    "factor": "ft",
}


def resolve_method(name: str) -> str:
    """The key of a method; case, hyphens and underscores do not matter. Raises ValueError with the nearest match."""

    def plain(text):
        return text.lower().replace("-", "").replace("_", "")

    keys = ALIASES | {plain(key): key for key in distiller_dict}
    if plain(name) in keys:
        return keys[plain(name)]
    near = difflib.get_close_matches(plain(name), keys, n=1, cutoff=0)
    raise ValueError(
        f"unknown method '{name}': expected one of {', '.join(distiller_dict)} (did you mean {keys[near[0]]}?)"
    )
