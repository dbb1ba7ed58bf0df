"""The student's objective: gamma * CE + alpha * KD + beta * L_other + delta * L_top (TopKD, ICML 2024, section 3)."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset import ImageSet, test_batches
from distiller_zoo import KD, Batch, Method, Output, distiller_dict, forward, standardize
from models import fold_batchnorm
from ripsnet import ExactTopology, ImageSpec, RipsNetTopology, r2_score

from .checkpoint import Network
from .clouds import as_cloud, layer_width, read_layer
from .loop import Objective, autocast
from .methods import build_loss, replaced_student
from .topology import build_topology

PROBE_BATCHES = 16


def probe_batches(images: ImageSet, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """The first PROBE_BATCHES whole batches of a training set, not augmented (images, labels), for `diagnose`."""
    batches = itertools.islice(test_batches(images, batch_size), PROBE_BATCHES)
    return [batch for batch in batches if len(batch[1]) == batch_size]


class Distillation(Objective):
    """weights: gamma, alpha, beta and delta under the terms' names ce, kd, other and top; a zero weight drops the term.

    teacher: frozen, in eval mode, callable as teacher(images, is_feat=True); not run when only ce has a weight.
    method, other: an entry of the registry, and the loss that it built, called with (Output, Output, Batch).
    warmup: epochs over which the weight of `other` rises linearly to its full value.
    logit_stand: whether KD, and a method that compares logits alone, are given standardised ones.
    topology: called with the clouds (n, d) of student and teacher, read at layer_s and layer_t. widths: of these
    clouds; where they differ, a trainable 1 x 1 convolution with bias maps the student's to the teacher's width. It is
    no part of the deployed student.
    probe: batches for `diagnose`; the first serves for the gradients, all for R^2.
    specs: the teacher's image specs, with which the R^2 of a RipsNet on the student's clouds can be measured.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        weights: dict[str, float],
        amp: str = "off",
        kd_T: float = 4.0,
        method: Method | None = None,
        other: nn.Module | None = None,
        warmup: int = 0,
        logit_stand: bool = False,
        topology: nn.Module | None = None,
        layer_s: int = -1,
        layer_t: int = -1,
        widths: tuple[int, int] | None = None,
        probe: list[tuple[Tensor, Tensor]] = (),
        specs: list[ImageSpec] = (),
    ):
        super().__init__(student, weights, amp)
        self.kd, self.method, self.other = KD(kd_T), method, other
        self.full_weights, self.warmup, self.logit_stand = dict(self.weights), warmup, logit_stand
        self.layer_s, self.layer_t, self.probe = layer_s, layer_t, probe
        self.frozen = (teacher, topology)
        self.exact = ExactTopology(specs) if specs and isinstance(topology, RipsNetTopology) else None
        self.projection = None
        if topology is not None and widths[0] != widths[1]:
            self.projection = nn.Conv2d(*widths, kernel_size=1)

    def begin(self, epoch: int) -> None:
        if "other" in self.weights and self.warmup:
            self.weights["other"] = self.full_weights["other"] * min(epoch / self.warmup, 1.0)

    def forward(self, images: Tensor, labels: Tensor, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits, terms, _ = self.compute(images, labels, indices)
        return logits, terms

    def read(self, network: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """(features, logits, last map or None) of student or teacher, as the method reads them."""
        method = self.method if self.other is not None else None
        before_relu = method and (method.preact_s if network is self.student else method.preact_t)
        with autocast(images.device, self.amp):
            return forward(network, images, bool(before_relu), bool(method and method.last_map))

    def output(self, features: list[Tensor], logits: Tensor, last_map: Tensor | None) -> Output:
        """What the method's loss is given of a network, in float32."""
        logits = standardize(logits.float()) if self.logit_stand and self.method.on_logits else logits.float()
        return Output(self.method.select(features), logits, None if last_map is None else last_map.float())

    def student_cloud(self, feature: Tensor) -> Tensor:
        cloud = as_cloud(feature)
        return cloud if self.projection is None else self.projection(cloud[:, :, None, None]).flatten(1)

    def compute(self, images: Tensor, labels: Tensor, indices: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """(logits, terms, the student's feature that the topology term reads)."""
        teacher, topology = self.frozen
        if self.weights.keys() - {"ce"}:
            with torch.no_grad():  # first, so that the student's activations are still in the caches for backward
                features_t, logits_t, map_t = self.read(teacher, images)
        features_s, logits_s, map_s = self.read(self.student, images)
        feature = read_layer(features_s, logits_s, self.layer_s)
        terms = {}
        if "ce" in self.weights:
            terms["ce"] = F.cross_entropy(logits_s.float(), labels)
        if "kd" in self.weights:
            both = logits_s.float(), logits_t.float()
            terms["kd"] = self.kd(*(map(standardize, both) if self.logit_stand else both))
        if "other" in self.weights:
            student, teacher = self.output(features_s, logits_s, map_s), self.output(features_t, logits_t, map_t)
            terms["other"] = self.other(student, teacher, Batch(labels, indices))
        if "top" in self.weights:
            terms["top"] = topology(
                self.student_cloud(feature), as_cloud(read_layer(features_t, logits_t, self.layer_t))
            )
        return logits_s, terms, feature

    def diagnose(self) -> dict[str, float]:
        """Norm of each weighted term's gradient at the student's feature, on one probe batch; and R^2 of the RipsNets
        on the student's own clouds, against the mean of their exact images. Networks run in training mode, as in a
        step; the mode, buffers and random states are restored.
        """
        if not self.probe:
            return {}
        images, labels = self.probe[0]
        mode = self.training
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        with torch.random.fork_rng([images.device] if images.device.type == "cuda" else []):
            self.train()
            _, terms, feature = self.compute(images, labels, torch.arange(len(labels), device=labels.device))
            columns = {}
            for name, value in terms.items():
                (gradient,) = torch.autograd.grad(
                    self.weights[name] * value, feature, retain_graph=True, allow_unused=True
                )
                columns[f"grad_{name}"] = 0.0 if gradient is None else gradient.float().norm().item()
            if self.exact is not None:
                columns["student_r2"] = self.r2_on_student()
        for name, buffer in self.named_buffers():
            buffer.copy_(buffers[name])
        self.train(mode)
        return columns

    @torch.no_grad()
    def figures(self) -> dict:
        """For each image spec, the persistence images of student and teacher on the first probe batch: the exact ones,
        and below them RipsNet's. Both networks run in eval mode, which changes no buffer."""
        teacher, topology = self.frozen
        exact = topology if isinstance(topology, ExactTopology) else self.exact
        if exact is None or not self.probe:
            return {}
        from .figures import image_panel  # only here, because importing matplotlib takes time

        mode = self.training
        self.eval()
        images, _ = self.probe[0]
        with autocast(images.device, self.amp):
            features_s, logits_s = self.student(images, is_feat=True)
            features_t, logits_t = teacher(images, is_feat=True)
        student = self.student_cloud(read_layer(features_s, logits_s, self.layer_s))
        clouds = torch.stack([student, as_cloud(read_layer(features_t, logits_t, self.layer_t))])
        self.train(mode)
        found = {"exact": exact.images(clouds)}
        if topology is not exact:
            found["RipsNet"] = topology.images(clouds)
        columns, rows = exact.specs[0].resolution
        panels = {
            f"{network}, {kind}": pixels.view(-1, rows, columns).cpu().numpy()  # an image for each spec
            for kind, pair in found.items()
            for network, pixels in zip(("student", "teacher"), pair, strict=True)
        }
        return {
            f"persistence_images/dim{spec.dim}": image_panel({name: image[i] for name, image in panels.items()})
            for i, spec in enumerate(exact.specs)
        }

    @torch.no_grad()
    def r2_on_student(self) -> float:
        clouds = []
        for images, _ in self.probe:
            with autocast(images.device, self.amp):
                features, logits = self.student(images, is_feat=True)
            clouds.append(self.student_cloud(read_layer(features, logits, self.layer_s)))
        clouds = torch.stack(clouds)
        return r2_score(self.frozen[1].images(clouds), self.exact.images(clouds))


class FirstStage(Objective):
    """The first stage of a method (AB, FSP, FT): other.first_stage alone, of the same modules as `whole`.

    beta: its weight where it is the method's loss; what prepares the method's own modules has weight 1. A student that
    the stage does not train is not run either, so that its batch norms see nothing.
    """

    label = "first stage (no accuracy is aimed at), "

    def __init__(self, whole: Distillation, beta: float):
        super().__init__(whole.student, {"first": beta if whole.method.first_only else 1.0}, whole.amp)
        self.other, self.whole = whole.other, (whole,)

    def forward(self, images: Tensor, labels: Tensor, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        (whole,) = self.whole
        with torch.no_grad():
            teacher = whole.output(*whole.read(whole.frozen[0], images))
        student = whole.output(*whole.read(self.student, images)) if whole.method.first_only else None
        value = self.other.first_stage(student, teacher, Batch(labels, indices))
        return (student or teacher).logits, {"first": value}


def build_objective(
    args, options: dict, student: nn.Module, teacher: Network, train_set: ImageSet
) -> tuple[Distillation, float | None]:
    """The objective that train_student.py's resolved options ask for, on --device; and the R^2 of its RipsNets.

    options: of the method. student: taken over; objective.student is another network if the method replaces a part.
    """
    method = distiller_dict[args.distill]
    if args.beta:
        student = replaced_student(args.distill, student, teacher.model, train_set.info.image_size)
    classes = train_set.info.num_classes
    width_t = layer_width(teacher.model, args.tda_layer_t, classes, "--tda_layer_t")
    width_s = layer_width(student, args.tda_layer_s, classes, "--tda_layer_s")
    topology, specs, ripsnet_r2 = build_topology(args, teacher, width_t)
    beta = 0.0 if method.first_only else args.beta
    objective = Distillation(
        student,
        fold_batchnorm(teacher.model),
        {"ce": args.gamma, "kd": args.alpha, "other": beta, "top": args.delta},
        args.amp,
        args.kd_T,
        method,
        build_loss(args, options, student, teacher.model, train_set),
        args.warmup,
        args.logit_stand,
        topology,
        args.tda_layer_s,
        args.tda_layer_t,
        (width_s, width_t),
        probe_batches(train_set, args.batch_size),
        specs,
    )
    return objective.to(args.device), ripsnet_r2
