"""Files written whole or not at all: to a temporary name, flushed to the disk and renamed.

A kill or a full disk at any moment leaves the last good file in place.
"""

import contextlib
import csv
import errno
import io
import json
import math
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RunStopped, UserError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # the last where a user has a limit

TEMPORARY = ".tmp"  # the end of a name


def write_bytes(path: Path, data: bytes, option: str | None = None) -> None:
    """Write a file. A failed write leaves an existing file as it was.

    option: the option that named the path, if one did: a wrong path is the user's, and raises UserError instead of
    RunStopped.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY}")  # two processes may write one file
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
        raise cannot_write(path, error, option) from None


def clear(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder, to which nobody else may write now."""
    for path in folder.glob(f"*{TEMPORARY}"):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError, option: str | None = None) -> UserError:
    """The error for a path that cannot be written, which says what is wrong and what to do."""
    reason = error.strerror
    if error.errno == errno.EEXIST:  # said of a folder to be made where a file is
        reason = os.strerror(errno.ENOTDIR)
    what = f"cannot write {path}: {reason}"
    if option is not None:
        advice = "make room, or give another path" if error.errno in FULL else "give another path"
        return UserError(f"{option}: {what}; {advice}")
    if error.errno in FULL:
        return RunStopped(
            f"{what}; what was saved before is intact: make room, then run the same command again (a training run with "
            "--resume)"
        )
    return RunStopped(f"{what}; what was saved before is intact")


def write_json(path: Path, value: Any, option: str | None = None) -> None:
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode(), option)


def finite(value: Any) -> Any:
    """The same nested dict with None for numbers that are not finite, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, advice: str = "copy it again, or remove it to have it regenerated") -> dict:
    """The object in a JSON file. UserError, with an advice, if the file holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error  # the whole text of an OSError repeats the path
        raise UserError(f"{path}: not readable as JSON ({reason}); {advice}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, expected a JSON object; {advice}")
    return value


def read_args(folder: Path) -> dict[str, Any]:
    """The options in a run's args.json; UserError where the file holds none."""
    path = folder / "args.json"
    options = read_json(path).get("args")
    if not isinstance(options, dict):
        raise UserError(f"{path}: has no 'args', expected the options of a run; copy it again or remove it")
    return options


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; UserError if it is none, or if its rows and its heading differ in length."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not readable as CSV ({error}); copy it again or remove it") from None
    if any(None in row or None in row.values() for row in rows):
        raise UserError(f"{path}: damaged, a row and the heading differ in length; copy it again or remove it")
    return rows


def first_row(path: Path) -> dict[str, str]:
    """The first row of a CSV file, {} where there is none."""
    return next(iter(read_csv(path)), {})


def npy(array: np.ndarray) -> bytes:
    """The array as an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    """The arrays as a compressed .npz file; equal arrays make equal bytes."""
    buffer, by_name = io.BytesIO(), dict[str, Any](arrays)  # Any: a name could be that of one of its parameters
    np.savez_compressed(buffer, **by_name)
    return buffer.getvalue()


def csv_bytes(rows: Sequence[dict]) -> bytes:
    """CSV of the rows; columns in the order of their first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_size(count: int) -> str:
    """'13.1 GB', '50.4 MB', '15.4 kB'."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
