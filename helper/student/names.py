"""The names of methods and runs. They are for people: they are built here and parsed nowhere.

What distinguishes two runs of a pair is kept as data in their rows: `method`, `variant` (where the loss and the clouds
depart from the method's and the pair's own settings), `schedule` (where training departs from the published one) and
the seed. A name puts these together.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..settings import Data, Repetition, ResolvedTraining, Training

if TYPE_CHECKING:
    from dataset import Recipe

    from .weights import StudentSettings

# Option -> what stands before its value in a name, in this order. Where nothing does, the value says what it is.
VARIANT = {
    "gamma": "r",
    "alpha": "a",
    "beta": "b",
    "delta": "d",
    "kd_T": "T",
    "batch_size": "n",
    "warmup": "warmup",
    "first_epochs": "first",
    "options": "",
    "dim": "dim",
    "tda_layer_t": "layer",
    "tda_layer_s": "layerS",
    "operator": "",
    "pcd_bn": "",
    "sigma_rule": "",
    "resolution": "res",
    "range": "",
    "ripsnet_clouds": "clouds",
}


def variant(values: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """The values that differ from the method's and the pair's own, as 'd25 dim1'; '' where none does.

    values, own: by the names of VARIANT; `options` are the method's, a dict.
    """
    parts = []
    for name, before in VARIANT.items():
        value = values.get(name, own.get(name))
        if value == own.get(name):
            continue
        if name == "options":
            parts += [f"{option}{found}" for option, found in value.items() if found != own[name].get(option)]
        else:
            parts.append(f"{before}{value:g}" if isinstance(value, float) else f"{before}{value}")
    return " ".join(parts)


def published(training: Training, model: str, recipe: "Recipe | None") -> ResolvedTraining:
    """The published schedule of a network at the batch size that it is trained with."""
    return replace(Training.of(recipe), batch_size=training.batch_size).resolved(model, recipe)


def _optimizer(training: Training, own: Training) -> list[str]:
    """Where the optimiser's settings differ from a network's own."""
    parts = []
    for name, before in (("lr", "lr"), ("lr_decay_rate", "rate"), ("weight_decay", "wd"), ("momentum", "mom")):
        if getattr(training, name) != getattr(own, name):
            parts.append(f"{before}{getattr(training, name):g}")
    return parts


def schedule(training: Training, model: str, recipe: "Recipe | None" = None) -> str:
    """Where training departs from the published schedule of a network, as 'e24 lr0.1 bf16'; '' where it does not.

    recipe: of the data set, where it has a schedule of its own.

    The epochs after which the rate decays are omitted where they are the published ones, in proportion.
    """
    own, parts = published(training, model, recipe), []
    if training.epochs != own.epochs:
        parts.append(f"e{training.epochs}")
    if training.lr_decay_epochs != own.scaled(training.epochs).lr_decay_epochs:
        parts.append("decay" + ("-".join(map(str, training.lr_decay_epochs)) or "none"))
    parts += _optimizer(training, own)
    if training.amp != own.amp:
        parts.append(training.amp)
    return " ".join(parts)


def _repetition(repetition: Repetition) -> list[str]:
    parts = [f"trial{repetition.trial}"]
    if repetition.seed != repetition.trial:
        parts.insert(0, f"seed{repetition.seed}")
    return parts


def teacher_name(
    model: str, data: Data, training: Training, repetition: Repetition, recipe: "Recipe | None" = None
) -> str:
    """Of a network trained alone. Epochs and precision do not show, because the commands of the later stages name the
    teacher's folder; a sweep over them needs --name."""
    parts = [model, data.dataset, *_optimizer(training, published(training, model, recipe))]
    if training.batch_size != Training.of(recipe).batch_size:
        parts.append(f"n{training.batch_size}")
    return "_".join([*parts, *_repetition(repetition)])


def method_name(settings: "StudentSettings") -> str:
    """What tables call a run: CE, KD, KD-control, TopKD, TopKD-exact, CE+Top-wasserstein, CRD+Top, DKD+LS, ..."""
    loss = settings.loss
    standardised = "+LS" if loss.logit_stand else ""
    if loss.beta:
        name = settings.method.name + standardised
        if loss.delta:
            name += "+Top"
    elif loss.alpha == 0:
        name = "CE+Top" if loss.delta else "CE"
    elif loss.delta:
        name = f"TopKD{standardised}"
    elif (loss.gamma, loss.alpha) == (1.0, settings.pair.alpha) and not loss.logit_stand:
        name = "KD-control"
    else:
        name = f"KD{standardised}"
    if loss.topology in ("exact", "wasserstein"):
        name += f"-{loss.topology}"
    return name


def student_name(settings: "StudentSettings", schedule_text: str | None = None) -> str:
    """A short name in which every departure shows. schedule_text: in place of `schedule`'s."""
    if schedule_text is None:
        schedule_text = settings.schedule
    parts = [f"{settings.teacher}-{settings.student}", settings.data.dataset, method_name(settings)]
    return "_".join([*parts, *settings.variant.split(), *schedule_text.split(), *_repetition(settings.repetition)])
