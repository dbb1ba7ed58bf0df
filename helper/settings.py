"""The settings of all stages as values: frozen dataclasses, one for each subject.

A field declares once what an option is: its default, what it means, which values it takes and where the default comes
from. The parsers (helper/cli), the list of experiments (reproduce.py --list), the names of folders and runs, the checks
of image specs and the columns of result rows derive from these fields. A script parses its command line, builds the
values in `main`, and hands down what a function needs; nothing below the scripts knows argparse.

An option's name on the command line is the field's name. A default of None means "as the help text says".
"""

import dataclasses
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import UserError

if TYPE_CHECKING:
    import torch

    from dataset import Recipe

PAPER = "published: the paper's tables and figures"
CODE = "published: the authors' released code"
PAIR = "by pair, see helper/student/pairs.py"
METHOD = "by method, see distiller_zoo"
PLACE = "where and how a run is executed, not what it computes"


@dataclass(frozen=True)
class Number:
    """A number of a kind, int or float, within [minimum, maximum]."""

    kind: type
    minimum: float = float("-inf")
    maximum: float = float("inf")


# The learning rate, for networks in general and for those that are named.
LR, LOWER_LR, LOWER_LR_FOR = 0.05, 0.01, ("MobileNetV2", "ShuffleV1", "ShuffleV2")
LR_RULE = f"{LOWER_LR:g} for {', '.join(LOWER_LR_FOR)}; {LR:g} otherwise"

WHOLE = Number(int, 0, 2**63 - 1)
POSITIVE = Number(int, 1, 2**31 - 1)
WEIGHT = Number(float, 0, sys.float_info.max)
LAYER = Number(int, maximum=0)
REQUIRED: Any = dataclasses.MISSING
OWN_NAME = "the name of the field"
Schedule = TypeVar("Schedule", bound="Training")


@dataclass(frozen=True)
class Setting:
    """What a field declares beside its default.

    kind: a Number; a name that helper/cli/types.py resolves (model, method, dataset, device, epochs, folder, text);
        "flag" for an option without a value; or the allowed values, as a tuple.
    source: "published: ...", "assumed: ..." or "by ...".
    flags: short names beside --<name>. many: whether it takes several values. metavar: as in argparse.
    part_of_run: whether it changes what a run computes; if not, it may differ when the run is resumed.
    short: what stands before its value in the name of a run that departs in it; None for what the name says otherwise.
    """

    help: str
    kind: Number | str | tuple[str, ...]
    source: str
    flags: tuple[str, ...] = ()
    many: bool = False
    metavar: str | None = None
    part_of_run: bool = True
    short: str | None = OWN_NAME


def setting(default: Any, help: str, kind: Number | str | tuple[str, ...], source: str, **more: Any) -> Any:
    """A dataclass field with its declaration. Its `short` is its name unless it is given."""
    metadata = {"setting": Setting(help, kind, source, **more)}
    return dataclasses.field(default=default, metadata=metadata)


def declared(section: type) -> dict[str, Setting]:
    """The declarations of a section's fields, by name. Fields that are computed have none."""
    found = {field.name: field.metadata.get("setting") for field in dataclasses.fields(section)}
    return {name: entry for name, entry in found.items() if entry is not None}


def short_names(*sections: type) -> dict[str, str]:
    """What stands before an option's value in names, for the options of the sections that show in them."""
    found = {}
    for section in sections:
        for name, entry in declared(section).items():
            if entry.part_of_run and entry.short is not None:
                found[name] = name if entry.short == OWN_NAME else entry.short
    return found


def defaults(*sections: type) -> dict[str, Any]:
    """The defaults of the sections' options; those that must be given are omitted."""
    fields = [field for section in sections for field in dataclasses.fields(section)]
    return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}


def plain(*values: Any) -> dict[str, Any]:
    """The fields of settings as plain Python values, as checkpoints, args.json and rows hold them."""
    found = {}
    for value in values:
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if isinstance(item, tuple):
                item = list(item)
            found[field.name] = item if isinstance(item, bool | int | float | str | list | None) else str(item)
    return found


# An option that two sections share is declared once, here.


def batch_size(what: str = "images a step") -> Any:
    return setting(64, what, POSITIVE, CODE, short="n")


def teacher_cache() -> Any:
    return setting(
        False,
        "take the teacher's logits and pooled vectors, in float32, from a table of all its outputs beside its "
        "checkpoint (for CIFAR-100 5.3 GB); whoever comes first computes it",
        "flag",
        PLACE,
        short="cache",  # part of a run all the same: its numbers are rounded differently
    )


@dataclass(frozen=True, kw_only=True)
class Teacher:
    path_t: str = setting(REQUIRED, "the teacher's checkpoint", "text", PLACE)
    model_t: str | None = setting(
        None, "its architecture, needed only when the checkpoint does not name it", "model", "by the checkpoint"
    )


@dataclass(frozen=True, kw_only=True)
class Data:
    dataset: str = setting("cifar100", "whose images train and test the network", "dataset", PAPER)
    data_dir: str = setting("data", "where torchvision finds or puts the files", "text", PLACE, part_of_run=False)
    device: "torch.device" = setting(
        REQUIRED, "cpu, cuda or cuda:<index> (default: cuda if there is one)", "device", PLACE, part_of_run=False
    )
    workers: int | None = setting(
        None,
        "processes that read image files ahead, for data sets of files (default: the cores, shared by the "
        "processes of a machine, at most 16)",
        Number(int, 0, 1024),
        PLACE,
        part_of_run=False,
    )
    num_threads: int | None = setting(
        None, "threads of the CPU (default: as PyTorch chooses)", POSITIVE, PLACE, part_of_run=False
    )


@dataclass(frozen=True, kw_only=True)
class Training:
    """The schedule of stages 1 and 4: SGD, the rate times lr_decay_rate after each of lr_decay_epochs."""

    epochs: int = setting(240, "passes over the training images", POSITIVE, CODE, short="e")
    lr_decay_epochs: tuple[int, ...] = setting(
        (150, 180, 210), "the rate decays AFTER these epochs", "epochs", CODE, metavar="E,E,...", short="decay"
    )
    lr: float | None = setting(
        None,
        f"learning rate (default: {LR_RULE}; ImageNet's data sets: 0.1 for a batch of 256, in proportion)",
        Number(float, 0, 1e3),
        f"{CODE}: {LR_RULE}",
    )
    lr_decay_rate: float = setting(
        0.1, "what the rate is multiplied by after each of them", Number(float, 0, 1), CODE, short="rate"
    )
    weight_decay: float = setting(5e-4, "of SGD, the factor of a weight in its gradient", WEIGHT, CODE, short="wd")
    momentum: float = setting(0.9, "of SGD", Number(float, 0, 1), CODE, short="mom")
    amp: str = setting(
        "off",
        "bf16 autocast for the networks; the losses stay float32",
        ("off", "bf16"),
        "assumed: float32, the default of PyTorch",
        short="",
    )
    batch_size: int = batch_size()
    teacher_cache: bool = teacher_cache()
    eager: bool = setting(
        False,
        "on a GPU, run the steps as they are instead of replaying CUDA graphs of them, which give the same numbers",
        "flag",
        PLACE,
        part_of_run=False,
    )

    @classmethod
    def of(cls, recipe: "Recipe | None") -> "Training":
        """The published schedule of a data set; that of CIFAR-100 where it has none of its own."""
        if recipe is None:
            return cls()
        return cls(
            batch_size=recipe.batch_size,
            epochs=recipe.epochs,
            lr_decay_epochs=recipe.lr_decay_epochs,
            weight_decay=recipe.weight_decay,
        )

    def resolved(self, model: str, recipe: "Recipe | None" = None) -> "ResolvedTraining":
        """With the learning rate of a network, or of the data set's schedule in proportion to the batch, where none is
        given. UserError for epochs that do not ascend."""
        if list(self.lr_decay_epochs) != sorted(set(self.lr_decay_epochs)):
            raise UserError(
                f"--lr_decay_epochs: found {','.join(map(str, self.lr_decay_epochs))}, expected ascending epochs, such "
                "as 150,180,210"
            )
        own = LOWER_LR if model in LOWER_LR_FOR else LR
        if recipe is not None:
            own = recipe.lr * self.batch_size / recipe.batch_size
        return ResolvedTraining(**vars(self) | {"lr": own if self.lr is None else self.lr})

    def scaled(self: Schedule, epochs: int) -> Schedule:
        """With N epochs, and the decay in proportion."""
        ratio = epochs / self.epochs
        decay = {max(1, int(epoch * ratio + 0.5)) for epoch in self.lr_decay_epochs}
        return dataclasses.replace(
            self, epochs=epochs, lr_decay_epochs=tuple(sorted(epoch for epoch in decay if epoch < epochs))
        )


@dataclass(frozen=True, kw_only=True)
class ResolvedTraining(Training):
    """A schedule whose learning rate is known."""

    lr: float = dataclasses.field()  # without a default

    def rate(self, epoch: int) -> float:
        """The learning rate: it decays after each decay epoch, so epoch 151 is the first at a tenth of it."""
        return self.lr * self.lr_decay_rate ** sum(epoch > decay for decay in self.lr_decay_epochs)


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """Which run of several with equal settings, and where it is kept."""

    trial: int = setting(1, "number of the repetition, part of the run's name", WHOLE, "assumed: 1")
    seed: int | None = setting(None, "(default: the trial)", WHOLE, "assumed: the trial")
    name: str | None = setting(
        None, "name of the run (default: made from the options)", "folder", PLACE, part_of_run=False
    )
    resume: bool = setting(False, "continue this run from its last checkpoint", "flag", PLACE, part_of_run=False)

    def resolved(self) -> "ResolvedRepetition":
        """With the seed, which is the trial where none is given."""
        return ResolvedRepetition(**vars(self) | {"seed": self.trial if self.seed is None else self.seed})


@dataclass(frozen=True, kw_only=True)
class ResolvedRepetition(Repetition):
    """A repetition whose seed is known."""

    seed: int


@dataclass(frozen=True, kw_only=True)
class Clouds:
    """What a set of clouds and images is known by: stages 2, 3 and 4 must agree in it."""

    batch_size: int = batch_size("images a step, which are a cloud or several (--cloud_size)")
    cloud_size: int | None = setting(
        None,
        "points of a cloud, consecutive images of the batch (default: the batch; 64 for ImageNet's data sets)",
        POSITIVE,
        CODE + ": the batch; assumed: 64 for ImageNet's data sets",
        short="cloud",
    )
    tda_layer_t: int = setting(
        -1,
        "the teacher's layer: -1, -2, ... count back from the pooled vector, 0 is the logits; a map is averaged over "
        "its pixels, so that -2 is the pooled vector again where that is the last map's mean",
        LAYER,
        CODE,
        short="layer",
    )
    dim: str = setting("0", "homology dimension; 01 means one image for each", ("0", "1", "01"), CODE, short="dim")
    pcd_bn: str = setting(
        "eval",
        "BatchNorm of the teacher when the clouds are made: running (eval) or batch statistics (train, as the authors "
        "did)",
        ("eval", "train"),
        "assumed: as in distillation; the authors' clouds were made with batch statistics",
        short="",
    )
    sigma_rule: str = setting(
        "released",
        "width of the image's Gaussian: from the first 200 points (as the authors did) or from a random subsample of "
        "all",
        ("released", "subsample"),
        CODE,
        short="",
    )
    resolution: int = setting(20, "grid points on each axis of an image", Number(int, 2, 1000), CODE, short="res")
    range: str = setting(
        "all",
        "what an image spans: all bars (as the authors did), or births and persistences between their 1 %% and 99 %% "
        "quantiles",
        ("all", "q99"),
        CODE,
        short="",
    )

    @classmethod
    def of(cls, recipe: "Recipe | None") -> "Clouds":
        """The clouds of a data set with a schedule of its own; those of CIFAR-100 where it has none."""
        if recipe is None:
            return cls()
        return cls(batch_size=recipe.batch_size, cloud_size=recipe.cloud_size)

    @property
    def points(self) -> int:
        """Of a cloud: so many consecutive images of a batch. UserError if a batch is no whole number of clouds."""
        if self.cloud_size is None:
            return self.batch_size
        if self.batch_size % self.cloud_size:
            raise UserError(
                f"--cloud_size: found {self.cloud_size}, expected a divisor of --batch_size {self.batch_size}, which "
                "is cut into clouds; change one of them"
            )
        return self.cloud_size

    @property
    def points_option(self) -> str:
        """The option that says how many points a cloud has."""
        return "--batch_size" if self.cloud_size is None else "--cloud_size"

    @property
    def dims(self) -> list[int]:
        """'01' -> [0, 1]."""
        return [int(character) for character in self.dim]

    @property
    def folder_name(self) -> str:
        """Of the set, under the teacher's folder: resolution and range are omitted where they are 20 and all."""
        parts = [f"layer{self.tda_layer_t}", f"n{self.points}", self.pcd_bn, self.sigma_rule]
        if self.resolution != 20:
            parts.append(f"res{self.resolution}")
        if self.range != "all":
            parts.append(self.range)
        return "_".join(parts)

    def expected(self, teacher_sha256: str, width: int, dim: int) -> dict[str, Any]:
        """What the image spec of one homology dimension must say. width: of the teacher's clouds."""
        return {
            "teacher_sha256": teacher_sha256,
            "dim": dim,
            "layer": self.tda_layer_t,
            "cloud_width": width,
            "points": self.points,
            "pcd_bn": self.pcd_bn,
            "sigma_rule": self.sigma_rule,
            "resolution": (self.resolution,) * 2,
            "range_rule": self.range,
        }


@dataclass(frozen=True, kw_only=True)
class CloudMaking:
    """How many clouds stage 2 makes, and how it keeps them."""

    passes: int = setting(256, "passes over the training set", POSITIVE, CODE)
    num_clouds: int | None = setting(None, "stop after N clouds (default: all passes)", POSITIVE, CODE + ": all")
    cloud_dtype: str = setting(
        "float16",
        "how clouds are kept; they are rounded before their diagrams are computed",
        ("float16", "float32"),
        "assumed: half the space",
    )
    discard_clouds: bool = setting(
        False,
        "keep diagrams and images, but not the clouds, which a RipsNet is fitted to and exact topology does not need",
        "flag",
        PLACE,
        part_of_run=False,
    )
    seed: int = setting(
        0,
        "of shuffling and augmentation; a student of the same --seed sees the clouds that RipsNet was fitted to",
        WHOLE,
        "assumed: 0, which is no trial's",
    )
    teacher_cache: bool = teacher_cache()


@dataclass(frozen=True, kw_only=True)
class RipsNetChoice:
    """Which of a set's RipsNets."""

    operator: str | None = setting(
        None, "RipsNet's pooling over the points (default: of the pair)", ("mean", "sum"), PAIR, short=""
    )
    ripsnet_clouds: int | None = setting(
        None,
        "clouds that RipsNet is fitted to, the first N (default: the whole training part)",
        POSITIVE,
        CODE + ": all, of which three quarters train",
        short="clouds",
    )

    def name(self, dim: int) -> str:
        """Of the RipsNet of one homology dimension, as 'dim0_mean'."""
        name = f"dim{dim}_{self.operator}"
        if self.ripsnet_clouds:
            name += f"_clouds{self.ripsnet_clouds}"
        return name

    def folder_name(self, dim: int) -> str:
        """Of the RipsNet of one homology dimension, in the folder of its clouds."""
        return f"ripsnet_{self.name(dim)}"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How stage 3 fits a RipsNet."""

    epochs: int = setting(25000, "at most", POSITIVE, CODE)
    patience: int = setting(50, "stop after N epochs without a better validation loss", POSITIVE, CODE)
    batch_clouds: int = setting(64, "clouds a step", POSITIVE, CODE)
    lr: float = setting(5e-4, "of Adamax", Number(float, 0, 1), CODE)
    seed: int = setting(1, "of the weights and the shuffling", WHOLE, "assumed: 1")
    resume: bool = setting(False, "continue from the last checkpoint", "flag", PLACE, part_of_run=False)


@dataclass(frozen=True, kw_only=True)
class Loss(RipsNetChoice):
    """A student's loss, gamma * CE + alpha * KD + beta * L_other + delta * L_top, as the user gives it.

    `helper.student.weights.resolve` makes a `ResolvedLoss` of it, in which nothing is left open.
    """

    distill: str = setting("kd", "the method", "method", METHOD, short=None)
    set: tuple[str, ...] = setting(
        (),
        "options of the method, which --list shows (default: the published ones)",
        "text",
        METHOD,
        many=True,
        metavar="NAME=VALUE",
        short=None,
    )
    logit_stand: bool = setting(
        False,
        "standardise the logits that KD, DKD, DIST or CTKD compare (Sun et al., CVPR 2024)",
        "flag",
        METHOD,
        short=None,
    )
    kd_T: float | None = setting(
        None,
        "temperature of KD, DKD, DIST and MLKD (default: published, 4 on CIFAR-100; 2 with --logit_stand)",
        Number(float, 1e-3, 1e3),
        CODE + ": 4 on CIFAR-100; with standardised logits 2",
        short="T",
    )
    warmup: int | None = setting(
        None,
        "epochs over which beta rises linearly, for methods that have such a warm-up (default: published)",
        WHOLE,
        METHOD,
    )
    first_epochs: int | None = setting(
        None,
        "epochs of the first stage, for methods that have one (default: published)",
        POSITIVE,
        METHOD,
        short="first",
    )
    gamma: float | None = setting(
        None,
        "weight of CE (default: the method's; of KD with topology 1)",
        WEIGHT,
        METHOD + "; of KD with topology 1",
        flags=("-r",),
        short="r",
    )
    alpha: float | None = setting(
        None,
        "weight of KD (default: the method's; of KD with topology the pair's)",
        WEIGHT,
        METHOD + "; of KD with topology " + PAIR,
        flags=("-a",),
        short="a",
    )
    beta: float | None = setting(
        None, "weight of the method's own loss (default: published)", WEIGHT, METHOD, flags=("-b",), short="b"
    )
    delta: float | None = setting(
        None,
        "weight of topology (default: 0, or the pair's when --topology is given)",
        WEIGHT,
        PAIR,
        flags=("-d",),
        short="d",
    )
    topology: str | None = setting(
        None,
        "how topology is compared (default: ripsnet when --delta is positive)",
        ("ripsnet", "exact", "wasserstein"),
        METHOD,
        short=None,
    )
    tda_layer_s: int = setting(-1, "the student's layer, counted as --tda_layer_t", LAYER, CODE, short="layerS")
    gather_clouds: bool = setting(
        False,
        "several processes: compare clouds whose images they share, by sending the features of all to each",
        "flag",
        PLACE,
        part_of_run=False,
        short=None,
    )
    ripsnet: tuple[str, ...] | None = setting(
        None,
        "fitted RipsNet, one a dimension (default: found under ripsnet/ by the teacher and the options)",
        "text",
        PLACE,
        many=True,
        metavar="PATH",
        short=None,
    )


@dataclass(frozen=True, kw_only=True)
class ResolvedLoss(Loss):
    """A loss for one teacher and student in which every value is known.

    weights_source: where the weights come from.
    """

    kd_T: float = dataclasses.field()  # without a default
    warmup: int = 0
    first_epochs: int = 0
    gamma: float = 1.0
    alpha: float = 0.0
    beta: float = 0.0
    delta: float = 0.0
    operator: str = "mean"
    weights_source: str = ""


SECTIONS = (Teacher, Data, Training, Repetition, Clouds, CloudMaking, RipsNetChoice, Fit, Loss)
# Options that do not change what a run computes, and may differ when it is resumed.
NOT_PART_OF_A_RUN = {name for section in SECTIONS for name, entry in declared(section).items() if not entry.part_of_run}
