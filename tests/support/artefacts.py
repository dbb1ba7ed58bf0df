"""What runs leave behind, in a form that can be compared."""

import csv
import hashlib
import json

import torch

from helper.files import checkpoint

NOT_COMPARED = {"seconds", "images_per_s", "resume", "commit"}  # the repository may be worked on while the tests run


def comparable(value):
    """A checkpoint's content, tensors as bytes (so that nan equals nan), without what may differ."""
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items() if key not in NOT_COMPARED}
    if isinstance(value, list | tuple):
        return [comparable(item) for item in value]
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    return value


def content(path):
    if path.suffix == ".pth":
        return comparable(checkpoint.load(path))
    if path.suffix == ".csv":
        return [comparable(row) for row in csv.DictReader(path.read_text().splitlines())]
    if path.name in ("args.json", "quality.json"):
        return comparable(json.loads(path.read_text()))
    return path.read_bytes()


def artefacts(folder):
    """All that a run leaves behind; `previous.pth` depends on when the run was interrupted."""
    paths = (path for suffix in ("pth", "csv", "json", "npy") for path in sorted(folder.rglob(f"*.{suffix}")))
    return {str(path.relative_to(folder)): content(path) for path in paths if path.name != "previous.pth"}


def hashes(folder):
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and "tfevents" not in path.name and not path.name.startswith(".lock")
    }
