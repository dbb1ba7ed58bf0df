"""The weights of a student's loss: what the user gives, completed by the method's and the pair's own values.

Without a topology term the method's own published weights hold (KD: 0.1 and 0.9); KD with one has gamma 1 and the
pair's alpha. --delta alone means topology through RipsNet, --topology alone the pair's delta.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from dataset import Recipe, dataset_dict
from distiller_zoo import Method, distiller_dict

from ..clouds.outputs import uncached
from ..errors import UserError
from ..settings import (
    Clouds,
    Data,
    Loss,
    Repetition,
    ResolvedLoss,
    ResolvedRepetition,
    ResolvedTraining,
    RipsNetChoice,
    Training,
    defaults,
)
from . import names
from .pairs import PairSettings, pair_settings

BY_HAND = "given on the command line"
# What an image is made by, beside its homology dimension and layer.
IMAGE_OPTIONS = ("pcd_bn", "sigma_rule", "resolution", "range")
RIPSNET_OPTIONS = ("operator", "ripsnet", "ripsnet_clouds")
OPTION_TYPES = (bool, int, float, str)  # of a method's own options
TOPOLOGY_OPTIONS = ("dim", "tda_layer_t", "tda_layer_s", "cloud_size")


@dataclass(frozen=True)
class StudentSettings:
    """What a student's run is determined by, beside the teacher's weights. teacher, student: architectures."""

    teacher: str
    student: str
    loss: ResolvedLoss
    clouds: Clouds
    data: Data
    training: ResolvedTraining
    repetition: ResolvedRepetition

    @property
    def method(self) -> Method:
        return method_of(self.loss, self.teacher, self.student)

    @property
    def pair(self) -> PairSettings:
        return pair_settings(self.teacher, self.student)

    @property
    def options(self) -> dict[str, Any]:
        """The options of the method, by name."""
        return parse_options(self.loss.set, self.method)

    @property
    def first_training(self) -> ResolvedTraining:
        """The schedule of the method's first stage, at one learning rate; of no epochs where it has none."""
        return replace(
            self.training,
            epochs=self.loss.first_epochs,
            lr=self.method.first_rate(self.student, self.training.lr),
            lr_decay_epochs=(),
        )

    @property
    def reads_teacher(self) -> bool:
        """Whether the loss has a term beside the cross entropy."""
        return any((self.loss.alpha, self.loss.beta, self.loss.delta))

    @property
    def without_cache(self) -> str | None:
        """Why --teacher_cache cannot serve this student; None where it can."""
        layer = self.clouds.tda_layer_t if self.loss.topology else -1
        if self.loss.beta and not self.method.reads_outputs_alone:
            return f"--distill {self.loss.distill} reads more of the teacher than its logits and its pooled vector"
        return uncached(self.data.dataset, layer)

    @property
    def without_effect(self) -> tuple[str, ...]:
        """Options that do nothing in this run; its row leaves them empty, so that they distinguish no two runs."""
        found = idle_options(self.loss.topology)
        if not self.loss.set:
            found += ("set",)
        if self.loss.topology is None:
            found += ("topology",)
        if not self.training.teacher_cache:
            found += ("teacher_cache",)
        return found

    @property
    def schedule(self) -> str:
        """Where training departs from the published schedule."""
        return names.schedule(self.training, self.student, dataset_dict[self.data.dataset].recipe)

    @property
    def is_control(self) -> bool:
        """Whether this is KD with the weights that it has beside topology, which runs with topology are compared to."""
        loss = self.loss
        alone = loss.beta == loss.delta == 0 and not loss.logit_stand
        return alone and (loss.gamma, loss.alpha) == (1.0, self.pair.alpha)

    @property
    def own_weights(self) -> tuple[float, float]:
        """gamma and alpha as they are without the user's, for a loss of these terms."""
        loss = self.loss
        if not loss.beta:
            if loss.alpha == 0:
                return 1.0, 0.0
            if loss.delta or self.is_control:
                return 1.0, self.pair.alpha
        return self.method.gamma, self.method.alpha

    @property
    def variant(self) -> str:
        """Where loss and clouds depart from the method's and the pair's own settings."""
        loss, method, pair = self.loss, self.method, self.pair
        beta, options, _ = method.settings(self.teacher, self.student)
        own_clouds = Clouds.of(dataset_dict[self.data.dataset].recipe)
        gamma, alpha = self.own_weights
        own = defaults(Clouds, Loss) | {
            "gamma": gamma,
            "alpha": alpha,
            "beta": beta if loss.beta else 0.0,
            "delta": pair.delta if loss.delta else 0.0,
            "batch_size": own_clouds.batch_size,
            "cloud_size": own_clouds.cloud_size or self.clouds.batch_size,
            "kd_T": method.kd_T,
            "warmup": method.warmup if loss.beta else 0,
            "first_epochs": method.first_epochs if loss.beta else 0,
            "options": options if loss.beta else {},
            "operator": pair.operator,
        }
        values = vars(self.clouds) | vars(loss) | {"options": self.options if loss.beta else {}}
        if loss.topology is not None:
            values["cloud_size"] = self.clouds.points
        return names.variant({name: values[name] for name in values if name not in self.without_effect}, own)


def idle_options(topology: str | None) -> tuple[str, ...]:
    """Options of topology that do nothing with a kind of it, or without any."""
    found: tuple[str, ...] = ()
    if topology != "ripsnet":
        found += RIPSNET_OPTIONS
    if topology in (None, "wasserstein"):
        found += IMAGE_OPTIONS
    if topology is None:
        found += TOPOLOGY_OPTIONS
    return found


def method_of(loss: Loss, teacher: str, student: str) -> Method:
    """The entry of --distill, as it holds for the pair, with or without --logit_stand."""
    method = distiller_dict[loss.distill]
    if loss.logit_stand:
        method = method.on_standardized_logits()
    return method.for_pair(teacher, student)


def resolve(
    loss: Loss,
    clouds: Clouds,
    data: Data,
    training: Training,
    repetition: Repetition,
    teacher: str,
    student: str,
) -> StudentSettings:
    """The settings of a student's run, with nothing left open. UserError for a loss that makes no sense."""
    recipe = dataset_dict[data.dataset].recipe
    settings = StudentSettings(
        teacher,
        student,
        resolve_loss(loss, clouds, teacher, student, recipe),
        clouds,
        data,
        training.resolved(student, recipe),
        repetition.resolved(),
    )
    if training.teacher_cache and (reason := settings.without_cache):
        raise UserError(f"--teacher_cache: {reason}; leave it out")
    return settings


def resolve_loss(loss: Loss, clouds: Clouds, teacher: str, student: str, recipe: Recipe | None = None) -> ResolvedLoss:
    """The loss with every weight, option and epoch that is not given, and where the weights come from. recipe: of the
    data set, where it has one."""
    pair, method = pair_settings(teacher, student), method_of(loss, teacher, student)
    beta, own_options, source = method.settings(teacher, student)
    gamma, alpha = method.gamma, method.alpha
    if loss.topology and loss.delta == 0:
        raise UserError(f"--topology {loss.topology}: has no effect with --delta 0; leave one of them out")
    delta = loss.delta
    if delta is None:
        delta = pair.delta if loss.topology else 0.0
    topology = (loss.topology or "ripsnet") if delta else None
    if method.loss is None and delta:
        gamma, alpha = 1.0, pair.alpha
    own = gamma, alpha, beta
    weights = {
        "gamma": gamma if loss.gamma is None else loss.gamma,
        "alpha": alpha if loss.alpha is None else loss.alpha,
        "beta": beta if loss.beta is None else loss.beta,
        "delta": delta,
    }
    check_weights(loss, method, weights)
    check_effect(loss, clouds, method, weights, topology, recipe)

    given = parse_options(loss.set, method)
    options = own_options | given if weights["beta"] else {}
    resolved = ResolvedLoss(
        **{field.name: getattr(loss, field.name) for field in fields(Loss)}
        | weights
        | {
            "topology": topology,
            "operator": loss.operator or pair.operator,
            "set": tuple(f"{name}={value}" for name, value in options.items()),
            "kd_T": method.kd_T if loss.kd_T is None else loss.kd_T,
            "warmup": _epochs(loss.warmup, method.warmup, weights["beta"]),
            "first_epochs": _epochs(loss.first_epochs, method.first_epochs, weights["beta"]),
        }
    )
    as_published = (
        resolved.kd_T == method.kd_T
        and resolved.warmup == _epochs(None, method.warmup, weights["beta"])
        and resolved.first_epochs == _epochs(None, method.first_epochs, weights["beta"])
        and own_options | given == own_options
    )
    return replace(resolved, weights_source=_source(resolved, own, pair, source) if as_published else BY_HAND)


def _epochs(given: int | None, own: int, beta: float) -> int:
    """Of a warm-up or first stage: those that are given, or the method's own, which has none where its loss is off."""
    if given is not None:
        return given
    return own if beta else 0


def _source(loss: ResolvedLoss, own: tuple[float, float, float], pair: PairSettings, source: str) -> str:
    """Where the weights come from. own: the method's; source: where those come from."""
    weights = (loss.gamma, loss.alpha, loss.beta, loss.delta)
    if weights == (*own, 0.0):
        return source
    if weights == (1.0, pair.alpha, 0.0, pair.delta) and loss.logit_stand:
        return "assumed: alpha and delta as without --logit_stand"
    if weights in ((1.0, pair.alpha, 0.0, pair.delta), (1.0, pair.alpha, 0.0, 0.0)) and not loss.logit_stand:
        if loss.topology in (None, "ripsnet"):
            return pair.source
        return "assumed: alpha and delta as for RipsNet"
    if weights == (*own, pair.delta) and loss.beta:
        return "assumed: the method's own weights with the pair's delta"
    return BY_HAND


def check_weights(loss: Loss, method: Method, weights: Mapping[str, float]) -> None:
    """Refuse weights that leave nothing to train, or nothing of the method."""
    if loss.beta and method.loss is None:
        raise UserError(f"--beta: found {loss.beta:g}, but --distill {loss.distill} has no loss beside KD; use --alpha")
    if loss.beta == 0 and method.loss is not None:
        raise UserError(
            f"--beta: found 0, which leaves nothing of --distill {loss.distill}; use --distill kd for CE or KD"
        )
    if not any(weights.values()):
        raise UserError("--gamma, --alpha, --beta and --delta are all 0: there is nothing to train")
    if method.first_only and not any((weights["gamma"], weights["alpha"], weights["delta"])):
        raise UserError(f"--gamma, --alpha and --delta are all 0: after its first stage {method.name} trains nothing")


def check_effect(
    loss: Loss,
    clouds: Clouds,
    method: Method,
    weights: Mapping[str, float],
    topology: str | None,
    recipe: Recipe | None,
) -> None:
    """Refuse options that would do nothing in this run, or that contradict each other."""

    def refuse(option: str) -> None:
        raise UserError(
            f"--{option}: has no effect with --distill {loss.distill}, --alpha {weights['alpha']:g} and --beta "
            f"{weights['beta']:g}; leave it out"
        )

    beta = weights["beta"]
    if loss.set and not beta:
        refuse("set")
    softens = weights["alpha"] > 0 or (beta > 0 and method.on_logits)
    reads_T = weights["alpha"] > 0 or (beta > 0 and method.on_logits and not method.own_T)
    if loss.logit_stand and not softens:
        refuse("logit_stand")
    if loss.logit_stand and beta and method.strong:
        raise UserError(
            f"--logit_stand: not offered with --distill {loss.distill}, which also takes cross entropy of the logits "
            "that would be standardised; leave it out"
        )
    if loss.kd_T is not None and not reads_T:
        refuse("kd_T")
    if loss.warmup is not None and not (method.warmup and beta):
        refuse("warmup")
    if loss.first_epochs is not None and not (method.first_epochs and beta):
        refuse("first_epochs")

    where = f"--topology {topology}" if topology else "no topology term (--delta 0)"
    given = vars(loss) | vars(clouds)
    refuse_without_effect({name: given[name] for name in idle_options(topology)}, where, recipe)
    if loss.ripsnet and loss.ripsnet_clouds:
        raise UserError("--ripsnet_clouds: has no effect with --ripsnet; leave it out")

    check_topology(loss, clouds, method, beta, topology)


def check_topology(loss: Loss, clouds: Clouds, method: Method, beta: float, topology: str | None) -> None:
    """Refuse a topology term that cannot be computed, of these clouds or of the layers that the method changes."""
    if topology and clouds.points < 2:
        raise UserError(
            f"{clouds.points_option}: found {clouds.points}, expected at least 2 with --topology {topology}, because a "
            "single point has no diagram"
        )
    if topology == "wasserstein" and clouds.dim != "0":
        raise UserError(f"--dim: found {clouds.dim}, but --topology wasserstein is defined for dimension 0")
    for option, layer, before_relu, replaced in (
        ("tda_layer_s", loss.tda_layer_s, method.preact_s, method.student is not None),
        ("tda_layer_t", clouds.tda_layer_t, method.preact_t, False),
    ):
        if topology and beta and (before_relu or replaced) and layer not in (0, -1):
            why = (
                "reads the stages before their last ReLU" if before_relu else "puts a part of its own into the student"
            )
            raise UserError(f"--{option}: found {layer}, expected -1 or 0, because {method.name} {why}")


def refuse_without_effect(given: Mapping[str, Any], where: str, recipe: Recipe | None) -> None:
    """Refuse options, by name, that are not at their defaults although they do nothing. where: why they do nothing;
    recipe: of the data set, where it has one."""
    own = defaults(RipsNetChoice, Loss) | vars(Clouds.of(recipe))
    for name, value in given.items():
        if value != own[name]:
            raise UserError(f"--{name}: has no effect with {where}; leave it out")


def parse_options(texts: tuple[str, ...], method: Method) -> dict[str, Any]:
    """('name=value', ...) as a dict, each value of the type that the method's option has."""
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in method.options:
            known = ", ".join(f"{key}={default}" for key, default in method.options.items()) or "it has none"
            raise UserError(f"--set: found '{text}', expected an option of {method.name} ({known})")
        default = method.options[name]
        if type(default) not in OPTION_TYPES:
            types = ", ".join(kind.__name__ for kind in OPTION_TYPES)
            raise UserError(
                f"method {method.name}: the default of its option {name} is {default!r}, expected one of {types}"
            )
        try:
            found[name] = as_type(type(default), value)
        except ValueError:
            raise UserError(f"--set: found '{text}', expected {name}=<{type(default).__name__}>") from None
    return found


def as_type(kind: type, text: str) -> Any:
    """ValueError where the text is of another type."""
    if kind is not bool:
        return kind(text)
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"
