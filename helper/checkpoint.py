"""Checkpoints: plain dicts of tensors and Python values, written whole or not at all, loaded without unpickling code.

A run keeps `last.pth` (resumes exactly), `previous.pth` (the one before, used when `last.pth` is damaged) and
`best.pth` (weights of the best test accuracy). A file is written to a temporary name, flushed to the disk and renamed,
so a kill or a full disk at any moment leaves the last good file in place.
"""

import contextlib
import hashlib
import io
import json
import os
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dataset import dataset_dict
from models import create_model, resolve_name

from .methods import load_replaced
from .options import RunStopped, UserError

# The authors' files hold one NumPy scalar, pickled under the module path it had in NumPy 1.
SAFE_GLOBALS = [
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float64DType,
]


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. A failed write raises RunStopped and leaves an existing file as it was."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError) -> RunStopped:
    return RunStopped(
        f"cannot write {path}: {error.strerror}; what was saved before is intact: make room, then run the same command "
        "again (a training run with --resume)"
    )


def write_json(path: Path, value) -> None:
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); remove it to have it made again") from None


def write_array(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_bytes(path, buffer.getvalue())


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    """The arrays as a compressed .npz file; equal arrays make equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def save(path: Path, state: dict, keep_previous: bool = False) -> None:
    """Save a dict of tensors and plain Python values; with keep_previous, an existing file becomes `previous.pth`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    staged = path.with_name(f"{path.stem}.new") if keep_previous else path
    write_bytes(staged, buffer.getvalue())
    if keep_previous:
        if path.exists():
            os.replace(path, path.with_name("previous.pth"))
        os.replace(staged, path)


def load(path: Path, device="cpu") -> dict:
    """Load a file written by `save`, or a foreign one of tensors and plain values. Raises UserError if that fails.

    The zip archive's checksums are verified first, since PyTorch itself does not notice a flipped bit.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'a folder, expected a checkpoint in it' if path.is_dir() else 'no such file'}")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise UserError(f"{path}: damaged (checksum of {damaged}); copy or make it again")
        with torch.serialization.safe_globals(SAFE_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles; what cannot be read is reported below
            return torch.load(path, map_location=device, weights_only=True)
    except UserError:
        raise
    except Exception as error:  # torch.load raises many kinds for a file that is truncated, foreign or unsafe
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: not a readable checkpoint of tensors and plain values ({reason})") from None


def load_latest(folder: Path, device="cpu") -> dict | None:
    """The newest good checkpoint of a run: `last.pth`, else `previous.pth`, else None where there is neither."""
    last, staged = folder / "last.pth", folder / "last.new"
    if staged.exists() and not last.exists():  # killed between the last two renames of `save`
        os.replace(staged, last)
    failures = []
    for name in ("last.pth", "previous.pth"):
        if (folder / name).exists():
            try:
                state = load(folder / name, device)
            except UserError as error:
                failures.append(str(error))
                continue
            if failures:
                print(f"{failures[0]}: using {folder / name} instead", flush=True)
            return state
    if failures:
        raise UserError(f"{failures[0]}, and there is no earlier good one; remove {folder} to start again")
    return None


def weights_sha256(state_dict: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes and bytes of the weights: the same for a file that was repackaged or stripped."""
    digest = hashlib.sha256()
    for key in sorted(state_dict):
        tensor = state_dict[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass
class Network:
    """A network read from a file, in eval mode, with what the file says of it."""

    model: nn.Module
    arch: str
    num_classes: int
    sha256: str
    accuracy: float | None  # top-1 in percent, None where the file does not say
    dataset: str | None
    epoch: int | None  # epochs of training behind the weights


def state_dict_of(content, path) -> dict[str, Tensor]:
    """The weights in a checkpoint of ours, of RepDistiller-style code bases, of the authors, or a bare state dict."""
    weights = content.get("model", content.get("state_dict", content)) if isinstance(content, dict) else None
    named = isinstance(weights, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items())
    if not named or not weights:
        raise UserError(f"{path}: no weights found; expected a state dict, or a dict that holds one under 'model'")
    return {key.removeprefix("module."): value for key, value in weights.items()}


def load_network(path, arch: str | None, option: str, device="cpu", dataset: str | None = None) -> Network:
    """Read a network from a checkpoint of any of the known kinds.

    arch: the architecture the user gave, None to take the file's. option: the option that gives it, for the message.
    dataset: what --dataset names; a file that names another, or has another number of classes, is refused.
    """
    content = load(path)
    state_dict = state_dict_of(content, path)
    found = content.get("arch")
    if found is None and arch is None:
        raise UserError(f"{path}: the file does not name its architecture; give it with {option}")
    try:
        found = None if found is None else resolve_name(found)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if None not in (found, arch) and found != arch:
        raise UserError(f"{option}: found {arch}, but {path} holds a {found}")
    arch = arch or found
    if None not in (dataset, content.get("dataset")) and content["dataset"] != dataset:
        raise UserError(f"{path}: trained on {content['dataset']}, found --dataset {dataset}; give the same")
    replaced = content.get("replaced")
    with torch.device("meta"):  # names and shapes only
        head = "classifier.bias" if replaced else list(create_model(arch).state_dict())[-1]
    classes = state_dict[head].shape[0] if head in state_dict else 0
    model = create_model(arch, max(1, classes))
    if replaced:
        model = load_replaced(replaced, model, max(1, classes), dataset_dict[content["dataset"]].image_size)
    expected = model.state_dict()
    wrong = [key for key in expected if key not in state_dict or state_dict[key].shape != expected[key].shape]
    wrong += [key for key in state_dict if key not in expected]
    if wrong:
        raise UserError(
            f"{path}: the weights do not fit {arch} ({len(wrong)} names or shapes differ, first '{wrong[0]}'); "
            f"check {option}"
        )
    if dataset is not None and classes != (wanted := dataset_dict[dataset].num_classes):
        raise UserError(f"{path}: a network for {classes} classes, but --dataset has {wanted}")
    model.load_state_dict(state_dict)
    accuracy = content.get("accuracy", content.get("best_acc"))
    return Network(
        model=model.eval().to(device, memory_format=torch.channels_last),
        arch=arch,
        num_classes=classes,
        sha256=weights_sha256(state_dict),
        accuracy=None if accuracy is None else float(accuracy),
        dataset=content.get("dataset"),
        # The epoch of a resumable checkpoint is the one to go on with.
        epoch=len(content["history"]) if "history" in content else content.get("epoch"),
    )
