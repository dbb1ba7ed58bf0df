"""Checkpoints: plain dicts of tensors and Python values, loaded without unpickling code.

A run keeps `last.pth` (resumes exactly), `previous.pth` (the one before, used when `last.pth` is damaged) and
`best.pth` (weights of the best test accuracy).
"""

import argparse
import contextlib
import hashlib
import io
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from torch import Tensor

from ..errors import UserError
from .atomic import cannot_write, write_bytes

# Beside tensors, files of RepDistiller-style code bases and of TopKD's authors hold their options as a Namespace and
# accuracies as NumPy scalars, which NumPy 1 pickled under another module path.
SAFE_GLOBALS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    (scalar, "numpy.core.multiarray.scalar"),
    (scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "bool")),
]
NAMES = ("last.pth", "last.new", "previous.pth")  # of a run's checkpoints; last.new while `save` renames the others
Fields = Mapping[str, type | tuple[type, ...]]
# What loading a state raises that is none of the object that loads it.
MISFITS = (AttributeError, KeyError, RuntimeError, TypeError, ValueError)


def save(path: Path, state: dict, keep_previous: bool = False, option: str | None = None) -> None:
    """Save a dict of tensors and plain Python values; with keep_previous, an existing file becomes `previous.pth`.

    option: the option that named the path, if one did, as for `write_bytes`.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    staged = path.with_name(f"{path.stem}.new") if keep_previous else path
    write_bytes(staged, buffer.getvalue(), option)
    if keep_previous:
        if path.exists():
            rename(path, path.with_name("previous.pth"))
        rename(staged, path)


def rename(old: Path, new: Path) -> None:
    try:
        os.replace(old, new)
    except OSError as error:
        raise cannot_write(new, error) from None


def load(path: str | Path) -> Any:
    """Load a file written by `save`, or a foreign one of tensors and plain values, onto the CPU. Raises UserError if
    that fails.

    The zip archive's checksums are verified first, since PyTorch itself does not notice a flipped bit.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise UserError(f"{path}: a folder, expected a checkpoint in it")
    if not os.path.isfile(path):  # False too for a name that is too long, where pathlib raises an error
        raise UserError(f"{path}: no such file")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise UserError(f"{path}: damaged (checksum of {damaged}); copy it again or regenerate it")
        with torch.serialization.safe_globals(SAFE_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles; what cannot be read is reported below
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: not readable ({error.strerror})") from None
    except Exception as error:  # torch.load raises many kinds for a file that is truncated, foreign or unsafe
        if names := _objects_in(path, str(error)):
            raise UserError(
                f"{path}: holds {', '.join(names)}, which is not run; save its state_dict instead"
            ) from None
        raise UserError(
            f"{path}: not a checkpoint, or a damaged one; expected a file of tensors and plain values written by "
            "torch.save"
        ) from None


def _objects_in(path: Path, message: str) -> list[str]:
    """The names of the classes and functions in a file that are not safe to load."""
    found: set[str] = set()
    with contextlib.suppress(Exception), torch.serialization.safe_globals(SAFE_GLOBALS):
        found.update(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    if not found:  # a file in the format from before PyTorch 1.6
        found.update(re.findall(r"GLOBAL (\S+)", message))
    return sorted(re.sub(r"[^\w.]", "?", name) for name in found)  # a file may put anything into a name


def check_fields(content: Any, fields: Fields, path: Path, kind: str) -> dict:
    """The content of a file, if it is a dict that holds the fields in their types; UserError naming the first that is
    wrong otherwise.

    kind: what the file should be, for the message.
    """
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected {kind}")
    for name, types in fields.items():
        if name not in content:
            raise UserError(f"{path}: has no '{name}', expected {kind}")
        value = content[name]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in _as_tuple(types)):
            expected = " or ".join(each.__name__ for each in _as_tuple(types))
            raise UserError(f"{path}: '{name}' is a {type(value).__name__}, expected {expected}, as in {kind}")
    return content


def _as_tuple(types: type | tuple[type, ...]) -> tuple[type, ...]:
    return types if isinstance(types, tuple) else (types,)


def misfit(folder: Path, error: Exception) -> UserError:
    """What to say of a checkpoint, intact and of the right fields, that a run cannot go on from."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return UserError(
        f"{folder}: its checkpoint does not fit this run ({lines[0]}); give the old options, or remove the folder"
    )


def load_latest(folder: Path, fields: Fields, kind: str) -> dict | None:
    """The newest good checkpoint of a run: `last.pth`, else `previous.pth`, else None where there is neither.

    fields, kind: what a checkpoint of this run holds; a file of another kind is as good as damaged.
    """
    last, staged = folder / "last.pth", folder / "last.new"
    if staged.exists() and not last.exists():  # killed between the last two renames of `save`
        rename(staged, last)
    failures = []
    for name in ("last.pth", "previous.pth"):
        path = folder / name
        if path.exists():
            try:
                state = check_fields(load(path), fields, path, kind)
            except UserError as error:
                failures.append(str(error))
                continue
            if failures:
                print(f"{failures[0]}: using {path} instead", flush=True)
            return state
    if failures:
        raise UserError(f"{failures[0]}, and there is no earlier good one; remove {folder} to start again")
    return None


def weights_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and bytes of the weights: the same for a file that was repackaged or stripped."""
    digest = hashlib.sha256()
    for key in sorted(state_dict):
        tensor = state_dict[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def state_dict_of(content: Any, path: str | Path) -> dict[str, Tensor]:
    """The weights in a checkpoint of ours, of RepDistiller-style code bases, of the authors, or a bare state dict.

    Raises:
        UserError: where there are none, or where some are not finite.
    """
    weights = content.get("model", content.get("state_dict", content)) if isinstance(content, dict) else None
    named = isinstance(weights, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items())
    if not named or not weights:
        raise UserError(f"{path}: no weights found; expected a state dict, or a dict that holds one under 'model'")
    for key, value in weights.items():
        if not value.isfinite().all():
            raise UserError(
                f"{path}: the weights '{key}' hold values that are not finite (nan or inf), so the network is "
                "unusable; take an earlier checkpoint or train it again"
            )
    return {key.removeprefix("module."): value for key, value in weights.items()}
