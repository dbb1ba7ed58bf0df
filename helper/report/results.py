"""Finished runs and published accuracies: their rows are read, checked, grouped and compared.

What a run is stands in the columns of its row, not in its name. Rows that agree in those of IDENTITY are repetitions
of one run (`Runs`): they must agree in every setting but the seed, or nothing is averaged.
"""

import math
import statistics
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import scipy.stats

from ..errors import UserError
from ..experiments.catalogue import published_for
from ..files.atomic import read_csv
from .identity import IDENTITY

# What may differ between repetitions: what was measured of them, which repetition it is, where it ran, and where the
# weights are said to come from. The teacher itself is known by teacher_sha256, wherever its file lies and whether or
# not it names the architecture. Batch norms see the share of one process, so the number of processes is a setting.
MEASURED = {"best", "best_epoch", "last", "mean_last10", "student_r2", "seconds", "teacher_acc"}
REPETITION = {"run", "trial", "seed"}
PLACE = {"path_t", "model_t", "device", "weights_source", "decoder", "commit", "command"}
PLACE |= {"python", "torch", "torchvision", "numpy", "gudhi"}
MAY_DIFFER = MEASURED | REPETITION | PLACE | {"file"}
# What the control lacks beside the options that its row leaves empty: the topology term.
TOPOLOGY = {"method", "variant", "delta"}
# Whether the teacher's outputs come from a table (--teacher_cache), which changes their rounding alone: a run with it
# and one without are compared, but are no repetitions of each other.
CACHE = {"schedule", "teacher_cache"}

LATER_COLUMNS = ("variant", "schedule")  # rows of earlier versions have none
LATER_INPUTS = {"topology_sha256"}  # which of a row that has no such column only ripsnet_r2 tells, if anything
REQUIRED = {"run", "seed", "epochs", "best", "last", *IDENTITY}
NUMBERS = MEASURED | {"ripsnet_r2", "delta"}
PUBLISHED_COLUMNS = ["dataset", "group", "method", "teacher", "student", "top1", "std", "epoch", "source", "note"]
EPOCHS = {"last": "last epoch", "best": "best test epoch", "unknown": "not stated"}

ENOUGH_RUNS = 3
PUBLISHED_EPOCHS = {name: published_for(name)[0].epochs for name in ("cifar10", "cifar100", "imagenet")}
CONFIDENCE = 0.95
FEW, SHORT, ASSUMED = "*", "†", "‡"
LEGEND = {
    FEW: f"fewer than {ENOUGH_RUNS} runs (no interval)",
    SHORT: f"schedule shorter than the published {PUBLISHED_EPOCHS['cifar100']} epochs ({PUBLISHED_EPOCHS['imagenet']} "
    "on ImageNet)",
    ASSUMED: "assumed weights of the loss (not published for this pair, or set by hand)",
}
NONE = "-"

Row = dict[str, str]
Pair = tuple[str, str, str]
Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


class Label(NamedTuple):
    """What a table calls runs: the method (of a network trained alone, the network), and where they depart from its own
    settings."""

    name: str
    departures: str = ""

    def __str__(self) -> str:
        return joined(*self)


@dataclass(frozen=True)
class Runs:
    """Repetitions of one run with different seeds."""

    rows: list[Row]

    def __getitem__(self, column: str) -> str:
        """A setting, which all rows share; '' where it has no effect."""
        return self.rows[0].get(column) or ""

    def values(self, column: str) -> dict[str, float]:
        """What was measured, by seed; a run that did not measure it is omitted."""
        return {row["seed"]: float(row[column]) for row in self.rows if row.get(column)}

    @property
    def pair(self) -> Pair:
        """(data set, teacher, student)."""
        return self["dataset"], self["teacher"], self["student"]

    @property
    def label(self) -> Label:
        """Among runs of one schedule."""
        return Label(self["method"] if self["teacher"] else self["student"], self["variant"])

    @property
    def full_label(self) -> Label:
        """Among runs of several schedules."""
        return Label(self.label.name, joined(self["variant"], self["schedule"]))

    @property
    def schedule(self) -> str:
        """Where training departs from the published one, wherever the teacher's outputs come from."""
        return " ".join(word for word in self["schedule"].split() if word != "cache")

    @property
    def marks(self) -> str:
        """The characters of LEGEND that hold for these runs."""
        sources = [row["weights_source"] for row in self.rows if row.get("weights_source")]
        marks = ""
        if len(self.rows) < ENOUGH_RUNS:
            marks += FEW
        if float(self["epochs"]) < PUBLISHED_EPOCHS.get(self["dataset"], 0):
            marks += SHORT
        if self["method"] != "CE" and not all(source.startswith("published") for source in sources):
            marks += ASSUMED
        return marks


def joined(*texts: str) -> str:
    """The texts that are not empty, with spaces between them."""
    return " ".join(text for text in texts if text)


# Reading


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def is_accuracy(text: str) -> bool:
    return is_number(text) and 0 <= float(text) <= 100


def read_run(path: Path) -> Row:
    """The row of a finished run, with its path as 'file'. UserError for a foreign or damaged file."""
    rows = read_csv(path)
    missing = REQUIRED - rows[0].keys() if rows else REQUIRED
    if len(rows) == 1 and missing and missing <= set(LATER_COLUMNS):
        absent = " and ".join(name for name in LATER_COLUMNS if name in missing)
        raise UserError(
            f"{path}: the row of an earlier version, it has no {absent}; remove it and run its command again with "
            "--resume, which regenerates it from the run's folder"
        )
    if len(rows) != 1 or missing:
        raise UserError(
            f"{path}: {len(rows)} rows, expected one row of a finished run, with the columns of results/runs; remove "
            "the file"
        )
    row = rows[0]
    bad = [name for name in sorted(NUMBERS & row.keys()) if row[name] and not is_number(row[name])]
    bad += [name for name in ("best", "last") if not is_accuracy(row[name])]
    if not row["epochs"].isdecimal():
        bad.append("epochs")
    if bad:
        raise UserError(f"{path}: {bad[0]} is '{row[bad[0]]}', expected a number; copy the file again or remove it")
    return {"processes": "1", **row, "file": str(path)}  # rows of earlier versions are of one process


def read_runs(folder: Path) -> list[Row]:
    """The rows of all files in a folder, one a file. UserError for a foreign or damaged file."""
    return [read_run(path) for path in sorted(folder.glob("*.csv"))]


def read_published(path: Path) -> list[Row]:
    """The rows of results/published.csv. epoch: last, best (chosen on the test set) or unknown, of the source."""
    rows = read_csv(path)
    if not rows or list(rows[0]) != PUBLISHED_COLUMNS:
        raise UserError(f"{path}: expected rows under the heading {','.join(PUBLISHED_COLUMNS)}")
    for line, row in enumerate(rows, start=2):
        if not is_accuracy(row["top1"]) or not is_number(row["std"] or "0") or row["epoch"] not in EPOCHS:
            raise UserError(
                f"{path}, row {line}: found top1 '{row['top1']}', std '{row['std']}', epoch '{row['epoch']}'; expected "
                f"an accuracy in percent, a number or nothing, and one of {', '.join(EPOCHS)}"
            )
    return rows


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items by their key, in the order of first appearance."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def repetitions(rows: Iterable[Row]) -> list[Runs]:
    """The runs, in the order of IDENTITY. UserError for rows of one run that differ in a setting, or that repeat a
    seed."""
    in_order = sorted(rows, key=lambda row: row["file"])
    groups = grouped(in_order, lambda row: tuple(row[column] for column in IDENTITY))
    found = [Runs(same) for _, same in sorted(groups.items())]
    wrong = []
    for runs in found:
        if what := conflict(runs.rows):
            files = ", ".join(row["file"] for row in runs.rows)
            wrong.append(f"{files}: no repetitions of one run ({what})")
    if wrong:
        raise UserError(f"{'; '.join(wrong)}; move those that do not belong out of the folder")
    return found


def conflict(rows: Sequence[Row]) -> str:
    """Why rows are no repetitions of one run, '' where they are."""
    differing = []
    for name in sorted(set().union(*rows) - MAY_DIFFER):
        told = [row for row in rows if name in row or name not in LATER_INPUTS]
        values = dict.fromkeys(row.get(name) or "nothing" for row in told)
        if len(values) > 1:
            short = dict.fromkeys(value[:40] for value in values)
            differing.append(f"{name} is {' and '.join(short if len(short) == len(values) else values)}")
    if not differing and len({row["seed"] for row in rows}) < len(rows):
        differing.append("a seed is duplicated")
    return "; ".join(differing)


# Statistics


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation (n - 1) of two or more values; nan where one is not finite, as R² of images without
    variance."""
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def summary(values: Sequence[float], digits: int = 2) -> str:
    """'97.50 ± 0.31 (3)', with the sample standard deviation (n - 1); '97.50' for one value, '-' for none."""
    if not values:
        return NONE
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {deviation(values):.{digits}f} ({len(values)})"


class Paired(NamedTuple):
    """The mean of paired differences, with the bounds of its confidence interval, and the number of pairs."""

    mean: float
    low: float
    high: float
    pairs: int


def paired_difference(values: Mapping[Any, float], control: Mapping[Any, float]) -> Paired:
    """How two sets of values differ, paired by their keys: the mean, and Student's t interval of CONFIDENCE.

    The bounds are nan below ENOUGH_RUNS pairs; the mean is nan where there is no pair.
    """
    keys = [key for key in values if key in control]
    if not keys:
        return Paired(math.nan, math.nan, math.nan, 0)
    mean = statistics.fmean(values[key] - control[key] for key in keys)
    if len(keys) < ENOUGH_RUNS:
        return Paired(mean, math.nan, math.nan, len(keys))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # about equal differences, whose interval has no width
        test = scipy.stats.ttest_rel([values[key] for key in keys], [control[key] for key in keys])
    interval = test.confidence_interval(CONFIDENCE)
    return Paired(mean, float(interval.low), float(interval.high), len(keys))


def difference(runs: Runs, control: Runs | None, column: str = "last") -> str:
    """'+0.31 [-0.10, +0.72] (5)'; '+0.31 (2)' where pairs are too few for an interval, '-' where there is none."""
    if control is None:
        return NONE
    found = paired_difference(runs.values(column), control.values(column))
    if not found.pairs:
        return NONE
    if math.isnan(found.low):
        return f"{found.mean:+.2f} ({found.pairs})"
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}] ({found.pairs})"


def control_of(runs: Runs, others: Iterable[Runs]) -> Runs | None:
    """The same loss without its topology term: for TopKD, KD with the same alpha (KD-control).

    Teacher, schedule and all settings that have an effect in the control must be equal; a setting is empty where it has
    none, but an empty schedule is the published one. Of several, the one with the most seeds in common, and then the
    one that takes the teacher's outputs as the run does.
    """
    if not float(runs["delta"] or 0):
        return None

    def is_control(other: Runs) -> bool:
        if (other.pair, other.schedule) != (runs.pair, runs.schedule):
            return False
        if not other["delta"] or float(other["delta"]) != 0:
            return False
        settings = other.rows[0].keys() - MAY_DIFFER - TOPOLOGY - CACHE
        return all(other[name] in ("", runs[name]) for name in settings)

    seeds = runs.values("last").keys()
    controls = [other for other in others if is_control(other)]

    def closeness(other: Runs) -> tuple[int, bool]:
        return len(seeds & other.values("last").keys()), other["schedule"] == runs["schedule"]

    return max(controls, key=closeness, default=None)
