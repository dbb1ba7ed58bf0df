"""The contract between a distillation method and the rest: what a loss is given, what a registry entry holds."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

# {(teacher, student): {a name in OF_PAIR, "source" or an option: value}}
ByPair = dict[tuple[str, str], dict[str, Any]]
# Fields of a method that a pair may have otherwise.
OF_PAIR = ("gamma", "alpha", "beta", "kd_T", "warmup", "schedule", "preact_s")
AS_CIFAR = "assumed: as for CIFAR-100"

# The value of a field that a method does not ask for. The types below are those that a loss is given which asks for it.
ABSENT: Any = None


class Output(NamedTuple):
    """What a network made of a batch of B images.

    features: from the stem's output to the pooled vector (B, C); float32 where the method reads them, None elsewhere.
    logits: (B, classes), float32.
    last_map: (B, C, H, W), whose mean over the pixels is the pooled vector; None if the method does not read it.
    strong: the Output for the strong view of the same images; None if the method asks for none.
    """

    features: Sequence[Tensor]
    logits: Tensor
    last_map: Tensor = ABSENT
    strong: "Output" = ABSENT


class Batch(NamedTuple):
    """labels (B,), and the images' indices in the training set (B,), both int64.

    epoch: int64 scalar on the same device, from 1 on. A tensor, so that a step captured as a CUDA graph sees it change.
    """

    labels: Tensor
    indices: Tensor
    epoch: Tensor = ABSENT


@dataclass(frozen=True)
class Pair:
    """What a loss may know of student and teacher when it is built.

    shapes_s, shapes_t: one image's feature shapes, (C, H, W) or (C,), from the stem's output to the pooled vector.
    map_s, map_t: (C, H, W) of the map before the pooling; None for a network without a submodule `pool`.
    classifier_s, classifier_t: the linear layers from the pooled vector to the logits; the student's is being trained.
    norms_t: the batch norm that each stage's pre-activation comes from, None where there is none; empty where that is
        not known.
    labels: of the training set, int64 (N,). batch_size: the largest batch, or one process's share of it.
    kd_T: temperature for methods that soften logits.
    """

    shapes_s: Sequence[tuple[int, ...]]
    shapes_t: Sequence[tuple[int, ...]]
    map_s: tuple[int, int, int] = ABSENT
    map_t: tuple[int, int, int] = ABSENT
    classifier_s: nn.Linear = ABSENT
    classifier_t: nn.Linear = ABSENT
    norms_t: Sequence[nn.BatchNorm2d | None] = ()
    labels: Tensor = ABSENT
    batch_size: int = 64
    kd_T: float = 4.0


@runtime_checkable
class FirstStaged(Protocol):
    """A loss of a method with a first stage."""

    def first_stage(self, student: Output, teacher: Output, batch: Batch) -> Tensor: ...


@dataclass(frozen=True)
class Method:
    """An entry of the registry.

    name, citation: as tables print them.
    loss: builds L_other as loss(pair, **options), a module called with (student, teacher, batch), that is (Output,
        Output, Batch), for a scalar; None where there is no such term. Its keyword-only parameters are the method's
        options. ValueError for a pair that it is not defined for. If the module has a method `rescale`, CE and KD are
        given rescale(logits) in place of each network's logits.
    gamma, alpha, beta: the weights of CE, KD and L_other when the method runs alone. kd_T: the temperature of logits.
    source: where these and the options' defaults come from, "published: ..." or "assumed: ...".
    standardized: what is published in place of these for --logit_stand, {"gamma", "alpha", "beta", "source" or
        "elsewhere": value}.
    by_pair: what is published for single pairs, {(teacher, student): {a name in OF_PAIR or an option: value}}. A
        "source" among the values is that of this pair. The defaults hold for all other pairs: by AS_CIFAR for networks
        of ImageNet, else by `elsewhere` (again "published: ..." or "assumed: ...") or, without it, by `source`.
    features: the indices of the features that the loss reads, a slice or a tuple. preact_s, preact_t: whether the
        student's, and the teacher's, are those before the last ReLU. last_map: whether it reads the map before the
        pooling.
    trainable: whether the loss has parameters, which train with the student and are not deployed.
    strong: whether the networks also see a strongly augmented view of each image, for Output.strong.
    relates: whether the loss relates the images of a batch to each other, of which several processes have a share each.
    several: whether several processes can work on one run, which they cannot where each has a memory of its own.
    own_T: whether a loss on logits brings its temperature, so that --kd_T has no effect on it.
    warmup: epochs over which beta rises linearly from 0.
    in_epochs: the options that count epochs. As warm-up and first stage, they shrink with the tables of experiments.
    schedule: what multiplies the weight of "kd" or "other" in the course of a run: {term: ((until, factor), ...)},
        `until` being a share of the epochs, rounded to whole ones, and 1 in the end.
    first_epochs: epochs of a first stage, in which `loss.first_stage(student, teacher, batch)` alone is minimised;
        first_only: whether that is L_other, with its weight beta and on the student, and ends with the stage; if not,
        it trains the loss's own modules only, with weight 1, and its student is None.
    first_lr: learning rates of the first stage, {beginning of the student's name: rate}; the student's own for others.
    student: replaces the student by student(network, pair, **options), which is what is evaluated, saved and deployed.
        Its keyword-only parameters are options of the method, too. `merged()`, if the network has it, gives the plain
        network of the same logits.
    pairs: the pairs (teacher, student) that the method is defined for; None for all.
    host_bound: why the loss waits for the host (.item(), a boolean mask, data that is not on the device), in words,
        where it does: a step is then not captured in a CUDA graph. A step is captured anew when an int or a float among
        the attributes of the loss, or of its parts, changes; a number that changes in every step belongs in a buffer,
        which is changed in place.
    """

    name: str
    citation: str
    loss: Callable[..., nn.Module] = ABSENT
    gamma: float = 1.0
    alpha: float = 0.0
    beta: float = 1.0
    kd_T: float = 4.0
    source: str = "assumed: the term is added as it is"
    by_pair: ByPair = field(default_factory=dict)
    elsewhere: str = ""
    standardized: Mapping = field(default_factory=dict)
    features: slice | tuple[int, ...] = ()
    preact_s: bool = False
    preact_t: bool = False
    last_map: bool = False
    trainable: bool = False
    strong: bool = False
    relates: bool = False
    several: bool = True
    own_T: bool = False
    warmup: int = 0
    in_epochs: tuple[str, ...] = ()
    schedule: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    first_epochs: int = 0
    first_only: bool = False
    first_lr: Mapping[str, float] = field(default_factory=dict)
    student: Callable[..., nn.Module] | None = None
    pairs: tuple[tuple[str, str], ...] | None = None
    host_bound: str = ""

    @property
    def on_logits(self) -> bool:
        """Whether the method compares logits alone, so that they may be standardised first."""
        return self.features == () and not self.last_map

    @property
    def reads_outputs_alone(self) -> bool:
        """Whether the loss reads nothing of the teacher but its logits and its pooled vector, and of no other images
        than the student sees, so that a table may give them."""
        pooled_at_most = self.features in ((), (-1,), slice(-1, None))
        return pooled_at_most and not (self.preact_t or self.last_map or self.strong or self.first_epochs)

    @property
    def options(self) -> dict:
        """The options of the loss and of the student that is deployed, and their defaults."""
        return keyword_only(self.loss) | keyword_only(self.student)

    def make_loss(self, pair: Pair, options: Mapping) -> nn.Module:
        """L_other with those of the options that are its own. ValueError for a network that lacks the features which
        it reads, and from the loss itself."""
        shapes = {"student": pair.shapes_s, "teacher": pair.shapes_t} if self.features else {}
        for whose, of_network in shapes.items():
            if not self.read(len(of_network)):
                raise ValueError(
                    f"reads features {self.places}, but the {whose} has {len(of_network)} from the stem to the "
                    "pooled vector"
                )
        return self.loss(pair, **{name: options[name] for name in keyword_only(self.loss)})

    def make_student(self, network: nn.Module, pair: Pair, options: Mapping) -> nn.Module:
        """The network that is deployed in place of `network`, which it takes over, with those options that are its own;
        of a method that replaces one."""
        assert self.student is not None
        return self.student(network, pair, **{name: options[name] for name in keyword_only(self.student)})

    def factor(self, term: str, epoch: int, epochs: int) -> float:
        """What the schedule multiplies a term's weight by in one of a run's epochs, counted from 1."""
        steps = self.schedule.get(term, ((1.0, 1.0),))
        return next(factor for until, factor in steps if epoch <= int(until * epochs + 0.5))

    def on_standardized_logits(self) -> "Method":
        """The entry as it holds with --logit_stand: the published changes, which are for CIFAR-100, or its own weights,
        which are assumed; the temperature is 2."""
        assumed = "assumed: the method's own, with standardised logits"
        changes = {"kd_T": 2.0, **(self.standardized or {"source": assumed, "elsewhere": assumed})}
        by_pair = {pair: values for pair, values in self.by_pair.items() if not of_imagenet(*pair)}
        return replace(self, **changes, by_pair=by_pair)

    def for_pair(self, teacher: str, student: str) -> "Method":
        """The entry as it holds for a pair of architectures; `source` says where its values come from."""
        special = self.by_pair.get((teacher, student))
        if special is None:
            source = AS_CIFAR if of_imagenet(teacher, student) else self.elsewhere or self.source
            return replace(self, source=source)
        own = {name: value for name, value in special.items() if name in (*OF_PAIR, "source")}
        return replace(self, **own)

    def settings(self, teacher: str, student: str) -> tuple[float, dict, str]:
        """(beta, options, source of the values) for a pair of architectures."""
        method, special = self.for_pair(teacher, student), self.by_pair.get((teacher, student), {})
        own = {name: value for name, value in special.items() if name in self.options}
        return method.beta, {**self.options, **own}, method.source

    def first_rate(self, student: str, lr: float) -> float:
        """The learning rate of the first stage for a student's architecture that itself is trained with lr."""
        rates = [rate for beginning, rate in self.first_lr.items() if student.startswith(beginning)]
        return rates[0] if rates else lr

    @property
    def places(self) -> str:
        """The indices of the features that the loss reads, in words: '1:-1', '-1'."""
        which = self.features
        if isinstance(which, slice):
            return f"{which.start}:{'' if which.stop is None else which.stop}"
        return ", ".join(map(str, which))

    def read(self, count: int) -> Sequence[int]:
        """Which of so many features the method reads; none where it asks for one that a network does not have."""
        if isinstance(self.features, slice):
            return range(count)[self.features]
        exist = all(-count <= index < count for index in self.features)
        return [range(count)[index] for index in self.features] if exist else []

    def select(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The features that the method reads, in float32; None in place of all others."""
        wanted = self.read(len(features))
        return [feature.float() if i in wanted else ABSENT for i, feature in enumerate(features)]


def of_imagenet(teacher: str, student: str) -> bool:
    """Whether two architectures are networks for ImageNet."""
    return teacher.endswith("_imagenet") and student.endswith("_imagenet")


def keyword_only(build: Callable | None) -> dict:
    """{name: default} of the keyword-only parameters of a constructor, which are options of a method."""
    if build is None:
        return {}
    parameters = inspect.signature(build).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


def classifier(network: nn.Module) -> tuple[str, nn.Linear]:
    """(name, module) of a network's last linear layer, which makes the logits."""
    return [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]


def forward(
    network: nn.Module, images: Tensor, preact: bool = False, last_map: bool = False
) -> tuple[list[Tensor], Tensor, Tensor]:
    """(features, logits, the map before the pooling or None): what a network makes of images (B, 3, H, W).

    The map is what the network's submodule `pool` is given.
    """
    options = {"preact": True} if preact else {}
    if not last_map:
        return *network(images, is_feat=True, **options), ABSENT
    seen: list[Tensor] = []
    with network.get_submodule("pool").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        features, logits = network(images, is_feat=True, **options)
    return features, logits, seen[0]
