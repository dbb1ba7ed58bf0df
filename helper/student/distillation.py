"""The student's objective: gamma * CE + alpha * KD + beta * L_other + delta * L_top (TopKD, ICML 2024, section 3)."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo import ABSENT, KD, Batch, FirstStaged, Method, Output, distiller_dict, forward, standardize

from .. import distributed
from ..clouds.layers import as_points, in_clouds, read_layer
from ..clouds.outputs import CachedTeacher
from ..settings import ResolvedLoss
from ..training.objective import Objective, autocast, python_numbers


class Frozen(NamedTuple):
    """What the loss asks and never trains. A tuple, because PyTorch searches no tuple for parameters."""

    teacher: nn.Module
    topology: nn.Module | None


class Reading(NamedTuple):
    """What a network made of a batch of images: features from the stem to the pooled vector, logits, and the map
    before the pooling where the method reads it."""

    features: list[Tensor]
    logits: Tensor
    last_map: Tensor | None


class Step(NamedTuple):
    """logits of the student; the unweighted terms; and the student's feature that the topology term reads."""

    logits: Tensor
    terms: dict[str, Tensor]
    feature: Tensor


class Diagnosis(Protocol):
    """What measures an objective after an epoch, and leaves it as it was: `helper.student.probe.Probe`."""

    def diagnose(self, objective: "Distillation") -> dict[str, float]: ...

    def figures(self, objective: "Distillation") -> dict[str, Any]: ...


class Distillation(Objective):
    """The loss of a student, whose terms are named ce, kd, other and top; a zero weight drops a term.

    teacher: frozen, in eval mode, called as teacher(images, is_feat=True); not run when only ce has a weight.
    other: the method's loss, called with (Output, Output, Batch); None where there is none.
    topology: called with the clouds (N, n, d) of student and teacher. layer_t: the teacher's layer that it reads.
    cloud_size: n, the points of a cloud, which are consecutive images of the batch; None for the whole batch.
    widths: of these clouds, the student's and the teacher's; where they differ, a trainable 1 x 1 convolution with
    bias maps the student's to the teacher's width. It is no part of the deployed student.
    epochs: of the run, for methods whose weights follow a schedule.
    strong_view: called with (epoch, images, indices) for a strongly augmented view of these images, for methods that
    compare two views. method: the loss's, as it holds for the pair (default: its entry).
    cache: the teacher's outputs on the training images, looked up in place of running it.
    """

    epoch: Tensor

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        loss: ResolvedLoss,
        *,
        amp: str = "off",
        other: nn.Module | None = None,
        topology: nn.Module | None = None,
        layer_t: int = -1,
        cloud_size: int | None = None,
        widths: tuple[int, int] | None = None,
        epochs: int,
        strong_view: Callable[[int, Tensor, Tensor], Tensor] | None = None,
        cache: CachedTeacher | None = None,
        method: Method | None = None,
    ):
        method = method or distiller_dict[loss.distill]
        beta = 0.0 if method.first_only else loss.beta
        super().__init__(student, {"ce": loss.gamma, "kd": loss.alpha, "other": beta, "top": loss.delta}, amp)
        self.loss, self.method, self.beta = loss, method, beta
        self.kd, self.other = KD(loss.kd_T), other
        self.frozen = Frozen(teacher, topology)
        self.layer_s, self.layer_t, self.cloud_size = loss.tda_layer_s, layer_t, cloud_size
        self.projection = None
        if topology is not None and widths is not None and widths[0] != widths[1]:
            self.projection = nn.Conv2d(*widths, kernel_size=1)
        self.full_weights, self.epochs, self.strong_view = dict(self.weights), epochs, strong_view
        self.cache = cache
        self.epoch_number = 1
        self.register_buffer("epoch", torch.ones((), dtype=torch.int64), persistent=False)
        self.probe: Diagnosis | None = None

    @property
    def follows_length(self) -> bool:  # type: ignore[override]  # an attribute of objectives without a schedule
        return any(term in self.weights for term in self.method.schedule)

    @property
    def host_bound(self) -> str:  # type: ignore[override]  # an attribute of objectives that never wait
        topology = getattr(self.frozen.topology, "host_bound", "") if "top" in self.weights else ""
        method = self.method.host_bound if "other" in self.weights else ""
        return topology or method

    def host_numbers(self) -> tuple:
        """With the method's own, and with the epoch, where the strong view's random numbers follow from it."""
        epoch = self.epoch_number if self.method.strong else None
        return (*super().host_numbers(), *python_numbers(self.other), epoch)

    def begin(self, epoch: int) -> None:
        self.epoch_number = epoch
        self.epoch.fill_(epoch)
        if self.cache is not None:
            self.cache.begin(epoch)
        for term in self.weights.keys() & {"kd", "other"}:
            self.weights[term] = self.full_weights[term] * self.method.factor(term, epoch, self.epochs)
        if "other" in self.weights and self.loss.warmup:
            self.weights["other"] *= min(epoch / self.loss.warmup, 1.0)

    def forward(self, images: Tensor, labels: Tensor, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        known = None
        if self.cache is not None:
            known = Reading(*self.cache.at(indices), None)
        step = self.compute(images, labels, indices, known, shared=True)
        return step.logits, step.terms

    def compute(
        self, images: Tensor, labels: Tensor, indices: Tensor, teacher: Reading | None = None, shared: bool = False
    ) -> Step:
        """teacher: what it makes of these images, where that is known; it is run on them otherwise. shared: whether the
        images are one process's share of a batch, of which all processes compute this."""
        if teacher is None and self.weights.keys() - {"ce"}:
            with torch.no_grad():  # first, so that the student's activations are still in the caches for backward
                teacher = self.read(self.frozen.teacher, images)
        student = self.read(self.student, images)
        feature = read_layer(student.features, student.logits, self.layer_s)
        terms = {}
        if "ce" in self.weights:
            terms["ce"] = F.cross_entropy(self.rescaled(student.logits), labels)
        if teacher is not None:
            if "kd" in self.weights:
                terms["kd"] = self.kd(*(self.softened(self.rescaled(each.logits)) for each in (student, teacher)))
            if "other" in self.weights:
                terms["other"] = self.compare(student, teacher, images, Batch(labels, indices, self.epoch))
            if "top" in self.weights:
                clouds = self.clouds(read_layer(teacher.features, teacher.logits, self.layer_t), shared)
                assert self.frozen.topology is not None
                terms["top"] = self.frozen.topology(self.student_clouds(feature, shared), clouds)
        return Step(student.logits, terms, feature)

    def compare(self, student: Reading, teacher: Reading, images: Tensor, batch: Batch) -> Tensor:
        """L_other, of a second view of the images too where the method asks for it."""
        assert self.other is not None
        outputs = self.output(student), self.output(teacher)
        if self.method.strong:
            assert self.strong_view is not None
            view = self.strong_view(self.epoch_number, images, batch.indices)
            with torch.no_grad():
                strong_t = self.read(self.frozen.teacher, view)
            strong_s = self.read(self.student, view)
            outputs = (
                outputs[0]._replace(strong=self.output(strong_s)),
                outputs[1]._replace(strong=self.output(strong_t)),
            )
        return self.other(*outputs, batch)

    def read(self, network: nn.Module, images: Tensor) -> Reading:
        """What student or teacher makes of images (B, 3, H, W), as the method reads it."""
        preact = last_map = False
        if self.other is not None:
            preact = self.method.preact_s if network is self.student else self.method.preact_t
            last_map = self.method.last_map
        with autocast(images.device, self.amp):
            return Reading(*forward(network, images, preact, last_map))

    def rescaled(self, logits: Tensor) -> Tensor:
        """Logits in float32 as CE and KD see them, which a method may rescale."""
        rescale: Callable[[Tensor], Tensor] | None = getattr(self.other, "rescale", None)
        return logits.float() if rescale is None else rescale(logits.float())

    def softened(self, logits: Tensor) -> Tensor:
        """Logits as methods on logits are given them."""
        return standardize(logits) if self.loss.logit_stand else logits

    def output(self, reading: Reading) -> Output:
        """What the method's loss is given of a network, in float32."""
        logits = reading.logits.float()
        if self.method.on_logits:
            logits = self.softened(logits)
        last_map = ABSENT if reading.last_map is None else reading.last_map.float()
        return Output(self.method.select(reading.features), logits, last_map)

    def clouds(self, feature: Tensor, shared: bool = False) -> Tensor:
        """A network's feature as clouds (N, n, d). shared: whether it is that of one process's share of a batch; then
        the features of all are brought together unless the share is whole clouds, so that the clouds are those of one
        process."""
        points = as_points(feature)
        if shared and distributed.world() > 1 and (self.cloud_size is None or len(points) % self.cloud_size):
            points = distributed.gather(points)
        return in_clouds(points, self.cloud_size)

    def student_clouds(self, feature: Tensor, shared: bool = False) -> Tensor:
        """The student's feature as clouds (N, n, d) of the teacher's width."""
        points = as_points(feature)
        if self.projection is not None:
            points = self.projection(points[:, :, None, None]).flatten(1)
        return self.clouds(points, shared)

    def diagnose(self) -> dict[str, float]:
        return {} if self.probe is None else self.probe.diagnose(self)

    def figures(self) -> dict[str, Any]:
        return {} if self.probe is None else self.probe.figures(self)


class FirstStage(Objective):
    """The first stage of a method (AB, FSP, FT): other.first_stage alone, of the same modules as `whole`.

    It has the weight beta where it is the method's loss, and 1 where it prepares the method's own modules. A student
    that the stage does not train is not run either, so that its batch norms see nothing.
    """

    label = "first stage (no accuracy is aimed at), "

    def __init__(self, whole: Distillation):
        weight = whole.loss.beta if whole.method.first_only else 1.0
        super().__init__(whole.student, {"first": weight}, whole.amp)
        self.other, self.whole = whole.other, (whole,)
        self.host_bound = whole.method.host_bound

    def host_numbers(self) -> tuple:
        return (*super().host_numbers(), *python_numbers(self.other))

    def forward(self, images: Tensor, labels: Tensor, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        (whole,) = self.whole
        with torch.no_grad():
            teacher = whole.output(whole.read(whole.frozen.teacher, images))
        student, logits = ABSENT, teacher.logits  # some logits, for a training accuracy that nobody aims at
        if whole.method.first_only:
            student = whole.output(whole.read(self.student, images))
            logits = student.logits
        assert isinstance(self.other, FirstStaged)
        value = self.other.first_stage(student, teacher, Batch(labels, indices))
        return logits, {"first": value}
