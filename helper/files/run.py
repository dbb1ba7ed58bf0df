"""A training run's folder, and what a run leaves behind when it ends: its log and one row of results.

Of several processes the first writes it, and the others are told what it found.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from distiller_zoo import distiller_dict

from .. import distributed
from ..errors import UserError
from ..settings import NOT_PART_OF_A_RUN, SECTIONS, defaults
from . import checkpoint, lock
from .atomic import csv_bytes, first_row, read_args, write_bytes, write_json
from .paths import ROWS, STUDENTS, TEACHERS, log_file, row_file
from .provenance import command, device_name, git_commit, versions

# Of an option that came later than a checkpoint, which then means its default.
DEFAULTS = {name: value for section in reversed(SECTIONS) for name, value in defaults(section).items()}


def write_args(folder: Path, options: dict[str, Any], commit: str, device: str) -> None:
    """Write args.json: the resolved options, and the command, which --config repeats."""
    about = {
        "command": command(options.get("trial")),
        "commit": commit,
        "versions": versions(options.get("dataset")),
        "device": device,
    }
    write_json(folder / "args.json", {"args": options, **about})


def with_later_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a student's checkpoint with those that its method got later, which then mean their defaults."""
    method, given = distiller_dict.get(str(options.get("distill"))), options.get("set")
    if method is None or not isinstance(given, list):
        return options
    values = dict(str(text).partition("=")[::2] for text in given)
    values = {name: values.get(name, str(default)) for name, default in method.options.items()} | values
    return options | {"set": [f"{name}={value}" for name, value in values.items()]}


# Columns of a row, and what they are the SHA-256 of.
INPUTS = {"teacher_sha256": "teacher", "topology_sha256": "RipsNet or spec of the images"}
FROM_CLOUDS = {"num_clouds", "sigma"}  # among the options of a fit, which has no such options
CONCLUDED = {"weights_source"}  # what follows from the other options, in words


def texts_in(value: Any) -> list[str]:
    """The texts in a list of a checkpoint; one of an earlier version may lack it."""
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


class Run:
    """A training run's folder. `start` makes it, or refuses to mix two runs in one folder.

    options: the resolved options as plain values, as `settings.plain` makes them.
    inputs: SHA-256 of what the run reads of earlier stages, by the columns of INPUTS; '' of what it does not read.
    """

    # Options that a resumed run may have otherwise, because whoever resumes it checks them.
    may_grow = frozenset({"epochs", "lr_decay_epochs"})

    def __init__(
        self,
        folder: Path,
        options: dict[str, Any],
        device: torch.device,
        resume: bool,
        inputs: Mapping[str, str] | None = None,
    ):
        self.folder, self.options, self.device, self.resume = Path(folder), options, device, resume
        self.inputs = {**dict.fromkeys(INPUTS, ""), **(inputs or {})}
        self.name = self.folder.name
        self.was_complete = False
        # Device, processes, versions and commit; several where a run was resumed with others, or with other threads.
        processes = str(distributed.world())
        about = {"device": device_name(device), "processes": processes, **versions(options.get("dataset"))}
        now = {**about, "commit": git_commit()}
        self.made_by = {name: [value] for name, value in now.items()}
        self._before: dict[str, list[str]] = {}  # those of the checkpoint

    @property
    def best(self) -> Path:
        return self.folder / "best.pth"

    @property
    def part_of_it(self) -> dict[str, Any]:
        """The options that change what the run computes."""
        return {name: value for name, value in self.options.items() if name not in NOT_PART_OF_A_RUN}

    def hold(self) -> None:
        """Lock the folder for this process; UserError where another one works in it."""
        distributed.on_first(self._hold)

    def _hold(self) -> None:
        if not self.folder.exists():
            self._check_name()
        lock.hold(self.folder, "--name" if self.options.get("name") else None)

    def ended(self, last_written: Path) -> bool:
        """Whether --resume has nothing to do, as the run has ended and its checkpoint was removed, or not published;
        says so. The folder is held.

        last_written: the file of a run that is written last, its row or quality.json.

        Raises:
            UserError: where it was a run of other options or inputs.
        """
        return distributed.on_first(self._ended, last_written)

    def _ended(self, last_written: Path) -> bool:
        has_checkpoint = any((self.folder / name).exists() for name in checkpoint.NAMES)
        files = self.best, self.folder / "args.json", self.folder / "log.csv", last_written
        if not self.resume or has_checkpoint or not all(path.is_file() for path in files):
            return False
        old = read_args(self.folder)
        self._check_options(old)
        if self._has_grown(old):
            return False  # it is to go on, but has no checkpoint
        if last_written.suffix == ".csv":
            row = first_row(last_written)
            if any(row.get(name) != str(self.options[name]) for name in ("epochs", "seed")):
                return False  # the row of another run of this name
            self._check_inputs(row)
        print(f"{self.name}: had ended before, as {last_written} says", flush=True)
        return True

    def start(self, fields: checkpoint.Fields) -> dict | None:
        """The checkpoint to continue from, its tensors on the CPU; None for a fresh run. Locks the folder, writes
        args.json of a fresh run."""
        self.hold()
        return distributed.on_first(self._start, fields)

    def _start(self, fields: checkpoint.Fields) -> dict | None:
        state = checkpoint.load_latest(self.folder, {**fields, "args": dict}, "a checkpoint of this run")
        if state is None:
            self._check_weights()
        if not self.resume and (state is not None or self.best.is_file()):
            raise UserError(f"{self.folder}: this run exists; continue it with --resume, {self._instead()}")
        if state is None:
            self._write_args()
            return None
        self._check_options(state["args"])
        self._check_inputs(state.get("inputs"))
        before = state.get("made_by", {"device": state.get("devices")})  # the latter in earlier versions
        for name, now in self.made_by.items():
            self._before[name] = texts_in(before.get(name)) if isinstance(before, dict) else []
            self.made_by[name] = [*(value for value in self._before[name] if value not in now), *now]
        if self._has_grown(state["args"]):
            self._write_args()
        return state

    def _has_grown(self, old: dict[str, Any]) -> bool:
        return any(self.options[name] != old.get(name) for name in self.may_grow & self.options.keys())

    def ended_before(self) -> None:
        """Say that the checkpoint is the run's last: what makes its row now has not trained it."""
        self.was_complete = True
        self.made_by = {name: self._before.get(name) or now for name, now in self.made_by.items()}

    def _write_args(self) -> None:
        write_args(self.folder, self.options, self.made_by["commit"][-1], self.made_by["device"][-1])

    def _check_weights(self) -> None:
        """Refuse to begin where there are weights, but no checkpoint: those of a run that has ended, or of a network
        from elsewhere. A run that was killed before its first checkpoint has left its options, and no log."""
        was_killed = (self.folder / "args.json").is_file() and not (self.folder / "log.csv").is_file()
        if self.best.is_file() and not was_killed:
            raise UserError(f"{self.best}: exists, without a last.pth to go on from; put that back, {self._instead()}")

    def _check_name(self) -> None:
        """Refuse the name of a teacher for a student and the reverse, as both would have one row."""
        for here, there in ((TEACHERS, STUDENTS), (STUDENTS, TEACHERS)):
            other = there / self.name
            if self.folder.parent == here and other.exists():
                raise UserError(
                    f"--name: found {self.name}, the name of {other}, whose row and log would be overwritten; give "
                    "another"
                )

    def _check_options(self, old: dict[str, Any]) -> None:
        """Refuse a checkpoint of other options."""
        new, old = self.part_of_it, with_later_options(old)
        known = [name for name in new if name not in CONCLUDED]
        differing = [name for name in known if old.get(name, DEFAULTS.get(name)) != new[name]]
        if differing := [name for name in differing if name not in self.may_grow]:
            changes = {name: f"{name} was {old.get(name)}, now {new[name]}" for name in differing}
            if FROM_CLOUDS & changes.keys():
                what = ", ".join(text for name, text in changes.items() if name in FROM_CLOUDS)
                raise UserError(
                    f"{self.folder}: --resume with other clouds ({what}); make them with generate_PCD_PI.py as before, "
                    f"{self._instead()}"
                )
            what = ", ".join(f"--{text}" for text in changes.values())
            raise UserError(
                f"{self.folder}: --resume with other options ({what}); give the old ones, {self._instead()}"
            )

    def _check_inputs(self, old: Any) -> None:
        """Refuse a checkpoint of another teacher, RipsNet or spec. One of an earlier version does not say with which
        RipsNet or spec it was trained, so neither will the row."""
        before = old if isinstance(old, dict) else {}
        if "topology_sha256" not in before:
            self.inputs.pop("topology_sha256", None)
        for name, found in self.inputs.items():
            if before.get(name, found) != found:
                was, now = str(before[name])[:12], found[:12]
                raise UserError(
                    f"{self.folder}: --resume with another {INPUTS[name]} ({name} was {was}, now {now}); put the old "
                    f"one back, {self._instead()}"
                )

    def _instead(self) -> str:
        if "trial" in self.options:
            return "choose another --trial or --name, or remove the folder"
        return "or remove the folder"

    def save(self, state: dict) -> None:
        state = {**state, "args": self.options, "inputs": self.inputs, "made_by": self.made_by}
        distributed.on_first(checkpoint.save, self.folder / "last.pth", state, True)

    def save_best(self, state: dict) -> None:
        distributed.on_first(checkpoint.save, self.best, state)

    def check_best(self, epochs: int) -> None:
        """UserError where the best weights of the epochs that are done are gone: a better epoch may never come."""
        distributed.on_first(self._check_best, epochs)

    def _check_best(self, epochs: int) -> None:
        if epochs and not self.best.is_file():
            raise UserError(
                f"{self.best}: missing, though {epochs} of its run's epochs are done; put it back, {self._instead()}"
            )

    def write_log(self, history: Sequence[dict]) -> None:
        """The whole log, from the rows that the checkpoint holds: after a kill the two cannot disagree."""
        distributed.on_first(write_bytes, self.folder / "log.csv", csv_bytes(history))

    def finish(self, history: Sequence[dict], row: dict[str, Any]) -> None:
        """Write the run's log and its one row of results, each whole; keep those of a run that had ended before."""
        distributed.on_first(self._finish, history, row)

    def _finish(self, history: Sequence[dict], row: dict[str, Any]) -> None:
        path = row_file(self.name)
        if self.was_complete and path.exists():
            print(f"{self.name}: had ended before; its row is {path}")
            return
        write_bytes(log_file(self.name), csv_bytes(history))
        about = {name: "; ".join(values) for name, values in self.made_by.items()}
        about["command"] = command(self.options.get("trial"))
        options = {name: value for name, value in self.part_of_it.items() if name not in row}
        write_bytes(ROWS / path.name, csv_bytes([{"run": self.name, **row, **self.inputs, **options, **about}]))
        print(
            f"{self.name}: last {row['last']:.2f} %, best {row['best']:.2f} % (epoch {row['best_epoch']}), "
            f"{row['seconds']:.0f} s; its row is {path}"
        )


def results_row(
    history: Sequence[dict],
    method: str,
    student: str,
    variant: str = "",
    schedule: str = "",
    teacher: str = "",
    teacher_acc: float | None = None,
    ripsnet_r2: float | None = None,
    first_stage: Sequence[dict] = (),
    without_effect: Sequence[str] = (),
) -> dict[str, Any]:
    """What a table needs of a finished run; accuracies are test accuracies in percent.

    method, variant, schedule: what distinguishes the run from others of the pair: the loss's name, where its settings
    depart from the method's and the pair's own, and where the schedule departs from the published one.
    first_stage: the log of a method's first stage, whose seconds count.
    without_effect: options to leave empty in the row, because they did nothing in this run.
    """
    accuracies = [row["test_acc"] for row in history]
    return {
        "method": method,
        "variant": variant,
        "schedule": schedule,
        "teacher": teacher,
        "student": student,
        "teacher_acc": teacher_acc,
        "best": max(accuracies),
        "best_epoch": accuracies.index(max(accuracies)) + 1,
        "last": accuracies[-1],
        "mean_last10": sum(accuracies[-10:]) / len(accuracies[-10:]),
        "ripsnet_r2": ripsnet_r2,
        "student_r2": history[-1].get("student_r2"),
        "seconds": round(sum(row["seconds"] for row in (*first_stage, *history)), 1),
        **dict.fromkeys(without_effect),
    }
