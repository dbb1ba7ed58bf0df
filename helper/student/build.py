"""A student and its objective, built from the settings: the one place for script, benchmarks and tests."""

from functools import partial
from pathlib import Path

import torch
from torch import nn

from dataset import LabelledImages
from distiller_zoo import ABSENT, Pair, classifier
from models import create_model, feature_shapes, fold_batchnorm, map_shape, preactivation_norms, to_device

from .. import distributed
from ..clouds.layers import layer_width
from ..clouds.outputs import CachedTeacher, cached_teacher
from ..data import share_of
from ..errors import UserError
from ..networks import Network, check_map, replaced_student
from ..training.seeding import seed_everything
from .distillation import Distillation
from .probe import Probe, probe_batches
from .topology import Topology, build_topology
from .weights import StudentSettings


def build_student(arch: str, num_classes: int, seed: int, device: torch.device) -> nn.Module:
    """A network with the weights that a seed gives. To be called before the teacher is loaded, so that students of all
    methods with one seed start from equal weights."""
    seed_everything(seed)
    return to_device(create_model(arch, num_classes), device)


def check_processes(settings: StudentSettings) -> None:
    """Say what several processes share. UserError for a loss that they cannot compute."""
    loss, clouds, method, world = settings.loss, settings.clouds, settings.method, distributed.world()
    batch_size, share = settings.training.batch_size, share_of(settings.training.batch_size)
    if loss.beta and not method.several and world > 1:
        raise UserError(
            f"--distill {loss.distill}: found {world} processes, but its memory of the training images is one "
            "process's; start it without torchrun"
        )
    whole = loss.topology is None or share % clouds.points == 0
    if whole and loss.gather_clouds:
        why = "no topology term (--delta 0)" if loss.topology is None else "whole clouds in each process"
        raise UserError(f"--gather_clouds: has no effect with {why}; leave it out")
    if not whole and not loss.gather_clouds:
        raise UserError(
            f"{clouds.points_option}: found clouds of {clouds.points} images, of which each of {world} processes has "
            f"{share}; start fewer processes, give a larger --batch_size (with its --lr), or --gather_clouds"
        )
    if world > 1:
        seen_by = "batch norms see"
        if loss.beta and method.relates:
            seen_by = f"batch norms and the relations of {method.name} between images see"
        print(f"{world} processes: {seen_by} the {share} images of one process, of {batch_size}", flush=True)


def build_objective(
    settings: StudentSettings,
    path_t: str | Path,
    student: nn.Module,
    teacher: Network,
    train_set: LabelledImages,
    shared: CachedTeacher | None = None,
) -> tuple[Distillation, Topology]:
    """The objective that the settings ask for, on the device; and its topology term.

    path_t: the teacher's checkpoint, by which clouds and RipsNets are found. student: taken over; objective.student is
    another network if the method replaces a part. shared: of another student of this teacher and these images, whose
    table this one reads too.
    """
    loss, clouds, info = settings.loss, settings.clouds, train_set.info
    if loss.beta:
        student = replaced_student(loss.distill, student, teacher.model, info.image_size, settings.options)
    widths = (
        layer_width(student, loss.tda_layer_s, info.num_classes, "--tda_layer_s", info.image_size),
        layer_width(teacher.model, clouds.tda_layer_t, info.num_classes, "--tda_layer_t", info.image_size),
    )
    topology = build_topology(settings, path_t, teacher, widths[1])
    other = build_loss(settings, student, teacher.model, train_set)
    cache = None
    if settings.training.teacher_cache and settings.reads_teacher:
        seed = settings.repetition.seed
        cache = shared.of_seed(seed) if shared else cached_teacher(path_t, teacher, train_set, seed)
    objective = Distillation(
        student,
        fold_batchnorm(teacher.model),
        loss,
        amp=settings.training.amp,
        other=other,
        topology=topology.module,
        layer_t=clouds.tda_layer_t,
        cloud_size=clouds.points if topology.module else None,
        widths=widths,
        epochs=settings.training.epochs,
        strong_view=partial(train_set.strong_view, settings.repetition.seed),
        cache=cache,
        method=settings.method,
    )
    points = clouds.points if topology.module else 1  # the gradients need one batch
    share = share_of(settings.training.batch_size)  # what the networks see in a step
    batches = probe_batches(train_set, settings.training.batch_size if share % points else share, points)
    objective.probe = Probe(batches, topology.specs, train_set.normalize)
    return objective.to(settings.data.device), topology


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
        batch_size=share_of(settings.training.batch_size),
        kd_T=loss.kd_T,
    )
    try:
        return method.make_loss(pair, settings.options)
    except ValueError as error:
        raise UserError(f"--distill {loss.distill}: {error} (--list shows options and pairs)") from None
