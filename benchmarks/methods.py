"""What a training step of every method costs, in time relative to KD and in memory.

    python -m benchmarks.methods --output benchmarks/results/methods.txt
    python -m benchmarks.methods --methods mgd ctkd mlkd norm crcd --output benchmarks/results/methods_newer.txt

ResNet32x4 > ResNet8x4 (untrained weights: the time does not depend on them), batch 64, float32, 50,000 random images of
100 classes (CRD's memory grows with them). The methods take turns, --steps steps a turn for --repeats turns. A first
stage is measured as a method of its own. Peak memory is that of a process for each method after two steps: resident
(RSS), or, on a GPU, allocated on the device.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.report import compare, synchronize, write_report
from dataset import ImageSet, TrainLoader, dataset_dict
from distiller_zoo import distiller_dict
from helper.cli.parser import exact_kernels
from helper.networks import Network
from helper.settings import Clouds, Data, Loss, Repetition, ResolvedTraining
from helper.student.build import build_objective, build_student
from helper.student.distillation import FirstStage
from helper.student.weights import resolve
from helper.training.loop import make_optimizer
from helper.training.meters import Meters
from helper.training.steps import train_steps

PAIR = "resnet32x4", "resnet8x4"
FIRST = " (first stage)"


def variants() -> list[str]:
    """The keys of the methods; of one with a first stage, that stage too, or alone where it is all of the method."""
    found = []
    for key, method in distiller_dict.items():
        if method.first_epochs:
            found.append(key + FIRST)
        if not method.first_only:
            found.append(key)
    return found


VARIANTS = variants()


def random_images(device: torch.device) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50000, 32, 32, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 100, (50000,), generator=generator)
    return ImageSet(images.to(device), labels.to(device), dataset_dict["cifar100"])


def steps(variant: str, images: ImageSet) -> Iterator[int]:
    """The training of a method; every next() is one step."""
    key = variant.removesuffix(FIRST)
    data, training = Data(device=images.device), ResolvedTraining(lr=0.01)
    settings = resolve(Loss(distill=key), Clouds(), data, training, Repetition(), *PAIR)
    model_t, model_s = (build_student(name, 100, 0, images.device) for name in PAIR)
    model_t.eval().requires_grad_(False)
    teacher = Network(model_t, PAIR[0], num_classes=100, sha256="", accuracy=None, dataset=None, epoch=None)
    objective, _ = build_objective(settings, "untrained", model_s, teacher, images)
    trained = FirstStage(objective) if variant.endswith(FIRST) else objective
    optimizer = make_optimizer(trained, training)
    meters = Meters(list(trained.weights), images.device)
    return train_steps(trained, TrainLoader(images, training.batch_size, seed=0), optimizer, 1, meters)


def turn(training: Iterator[int], count: int, device: torch.device) -> Callable[[], float]:
    def measure() -> float:
        synchronize(device)
        began = time.perf_counter()
        for _ in range(count):
            next(training)
        synchronize(device)
        return (time.perf_counter() - began) / count

    return measure


def peak_of_this_process(variant: str, device: torch.device) -> None:
    """Two steps; on a GPU, print the peak of what was allocated there, in bytes."""
    training = steps(variant, random_images(device))
    next(training), next(training)
    if device.type == "cuda":
        print(torch.cuda.max_memory_allocated())


def peak_memory(variant: str, device: torch.device) -> float:
    """MiB, of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.methods", "--peak", variant, "--device", str(device)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"no memory measured for {variant}")
    return (int(printed) if printed.strip() else usage.ru_maxrss * 1024) / 2**20


def main(args) -> None:
    exact_kernels()
    if args.peak:
        peak_of_this_process(args.peak, args.device)
        return
    chosen = [variant for variant in VARIANTS if variant == "kd" or variant in args.methods]
    memory = {variant: peak_memory(variant, args.device) for variant in chosen}
    images = random_images(args.device)
    times = compare({v: turn(steps(v, images), args.steps, args.device) for v in chosen}, args.repeats)
    lines = [
        "| method | step relative to KD (median of turns) | ms a step (median) | peak memory, MiB |",
        "|---|---|---|---|",
    ]
    for variant in chosen:
        name = distiller_dict[variant.removesuffix(FIRST)].name
        if variant.endswith(FIRST):
            name += FIRST
        relative, step = times.paired(variant, "kd"), 1e3 * times.median(variant)
        lines.append(f"| {name} | {relative:.2f} | {step:.0f} | {memory[variant]:.0f} |")
    write_report(__doc__, lines, args.output, args.device)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=VARIANTS,
        default=VARIANTS,
        help="beside KD (default: all)",
    )
    parser.add_argument("--steps", type=int, default=2, help="steps a turn (default: 2)")
    parser.add_argument("--repeats", type=int, default=5, help="turns (default: 5)")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peak", choices=VARIANTS, help="two steps of this method only, for the memory it takes")
    parser.add_argument("--output", default=None, help="also write the report to this file")
    main(parser.parse_args())
