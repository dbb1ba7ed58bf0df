"""The weights of TopKD for every pair of the tables, each marked published or assumed.

Published (the authors' released logs): ResNet56 > ResNet20 and WRN-40-2 > ShuffleNetV1. No source gives the others, so
an unknown pair of one family takes the values of the first and an unknown pair of two families those of the second.
"""

import re
from dataclasses import dataclass, replace

from distiller_zoo import distiller_dict

from .options import UserError
from .runs import unusual_images


@dataclass(frozen=True)
class PairSettings:
    """alpha (KD), delta (topology) and RipsNet's pooling for one teacher and student; where they come from."""

    alpha: float
    delta: float
    operator: str
    source: str


PUBLISHED = {
    ("resnet56", "resnet20"): PairSettings(2.0, 5.0, "mean", "published: the authors' released log"),
    ("wrn_40_2", "ShuffleV1"): PairSettings(4.0, 5.0, "sum", "published: the authors' released log"),
}


def family(arch: str) -> str:
    """'resnet32x4' -> 'resnet', 'ResNet50' -> 'resnet', 'wrn_40_2' -> 'wrn', 'ShuffleV1' -> 'shufflev'."""
    return re.match("[a-z]*", arch.lower()).group()


def pair_settings(teacher: str, student: str) -> PairSettings:
    if (teacher, student) in PUBLISHED:
        return PUBLISHED[teacher, student]
    like = ("resnet56", "resnet20") if family(teacher) == family(student) else ("wrn_40_2", "ShuffleV1")
    return replace(PUBLISHED[like], source=f"assumed: as {like[0]} > {like[1]}")


def resolve_weights(args, teacher: str, student: str) -> None:
    """Fill in --gamma, --alpha, --beta, --delta, --topology, --operator and where the weights come from, in place.

    Without a topology term the method's own published weights hold (KD: 0.1 and 0.9); with one, gamma is 1 and KD's
    alpha the pair's. --delta alone means topology through RipsNet, --topology alone the pair's delta.
    """
    pair, method = pair_settings(teacher, student), distiller_dict[args.distill]
    args.operator = args.operator or pair.operator
    if args.delta is None:
        args.delta = pair.delta if args.topology else 0.0
    args.topology = (args.topology or "ripsnet") if args.delta else None
    topkd = args.delta > 0 and method.loss is None
    args.gamma = (1.0 if topkd else method.gamma) if args.gamma is None else args.gamma
    args.alpha = (pair.alpha if topkd else method.alpha) if args.alpha is None else args.alpha
    args.beta = method.beta if args.beta is None else args.beta
    if args.beta and method.loss is None:
        raise UserError(f"--beta: found {args.beta:g}, but --distill {args.distill} has no loss beside KD; use --alpha")
    weights = (args.gamma, args.alpha, args.beta, args.delta)
    if not any(weights):
        raise UserError("--gamma, --alpha, --beta and --delta are all 0: there is nothing to train")
    if weights == (method.gamma, method.alpha, method.beta, 0.0):
        args.weights_source = method.source
    elif weights in ((1.0, pair.alpha, 0.0, pair.delta), (1.0, pair.alpha, 0.0, 0.0)):
        args.weights_source = pair.source
    else:
        args.weights_source = "given on the command line"


def method_name(args, teacher: str, student: str) -> str:
    """What tables call a run: CE, KD, KD-control, TopKD, TopKD-exact, CE+Top-wasserstein, CRD+Top, ..."""
    pair, method = pair_settings(teacher, student), distiller_dict[args.distill]
    if args.beta:
        name = method.name + "+Top" * (args.delta > 0)
    elif args.alpha == 0:
        name = "CE" + "+Top" * (args.delta > 0)
    elif args.delta:
        name = "TopKD"
    else:
        name = "KD-control" if (args.gamma, args.alpha) == (1.0, pair.alpha) else "KD"
    return name + (f"-{args.topology}" if args.topology in ("exact", "wasserstein") else "")


def without_effect(args) -> tuple[str, ...]:
    """Options that did nothing in this run; its row leaves them empty, so that they tell no two runs apart."""
    names = ("operator", "ripsnet", "ripsnet_clouds") if args.topology != "ripsnet" else ()
    names += ("pcd_bn", "sigma_rule", "resolution", "range") if args.topology in (None, "wasserstein") else ()
    return names + (("dim", "tda_layer_t", "topology") if args.topology is None else ())


def run_name(args, teacher: str, student: str) -> str:
    """A short name in which every departure of the loss from the method's own settings shows."""
    pair = pair_settings(teacher, student)
    method = method_name(args, teacher, student)
    usual = {
        "r": (args.gamma, 0.1 if method == "KD" else 1.0),
        "a": (args.alpha, 0.9 if method == "KD" else pair.alpha),
        "b": (args.beta, distiller_dict[args.distill].beta),
        "d": (args.delta, pair.delta),
        "T": (args.kd_T, 4.0),
        "n": (args.batch_size, 64),
    }
    if args.alpha == 0 or args.beta:
        usual["a"] = (args.alpha, 0.0)
    if args.delta == 0:
        del usual["d"]
    parts = [f"{key}{value:g}" for key, (value, default) in usual.items() if value != default]
    if args.delta:
        parts += [f"dim{args.dim}"] * (args.dim != "0") + [f"layer{args.tda_layer_t}"] * (args.tda_layer_t != -1)
        parts += [f"layerS{args.tda_layer_s}"] * (args.tda_layer_s != -1)
        parts += [args.operator] * (args.topology == "ripsnet" and args.operator != pair.operator)
    if args.delta and args.topology != "wasserstein":
        parts += ["train"] * (args.pcd_bn == "train") + ["subsample"] * (args.sigma_rule == "subsample")
        parts += [*unusual_images(args), *([f"clouds{args.ripsnet_clouds}"] if args.ripsnet_clouds else [])]
    return "_".join([f"{teacher}-{student}", args.dataset, method, *parts, f"trial{args.trial}"])
