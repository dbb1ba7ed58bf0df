"""A method of the registry, made ready for one teacher and student; and the registry as `--list` prints it."""

import torch
from torch import nn

from dataset import ImageSet
from distiller_zoo import Method, Pair, classifier, distiller_dict
from models import create_model, feature_shapes, map_shape, preactivation_norms

from .options import UserError
from .pairs import PAIRS


def check_map(method: Method, name: str, *networks: nn.Module) -> None:
    for network in networks:
        if method.last_map and not hasattr(network, "pool"):
            raise UserError(
                f"--distill {name}: reads the map before the pooling, but {type(network).__name__} has no submodule "
                "`pool` that averages it; add one, or choose another method"
            )


def replaced_student(key: str, student: nn.Module, teacher: nn.Module, image_size: int) -> nn.Module:
    """The network that a method deploys in place of the student, or the student itself. It takes the student over."""
    method = distiller_dict[key]
    if method.student is None:
        return student
    check_map(method, key, student, teacher)
    maps = {"map_s": map_shape(student, image_size), "map_t": map_shape(teacher, image_size)}
    device = next(student.parameters()).device
    pair = Pair((), (), **maps, classifier_t=classifier(teacher)[1])
    return method.student(student, pair).to(device, memory_format=torch.channels_last)


def load_replaced(replaced: dict, student: nn.Module, num_classes: int, image_size: int) -> nn.Module:
    """The network that a checkpoint's `replaced` describes, with fresh weights."""
    return replaced_student(replaced["distill"], student, create_model(replaced["arch_t"], num_classes), image_size)


def build_loss(args, options: dict, student: nn.Module, teacher: nn.Module, train_set: ImageSet) -> nn.Module | None:
    """L_other of --distill for these networks; None where --beta is 0.

    student: as deployed. teacher: not folded, since its batch norms are read.
    """
    method = distiller_dict[args.distill]
    if not args.beta:
        return None
    check_map(method, args.distill, student, teacher)
    image_size = train_set.info.image_size
    head_t = classifier(teacher)[1].requires_grad_(False)
    pair = Pair(
        feature_shapes(student, image_size, method.preact_s),
        feature_shapes(teacher, image_size, method.preact_t),
        map_shape(student, image_size),
        map_shape(teacher, image_size),
        classifier(student)[1],
        head_t,
        preactivation_norms(teacher) if method.preact_t else (),
        train_set.labels,
        args.batch_size,
        args.kd_T,
    )
    try:
        return method.loss(pair, **options)
    except ValueError as error:
        raise UserError(f"--distill {args.distill}: {error} (--list shows options and pairs)") from None


def listing() -> str:
    """Every method with its citation, weights, options and pairs, as text."""
    lines = []
    for key, method in distiller_dict.items():
        options = "".join(f", {name}={value}" for name, value in method.options.items())
        pairs = f"{len(method.pairs)} pairs: {_names(method.pairs)}" if method.pairs else f"all {len(PAIRS)} pairs"
        notes = [
            f"reads {_read(method)}",
            "its own modules train with the student" * method.trainable,
            f"a first stage of {method.first_epochs} epochs{', which is all of it' * method.first_only}"
            * bool(method.first_epochs),
            f"warm-up of {method.warmup} epochs" * bool(method.warmup),
            "replaces part of the student" * (method.student is not None),
        ]
        lines += [
            f"{key:10} {method.name}: {method.citation}",
            f"{'':10} {_weights(method)}{options} ({method.source})",
            f"{'':10} {'; '.join([pairs, *filter(None, notes)])}",
        ]
        for pair, values in method.by_pair.items():
            values = [f"{name} {v if isinstance(v, str) else format(v, 'g')}" for name, v in values.items()]
            lines.append(f"{'':12} {_names([pair])}: {', '.join(values)}")
        if method.by_pair:
            lines.append(f"{'':12} other pairs: the defaults, {method.elsewhere}")
    lines.append("--logit_stand: logit standardisation (Sun et al., CVPR 2024), a modifier of KD, DKD, DIST")
    for method in distiller_dict.values():
        if method.standardized:
            changed = method.on_standardized_logits()
            lines.append(f"{'':10} {method.name}: {_weights(changed)} temperature 2 ({changed.source})")
    lines.append(f"{'':10} others: their own weights, temperature 2 (assumed)")
    return "\n".join(lines)


def _weights(method: Method) -> str:
    return " ".join(f"{name} {getattr(method, name):g}" for name in ("gamma", "alpha", "beta"))


def _read(method: Method) -> str:
    """What a method compares, in words."""
    if method.on_logits:
        return "logits"
    if method.last_map:
        return "the map before the pooling"
    which = method.features
    if isinstance(which, slice):
        which = [f"{which.start}:{'' if which.stop is None else which.stop}"]
    features = f"features {', '.join(map(str, which))}"
    if method.preact_s and method.preact_t:
        return f"{features} before the last ReLU"
    return f"{features}, the teacher's before the last ReLU" if method.preact_t else features


def _names(pairs) -> str:
    return ", ".join(f"{teacher} > {student}" for teacher, student in pairs)
