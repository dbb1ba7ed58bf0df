"""The pairs of the tables; the weights of a run, each marked published or assumed; the names of methods and runs.

Published (the authors' released logs): ResNet56 > ResNet20 and WRN-40-2 > ShuffleNetV1. No source gives the others, so
an unknown pair of one family takes the values of the first and an unknown pair of two families those of the second.
"""

import re
from dataclasses import dataclass, replace

from distiller_zoo import Method, distiller_dict

from .options import UserError, unusual_images


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


def method_of(args) -> Method:
    """The entry of --distill, as it holds with or without --logit_stand."""
    method = distiller_dict[args.distill]
    return method.on_standardized_logits() if args.logit_stand else method


def resolve_weights(args, teacher: str, student: str) -> dict:
    """Fill in --gamma, --alpha, --beta, --delta, --topology, --operator, the method's own options and where the weights
    come from, in place. Returns the method's options, as --set and the registry say.

    Without a topology term the method's own published weights hold (KD: 0.1 and 0.9); KD with one has gamma 1 and the
    pair's alpha. --delta alone means topology through RipsNet, --topology alone the pair's delta.
    """
    pair, method = pair_settings(teacher, student), method_of(args)
    beta, options, source = method.settings(teacher, student)
    usual = dict(options)
    gamma, alpha = method.gamma, method.alpha
    args.operator = args.operator or pair.operator
    if args.delta is None:
        args.delta = pair.delta if args.topology else 0.0
    args.topology = (args.topology or "ripsnet") if args.delta else None
    if method.loss is None and args.delta:
        gamma, alpha = 1.0, pair.alpha
    args.gamma = gamma if args.gamma is None else args.gamma
    args.alpha = alpha if args.alpha is None else args.alpha
    if args.beta and method.loss is None:
        raise UserError(f"--beta: found {args.beta:g}, but --distill {args.distill} has no loss beside KD; use --alpha")
    if args.beta == 0 and method.loss is not None:
        raise UserError(
            f"--beta: found 0, which leaves nothing of --distill {args.distill}; use --distill kd for CE or KD"
        )
    args.beta = beta if args.beta is None else args.beta
    weights = (args.gamma, args.alpha, args.beta, args.delta)
    if not any(weights):
        raise UserError("--gamma, --alpha, --beta and --delta are all 0: there is nothing to train")
    if not any((args.gamma, args.alpha, args.delta)) and method.first_only:
        raise UserError(f"--gamma, --alpha and --delta are all 0: after its first stage {method.name} trains nothing")
    if args.set and not args.beta:
        raise _without_use(args, "--set")
    options |= parse_settings(args.set, method)
    args.set = [f"{name}={value}" for name, value in options.items()] if args.beta else []
    as_usual = _resolve_schedule(args, method) and options == usual

    if not as_usual:
        args.weights_source = "given on the command line"
    elif weights == (gamma, alpha, beta, 0.0):
        args.weights_source = source
    elif weights in ((1.0, pair.alpha, 0.0, pair.delta), (1.0, pair.alpha, 0.0, 0.0)) and not args.logit_stand:
        through_ripsnet = args.topology in (None, "ripsnet")
        args.weights_source = pair.source if through_ripsnet else "assumed: alpha and delta as for RipsNet"
    elif weights == (gamma, alpha, beta, pair.delta) and args.beta:
        args.weights_source = "assumed: the method's own weights with the pair's delta"
    else:
        args.weights_source = "given on the command line"
    return options


def parse_settings(texts: list[str], method: Method) -> dict:
    """['name=value', ...] as a dict, each value of the type that the method's option has."""
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in method.options:
            known = ", ".join(f"{key}={default}" for key, default in method.options.items()) or "it has none"
            raise UserError(f"--set: found '{text}', expected an option of {method.name} ({known})")
        kind = type(method.options[name])
        try:
            found[name] = kind(value)
        except ValueError:
            raise UserError(f"--set: found '{text}', expected {name}=<{kind.__name__}>") from None
    return found


def _without_use(args, option: str) -> UserError:
    return UserError(
        f"{option}: without effect on --distill {args.distill} with --alpha {args.alpha:g} and --beta {args.beta:g}; "
        "leave it out"
    )


def _resolve_schedule(args, method: Method) -> bool:
    """Temperature, warm-up and first stage: the published ones unless given; refused where they do nothing. Returns
    whether they are the published ones."""
    for option, before_relu in (("tda_layer_s", method.preact_s), ("tda_layer_t", method.preact_t)):
        layer = getattr(args, option)
        if args.delta and args.beta and before_relu and layer not in (0, -1):
            raise UserError(
                f"--{option}: found {layer}, expected -1 or 0, because {method.name} reads the stages before their "
                "last ReLU"
            )
    softens = args.alpha > 0 or (args.beta > 0 and method.on_logits)
    if not softens and (args.logit_stand or args.kd_T is not None):
        raise _without_use(args, "--logit_stand" if args.logit_stand else "--kd_T")
    published_T = 2.0 if args.logit_stand else 4.0
    args.kd_T = published_T if args.kd_T is None else args.kd_T
    for option, usual in (("warmup", method.warmup), ("first_epochs", method.first_epochs)):
        if getattr(args, option) is not None and not (usual and args.beta):
            raise _without_use(args, f"--{option}")
        if getattr(args, option) is None:
            setattr(args, option, usual if args.beta else 0)
    epochs = (args.warmup, args.first_epochs)
    return args.kd_T == published_T and epochs in ((0, 0), (method.warmup, method.first_epochs))


def method_name(args, teacher: str, student: str) -> str:
    """What tables call a run: CE, KD, KD-control, TopKD, TopKD-exact, CE+Top-wasserstein, CRD+Top, DKD+LS, ..."""
    pair, method = pair_settings(teacher, student), distiller_dict[args.distill]
    standardised = "+LS" * args.logit_stand
    if args.beta:
        name = method.name + standardised + "+Top" * (args.delta > 0)
    elif args.alpha == 0:
        name = "CE" + "+Top" * (args.delta > 0)
    elif args.delta:
        name = "TopKD" + standardised
    else:
        control = (args.gamma, args.alpha) == (1.0, pair.alpha) and not args.logit_stand
        name = "KD-control" if control else f"KD{standardised}"
    return name + (f"-{args.topology}" if args.topology in ("exact", "wasserstein") else "")


def without_effect(args) -> tuple[str, ...]:
    """Options that did nothing in this run; its row leaves them empty, so that they tell no two runs apart."""
    names = ("operator", "ripsnet", "ripsnet_clouds") if args.topology != "ripsnet" else ()
    names += ("pcd_bn", "sigma_rule", "resolution", "range") if args.topology in (None, "wasserstein") else ()
    names += ("set",) if not args.set else ()
    return names + (("dim", "tda_layer_t", "tda_layer_s", "topology") if args.topology is None else ())


def run_name(args, teacher: str, student: str) -> str:
    """A short name in which every departure of the loss from the method's own settings shows."""
    pair, method = pair_settings(teacher, student), method_of(args)
    name = method_name(args, teacher, student)
    beta, options, _ = method.settings(teacher, student)
    gamma, alpha = (method.gamma, method.alpha) if args.beta else (1.0, pair.alpha)
    if name in ("KD", "KD+LS"):
        gamma, alpha = method.gamma, method.alpha
    elif name.startswith("CE"):
        alpha = 0.0
    usual = {
        "r": (args.gamma, gamma),
        "a": (args.alpha, alpha),
        "b": (args.beta, beta if args.beta else 0.0),
        "d": (args.delta, pair.delta if args.delta else 0.0),
        "T": (args.kd_T, 2.0 if args.logit_stand else 4.0),
        "n": (args.batch_size, 64),
        "warmup": (args.warmup, method.warmup if args.beta else 0),
        "first": (args.first_epochs, method.first_epochs if args.beta else 0),
    }
    parts = [f"{key}{value:g}" for key, (value, default) in usual.items() if value != default]
    given = dict(text.split("=", 1) for text in args.set)
    parts += [f"{option}{given[option]}" for option in given if given[option] != str(options[option])]
    if args.delta:
        parts += [f"dim{args.dim}"] * (args.dim != "0") + [f"layer{args.tda_layer_t}"] * (args.tda_layer_t != -1)
        parts += [f"layerS{args.tda_layer_s}"] * (args.tda_layer_s != -1)
        parts += [args.operator] * (args.topology == "ripsnet" and args.operator != pair.operator)
    if args.delta and args.topology != "wasserstein":
        parts += ["train"] * (args.pcd_bn == "train") + ["subsample"] * (args.sigma_rule == "subsample")
        parts += [*unusual_images(args), *([f"clouds{args.ripsnet_clouds}"] if args.ripsnet_clouds else [])]
    return "_".join([f"{teacher}-{student}", args.dataset, name, *parts, f"trial{args.trial}"])
