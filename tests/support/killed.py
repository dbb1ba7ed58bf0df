"""Runs a script on a tiny data set, and interrupts it at a chosen point.

    python tests/support/killed.py POINT SCRIPT ARGS...     # with the repository and tests/ on PYTHONPATH

    none         not at all
    batch:K      SIGKILL before the K-th batch of training images
    late:K       the same in a run that saves at its end only, as a short one does
    int:K        SIGINT before the K-th batch of training images; term:K SIGTERM; int2:K SIGINT twice,
               with time between; all:K three signals at once
    replace:K    SIGKILL before the K-th rename, of which every file that is written whole needs one
    half:K       SIGKILL when half of the K-th such file is written
    full:K       before the K-th rename the disk is full: no file can grow from then on
    fail:K       the K-th batch cannot be read
    wait:K       before the K-th batch, wait until there is a file `go` in the current folder; a SIGTERM that the
               script has taken meanwhile leaves a file `noted`
    count        not at all, and print in the end how many batches, renames and such files there were

The scripts know nothing of this. Chunks of clouds and blocks of a teacher's outputs are small and a run is saved after
every epoch, so that short runs have many such points; test batches are small, so that several processes share them.
"""

import functools
import itertools
import math
import os
import resource
import runpy
import signal
import sys
import time
from pathlib import Path

import torch
import torch.utils.tensorboard  # noqa: F401  imported here to be there already when a process is forked from this one

from dataset import DatasetUnavailable, EpochPlan, dataset_dict
from helper.clouds import fitting, outputs, store
from helper.student import pictures  # noqa: F401  likewise
from helper.training import interrupts, loop
from support.images import FEW, TINY


def send(number, *arguments):
    signal.raise_signal(number)  # to this thread, so that it is handled before the next line


def interrupt_twice(*arguments):
    send(signal.SIGINT)
    interrupts.TOGETHER = 0.0  # as if that time had passed
    send(signal.SIGINT)


def signal_all(*arguments):
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        send(number)


def halve_and_kill(file):
    os.ftruncate(file, os.fstat(file).st_size // 2)
    send(signal.SIGKILL)


def wait_for_go(*arguments):
    handler = signal.getsignal(signal.SIGTERM)

    def note(*signalled):
        handler(*signalled)
        Path("noted").touch()

    if callable(handler):
        signal.signal(signal.SIGTERM, note)
    Path("waiting").touch()
    while not Path("go").exists():
        time.sleep(0.05)


def fail(*arguments):
    raise DatasetUnavailable("image.JPEG: damaged")


def fill_disk(*paths):
    """64 bytes are left to every file: less than any of ours, but a semaphore, which counts as one, has 32."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))


POINTS = {
    "batch": (EpochPlan, "images", functools.partial(send, signal.SIGKILL)),
    "late": (EpochPlan, "images", functools.partial(send, signal.SIGKILL)),
    "int": (EpochPlan, "images", functools.partial(send, signal.SIGINT)),
    "int2": (EpochPlan, "images", interrupt_twice),
    "all": (EpochPlan, "images", signal_all),
    "term": (EpochPlan, "images", functools.partial(send, signal.SIGTERM)),
    "replace": (os, "replace", functools.partial(send, signal.SIGKILL)),
    "half": (os, "fsync", halve_and_kill),
    "full": (os, "replace", fill_disk),
    "fail": (EpochPlan, "images", fail),
    "wait": (EpochPlan, "images", wait_for_go),
}
COUNTED = ("batch", "replace", "half")
TEST_BATCH = 8


def install(point):
    """Let something happen before the K-th call of a function."""
    if point == "none":
        return
    kind, number = point.split(":")
    owner, name, act = POINTS[kind]
    original, calls = getattr(owner, name), itertools.count(1)

    def patched(*arguments):
        if next(calls) == int(number):
            act(*arguments)
        return original(*arguments)

    setattr(owner, name, patched)


def count(kind):
    """A list that grows by one item whenever a kind of point comes."""
    owner, name, _ = POINTS[kind]
    original, calls = getattr(owner, name), []

    def patched(*arguments):
        calls.append(1)
        return original(*arguments)

    setattr(owner, name, patched)
    return calls


def main(point, script, *arguments):
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where the tests run
    dataset_dict["tiny"], dataset_dict["few"] = TINY, FEW
    store.CHUNK, fitting.SAVE_EVERY, loop.SAVE_APART = 8, 0.0, 0.0
    outputs.BLOCK, outputs.AT_ONCE["cpu"], outputs.SAVE_EVERY = 16, 5, 0.0
    loop.usual_test_batch = lambda images: TEST_BATCH
    if point.startswith("late"):
        loop.SAVE_APART = math.inf
    counts = {}
    if point == "count":
        counts = {kind: count(kind) for kind in COUNTED}
    else:
        install(point)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
    for kind, calls in counts.items():
        print(f"{kind}:{len(calls)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
