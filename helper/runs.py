"""Where files lie, and what a run leaves behind: the one place that builds an artefact's path.

All paths are relative to the current folder, which is the repository when the shell scripts run:

    save_t_models/<teacher run>/     last.pth best.pth previous.pth args.json log.csv and TensorBoard's events
    save_s_models/<student run>/     the same
    ripsnet/<teacher run>/<set>/     clouds, diagrams, images, their spec and quality, the fitted RipsNets
    results/runs/<run>.csv           one row, when the run ends;  results/logs/<run>.csv  its log, a row an epoch
"""

import csv
import importlib.metadata
import io
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from . import checkpoint
from .options import UserError, unusual_images

TEACHERS = Path("save_t_models")
STUDENTS = Path("save_s_models")
RIPSNET = Path("ripsnet")
RESULTS = Path("results")

# Options that do not change what a run computes, and may differ when it is resumed.
NOT_PART_OF_A_RUN = {"resume", "device", "data_dir", "name"}
TIME_COLUMNS = ("seconds", "images_per_s")


def teacher_run(path_t) -> str:
    """The name of the run that a teacher's checkpoint belongs to: its folder (plus the file's name, unless `best`)."""
    path = Path(path_t).resolve()
    return path.parent.name if path.stem == "best" else f"{path.parent.name}_{path.stem}"


def clouds_folder(args) -> Path:
    """The folder of the clouds that --path_t, --tda_layer_t, --batch_size, --pcd_bn and --sigma_rule name, and of
    their images, which --resolution and --range name where they are not the usual ones."""
    kind = f"layer{args.tda_layer_t}_n{args.batch_size}_{args.pcd_bn}_{args.sigma_rule}"
    return RIPSNET / teacher_run(args.path_t) / "_".join([kind, *unusual_images(args)])


def spec_file(folder: Path, dim: int) -> Path:
    return folder / f"spec_dim{dim}.json"


def sample_file(folder: Path, dim: int) -> Path:
    return folder / f"sample_dim{dim}.npz"


def quality_file(folder: Path, dim: int) -> Path:
    """Written last: where it is, the set is complete."""
    return folder / f"quality_dim{dim}.json"


def ripsnet_folder(folder: Path, dim: int, operator: str, clouds: int | None = None) -> Path:
    """Where stage 3 trains the RipsNet of one homology dimension; the fitted network is `best.pth` in it.

    clouds: --ripsnet_clouds, None for all."""
    return folder / (f"ripsnet_dim{dim}_{operator}" + (f"_clouds{clouds}" if clouds else ""))


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that numbers depend on, without importing them."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("torchvision", "numpy", "gudhi"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def git_commit() -> str:
    """The repository's commit, with '+' where files differ from it; 'unknown' outside git."""
    here = Path(__file__).resolve().parent.parent
    try:

        def ask(*command):
            return subprocess.run(
                ["git", *command], cwd=here, capture_output=True, text=True, check=True
            ).stdout.strip()

        return ask("rev-parse", "--short=12", "HEAD") + "+" * bool(ask("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return f"{line.split(':', 1)[1].strip()} ({torch.get_num_threads()} threads)"
    return f"{platform.processor() or platform.machine()} ({torch.get_num_threads()} threads)"


def command() -> str:
    """The command that makes the run from its beginning, which is the same whether it was resumed or not."""
    options = [option for option in sys.argv[1:] if option != "--resume"]
    return shlex.join(["python", os.path.basename(sys.argv[0]), *options])


def plain(args) -> dict:
    """The resolved options as plain Python values."""
    return {key: str(value) if isinstance(value, torch.device) else value for key, value in vars(args).items()}


class Run:
    """A training run's folder. `start` makes it, or refuses to mix two runs in one folder."""

    def __init__(self, folder: Path, args):
        self.folder, self.args, self.device = Path(folder), plain(args), args.device
        self.name = self.folder.name
        self.commit = git_commit()
        self.was_complete = False

    @property
    def best(self) -> Path:
        return self.folder / "best.pth"

    def start(self) -> dict | None:
        """The checkpoint to continue from, None for a fresh run. Writes args.json of a fresh run."""
        state = checkpoint.load_latest(self.folder, self.device)
        if state is None:
            checkpoint.write_json(
                self.folder / "args.json",
                {
                    "args": self.args,
                    "command": command(),
                    "commit": self.commit,
                    "versions": versions(),
                    "device": device_name(self.device),
                },
            )
            return None
        if not self.args["resume"]:
            raise UserError(f"{self.folder}: this run exists; continue it with --resume, {self._instead()}")
        old, new = (self._identity(args) for args in (state["args"], self.args))
        if differing := [key for key in new if old.get(key) != new[key]]:
            what = ", ".join(f"--{key} was {old.get(key)}, now {new[key]}" for key in differing)
            raise UserError(
                f"{self.folder}: --resume with other options ({what}); give the old ones, {self._instead()}"
            )
        self.was_complete = state["epoch"] > self.args["epochs"]
        return state

    def _instead(self) -> str:
        return "choose another --trial or --name, " * ("trial" in self.args) + "or remove the folder"

    @staticmethod
    def _identity(args: dict) -> dict:
        return {key: value for key, value in args.items() if key not in NOT_PART_OF_A_RUN}

    def save(self, state: dict) -> None:
        checkpoint.save(self.folder / "last.pth", {**state, "args": self.args}, keep_previous=True)

    def write_log(self, history: list[dict]) -> None:
        """The whole log, from the rows that the checkpoint holds: after a kill the two cannot disagree."""
        checkpoint.write_bytes(self.folder / "log.csv", table(history))

    def finish(self, history: list[dict], row: dict) -> None:
        """Write the run's log and its one row of results, each whole; keep those of a run that had ended before."""
        path = RESULTS / "runs" / f"{self.name}.csv"
        if self.was_complete and path.exists():
            print(f"{self.name}: had ended before; its row is {path}")
            return
        checkpoint.write_bytes(RESULTS / "logs" / path.name, table(history))
        options = {key: value for key, value in self.args.items() if key not in NOT_PART_OF_A_RUN}
        checkpoint.write_bytes(
            path,
            table(
                [
                    {
                        "run": self.name,
                        **row,
                        **{name: value for name, value in options.items() if name not in row},
                        "device": device_name(self.device),
                        **versions(),
                        "commit": self.commit,
                        "command": command(),
                    }
                ]
            ),
        )
        print(
            f"{self.name}: last {row['last']:.2f} %, best {row['best']:.2f} % (epoch {row['best_epoch']}), "
            f"{row['seconds']:.0f} s; its row is {path}"
        )


def results_row(
    history: list[dict],
    method: str,
    student: str,
    teacher: str = "",
    teacher_acc: float | None = None,
    teacher_sha256: str = "",
    ripsnet_r2: float | None = None,
    first_stage: list[dict] = (),
    without_effect: tuple[str, ...] = (),
) -> dict:
    """What a table needs of a finished run; accuracies are test accuracies in percent.

    first_stage: the log of a method's first stage, whose seconds count.
    without_effect: options to leave empty in the row, because they did nothing in this run.
    """
    accuracies = [row["test_acc"] for row in history]
    return {
        "method": method,
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
        "teacher_sha256": teacher_sha256,
        **dict.fromkeys(without_effect),
    }


def table(rows: list[dict]) -> bytes:
    """CSV of the rows; columns in the order of their first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
