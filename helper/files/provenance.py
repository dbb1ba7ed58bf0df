"""What a run's numbers depend on beside its options: versions, commit, device and the command itself."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from dataset import dataset_dict, decoder_name

from .paths import ROOT


def versions(dataset: str | None = None) -> dict[str, str]:
    """Versions of Python and of the libraries that numbers depend on, without importing them; with a data set of image
    files also of their decoder."""
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for package in ("torchvision", "numpy", "gudhi"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    if dataset in dataset_dict and dataset_dict[dataset].open is not None:
        found["decoder"] = decoder_name()
    return found


def git_commit() -> str:
    """The repository's commit, with '+' where files other than results differ from it. Outside git, as in a copy of its
    files, what the variable TOPKD_COMMIT says; 'unknown' where it says nothing."""

    def ask(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = ask("rev-parse", "--short=12", "HEAD")
        changed = ask("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("TOPKD_COMMIT") or "unknown"
    return f"{commit}+" if changed else commit


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    return f"{name} ({torch.get_num_threads()} threads)"


def command(trial: int | None = None) -> str:
    """The command that makes the run from its beginning, which is the same whether it was resumed or not. trial: the
    run's own, in place of the numbers of several."""
    options = [option for option in sys.argv[1:] if option != "--resume"]
    if trial is not None and "--trial" in options:
        first = last = options.index("--trial") + 1
        while last < len(options) and options[last].isdecimal():
            last += 1
        options[first:last] = [str(trial)]
    return shlex.join(["python", os.path.basename(sys.argv[0]), *options])
