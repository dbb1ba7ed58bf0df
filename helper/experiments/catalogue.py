"""Every experiment: the paper's tables, ablations and figures, and this project's own, with the source of each value.

A table has rows, a teacher and a student each, and arms, a method with its settings each; a row and an arm are one run
of train_student.py for every seed. A value is "published: <where>" or "assumed: <why>". Those that all experiments
share are in SETTINGS and equal the defaults of the four scripts, so a command holds only what departs from them; the
weights of a pair are in helper/pairs.py, those of a method that runs alone in distiller_zoo.
"""

import argparse
import dataclasses
import difflib
import itertools
import textwrap
from dataclasses import dataclass, field

from distiller_zoo import distiller_dict

from .options import UserError, resolve_training
from .pairs import HETEROGENEOUS, HOMOGENEOUS, pair_settings, resolve_weights, run_name
from .runs import TEACHERS

PAPER = "published: the paper's tables and figures"
CODE = "published: the authors' released code"
OURS = "assumed: a question of this project"
BASELINES = "assumed: baselines of the field; the paper's printed tables were not at hand"


@dataclass(frozen=True)
class Value:
    value: object
    source: str


SGD = {
    "epochs": Value(240, CODE),
    "lr_decay_epochs": Value((150, 180, 210), CODE),
    "lr_decay_rate": Value(0.1, CODE),
    "weight_decay": Value(5e-4, CODE),
    "momentum": Value(0.9, CODE),
    "amp": Value("off", "assumed: float32, as is usual"),
}
DATA = {"dataset": Value("cifar100", PAPER), "batch_size": Value(64, CODE)}
CLOUDS = {
    "tda_layer_t": Value(-1, CODE),
    "dim": Value("0", CODE),
    "pcd_bn": Value("eval", "assumed: as in distillation; the authors' clouds were made with batch statistics"),
    "sigma_rule": Value("released", CODE),
    "resolution": Value(20, CODE),
    "range": Value("all", CODE),
}
PAIR = "by pair, see helper/pairs.py"
METHOD = "by method, see distiller_zoo"

# Script -> option -> value. None: as the source says.
SETTINGS = {
    "train_teacher": DATA | SGD,
    "generate_PCD_PI": DATA
    | CLOUDS
    | {"passes": Value(256, CODE), "cloud_dtype": Value("float16", "assumed: half the space")},
    "train_ripsnet": DATA
    | CLOUDS
    | {
        "operator": Value("mean", PAIR),
        "ripsnet_clouds": Value(None, CODE + ": all, of which three quarters train"),
        "epochs": Value(25000, CODE),
        "patience": Value(50, CODE),
        "batch_clouds": Value(64, CODE),
        "lr": Value(5e-4, CODE),
    },
    "train_student": DATA
    | {
        "distill": Value("kd", METHOD),
        "logit_stand": Value(False, METHOD),
        "kd_T": Value(None, CODE + ": 4; with standardised logits 2"),
        "warmup": Value(None, METHOD),
        "first_epochs": Value(None, METHOD),
        "gamma": Value(None, METHOD),
        "alpha": Value(None, METHOD + "; with topology " + PAIR),
        "beta": Value(None, METHOD),
        "delta": Value(None, PAIR),
        "topology": Value(None, METHOD),
    }
    | CLOUDS
    | {
        "tda_layer_s": Value(-1, CODE),
        "operator": Value(None, PAIR),
        "ripsnet_clouds": Value(None, CODE + ": all, of which three quarters train"),
    }
    | SGD
    | {"lr": Value(None, CODE + ": 0.01 for MobileNetV2 and the ShuffleNets, 0.05 otherwise")},
}


@dataclass(frozen=True)
class Arm:
    """A method with the options in which it departs from the table's.

    seeds: where the arm has not as many as the table. after: it runs when all other arms have all their seeds.
    """

    name: str
    method: str
    source: str
    options: dict = field(default_factory=dict)
    seeds: int | None = None
    after: bool = False


@dataclass(frozen=True)
class Schedule:
    epochs: int = SGD["epochs"].value
    decay: tuple[int, ...] = SGD["lr_decay_epochs"].value


@dataclass(frozen=True)
class Table:
    """rows: 'teacher:student'. options: script -> options that differ from SETTINGS for all arms. operator: RipsNet's
    pooling where it is not the pair's. tag: tells the names of its runs from those of other schedules. figures: drawn
    of every row when all arms have run. scaled: made by `scaled`."""

    title: str
    source: str
    rows: tuple[str, ...]
    arms: tuple[Arm, ...]
    seeds: int = 3
    teacher: Schedule = Schedule()
    student: Schedule = Schedule()
    options: dict = field(default_factory=dict)
    operator: str | None = None
    tag: str = ""
    figures: tuple[str, ...] = ()
    scaled: bool = False

    def arm(self, name: str) -> Arm:
        """The arm of a name; any other method runs with the table's settings."""
        return next((arm for arm in self.arms if arm.name == name), None) or Arm(name, name, "assumed: asked for")


def plain(*methods: str, source: str = PAPER, **options) -> tuple[Arm, ...]:
    return tuple(Arm(method, method, source, **options) for method in methods)


def varied(methods: tuple[str, ...], source: str, **settings: dict) -> tuple[Arm, ...]:
    """An arm for each method and setting; settings: what follows the method's name -> options."""
    return tuple(Arm(f"{m} {name}", m, source, options) for name, options in settings.items() for m in methods)


THREE = ("KD-control", "TopKD", "TopKD-exact")
BOTH = ("TopKD", "TopKD-exact")
MAIN = plain("CE", "KD") + plain("KD-control", source=OURS) + plain("TopKD")
MAIN += plain("TopKD-exact", "TopKD-wasserstein", source=OURS)
MAIN += plain(*(method.name for method in distiller_dict.values() if method.loss), "KD+LS", source=BASELINES)
ABLATED = ("resnet56:resnet20",)


def ablation(title: str, source: str, *arms: Arm) -> Table:
    return Table(f"ablation, {title}", f"{source}; the pair is assumed: its weights are published", ABLATED, arms)


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
        teacher=Schedule(24, (15, 18, 21)),
        student=Schedule(8, (5, 6, 7)),
        options={
            "train_teacher": {"amp": "bf16"},
            "generate_PCD_PI": {"passes": 16},
            "train_student": {"amp": "bf16"},
        },
        tag="small",
    ),
    "digits": Table(
        "scanned digits, a demonstration of the chain in minutes",
        OURS,
        ("resnet20:resnet8",),
        plain("CE", "KD", "KD-control", "TopKD", "TopKD-exact", "TopKD-wasserstein", source=OURS),
        teacher=Schedule(12, (8, 11)),
        student=Schedule(12, (8, 11)),
        options={
            "train_teacher": {"dataset": "digits", "amp": "bf16"},
            "generate_PCD_PI": {"dataset": "digits", "passes": 24},
            "train_ripsnet": {"dataset": "digits", "epochs": 250, "batch_clouds": 16},
            "train_student": {"dataset": "digits", "amp": "bf16"},
        },
        operator="sum",
        figures=("pi", "umap"),
    ),
}


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


def nearest(what: str, found: str, known) -> UserError:
    """The line for a name that is none of those known."""
    lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(found.lower(), lower, n=1, cutoff=0)
    return UserError(f"{what}: unknown '{found}': did you mean '{lower[near[0]]}'? (--list shows all)")


def find(what: str, name: str, known: dict):
    """The entry of a name, upper and lower case alike."""
    matches = [value for key, value in known.items() if key.lower() == name.lower()]
    if not matches:
        raise nearest(what, name, known)
    return matches[0]


def find_table(name: str) -> Table:
    if "imagenet" in name.lower():
        raise UserError("--table: ImageNet is not implemented: this project has neither the data set nor its networks")
    return find("--table", name, TABLES)


def methods(by_key: bool = False) -> dict[str, tuple[str, str | None]]:
    """Every method's name -> (CE, KD-control, KD+LS or a key of distiller_dict; kind of topology or None).

    by_key: names that begin with the key of distiller_dict, in the same order.
    """
    found = {"KD-control": ("KD-control", None), "KD+LS": ("KD+LS", None)}
    for key in ("CE", *distiller_dict):
        name = key if by_key or key == "CE" else distiller_dict[key].name
        found[name] = (key, None)
        with_topology = "TopKD" if key == "kd" else f"{name}+Top"
        for topology, end in (("ripsnet", ""), ("exact", "-exact"), ("wasserstein", "-wasserstein")):
            found[with_topology + end] = (key, topology)
    return found


def find_arms(table: Table, names: list[str]) -> list[Arm]:
    """Arms that --methods asks for: of that name, or else all of that method, or else the method as such."""
    found = []
    for name in names:
        arms = [arm for arm in table.arms if arm.name.lower() == name.lower()]
        arms = arms or [arm for arm in table.arms if arm.method.lower() == name.lower()]
        spellings = {arm.name: arm.name for arm in table.arms} | dict(zip(methods(by_key=True), methods(), strict=True))
        found += arms or [table.arm(find("--methods", name, spellings | {known: known for known in methods()}))]
    return list({arm.name: arm for arm in found}.values())


def method_options(method: str, teacher: str, student: str) -> dict:
    """Options of train_student.py that make a method's loss."""
    base, topology = methods()[method]
    pair = pair_settings(teacher, student)
    if base == "KD-control":
        return {"gamma": 1.0, "alpha": pair.alpha, "delta": 0.0}
    if base == "KD+LS":
        return {"logit_stand": True}
    alone = {"alpha": 0.0} if base == "CE" else {"distill": base}
    if topology:
        return alone | {"delta": pair.delta, "topology": None if topology == "ripsnet" else topology}
    return alone | ({"gamma": 1.0, "delta": 0.0} if base == "CE" else {})


def method_schedule(method: str, epochs: int) -> dict:
    """Epochs of a method's warm-up and first stage, in proportion to those of the student where these are unusual."""
    entry = distiller_dict.get(methods()[method][0])
    published = {name: getattr(entry, name, 0) for name in ("warmup", "first_epochs")}
    ratio = epochs / SGD["epochs"].value
    return {name: max(1, int(ratio * value + 0.5)) for name, value in published.items() if value and ratio != 1}


def defined(row: str, arm: Arm) -> bool:
    """Whether the arm's method exists for a row's teacher and student."""
    entry = distiller_dict.get(methods()[arm.method][0])
    return entry is None or entry.pairs is None or names_of(row) in entry.pairs


def usual(script: str) -> dict:
    """A script's options as they are when they are not given."""
    return {name: setting.value for name, setting in SETTINGS[script].items()}


def names_of(row: str) -> tuple[str, str]:
    """'resnet56:resnet20' -> ('resnet56', 'resnet20')."""
    teacher, student = row.split(":")
    return teacher, student


def arm_options(table: Table, row: str, arm: Arm, script: str) -> dict:
    """Options of stage 2, 3 or 4, those that are as usual included."""
    options = usual(script) | table.options.get(script, {})
    if script == "train_student":
        options |= {"epochs": table.student.epochs, "lr_decay_epochs": table.student.decay}
        options |= method_options(arm.method, *names_of(row)) | method_schedule(arm.method, table.student.epochs)
        if methods()[arm.method][1] == "ripsnet":
            options["operator"] = table.operator
    options |= {name: value for name, value in arm.options.items() if name in options}
    if script == "train_ripsnet":
        options["operator"] = student_args(table, row, arm).operator
    return options


def student_args(table: Table, row: str, arm: Arm, trial: int = 1) -> argparse.Namespace:
    """The options of a student as train_student.py resolves them."""
    teacher, student = names_of(row)
    options = arm_options(table, row, arm, "train_student")
    options |= {"trial": trial, "seed": None, "set": [], "lr_decay_epochs": list(options["lr_decay_epochs"])}
    args = argparse.Namespace(path_t=teacher_path(table, teacher), **options)
    resolve_training(args, student)
    resolve_weights(args, teacher, student)
    return args


def suffix(table: Table, schedule: Schedule) -> str:
    """What tells runs of another schedule from the published one."""
    parts = [table.tag] * bool(table.tag)
    if table.scaled or (not table.tag and schedule != Schedule()):
        parts.append(f"e{schedule.epochs}")
    return "".join(f"_{part}" for part in parts)


def data_of(table: Table) -> str:
    """The name of the table's data set."""
    return table.options.get("train_teacher", {}).get("dataset", DATA["dataset"].value)


def teacher_name(table: Table, teacher: str) -> str:
    return f"{teacher}_{data_of(table)}{suffix(table, table.teacher)}_trial1"


def teacher_path(table: Table, teacher: str) -> str:
    return str(TEACHERS / teacher_name(table, teacher) / "best.pth")


def stem(table: Table, row: str, arm: str) -> str:
    """The name of the students' runs without `_trial<n>`. row: 'teacher:student'. arm: its name."""
    name = run_name(student_args(table, row, table.arm(arm)), *names_of(row))
    return name.removesuffix("_trial1") + suffix(table, table.student)


def scaled(table: Table, epochs: int) -> Table:
    """The table with students of so many epochs; the teacher's epochs, the epochs after which the learning rate decays,
    the passes of stage 2 and RipsNet's clouds in proportion."""
    if epochs == table.student.epochs:
        return table
    ratio = epochs / table.student.epochs

    def number(value: float) -> int:
        return max(1, int(value * ratio + 0.5))

    def schedule(old: Schedule) -> Schedule:
        last = number(old.epochs)
        return Schedule(last, tuple(sorted({number(epoch) for epoch in old.decay} & set(range(1, last)))))

    def options(old: dict) -> dict:
        return {name: number(old[name]) if name in ("passes", "ripsnet_clouds") else old[name] for name in old}

    clouds = options(usual("generate_PCD_PI") | table.options.get("generate_PCD_PI", {}))
    return dataclasses.replace(
        table,
        teacher=schedule(table.teacher),
        student=schedule(table.student),
        options=table.options | {"generate_PCD_PI": clouds},
        arms=tuple(dataclasses.replace(arm, options=options(arm.options)) for arm in table.arms),
        scaled=True,
    )


def in_order(rows: list[str], arms: list[Arm], table: Table, trials: int | None = None) -> list[tuple[str, Arm, int]]:
    """(row, arm, trial) in the order in which they run: all arms of a seed before the next seed. Without those whose
    method is not defined for the row's pair.

    trials: seeds of every arm; None: as the table says.
    """
    order = []
    for after in (False, True):
        chosen = [arm for arm in arms if arm.after is after]
        seeds = {arm.name: trials or arm.seeds or table.seeds for arm in chosen}
        for trial in range(1, 1 + max(seeds.values(), default=0)):
            order += itertools.product(rows, [arm for arm in chosen if trial <= seeds[arm.name]], [trial])
    return [(row, arm, trial) for row, arm, trial in order if defined(row, arm)]


def undefined(rows: list[str], arms: list[Arm]) -> list[str]:
    """'FSP of wrn_40_2:wrn_40_1' for what `in_order` leaves out."""
    return [f"{arm.name} of {row}" for row in rows for arm in arms if not defined(row, arm)]


def listed(options: dict) -> str:
    return ", ".join(name if value is None else f"{name} {value}" for name, value in options.items())


def by_source(entries) -> list[str]:
    """(text, source) pairs as lines 'text, text, ... [source]'."""
    texts = {}
    for text, source in entries:
        texts.setdefault(source, []).append(text)
    return [f"{', '.join(found)} [{source}]" for source, found in texts.items()]


def describe_table(name: str, table: Table) -> list[str]:
    lines = [f"{name}: {table.title} [{table.source}]"]
    schedules = {"teacher": table.teacher, "student": table.student}
    own = [f"{table.seeds} seeds"] + [f"{table.operator} pooling"] * (table.operator is not None)
    own += [f"{who}: {listed(vars(found))}" for who, found in schedules.items() if found != Schedule()]
    own += [f"{script}: {listed(options)}" for script, options in table.options.items()]
    lines.append(f"    {'; '.join(own)} [assumed]")
    for row in table.rows:
        pair, lr = pair_settings(*names_of(row)), student_args(table, row, table.arm("KD")).lr
        weights = f"alpha {pair.alpha:g}, delta {pair.delta:g}, {pair.operator} pooling [{pair.source}]"
        lines.append(f"    {row:<22} lr {lr:g} [published], {weights}")
    arms = [(arm.name + (f" ({listed(arm.options)})" if arm.options else ""), arm.source) for arm in table.arms]
    return lines + [f"    {line}" for line in by_source(arms)]


def describe() -> str:
    """All tables, figures, methods and settings as text, with the source of every value in brackets."""
    sections = [describe_table(name, table) for name, table in TABLES.items()]
    figures = [f"    {name}: {entry.title}, {entry.row} [{entry.source}]" for name, entry in FIGURES.items()]
    sections.append(["figures", *figures])
    weights = [
        f"    {entry.name}: gamma {entry.gamma:g}, alpha {entry.alpha:g}, beta {entry.beta:g} [{entry.source}]"
        for entry in distiller_dict.values()
    ]
    about = "methods without topology; others are CE and KD-control, and with topology TopKD, CE+Top and <method>+Top"
    sections.append([about, *weights])
    for script, settings in SETTINGS.items():
        values = by_source((listed({name: entry.value}), entry.source) for name, entry in settings.items())
        sections.append([f"{script}.py", *(f"    {line}" for line in values)])
    wrapped = (
        textwrap.fill(line, 120, subsequent_indent="        ", break_on_hyphens=False)
        for section in sections
        for line in [*section, ""]
    )
    return "\n".join(wrapped).rstrip()
