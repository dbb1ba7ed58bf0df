"""A folder in use by one process: locked as long as the process lives, by the operating system, over NFS too.

The lock goes with the process however it ends, and where a file system has none there is no lock: a file that marks a
folder would stay behind when a machine dies. Beside it lies a note of who holds it, for the message to others.
"""

import contextlib
import errno
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import UserError
from .atomic import cannot_write, clear

LOCK, OWNER = ".lock", ".lock.owner"
UNLOCKABLE = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # of file systems without locks, as some of clusters
STATUS = "TOPKD_STATUS_IN_USE"  # a variable in which the runner of jobs asks for an exit code that means this alone


class InUse(UserError):
    """A folder in which another process works. The same command can run when that one has ended."""

    exit_code = int(os.environ.get(STATUS, UserError.exit_code))


_held: dict[Path, FileLock | None] = {}  # for the process's whole life, unless released; None where there are no locks


def hold(folder: Path, option: str | None = None) -> None:
    """Lock a folder, which is made if it is not there, and clear it of what is half written. A folder that this process
    holds already stays so.

    option: the option that named the folder, if one did, as for `write_bytes`.

    Raises:
        InUse: when another process holds it.
    """
    key = folder.resolve()
    if key in _held:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_of(folder)
        lock.acquire()
    except Timeout:
        raise InUse(f"{folder}: in use by {owner(folder)}; wait until it ends, or stop it") from None
    except OSError as error:
        if error.errno in UNLOCKABLE:
            print(f"warning: {folder}: its file system has no locks; let one process at a time work in it", flush=True)
            _held[key] = None
            return
        raise cannot_write(folder, error, option) from None
    _held[key] = lock
    clear(folder)
    with contextlib.suppress(OSError):  # a note only
        (folder / OWNER).write_text(f"process {os.getpid()} on host {socket.gethostname()}\n")


def lock_of(folder: Path) -> FileLock:
    return FileLock(folder / LOCK, timeout=0, fallback_to_soft=False)


def release(folder: Path) -> None:
    """Give up a folder that this process holds."""
    lock = _held.pop(folder.resolve(), None)
    if lock is not None:
        with contextlib.suppress(OSError):
            (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def in_use(folder: Path) -> str | None:
    """Who works in a folder, if it is another process; None if nobody does."""
    if folder.resolve() in _held or not (folder / LOCK).is_file():
        return None
    try:
        with lock_of(folder):
            return None
    except Timeout:
        return owner(folder)
    except OSError:  # no locks there, or no right to them
        return None


def owner(folder: Path) -> str:
    try:
        return (folder / OWNER).read_text().strip() or "another process"
    except OSError:
        return "another process"
