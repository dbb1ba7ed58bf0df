"""The distillation methods: one file each, and the registry by which `train_student.py --distill <name>` finds them.

Every student is trained with  gamma * CE + alpha * KD + beta * L_other + delta * L_top.  A method says what L_other is
and with which weights it is run when nothing else is asked for. To add one, register it before training starts:

    class MyLoss(nn.Module):
        def __init__(self, shapes_s, shapes_t):                       # one image's feature shapes, stem ... pooled
            ...
        def forward(self, features_s, logits_s, features_t, logits_t):  # lists of (B, ...) tensors -> scalar
            ...
    distiller_dict["mine"] = Method("Mine", "citation", 1.0, 0.0, beta=1.0, source="assumed", loss=MyLoss)

Parameters of the loss module train with the student, are saved with the run, and are no part of the deployed student.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from .kd import KD

__all__ = ["KD", "Method", "distiller_dict", "resolve_method"]


@dataclass(frozen=True)
class Method:
    """name: as tables print it. gamma, alpha, beta: the weights of CE, KD and L_other when the method runs alone, and
    the source they come from ("published: ..." or "assumed: ...").
    loss: builds L_other from the feature shapes of student and teacher; None where there is no such term."""

    name: str
    citation: str
    gamma: float
    alpha: float
    beta: float
    source: str
    loss: Callable[[list, list], nn.Module] | None = None


distiller_dict: dict[str, Method] = {
    "kd": Method("KD", "Hinton et al., NIPS workshop 2014", 0.1, 0.9, 0.0, "published: RepDistiller's scripts"),
}


def resolve_method(name: str) -> str:
    """The key of a method, upper and lower case alike. Raises ValueError with the nearest match."""
    keys = {key.lower(): key for key in distiller_dict}
    if name.lower() in keys:
        return keys[name.lower()]
    near = difflib.get_close_matches(name.lower(), keys, n=1, cutoff=0)
    raise ValueError(
        f"unknown method '{name}': expected one of {', '.join(distiller_dict)} (did you mean {keys[near[0]]}?)"
    )
