"""The methods as `train_student.py --list` prints them."""

from typing import Any

from distiller_zoo import AS_CIFAR, Method, distiller_dict

from .pairs import PAIRS


def listing() -> str:
    """Every method with its citation, weights, options and pairs, as text."""
    lines = []
    for key, method in distiller_dict.items():
        options = "".join(f", {name}={value}" for name, value in method.options.items())
        lines += [
            f"{key:10} {method.name}: {method.citation}",
            f"{'':10} {_weights(method)}{options} ({method.source})",
            f"{'':10} {'; '.join(_about(method))}",
        ]
        for pair, values in method.by_pair.items():
            lines.append(f"{'':12} {_names([pair])}: {', '.join(_text(name, value) for name, value in values.items())}")
        if method.elsewhere:
            lines.append(f"{'':12} other pairs: the defaults, {method.elsewhere}")
    lines.append(f"networks of ImageNet that are not named: the defaults, {AS_CIFAR}")
    lines.append("--logit_stand: logit standardisation (Sun et al., CVPR 2024), a modifier of KD, DKD, DIST, CTKD")
    for method in distiller_dict.values():
        if method.standardized:
            changed = method.on_standardized_logits()
            lines.append(f"{'':10} {method.name}: {_weights(changed)} temperature 2 ({changed.source})")
    lines.append(f"{'':10} others: their own weights, temperature 2 (assumed)")
    return "\n".join(lines)


def _text(name: str, value: Any) -> str:
    """A value that holds for one pair."""
    if name == "source":
        return value
    if name == "schedule":
        return "weights that follow the epochs otherwise"
    return f"{name} {value if isinstance(value, str) else format(value, 'g')}"


def _weights(method: Method) -> str:
    return " ".join(f"{name} {getattr(method, name):g}" for name in ("gamma", "alpha", "beta"))


def _about(method: Method) -> list[str]:
    """What a method does and where it is defined, in words."""
    if method.pairs:
        lines = [f"{len(method.pairs)} pairs: {_names(method.pairs)}"]
    else:
        lines = [f"all {len(PAIRS)} pairs"]
    lines.append(f"reads {_read(method)}")
    if method.trainable:
        lines.append("its own modules train with the student")
    if method.first_epochs:
        whole = ", which is all of it" if method.first_only else ""
        lines.append(f"a first stage of {method.first_epochs} epochs{whole}")
    if method.warmup:
        lines.append(f"warm-up of {method.warmup} epochs")
    if method.schedule:
        lines.append("weights that follow the epochs")
    if method.strong:
        lines.append("a second, strongly augmented view")
    if method.reads_outputs_alone:
        lines.append("--teacher_cache serves it")
    if method.student is not None:
        lines.append("replaces part of the student")
    return lines


def _read(method: Method) -> str:
    """What a method compares, in words."""
    if method.on_logits:
        return "logits"
    if method.last_map:
        return "the map before the pooling"
    text = method.places
    if method.preact_s and method.preact_t:
        return f"features {text} before the last ReLU"
    if method.preact_t:
        return f"features {text}, the teacher's before the last ReLU"
    return f"features {text}"


def _names(pairs) -> str:
    return ", ".join(f"{teacher} > {student}" for teacher, student in pairs)
