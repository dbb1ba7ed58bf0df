"""Finished runs and published accuracies: their rows are read, checked, grouped and compared.

Rows of one run name without its `_trial<n>` are repetitions of one run (`Runs`): they must agree in every setting but
the seed, or nothing is averaged.
"""

import csv
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import scipy.stats

from .options import UserError

# What may differ between repetitions: what was measured, which repetition it is, where it ran, and where the weights
# are said to come from. The teacher itself is known by teacher_sha256, wherever its file lies.
MEASURED = {"best", "best_epoch", "last", "mean_last10", "ripsnet_r2", "student_r2", "seconds", "teacher_acc"}
REPETITION = {"run", "trial", "seed"}
PLACE = {"path_t", "device", "python", "torch", "torchvision", "numpy", "gudhi", "commit", "command", "weights_source"}
MAY_DIFFER = MEASURED | REPETITION | PLACE | {"file"}
# What the control lacks beside the options that its row leaves empty: the topology term.
TOPOLOGY = {"method", "delta"}

REQUIRED = {"run", "method", "teacher", "student", "teacher_sha256", "dataset", "seed", "epochs", "best", "last"}
NUMBERS = MEASURED | {"epochs", "delta"}
PUBLISHED_COLUMNS = ["dataset", "group", "method", "teacher", "student", "top1", "std", "epoch", "source", "note"]
EPOCHS = {"last": "last epoch", "best": "best test epoch", "unknown": "not stated"}

ENOUGH_RUNS = 3
PUBLISHED_EPOCHS = 240  # CIFAR-10 and CIFAR-100
CONFIDENCE = 0.95
FEW, SHORT, ASSUMED = "*", "†", "‡"
LEGEND = {
    FEW: f"fewer than {ENOUGH_RUNS} runs (no interval)",
    SHORT: f"schedule shorter than the published {PUBLISHED_EPOCHS} epochs",
    ASSUMED: "assumed weights of the loss (not published for this pair, or set by hand)",
}
NONE = "-"


@dataclass(frozen=True)
class Runs:
    """Repetitions of one run with different seeds. stem: their name without `_trial<n>`."""

    stem: str
    rows: list[dict]

    def __getitem__(self, column: str) -> str:
        """A setting, which all rows share; '' where it has no effect."""
        return self.rows[0].get(column) or ""

    def values(self, column: str) -> dict[str, float]:
        """What was measured, by seed; a run that did not measure it is left out."""
        return {row["seed"]: float(row[column]) for row in self.rows if row.get(column)}

    @property
    def pair(self) -> tuple[str, ...]:
        """(data set, teacher, student)."""
        return self["dataset"], self["teacher"], self["student"]

    @property
    def name(self) -> str:
        """The method; of a network trained alone, the network."""
        return self["method"] if self["teacher"] else self["student"]

    @property
    def label(self) -> str:
        """The name and, from the run's name, what departs from its own settings."""
        dataset, teacher, student = self.pair
        usual = f"{teacher}-{student}_{dataset}_{self.name}" if teacher else f"{student}_{dataset}"
        departures = self.stem.removeprefix(usual)
        if self.stem.startswith(usual) and departures[:1] in ("", "_"):
            return self.name + departures.replace("_", " ")
        return f"{self.name} ({self.stem})"

    @property
    def departs(self) -> bool:
        """Whether more than a shortened schedule (`_e<epochs>`) sets it apart from the method's own settings."""
        return self.label not in (self.name, f"{self.name} e{self['epochs']}")

    @property
    def marks(self) -> str:
        sources = [row["weights_source"] for row in self.rows if row.get("weights_source")]
        return (
            FEW * (len(self.rows) < ENOUGH_RUNS)
            + SHORT * (self["dataset"].startswith("cifar") and float(self["epochs"]) < PUBLISHED_EPOCHS)
            + ASSUMED * (self["method"] != "CE" and not all(source.startswith("published") for source in sources))
        )


# Reading


def read_csv(path: Path) -> list[dict]:
    """The rows of a CSV file; UserError if it is none, or if its rows and its heading differ in length."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not readable as CSV ({error}); copy it again or remove it") from None
    if any(None in row or None in row.values() for row in rows):
        raise UserError(f"{path}: damaged, a row and the heading differ in length; copy it again or remove it")
    return rows


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def is_accuracy(text: str) -> bool:
    return is_number(text) and 0 <= float(text) <= 100


def read_runs(folder: Path) -> list[dict]:
    """The rows of all files in a folder, one a file; 'file' is added. UserError for a foreign or damaged file."""
    rows = []
    for path in sorted(folder.glob("*.csv")):
        found = read_csv(path)
        if len(found) != 1 or not REQUIRED <= found[0].keys():
            raise UserError(
                f"{path}: {len(found)} rows, expected one row of a finished run, with the columns of results/runs; "
                "remove the file"
            )
        row = found[0]
        bad = [name for name in sorted(NUMBERS & row.keys()) if row[name] and not is_number(row[name])]
        bad += [name for name in ("best", "last") if not is_accuracy(row[name])]
        if bad := bad or ["epochs"] * (not row["epochs"]):
            raise UserError(f"{path}: {bad[0]} is '{row[bad[0]]}', expected a number; copy the file again or remove it")
        rows.append(row | {"file": path.name})
    return rows


def read_published(path: Path) -> list[dict]:
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


def grouped(items, key) -> dict:
    """The items by their key, in the order of first appearance."""
    groups = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def repetitions(rows: list[dict]) -> dict[str, Runs]:
    """The runs by stem. UserError for rows of one stem that differ in a setting, or that repeat a seed."""
    stems = grouped(sorted(rows, key=lambda row: row["file"]), lambda row: re.sub(r"_trial\d+$", "", row["run"]))
    return {stem: check_repetitions(Runs(stem, found)) for stem, found in sorted(stems.items())}


def check_repetitions(runs: Runs) -> Runs:
    rows = runs.rows
    values = {
        name: list(dict.fromkeys((row.get(name) or "nothing")[:40] for row in rows))
        for name in sorted(set().union(*rows) - MAY_DIFFER)
    }
    if differing := [f"{name} is {' and '.join(found)}" for name, found in values.items() if len(found) > 1]:
        what = "; ".join(differing)
    elif len({row["seed"] for row in rows}) < len(rows):
        what = "a seed comes twice"
    else:
        return runs
    files = ", ".join(row["file"] for row in rows)
    raise UserError(f"{files}: no repetitions of one run ({what}); move those that do not belong out of the folder")


# Statistics


def summary(values: Sequence[float], digits: int = 2) -> str:
    """'97.50 ± 0.31 (3)', with the sample standard deviation (n - 1); '97.50' for one value, '-' for none."""
    if not values:
        return NONE
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f} ({len(values)})"


def paired_difference(values: dict, control: dict) -> tuple[float, float, int]:
    """(mean difference, half width of its confidence interval, pairs) of two sets of values, paired by their keys.

    Student's t on the differences: half width = t(n - 1) * s / sqrt(n), with s their sample standard deviation; nan
    below ENOUGH_RUNS pairs. The mean is nan where there is no pair.
    """
    differences = [value - control[key] for key, value in values.items() if key in control]
    n = len(differences)
    mean = statistics.fmean(differences) if n else math.nan
    if n < ENOUGH_RUNS:
        return mean, math.nan, n
    quantile = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)
    return mean, float(quantile) * statistics.stdev(differences) / math.sqrt(n), n


def difference(runs: Runs, control: Runs | None, column: str = "last") -> str:
    """'+0.31 [-0.10, +0.72] (5)'; '+0.31 (2)' where pairs are too few for an interval, '-' where there is none."""
    mean, half, n = paired_difference(runs.values(column), control.values(column) if control else {})
    if not n:
        return NONE
    interval = "" if math.isnan(half) else f" [{mean - half:+.2f}, {mean + half:+.2f}]"
    return f"{mean:+.2f}{interval} ({n})"


def control_of(runs: Runs, others: Sequence[Runs]) -> Runs | None:
    """The same loss without its topology term: for TopKD, KD with the same alpha (KD-control).

    Teacher, schedule and all settings that have an effect in the control must be equal. Of several, the one with the
    most seeds in common.
    """
    if not float(runs["delta"] or 0):
        return None

    def is_control(other: Runs) -> bool:
        settings = other.rows[0].keys() - MAY_DIFFER - TOPOLOGY
        without = other["delta"] and float(other["delta"]) == 0
        return bool(without) and all(other[name] in ("", runs[name]) for name in settings)

    seeds = runs.values("last").keys()
    found = [other for other in others if is_control(other)]
    return max(found, key=lambda other: len(seeds & other.values("last").keys()), default=None)
