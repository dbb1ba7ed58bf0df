"""Every experiment: the paper's tables, ablations and figures, and this project's own, with the source of each value.

A table has rows, a teacher and a student each, and arms, a method with its settings each; a row and an arm are one run
of train_student.py for every seed. A value is "published: <where>" or "assumed: <why>". What an experiment does not say
is the default of helper/settings.py, so a command holds only what departs from it; the weights of a pair are in
helper/student/pairs.py, those of a method that runs alone in distiller_zoo.

This file is what one edits to add an experiment. It loads no PyTorch, so that tables of results can be read without it.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ..settings import CODE, PAPER, CloudMaking, Clouds, Fit, Loss, Training, defaults
from ..student import names
from ..student.pairs import (
    HETEROGENEOUS,
    HOMOGENEOUS,
    IMAGENET_HETEROGENEOUS,
    IMAGENET_HOMOGENEOUS,
    pair_settings,
)

OURS = "assumed: a question of this project"
FIELD = "assumed: baselines of the field; the paper's printed tables were not at hand"
# The methods of distiller_zoo beside KD, by their names in tables; a test compares them.
BASELINES = tuple(
    """FitNet AT SP CC VID RKD PKT AB FT FSP NST KD-SVD CRD OFD SRRL SemCKD ReviewKD SimKD DKD DIST CAT-KD
    CRCD MGD CTKD MLKD NORM""".split()
)
# Schedule and clouds of data sets that have their own, as their Recipe in dataset/ says; a test compares.
RECIPES = {
    "imagenet": (
        Training(epochs=100, lr_decay_epochs=(30, 60, 90), weight_decay=1e-4, batch_size=256),
        Clouds(batch_size=256, cloud_size=64),
    )
}


def published_for(dataset: str) -> tuple[Training, Clouds]:
    """Schedule and clouds of a data set, from which its runs depart."""
    return RECIPES.get(dataset, (Training(), Clouds()))


@dataclass(frozen=True)
class Arm:
    """A method with the options in which it departs from the table's, those of stages 2 to 4.

    seeds: where the arm has not as many as the table. after: it runs when all other arms have all their seeds.
    """

    name: str
    method: str
    source: str
    options: dict[str, Any] = field(default_factory=dict)
    seeds: int | None = None
    after: bool = False


@dataclass(frozen=True)
class Table:
    """rows: 'teacher:student'. teacher, student: their schedules. clouds, making, fit: of stages 2 and 3. operator:
    RipsNet's pooling where it is not the pair's. tag: distinguishes the names of its runs from those of other
    schedules. amp: of the students, where it is not their schedule's; the teachers are those of the schedule. figures:
    drawn of every row when all arms have run. adopted: whether the teachers are torchvision's, which evaluate.py takes
    over, and not trained. scaled: made by `scaled`."""

    title: str
    source: str
    rows: tuple[str, ...]
    arms: tuple[Arm, ...]
    seeds: int = 3
    dataset: str = "cifar100"
    teacher: Training = Training()
    student: Training = Training()
    clouds: Clouds = Clouds()
    making: CloudMaking = CloudMaking()
    fit: Fit = Fit()
    operator: str | None = None
    tag: str = ""
    amp: str | None = None
    figures: tuple[str, ...] = ()
    adopted: bool = False
    scaled: bool = False

    def arm(self, name: str) -> Arm:
        """The arm of a name; any other method runs with the table's settings."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        return Arm(name, name, "assumed: asked for")

    def seeds_of(self, arm: Arm) -> int:
        return arm.seeds or self.seeds


def plain(*methods: str, source: str = PAPER, **more: Any) -> tuple[Arm, ...]:
    return tuple(Arm(method, method, source, **more) for method in methods)


def varied(methods: tuple[str, ...], source: str, **settings: dict[str, Any]) -> tuple[Arm, ...]:
    """An arm for each method and setting; settings: what follows the method's name -> options."""
    return tuple(Arm(f"{m} {name}", m, source, options) for name, options in settings.items() for m in methods)


THREE = ("KD-control", "TopKD", "TopKD-exact")
BOTH = ("TopKD", "TopKD-exact")
MAIN = plain("CE", "KD") + plain("KD-control", source=OURS) + plain("TopKD")
MAIN += plain("TopKD-exact", "TopKD-wasserstein", source=OURS)
MAIN += plain(*BASELINES, "KD+LS", source=FIELD)
ABLATED = ("resnet56:resnet20",)
ON_IMAGENET = plain("CE", "KD", source=FIELD) + plain("KD-control", source=OURS)
ON_IMAGENET += plain("TopKD", source="assumed: the authors' code has nothing for ImageNet")
ON_IMAGENET += plain("TopKD-exact", "TopKD-wasserstein", source=OURS)
ON_IMAGENET += plain(*"AT SP CC RKD CRD OFD SRRL ReviewKD DKD DIST".split(), source=FIELD)


def ablation(title: str, source: str, *arms: Arm) -> Table:
    return Table(f"ablation, {title}", f"{source}; the pair is assumed: its weights are published", ABLATED, arms)


def imagenet(title: str, pairs: tuple[tuple[str, str], ...]) -> Table:
    """A table of ImageNet: one seed, as in the field; as many clouds as of CIFAR-100, which are ten passes."""
    training, clouds = RECIPES["imagenet"]
    return Table(
        f"ImageNet-1K, {title}",
        "assumed: the field's pairs and schedule; the paper's printed tables were not at hand",
        tuple(map(":".join, pairs)),
        ON_IMAGENET,
        seeds=1,
        dataset="imagenet",
        teacher=training,
        student=training,
        clouds=clouds,
        making=CloudMaking(passes=10, num_clouds=199_936),
        adopted=True,
    )


TABLES = {
    "cifar100_homogeneous": Table(
        "CIFAR-100, teacher and student of one family",
        PAPER,
        tuple(map(":".join, HOMOGENEOUS)),
        MAIN,
        seeds=5,
    ),
    "cifar100_heterogeneous": Table(
        "CIFAR-100, teacher and student of different families",
        PAPER,
        tuple(map(":".join, HETEROGENEOUS)),
        MAIN,
        seeds=5,
    ),
    "imagenet_homogeneous": imagenet("teacher and student of one family", IMAGENET_HOMOGENEOUS),
    "imagenet_heterogeneous": imagenet("teacher and student of different families", IMAGENET_HETEROGENEOUS),
    "ablation_loss": ablation(
        "loss components",
        PAPER,
        *plain("CE", "CE+Top", "TopKD"),
        *plain("KD-control", source="assumed: CE + KD with TopKD's alpha"),
        *plain("CE+Top-exact", "TopKD-exact", source=OURS),
    ),
    "ablation_dimension": ablation(
        "homology dimension",
        PAPER,
        *varied(("TopKD",), PAPER, **{f"dim {dim}": {"dim": dim} for dim in ("0", "1")}),
        *varied(("TopKD-exact",), OURS, **{f"dim {dim}": {"dim": dim} for dim in ("0", "1")}),
        *varied(BOTH, OURS, **{"dim 01": {"dim": "01"}}),
    ),
    "ablation_layer": ablation(
        "layer of the clouds: pooled vector, stages 2 and 1, logits",
        PAPER,
        *varied(
            BOTH,
            "assumed: which layers, and exact topology",
            **{f"layer {layer}": {"tda_layer_t": layer, "tda_layer_s": layer} for layer in (-1, -3, -4, 0)},
        ),
    ),
    "ablation_points": ablation(
        "points in the cloud, which are the images of a batch",
        PAPER,
        *varied(
            THREE,
            "assumed: which sizes, one learning rate, as many clouds of each",
            **{f"n {n}": {"batch_size": n, "passes": 4 * n} for n in (8, 16, 32, 64, 128, 256)},
        ),
    ),
    "ablation_pooling": ablation(
        "RipsNet's pooling",
        OURS,
        *varied(("TopKD",), CODE, mean={"operator": "mean"}),
        *varied(("TopKD",), OURS, sum={"operator": "sum"}),
    ),
    "ablation_image": ablation(
        "parameters of the persistence image",
        OURS,
        *varied(("TopKD",), CODE, released={}),
        *varied(("TopKD-exact",), OURS, released={}),
        *varied(
            BOTH,
            OURS,
            **{"10 x 10": {"resolution": 10}, "40 x 40": {"resolution": 40}},
            **{"sigma subsample": {"sigma_rule": "subsample"}, "range q99": {"range": "q99"}},
        ),
    ),
    "ablation_batchnorm": ablation(
        "the teacher's BatchNorm mode when its clouds are made",
        OURS,
        *varied(BOTH, OURS, eval={"pcd_bn": "eval"}),
        *varied(("TopKD",), CODE, train={"pcd_bn": "train"}),
        *varied(("TopKD-exact",), OURS, train={"pcd_bn": "train"}),
    ),
    "ablation_clouds": ablation(
        "clouds that RipsNet is fitted to",
        OURS,
        *varied(("TopKD",), OURS, **{f"{n} clouds": {"ripsnet_clouds": n} for n in (1000, 5000, 20000, 75000)}),
        *varied(("TopKD",), CODE, **{"all clouds": {}}),
    ),
    "cifar100_small": Table(
        "CIFAR-100, small networks and short schedules, for one CPU",
        OURS,
        ("resnet20:resnet8",),
        (
            *plain("KD-control", "TopKD", "TopKD-exact", source=OURS),
            *plain("TopKD-wasserstein", source=OURS, seeds=3),
            *plain("CE", "CE+Top-exact", source=OURS, seeds=1),
            *(
                dataclasses.replace(arm, seeds=1, after=True)
                for arm in varied(
                    ("TopKD-exact", "TopKD-wasserstein"),
                    OURS,
                    **{f"delta {delta}": {"delta": delta} for delta in (1, 5, 25, 125)},
                )
            ),
        ),
        seeds=5,
        teacher=Training(epochs=24, lr_decay_epochs=(15, 18, 21), amp="bf16"),
        student=Training(epochs=8, lr_decay_epochs=(5, 6, 7), amp="bf16"),
        making=CloudMaking(passes=16, seed=1),  # with which the shipped clouds were made
        tag="small",
    ),
    "digits": Table(
        "scanned digits, a demonstration of the chain in minutes",
        OURS,
        ("resnet20:resnet8",),
        plain("CE", "KD", "KD-control", "TopKD", "TopKD-exact", "TopKD-wasserstein", source=OURS),
        dataset="digits",
        teacher=Training(epochs=12, lr_decay_epochs=(8, 11), amp="bf16"),
        student=Training(epochs=12, lr_decay_epochs=(8, 11), amp="bf16"),
        making=CloudMaking(passes=24),
        fit=Fit(epochs=250, batch_clouds=16),
        operator="sum",
        figures=("pi", "umap"),
    ),
}
TABLES["cifar100_small_ablation"] = dataclasses.replace(
    TABLES["cifar100_small"],
    title="ablations with the small networks, short schedules and teachers of cifar100_small",
    arms=(
        *plain("KD-control", "TopKD", "TopKD-exact", "TopKD-wasserstein", source=OURS),
        *varied(BOTH, OURS, **{f"dim {dim}": {"dim": dim} for dim in ("1", "01")}),
        # Stage 3 of these networks averages to the pooled vector itself, so stages 2 and 1 are what differs.
        *varied(
            ("TopKD-exact", "TopKD-wasserstein"),
            OURS,
            **{f"layer {layer}": {"tda_layer_t": layer, "tda_layer_s": layer} for layer in (-3, -4)},
        ),
        *varied(("TopKD",), OURS, **{"sum pooling": {"operator": "sum"}}),
        *varied(BOTH, OURS, **{"pcd_bn train": {"pcd_bn": "train"}}),
        # As many clouds of each size, and batches of 64 images throughout.
        *varied(BOTH, OURS, **{f"n {n}": {"cloud_size": n, "passes": n // 4} for n in (16, 32)}),
    ),
    seeds=3,
    amp="off",
)


@dataclass(frozen=True)
class Figure:
    """row: drawn when none is asked for. methods: whose students it shows beside the teacher."""

    title: str
    row: str
    source: str
    methods: tuple[str, ...] = ()


FIGURES = {
    "pi": Figure("exact persistence images against RipsNet's", "vgg13:MobileNetV2", PAPER),
    "umap": Figure(
        "embeddings of teacher and students",
        "resnet56:resnet20",
        PAPER + "; the pair is assumed",
        ("CE", "KD", "TopKD"),
    ),
}


# What follows from a table


def networks(row: str) -> tuple[str, str]:
    """'resnet56:resnet20' -> ('resnet56', 'resnet20')."""
    teacher, student = row.split(":")
    return teacher, student


def topology(method: str) -> str | None:
    """How a method of this name compares topology: ripsnet, exact, wasserstein, or None where it does not."""
    for kind in ("exact", "wasserstein"):
        if method.endswith(f"-{kind}"):
            return kind
    return "ripsnet" if method == "TopKD" or method.endswith("+Top") else None


def arm_variant(table: Table, row: str, arm: Arm) -> str:
    """The text that a run of this arm has in the column `variant` of its row, as 'd25 dim1'; '' where neither the arm
    nor the table departs from the method's and the pair's own settings.

    Warm-ups and first stages are not in it; they depart from the published ones where a table is scaled.
    """
    pair = pair_settings(*networks(row))
    own = defaults(Loss) | vars(published_for(table.dataset)[1]) | {"delta": pair.delta, "operator": pair.operator}
    values = own | vars(table.clouds)
    if table.operator and topology(arm.method) == "ripsnet":
        values["operator"] = table.operator
    return names.variant(values | {name: arm.options[name] for name in arm.options if name in own}, own)


def student_schedule(table: Table) -> str:
    """The text that the table's students have in the column `schedule` of their rows."""
    student = networks(table.rows[0])[1]
    training = dataclasses.replace(table.student, amp=table.amp or table.student.amp)
    return names.schedule(training.resolved(student), student)


def scaled(table: Table, epochs: int) -> Table:
    """The table with students of N epochs; the epochs after which the learning rate decays in proportion, and so are
    the teacher's epochs, the passes of stage 2 and RipsNet's clouds. An adopted teacher and what is made of it have one
    name for all N, and stay as they are."""
    if epochs == table.student.epochs:
        return table
    ratio = epochs / table.student.epochs

    def number(value: float) -> int:
        return max(1, int(value * ratio + 0.5))

    def options(old: dict[str, Any]) -> dict[str, Any]:
        return {name: number(old[name]) if name in ("passes", "ripsnet_clouds") else old[name] for name in old}

    table = dataclasses.replace(table, student=table.student.scaled(epochs), scaled=True)
    if table.adopted:
        return table
    return dataclasses.replace(
        table,
        teacher=table.teacher.scaled(number(table.teacher.epochs)),
        making=dataclasses.replace(
            table.making,
            passes=number(table.making.passes),
            num_clouds=None if table.making.num_clouds is None else number(table.making.num_clouds),
        ),
        arms=tuple(dataclasses.replace(arm, options=options(arm.options)) for arm in table.arms),
    )
