"""An epoch of stage 3 against the bare forward, backward and optimizer step on a fixed batch.

    python -m benchmarks.ripsnet_epoch --output benchmarks/results/ripsnet_epoch.txt

RipsNet for d = 64 on random clouds of 64 points, batches of 64 clouds; the data on the device, and read from
memory-mapped chunks. The variants take turns; minimum and median are over the turns. No step is captured in a CUDA
graph, which gpu.py measures.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import compare, write_report
from helper.cli.parser import exact_kernels
from helper.clouds.fitting import CloudData, TrainStep, train_epoch
from helper.clouds.store import CloudSet, Origin, claim
from ripsnet import RipsNet

BATCH, POINTS, WIDTH = 64, 64, 64


def make_files(folder: Path, count: int) -> CloudSet:
    origin = Origin("", "", "", -1, POINTS, WIDTH, "eval", "released", 0, "float16")
    claim(folder, origin)
    files, rng = CloudSet(folder, count, origin, pixels=400), np.random.default_rng(0)
    for chunk in files.chunks:
        start, stop = files.span(chunk)
        files.write("clouds", chunk, rng.random((stop - start, POINTS, WIDTH)).astype(np.float16))
        files.write("images_dim0", chunk, rng.random((stop - start, 400)).astype(np.float32))
    return files


def main(args) -> None:
    exact_kernels()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def epoch_of(data: CloudData):
        step, numbers = TrainStep(RipsNet(WIDTH).to(device), 5e-4), iter(range(10**6))

        def measure() -> float:
            order = data.order(0, next(numbers))
            began = clock()
            train_epoch(step, data, order, BATCH)
            return (clock() - began) / (len(order) / BATCH)

        return measure

    def bare(data: CloudData):
        step = TrainStep(RipsNet(WIDTH).to(device), 5e-4)
        fixed = data.batch(data.order(0, 0)[:BATCH])

        def measure() -> float:
            began = clock()
            for _ in range(args.clouds // BATCH):
                step(*fixed)
            return (clock() - began) / (args.clouds // BATCH)

        return measure

    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder), args.clouds)
        in_memory, mapped = (CloudData(files, 0, 0, args.clouds, device, on_device) for on_device in (True, False))
        variants = {
            "bare step": bare(in_memory),
            "epoch, data on the device": epoch_of(in_memory),
            "epoch, memory-mapped chunks": epoch_of(mapped),
        }
        times = compare(variants, args.repeats)
    lines = times.table("ms a step", 1e3)
    for name in list(variants)[1:]:
        lines.append(times.ratio("bare step", name, "speed of the epoch over the bare step"))
    write_report(__doc__, lines, args.output, device)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clouds", type=int, default=64 * 50, help="(default: 3200, whole batches)")
    parser.add_argument("--repeats", type=int, default=25, help="turns (default: 25)")
    parser.add_argument("--output", default=None, help="also write the report to this file")
    main(parser.parse_args())
