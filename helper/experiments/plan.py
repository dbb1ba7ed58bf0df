"""From a table to its jobs: the options of every arm, the names of its runs, and the commands in an order in which they
can run."""

import difflib
import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from distiller_zoo import distiller_dict

from ..clouds.outputs import uncached
from ..clouds.store import CloudSet
from ..errors import UserError
from ..files import checkpoint
from ..files.lock import LOCK
from ..files.paths import RESULTS, STUDENTS, TEACHERS, clouds_folder, quality_file, row_file, spec_file
from ..networks import TORCHVISION
from ..settings import (
    CloudMaking,
    Clouds,
    Data,
    Fit,
    Loss,
    Repetition,
    RipsNetChoice,
    Training,
    declared,
    defaults,
)
from ..student.names import student_name
from ..student.pairs import pair_settings
from ..student.topology import load_spec
from ..student.weights import StudentSettings, resolve
from .catalogue import FIGURES, TABLES, Arm, Table, networks, published_for, topology
from .jobs import Job, Work

Section = TypeVar("Section", Loss, Clouds, CloudMaking, RipsNetChoice)
Entry = TypeVar("Entry")

# The options of each script that make an experiment, by their sections and in this order.
OPTIONS_OF: dict[str, tuple[type, ...]] = {
    "train_teacher": (Data, Training),
    "generate_PCD_PI": (Data, Clouds, CloudMaking),
    "train_ripsnet": (Data, Clouds, RipsNetChoice, Fit),
    "train_student": (Data, Loss, Clouds, Training),
}


SEVERAL = ("train_teacher", "generate_PCD_PI", "train_student")  # the scripts that torchrun can start
TRACES = (LOCK, *checkpoint.NAMES)  # of training, which a run leaves beside best.pth


# What the command line may name


def find(what: str, name: str, known: Mapping[str, Entry]) -> Entry:
    """The entry of a name, upper and lower case alike. UserError with the nearest name if there is none."""
    for key, value in known.items():
        if key.lower() == name.lower():
            return value
    lower = {key.lower(): key for key in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0)
    raise UserError(f"{what}: unknown '{name}': did you mean '{lower[near[0]]}'? (--list shows all)")


def find_table(name: str) -> Table:
    return find("--table", name, TABLES)


def methods(by_key: bool = False) -> dict[str, str]:
    """Every method's name -> CE, KD-control, KD+LS or a key of distiller_dict.

    by_key: names that begin with the key of distiller_dict, in the same order.
    """
    found = {"KD-control": "KD-control", "KD+LS": "KD+LS"}
    for key in ("CE", *distiller_dict):
        name = key if by_key or key == "CE" else distiller_dict[key].name
        found[name] = key
        with_topology = "TopKD" if key == "kd" else f"{name}+Top"
        for end in ("", "-exact", "-wasserstein"):
            found[with_topology + end] = key
    return found


def find_arms(table: Table, asked: list[str]) -> list[Arm]:
    """Arms that --methods asks for: of that name, or else all of that method, or else the method as such."""
    known = {arm.name: arm.name for arm in table.arms}
    known |= dict(zip(methods(by_key=True), methods(), strict=True))
    known |= {name: name for name in methods()}
    found = []
    for name in asked:
        arms = [arm for arm in table.arms if arm.name.lower() == name.lower()]
        arms = arms or [arm for arm in table.arms if arm.method.lower() == name.lower()]
        found += arms or [table.arm(find("--methods", name, known))]
    return list({arm.name: arm for arm in found}.values())


# Which runs there are


def defined(row: str, arm: Arm) -> bool:
    """Whether the arm's method exists for a row's teacher and student."""
    entry = distiller_dict.get(methods()[arm.method])
    return entry is None or entry.pairs is None or networks(row) in entry.pairs


def undefined(rows: list[str], arms: list[Arm]) -> list[str]:
    """'FSP of wrn_40_2:wrn_40_1' for what `in_order` leaves out."""
    return [f"{arm.name} of {row}" for row in rows for arm in arms if not defined(row, arm)]


def in_order(rows: list[str], arms: list[Arm], table: Table, trials: int | None = None) -> list[tuple[str, Arm, int]]:
    """(row, arm, trial) in the order in which they run: all arms of a seed before the next seed. Without those whose
    method is not defined for the row's pair.

    trials: seeds of every arm; None: as the table says.
    """
    order: list[tuple[str, Arm, int]] = []
    for after in (False, True):
        chosen = [arm for arm in arms if arm.after is after]
        seeds = {arm.name: trials or table.seeds_of(arm) for arm in chosen}
        for trial in range(1, 1 + max(seeds.values(), default=0)):
            order += itertools.product(rows, [arm for arm in chosen if trial <= seeds[arm.name]], [trial])
    return [(row, arm, trial) for row, arm, trial in order if defined(row, arm)]


# The options of an arm


def with_options(section: Section, options: Mapping[str, Any]) -> Section:
    """The section with those of the options that it declares."""
    return replace(section, **{name: options[name] for name in options if name in declared(type(section))})


def asked_loss(table: Table, row: str, arm: Arm) -> Loss:
    """The loss of an arm as the command line of its student gives it."""
    base, kind, pair = methods()[arm.method], topology(arm.method), pair_settings(*networks(row))
    given: dict[str, Any] = {}
    if base == "KD-control":
        given |= {"gamma": 1.0, "alpha": pair.alpha, "delta": 0.0}
    elif base == "KD+LS":
        given |= {"logit_stand": True}
    elif base == "CE":
        given |= {"alpha": 0.0}
        if not kind:
            given |= {"gamma": 1.0, "delta": 0.0}
    else:
        given |= {"distill": base} | own_epochs(table, row, base)
    if kind:
        given |= {"delta": pair.delta}
    if kind == "ripsnet":
        given |= {"operator": table.operator}
    elif kind:
        given |= {"topology": kind}
    return with_options(Loss(**given), arm.options)


def own_epochs(table: Table, row: str, method: str) -> dict[str, Any]:
    """Epochs of a method's warm-up, first stage and options where the student's are not the published ones: in
    proportion."""
    ratio = table.student.epochs / published_for(table.dataset)[0].epochs
    if ratio == 1:
        return {}

    def scaled(epochs: int) -> int:
        return max(1, int(ratio * epochs + 0.5))

    entry = distiller_dict[method].for_pair(*networks(row))
    published = {"warmup": entry.warmup, "first_epochs": entry.first_epochs}
    found: dict[str, Any] = {name: scaled(value) for name, value in published.items() if value}
    _, options, _ = entry.settings(*networks(row))
    if entry.in_epochs:
        found["set"] = tuple(f"{name}={scaled(options[name])}" for name in entry.in_epochs)
    return {name: value for name, value in found.items() if value != published.get(name)}


def student_settings(
    table: Table, row: str, arm: Arm, trial: int = 1, amp: str | None = None, teacher_cache: bool = False
) -> StudentSettings:
    """The settings of a student as train_student.py resolves them. amp: in place of the table's. teacher_cache: where
    it can serve the student."""
    amp = amp or table.amp or table.student.amp
    clouds = with_options(table.clouds, arm.options)
    settings = resolve(
        asked_loss(table, row, arm),
        clouds,
        Data(dataset=table.dataset, device=torch.device("cpu")),
        replace(table.student, batch_size=clouds.batch_size, amp=amp),
        Repetition(trial=trial),
        *networks(row),
    )
    if teacher_cache and settings.without_cache is None:
        settings = replace(settings, training=replace(settings.training, teacher_cache=True))
    return settings


# Names


def departing_schedule(table: Table, training: Training, amp: str | None = None) -> str:
    """What names show of a schedule that is not the published one, as 'small e4'; '' where it is.

    amp: in place of the schedule's. Where it differs, a name that shows the schedule shows it too.
    """
    published = published_for(table.dataset)[0]
    parts = [table.tag] if table.tag else []
    as_published = (training.epochs, training.lr_decay_epochs) == (published.epochs, published.lr_decay_epochs)
    if table.scaled or not (table.tag or as_published):
        parts.append(f"e{training.epochs}")
    if parts and amp not in (None, training.amp):
        parts.append("float32" if amp == "off" else str(amp))
    if parts and training.teacher_cache:
        parts.append("cache")
    return " ".join(parts)


def teacher_name(table: Table, teacher: str) -> str:
    if table.adopted:
        return f"{teacher}_torchvision"
    return "_".join([teacher, table.dataset, *departing_schedule(table, table.teacher).split(), "trial1"])


def teacher_path(table: Table, teacher: str) -> str:
    return str(TEACHERS / teacher_name(table, teacher) / "best.pth")


# What finished jobs have left


def missing(jobs: Collection[Job]) -> list[str]:
    """What jobs that are not finished read of others that are, and what is not there: a line for each."""
    lines = []
    makers = {job.folder: job for job in jobs if job.finished}
    read = dict.fromkeys(Path(word) for job in jobs if not job.finished for word in job.command)
    for path in read:
        maker = makers.get(path.parent)
        if maker is not None and path.name == "best.pth" and not path.is_file():
            lines.append(
                f"{path}: missing, though {maker.done} says that its run has ended; some of these jobs need it: put it "
                "there, or remove that row and the run's folder, so that it is trained again"
            )
    return lines


def lacks_chunks(folder: Path, dim: int) -> bool:
    """Whether a set's images of a dimension are finished but for chunks that stage 3 reads, as this project ships some
    and --discard_clouds leaves them."""
    try:
        files = CloudSet.of(folder, load_spec(spec_file(folder, dim)))
    except UserError:  # which the job that reads the set tells
        return False
    paths = [files.path(kind, chunk) for kind in ("clouds", f"images_dim{dim}") for chunk in files.chunks]
    return not all(path.is_file() for path in paths)


# Commands


def flags(value: Any, own: Mapping[str, Any] | None = None) -> list[str]:
    """The options of a section that depart from its defaults, as a command line has them. own: other defaults."""
    own = {**defaults(type(value)), **(own or {})}
    words = []
    for name, entry in declared(type(value)).items():
        found = getattr(value, name)
        if name not in own or found == own[name]:
            continue
        words.append(entry.flags[0] if entry.flags else f"--{name}")
        if entry.many:
            words += map(str, found)
        elif found is not True:
            words.append(as_text(found))
    return words


def as_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


class Planner:
    """Jobs by name, in an order in which they can run. data_dir, device: of the user for all four stages; amp: for the
    two that train with images; teacher_cache: for the clouds and students that it can serve; processes: of those that
    several can share."""

    def __init__(
        self,
        data_dir: str | None = None,
        device: str | None = None,
        amp: str | None = None,
        teacher_cache: bool = False,
        processes: int = 1,
    ):
        self.data_dir, self.device, self.amp = data_dir, device, amp
        self.teacher_cache, self.processes = teacher_cache, processes
        self.jobs: dict[str, Job] = {}

    def add(self, name: str, script: str, options: Iterable[str], work: Work | None = None, **about: Any) -> str:
        """Add a job unless it is there; returns its name."""
        if name not in self.jobs:
            about = {"processes": self.processes if script in SEVERAL else 1} | about
            self.jobs[name] = Job(name, (f"{script}.py", *options), work=work or Work(script), **about)
        return name

    def given(self, script: str) -> list[str]:
        """The user's options, which replace the table's."""
        words = []
        for name in ("data_dir", "device", "amp"):
            value = getattr(self, name)
            if value and (name != "amp" or script in ("train_teacher", "train_student")):
                words += [f"--{name}", value]
        return words

    def schedule(self, training: Training, amp: str | None = None) -> Training:
        """Without the precision where the user gives another one. amp: in place of the schedule's."""
        if self.amp:
            amp = Training().amp
        return replace(training, amp=amp or training.amp)

    def check_batch(self, batch_size: int) -> None:
        if batch_size % self.processes:
            raise UserError(
                f"--nproc: found {self.processes}, expected a divisor of the batch of {batch_size} images, which the "
                "processes share equally"
            )

    def dataset(self, table: Table) -> list[str]:
        own = defaults(Data)["dataset"]
        return [] if table.dataset == own else ["--dataset", table.dataset]

    def flags(self, table: Table, value: Any, own: Mapping[str, Any] | None = None) -> list[str]:
        """As `flags`, with the defaults of the table's data set."""
        training, clouds = published_for(table.dataset)
        by_dataset = {Training: vars(training), Clouds: vars(clouds)}.get(type(value), {})
        return flags(value, {**by_dataset, **(own or {})})

    def adopted(self, table: Table, teacher: str) -> str:
        """Stage 1 for torchvision's weights, whose file the user has put into save_t_models/."""
        name, path = teacher_name(table, teacher), Path(teacher_path(table, teacher))
        options = ["--path", str(TEACHERS / TORCHVISION[teacher].file), "--model", teacher, *self.dataset(table)]
        return self.add(
            name,
            "evaluate",
            [*options, "--adopt", str(path), *self.given("evaluate")],
            Work("evaluate", table.dataset, teacher),
            folder=path.parent,
            done=path,
        )

    def teacher(self, table: Table, teacher: str) -> str:
        """Stage 1. A folder with best.pth and no trace of training is a teacher from elsewhere, and finished."""
        if table.adopted:
            return self.adopted(table, teacher)
        name, folder = teacher_name(table, teacher), Path(teacher_path(table, teacher)).parent
        self.check_batch(table.teacher.batch_size)
        brought = (folder / "best.pth").is_file() and not any((folder / name).exists() for name in TRACES)
        named = ["--name", name] if departing_schedule(table, table.teacher) else []
        options = [*self.dataset(table), *self.flags(table, self.schedule(table.teacher)), *named]
        return self.add(
            name,
            "train_teacher",
            ["--model", teacher, *options, *self.given("train_teacher")],
            Work("train_teacher", table.dataset, "", teacher, "CE", table.teacher.epochs, table.teacher.batch_size),
            folder=folder,
            done=folder / "best.pth" if brought else row_file(name),
            resumable=True,
        )

    def clouds(self, table: Table, row: str, arm: Arm, dim: int) -> str:
        """Stage 2 for one homology dimension, after stage 1."""
        teacher = networks(row)[0]
        clouds = replace(with_options(table.clouds, arm.options), dim=str(dim))
        making = with_options(table.making, arm.options)
        if self.teacher_cache and uncached(table.dataset, clouds.tda_layer_t, clouds.pcd_bn) is None:
            making = replace(making, teacher_cache=True)
        path = teacher_path(table, teacher)
        folder = clouds_folder(path, clouds)
        options = [*self.dataset(table), *self.flags(table, clouds), *flags(making)]
        return self.add(
            str(spec_file(folder, dim)),
            "generate_PCD_PI",
            ["--path_t", path, *options, *self.given("generate_PCD_PI")],
            Work("generate_PCD_PI", table.dataset, teacher, "", clouds.dim, making.passes, clouds.points),
            folder=folder,
            done=quality_file(folder, dim),
            needs=(self.teacher(table, teacher),),
            clouds=folder,
        )

    def ripsnet(self, table: Table, row: str, arm: Arm, dim: int) -> str:
        """Stage 3 for one homology dimension, after stage 2."""
        teacher = networks(row)[0]
        before, path = self.clouds(table, row, arm, dim), teacher_path(table, teacher)
        clouds = replace(with_options(table.clouds, arm.options), dim=str(dim))
        operator = student_settings(table, row, arm).loss.operator
        choice = replace(with_options(RipsNetChoice(), arm.options), operator=operator)
        set_folder = clouds_folder(path, clouds)
        folder = set_folder / choice.folder_name(dim)
        options = [*self.dataset(table), *self.flags(table, clouds)]
        options += [*flags(choice, {"operator": "mean"}), *flags(table.fit)]
        return self.add(
            str(folder),
            "train_ripsnet",
            ["--path_t", path, *options, *self.given("train_ripsnet")],
            Work("train_ripsnet", table.dataset, teacher, "", operator, table.fit.epochs, clouds.points),
            folder=folder,
            done=folder / "quality.json",
            resumable=True,
            needs=(before,),
            clouds=set_folder,
        )

    def needs_of(self, table: Table, row: str, arm: Arm) -> tuple[str, ...]:
        """What a student with this arm needs: its teacher, and the clouds and RipsNets of its kind of topology."""
        settings = student_settings(table, row, arm)
        needs = [self.teacher(table, networks(row)[0])]
        for dim in settings.clouds.dims:
            if settings.loss.topology == "ripsnet":
                needs.append(self.ripsnet(table, row, arm, dim))
            elif settings.loss.topology == "exact":
                needs.append(self.clouds(table, row, arm, dim))
        return tuple(needs)

    def student(self, table: Table, row: str, arm: Arm, trial: int) -> str:
        """Stage 4, after what it needs."""
        teacher, student = networks(row)
        settings = student_settings(table, row, arm, trial, self.amp, self.teacher_cache)
        training = replace(table.student, teacher_cache=settings.training.teacher_cache)
        departing = departing_schedule(table, training, self.amp or table.amp)
        name = student_name(settings, departing or None)
        named = ["--name", name] if departing else []
        clouds = settings.clouds
        self.check_batch(clouds.batch_size)
        options = [*self.dataset(table), *flags(asked_loss(table, row, arm)), *self.flags(table, clouds)]
        options += self.flags(table, self.schedule(training, table.amp), {"batch_size": table.student.batch_size})
        epochs, processes = table.student.epochs + settings.loss.first_epochs, self.processes
        if settings.loss.beta and not settings.method.several:
            processes = 1
        if settings.loss.topology and (clouds.batch_size // processes) % clouds.points:
            options.append("--gather_clouds")
        return self.add(
            name,
            "train_student",
            ["--path_t", teacher_path(table, teacher), "--model_s", student, *options, "--trial", str(trial), *named]
            + self.given("train_student"),
            Work(
                "train_student",
                table.dataset,
                teacher,
                student,
                arm.method,
                epochs,
                clouds.batch_size,
                settings.variant,
            ),
            folder=STUDENTS / name,
            done=row_file(name),
            resumable=True,
            needs=self.needs_of(table, row, arm),
            processes=processes,
        )

    def table(self, table: Table, rows: list[str], arms: list[Arm], trials: int | None) -> None:
        """All runs of a table."""
        for row, arm, trial in in_order(rows, arms, table, trials):
            self.student(table, row, arm, trial)

    def figure(self, figure: str, table: Table, row: str) -> None:
        """A figure of one row, and the runs that it shows."""
        teacher, topkd = networks(row)[0], table.arm("TopKD")
        options = ["--path_t", teacher_path(table, teacher), *self.dataset(table)]
        clouds = None
        if figure == "pi":
            needs = self.needs_of(table, row, topkd)
            clouds = self.jobs[needs[-1]].clouds
            operator = student_settings(table, row, topkd).loss.operator
            options += flags(RipsNetChoice(operator=operator), {"operator": "mean"})
        else:
            shown = FIGURES[figure].methods
            needs = tuple(self.student(table, row, table.arm(method), 1) for method in shown)
            options += ["--path_s", *(str(STUDENTS / name / "best.pth") for name in needs)]
            options += ["--labels", teacher, *shown]
        words, folder = [figure, *options, *self.given("visualize")], RESULTS / "figures"
        self.add(f"figure {figure} of {row}", "visualize", words, folder=folder, needs=needs, clouds=clouds)

    def all(self) -> list[Job]:
        """The jobs. Stage 2 runs again where a set lacks what a job of another stage is to read."""
        jobs = list(self.jobs.values())
        read = {job.clouds for job in jobs if job.clouds != job.folder and not job.finished}

        def is_to_be_made(job: Job) -> bool:
            if job.folder is None or job.folder not in read:
                return False
            made = [dim for dim in (0, 1) if job.done == quality_file(job.folder, dim)]
            return any(lacks_chunks(job.folder, dim) for dim in made)

        return [replace(job, done=None) if is_to_be_made(job) else job for job in jobs]

    def tables(self) -> None:
        """The tables of all finished runs, at the end."""
        self.add("tables", "make_tables", [], after=tuple(self.jobs))
