"""What a run is, for those who compare runs: it stands in the run's row of results, or in the options that its folder
holds. Names of runs are shown, not read.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..files.atomic import first_row, read_args
from ..files.paths import LOGS, ROWS, row_file
from ..settings import NOT_PART_OF_A_RUN

# What a run is known by in its row, whichever repetition it is: of a pair with one teacher, the loss, where it and the
# clouds depart from its own settings, and where training does.
IDENTITY = ("dataset", "teacher", "student", "teacher_sha256", "method", "variant", "schedule")
REPETITION = ("trial", "seed")
LONGEST = 100  # characters of the losses, and of the trials, in a file's name


@dataclass(frozen=True)
class Identity:
    """What a run is known by.

    name: of the run. key: equal for the repetitions of a run, and for them alone.
    topology: SHA-256 of its RipsNet or spec; '' where it has none, or its row does not say. trial: its number, as text.
    pair: 'resnet20-resnet8_cifar100', of a network trained alone 'resnet20_cifar100'. loss: the method's name, and
    where its settings depart from its own. schedule: where training departs from the published one. Trial and the
    three are empty where the run has no row.
    """

    name: str
    key: tuple
    pair: str = ""
    loss: str = ""
    schedule: str = ""
    alone: bool = False
    topology: str = ""
    trial: str = ""

    @classmethod
    def of_row(cls, name: str, row: dict[str, str]) -> "Identity":
        networks = "-".join(part for part in (row["teacher"], row["student"]) if part)
        return cls(
            name,
            (*(row[column] for column in IDENTITY), row.get("processes") or "1"),
            pair=f"{networks}_{row['dataset']}",
            loss=f"{row['method']} {row['variant']}".rstrip(),
            schedule=row["schedule"],
            alone=not row["teacher"],
            topology=row.get("topology_sha256") or "",
            trial=row.get("trial") or "",
        )

    @classmethod
    def of_options(cls, name: str, options: dict[str, Any]) -> "Identity":
        """Of a run that has not ended: the options in its folder, less those of the repetition."""
        others = NOT_PART_OF_A_RUN.union(REPETITION)
        return cls(name, tuple(sorted((key, repr(value)) for key, value in options.items() if key not in others)))

    @property
    def text(self) -> str:
        """All of it, as it is shown."""
        parts = [part for part in (self.pair, self.loss, self.schedule) if part]
        return " ".join(parts) or self.name


def identity(name: str, row: Path, folder: Path | None) -> Identity:
    """The identity of a run. row: where its row would be; folder: its folder, where one is at hand.

    A row of an earlier version, without the columns of IDENTITY, and a run without a row or options, are known by their
    names.
    """
    if row.is_file():
        found = first_row(row)
        if all(found.get(column) is not None for column in IDENTITY):
            return Identity.of_row(name, found)
    elif folder is not None and (folder / "args.json").is_file():
        return Identity.of_options(name, read_args(folder))
    return Identity(name, (name,))


def of_network(path: Path) -> Identity:
    """Of the run that a checkpoint or a folder belongs to."""
    name = run_of(path)
    return identity(name, row_file(name), path if path.is_dir() else path.parent)


def of_log(path: Path) -> Identity:
    """Of a run's log: in the run's folder, or in a folder `logs` beside a folder `runs` with the rows."""
    name, folder = run_of(path), path.resolve().parent
    if path.name == "log.csv":
        return identity(name, row_file(name), folder)
    if folder.name == LOGS.name:
        return identity(name, folder.parent / ROWS.name / path.name, None)
    return identity(name, row_file(name), None)


@dataclass(frozen=True)
class Names:
    """How a figure names several runs: a title for what they share, and a label for each that distinguishes it."""

    title: str
    labels: list[str]


def distinguish(runs: Sequence[Identity]) -> Names:
    """Names for runs that differ in their keys."""
    title, labels = "training", [run.text for run in runs]
    if runs[0].pair and all(run.pair == runs[0].pair for run in runs):
        title = runs[0].pair
        if any(run.schedule != runs[0].schedule for run in runs):
            labels = [f"{run.loss} {run.schedule}".rstrip() for run in runs]
        else:
            labels = [run.loss for run in runs]
            if runs[0].schedule:
                title = f"{title} ({runs[0].schedule})"
    # Such as students of two teachers of one architecture.
    repeated = {text for text in labels if labels.count(text) > 1}
    labels = [f"{text} ({run.name})" if text in repeated else text for text, run in zip(labels, runs, strict=True)]
    return Names(title, labels)


def several(runs: Sequence[Identity]) -> str:
    """A file's name for one run or several: the run's; else their pair, their losses, the schedule if they share it and
    the trials, unless that is trial 1 alone, which follow each loss where they differ; of several pairs, the first and
    how many more."""
    first = runs[0]
    if len(runs) == 1:
        return first.name
    if not first.pair or any(run.pair != first.pair for run in runs):
        return f"{first.name}_and_{len(runs) - 1}_more"
    losses = dict.fromkeys(run.loss for run in runs)
    trials = {loss: trials_text(run.trial for run in runs if run.loss == loss) for loss in losses}
    shared = len(set(trials.values())) == 1
    text = "_".join(losses if shared else (f"{loss}_{of_it}".rstrip("_") for loss, of_it in trials.items()))
    parts = [first.pair, text if len(text) <= LONGEST else f"{len(losses)}_losses"]
    if all(run.schedule == first.schedule for run in runs):
        parts.append(first.schedule)
    if shared:
        parts.append(trials[first.loss])
    return "_".join(part for part in parts if part).replace(" ", "_")


def trials_text(trials: Iterable[str]) -> str:
    """'trial1-2', each number once; '' for trial 1 alone, or where no number is known."""
    text = "-".join(dict.fromkeys(filter(None, trials)))
    if text in ("", "1"):
        return ""
    return f"trial{text}" if len(text) <= LONGEST else f"{text.count('-') + 1}_trials"


def run_of(path: Path) -> str:
    """The name of the run that a checkpoint, a log or a folder belongs to."""
    path = path.resolve()
    inside = path.suffix == ".pth" or path.name == "log.csv"
    return path.parent.name if inside else path.name.removesuffix(".csv")


def logs_in(path: Path) -> list[Path]:
    """The logs that a path names: a log, the folder of a run, or a folder of logs."""
    if path.is_file():
        return [path]
    if (path / "log.csv").is_file():
        return [path / "log.csv"]
    found = sorted(path.glob("*.csv"))
    if not found:
        raise UserError(f"{path}: no log there; expected a log, the folder of a run, or one of logs, as results/logs")
    return found


class Log(NamedTuple):
    run: Identity
    file: Path


def find_logs(paths: Sequence[Path]) -> list[list[Log]]:
    """The logs that paths name; the repetitions of a run are brought together."""
    found: dict[str, Path] = {}
    for file in (file for path in paths for file in logs_in(path)):
        if (name := run_of(file)) in found:
            raise UserError(f"{file}: the run {name} is duplicated, also in {found[name]}; give one of them")
        found[name] = file
    groups: dict[tuple, list[Log]] = {}
    topologies: dict[tuple, dict[str, Path]] = {}
    for file in found.values():
        run = of_log(file)
        groups.setdefault(run.key, []).append(Log(run, file))
        if run.topology:
            topologies.setdefault(run.key, {})[run.topology] = file
    for files in topologies.values():
        if len(files) > 1:
            raise UserError(
                f"{', '.join(map(str, files.values()))}: no repetitions of one run, as their RipsNets or specs differ "
                "(topology_sha256); give some of them"
            )
    return list(groups.values())
