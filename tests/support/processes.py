"""Scripts in processes of their own, forked from one that has imported everything already."""

import multiprocessing
import os
import sys
import time
from pathlib import Path
from unittest import mock

from support import killed

ROOT = Path(__file__).resolve().parents[2]

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["support.killed"])


def wait_until(condition, seconds=400):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def execute(point, folder, command):
    """Run a script and its options in a folder up to a point, of which tests/support/killed.py says what it is.

    Returns (exit status, what it printed).
    """
    receiver, sender = PROCESSES.Pipe(duplex=False)  # a pipe, because a file could not grow on a full disk
    process = PROCESSES.Process(target=enter, args=(sender, folder, point, *command.split()))
    with mock.patch.dict(os.environ, PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}"):  # for the one that forks
        process.start()
    sender.close()
    printed = b"".join(iter(lambda: os.read(receiver.fileno(), 1 << 16), b""))
    process.join()
    return process.exitcode, printed.decode()


def enter(output, folder, point, script, *options):
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    output.close()
    for number, name in ((1, "stdout"), (2, "stderr")):  # the ones that were inherited may expect a file
        setattr(sys, name, open(number, "w", buffering=1, closefd=False))
    os.chdir(folder)
    killed.main(point, str(ROOT / script), *options)
