"""What is measured of a student beside its accuracy: gradients of the terms, RipsNet on its clouds, and pictures."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dataset import LabelledImages, batches_in_order
from ripsnet import ExactTopology, ImageSpec, RipsNetTopology, r2_on_device

from ..clouds.layers import read_layer
from ..training.objective import autocast
from . import pictures
from .distillation import Distillation

PROBE_CLOUDS = 16
Batches = Sequence[tuple[Tensor, Tensor]]


def probe_batches(images: LabelledImages, batch_size: int, points: int) -> Batches:
    """The first whole batches of a training set, not augmented, that hold PROBE_CLOUDS clouds of so many points:
    (images, labels). The images are kept as uint8 (B, H, W, 3), a quarter of what `images.normalize` makes of them."""
    count = -(-PROBE_CLOUDS * points // batch_size)
    batches = itertools.islice(batches_in_order(images, batch_size), count)
    return [(images.normalize.undone(batch), labels) for batch, labels in batches if len(labels) == batch_size]


def unchanged(images: Tensor) -> Tensor:
    return images


class Probe:
    """Measures an objective on a few batches, and leaves the state of training untouched.

    batches: the first serves for the gradients, all for R^2.
    specs: the teacher's image specs, with which images of a RipsNet can be compared with exact ones.
    normalize: makes what the networks take of a batch's images.
    """

    def __init__(
        self,
        batches: Batches,
        specs: Sequence[ImageSpec] = (),
        normalize: Callable[[Tensor], Tensor] = unchanged,
    ):
        self.batches, self.normalize = batches, normalize
        self.exact = ExactTopology(specs) if specs else None

    def diagnose(self, objective: Distillation) -> dict[str, float]:
        """Norm of each weighted term's gradient at the student's feature, on one batch; and R^2 of the RipsNets on the
        student's own clouds, against the mean of their exact images. Networks run in training mode, as in a step; the
        mode, buffers and random states are restored.
        """
        if not self.batches:
            return {}
        images, labels = self.first_batch()
        mode = objective.training
        buffers = {name: buffer.clone() for name, buffer in objective.named_buffers()}
        with torch.random.fork_rng([images.device] if images.device.type == "cuda" else []):
            objective.train()
            step = objective.compute(images, labels, torch.arange(len(labels), device=labels.device))
            columns: dict[str, Tensor] = {}
            for name, value in step.terms.items():
                (gradient,) = torch.autograd.grad(
                    objective.weights[name] * value, step.feature, retain_graph=True, allow_unused=True
                )
                if gradient is None:
                    gradient = torch.zeros((), device=images.device)
                columns[f"grad_{name}"] = gradient.float().norm()
            if self.exact is not None and isinstance(objective.frozen.topology, RipsNetTopology):
                columns["student_r2"] = self.r2_on_student(objective, objective.frozen.topology, self.exact)
        for name, buffer in objective.named_buffers():
            buffer.copy_(buffers[name])
        objective.train(mode)
        if not columns:
            return {}
        values = torch.stack([value.double() for value in columns.values()])
        return dict(zip(columns, values.tolist(), strict=True))  # the host waits once

    def first_batch(self) -> tuple[Tensor, Tensor]:
        images, labels = self.batches[0]
        return self.normalize(images), labels

    @torch.no_grad()
    def r2_on_student(self, objective: Distillation, topology: RipsNetTopology, exact: ExactTopology) -> Tensor:
        """R^2 of the topology term's RipsNets, whose exact images are known, on the student's clouds: a scalar on the
        device."""
        clouds = torch.cat([self._student_clouds(objective, self.normalize(images)) for images, _ in self.batches])
        return r2_on_device(topology.images(clouds), exact.images(clouds))

    @staticmethod
    def _student_clouds(objective: Distillation, images: Tensor) -> Tensor:
        with autocast(images.device, objective.amp):
            features, logits = objective.student(images, is_feat=True)
        return objective.student_clouds(read_layer(features, logits, objective.layer_s))

    @torch.no_grad()
    def figures(self, objective: Distillation) -> dict[str, Any]:
        """For each image spec, the persistence images of student and teacher on the first cloud: the exact ones, and
        below them RipsNet's. Both networks run in eval mode, which changes no buffer."""
        if self.exact is None or not self.batches:
            return {}
        mode = objective.training
        objective.eval()
        images, _ = self.first_batch()
        with autocast(images.device, objective.amp):
            features_t, logits_t = objective.frozen.teacher(images, is_feat=True)
        teacher = objective.clouds(read_layer(features_t, logits_t, objective.layer_t))
        clouds = torch.stack([self._student_clouds(objective, images)[0], teacher[0]])
        objective.train(mode)
        kinds = {"exact": self.exact.images(clouds)}
        if isinstance(objective.frozen.topology, RipsNetTopology):
            kinds["RipsNet"] = objective.frozen.topology.images(clouds)
        columns, rows = self.exact.specs[0].resolution
        panels = {
            f"{network}, {kind}": pixels.view(-1, rows, columns).cpu().numpy()  # an image for each spec
            for kind, pair in kinds.items()
            for network, pixels in zip(("student", "teacher"), pair, strict=True)
        }
        return {
            f"persistence_images/dim{spec.dim}": pictures.image_panel(
                {name: image[i] for name, image in panels.items()}
            )
            for i, spec in enumerate(self.exact.specs)
        }
