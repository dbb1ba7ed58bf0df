"""A student and its objective, built from the settings: the one place for script, benchmarks and tests."""

from functools import partial
from pathlib import Path

import torch
from torch import nn

from dataset import LabelledImages
from distiller_zoo import ABSENT, Pair, classifier
from models import create_model, feature_shapes, fold_batchnorm, map_shape, preactivation_norms, to_device

from ..clouds.layers import layer_width
from ..errors import UserError
from ..networks import Network, check_map, replaced_student
from ..training.seeding import seed_everything
from .distillation import Distillation
from .probe import Probe, probe_batches
from .topology import build_topology
from .weights import StudentSettings


def build_student(arch: str, num_classes: int, seed: int, device: torch.device) -> nn.Module:
    """A network with the weights that a seed gives. To be called before the teacher is loaded, so that students of all
    methods with one seed start from equal weights."""
    seed_everything(seed)
    return to_device(create_model(arch, num_classes), device)


def build_objective(
    settings: StudentSettings, path_t: str | Path, student: nn.Module, teacher: Network, train_set: LabelledImages
) -> tuple[Distillation, float | None]:
    """The objective that the settings ask for, on the device; and the R^2 of its RipsNets.

    path_t: the teacher's checkpoint, by which clouds and RipsNets are found. student: taken over; objective.student is
    another network if the method replaces a part.
    """
    loss, clouds, info = settings.loss, settings.clouds, train_set.info
    if loss.beta:
        student = replaced_student(loss.distill, student, teacher.model, info.image_size, settings.options)
    widths = (
        layer_width(student, loss.tda_layer_s, info.num_classes, "--tda_layer_s", info.image_size),
        layer_width(teacher.model, clouds.tda_layer_t, info.num_classes, "--tda_layer_t", info.image_size),
    )
    topology = build_topology(settings, path_t, teacher, widths[1])
    objective = Distillation(
        student,
        fold_batchnorm(teacher.model),
        loss,
        amp=settings.training.amp,
        other=build_loss(settings, student, teacher.model, train_set),
        topology=topology.module if topology else None,
        layer_t=clouds.tda_layer_t,
        cloud_size=clouds.points if topology else None,
        widths=widths,
        epochs=settings.training.epochs,
        strong_view=partial(train_set.strong_view, settings.repetition.seed),
        method=settings.method,
    )
    points = clouds.points if topology else 1  # the gradients need one batch
    batches = probe_batches(train_set, settings.training.batch_size, points)
    objective.probe = Probe(batches, topology.specs if topology else (), train_set.normalize)
    return objective.to(settings.data.device), topology.r2 if topology else None


def build_loss(
    settings: StudentSettings, student: nn.Module, teacher: nn.Module, train_set: LabelledImages
) -> nn.Module | None:
    """L_other of the method for these networks; None where its weight is 0.

    student: as deployed. teacher: not folded, since its batch norms are read.
    """
    loss, method = settings.loss, settings.method
    if not loss.beta or method.loss is None:
        return None
    check_map(method, loss.distill, student, teacher)
    image_size = train_set.info.image_size
    pair = Pair(
        shapes_s=feature_shapes(student, image_size, method.preact_s),
        shapes_t=feature_shapes(teacher, image_size, method.preact_t),
        map_s=map_shape(student, image_size) or ABSENT,
        map_t=map_shape(teacher, image_size) or ABSENT,
        classifier_s=classifier(student)[1],
        classifier_t=classifier(teacher)[1].requires_grad_(False),
        norms_t=preactivation_norms(teacher) if method.preact_t else (),
        labels=train_set.labels,
        batch_size=settings.training.batch_size,
        kd_T=loss.kd_T,
    )
    try:
        return method.make_loss(pair, settings.options)
    except ValueError as error:
        raise UserError(f"--distill {loss.distill}: {error} (--list shows options and pairs)") from None
