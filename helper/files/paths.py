"""Where files lie: the one place that builds an artefact's path.

All paths are relative to the current folder, which is the repository when the shell scripts run:

    save_t_models/<teacher run>/     last.pth best.pth previous.pth args.json log.csv and TensorBoard's events
      outputs_<data set>/            all outputs of that teacher, if --teacher_cache has asked for them
    save_s_models/<student run>/     the same
    ripsnet/<teacher run>/<set>/     clouds, diagrams, images, their spec and quality, the fitted RipsNets
    results/runs/<run>.csv           one row, when the run ends;  results/logs/<run>.csv  its log, a row an epoch
"""

from pathlib import Path

from ..settings import Clouds

ROOT = Path(__file__).resolve().parents[2]  # of the repository
TEACHERS = Path("save_t_models")
STUDENTS = Path("save_s_models")
RIPSNET = Path("ripsnet")
RESULTS = Path("results")
ROWS = RESULTS / "runs"
LOGS = RESULTS / "logs"


def teacher_run(path_t: str | Path) -> str:
    """The name of the run that a teacher's checkpoint belongs to: its folder (plus the file's name, unless `best`)."""
    path = Path(path_t).resolve()
    return path.parent.name if path.stem == "best" else f"{path.parent.name}_{path.stem}"


def clouds_folder(path_t: str | Path, clouds: Clouds) -> Path:
    """The folder of a teacher's clouds and images."""
    return RIPSNET / teacher_run(path_t) / clouds.folder_name


def outputs_folder(path_t: str | Path, dataset: str) -> Path:
    """The folder of all outputs of a teacher on a training set, beside its checkpoint."""
    path = Path(path_t)
    of_file = "" if path.stem == "best" else f"_{path.stem}"
    return path.parent / f"outputs_{dataset}{of_file}"


def spec_file(folder: Path, dim: int) -> Path:
    return folder / f"spec_dim{dim}.json"


def sample_file(folder: Path, dim: int) -> Path:
    return folder / f"sample_dim{dim}.npz"


def quality_file(folder: Path, dim: int) -> Path:
    """Written last: where it is, the set is complete."""
    return folder / f"quality_dim{dim}.json"


def row_file(run: str) -> Path:
    return ROWS / f"{run}.csv"


def log_file(run: str) -> Path:
    return LOGS / f"{run}.csv"
