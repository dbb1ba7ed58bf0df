"""The names of methods and runs. They are for people: they are built here and parsed nowhere.

What distinguishes two runs of a pair is kept as data in their rows: `method`, `variant` (where the loss and the clouds
depart from the method's and the pair's own settings), `schedule` (where training departs from the published one) and
the seed. A name puts these together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..settings import Clouds, Data, Loss, Repetition, ResolvedTraining, Training, short_names

if TYPE_CHECKING:
    from dataset import Recipe

    from .weights import StudentSettings

# The options of a loss and its clouds in the order in which they stand in a name; others follow these. `options` are
# the method's own.
ORDER = """gamma alpha beta delta kd_T batch_size cloud_size warmup first_epochs options dim tda_layer_t
tda_layer_s operator pcd_bn sigma_rule resolution range ripsnet_clouds""".split()
SHORT = {"options": ""} | short_names(Loss, Clouds)
VARIANT = {name: SHORT[name] for name in [*ORDER, *(name for name in SHORT if name not in ORDER)]}


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
            parts.append(_part(before, value))
    return " ".join(parts)


def published(training: Training, model: str, recipe: "Recipe | None") -> ResolvedTraining:
    """The published schedule of a network at the batch size that it is trained with."""
    return replace(Training.of(recipe), batch_size=training.batch_size).resolved(model, recipe)


def _part(before: str, value: Any) -> str:
    """A departing value as a name has it: 'e24', or 'cache' for an option without a value."""
    return before if value is True else f"{before}{_text(value)}"


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _departures(training: Training, own: Training, without: Sequence[str] = ()) -> list[str]:
    """Where a schedule differs from another, in its fields' order."""
    return [
        _part(before, getattr(training, name))
        for name, before in short_names(Training).items()
        if name not in without and getattr(training, name) != getattr(own, name)
    ]


def schedule(training: Training, model: str, recipe: "Recipe | None" = None) -> str:
    """Where training departs from the published schedule of a network, as 'e24 lr0.1 bf16'; '' where it does not.

    recipe: of the data set, where it has a schedule of its own.

    The epochs after which the rate decays are omitted where they are the published ones, in proportion.
    """
    own = published(training, model, recipe)
    own = replace(own, lr_decay_epochs=own.scaled(training.epochs).lr_decay_epochs)
    return " ".join(_departures(training, own))


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
    own = replace(published(training, model, recipe), batch_size=Training.of(recipe).batch_size)
    parts = [model, data.dataset, *_departures(training, own, without=("epochs", "lr_decay_epochs", "amp"))]
    return _of_folder([*parts, *_repetition(repetition)])


def _of_folder(parts: Sequence[str]) -> str:
    name = "_".join(parts)
    if "/" in name:
        raise UserError(
            f"--name: found none, and {name}, made of the names of model, method, data set and options, is not that of "
            "a folder; give one without slashes"
        )
    return name


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
    elif settings.is_control:
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
    return _of_folder([*parts, *settings.variant.split(), *schedule_text.split(), *_repetition(settings.repetition)])
