"""What a training step and a cloud of stage 2 cost with the teacher's outputs from a table, and with the teacher.

    python -m benchmarks.teacher_cache --output benchmarks/results/teacher_cache.txt

ResNet56 > ResNet20 (untrained weights: the time does not depend on them), batch 64, float32, in one run:
- student: the project's loop with cross entropy alone, in which no teacher is run;
- teacher: the same with KD, and the teacher in each step;
- table: the same with KD, and the teacher's outputs from a table in a file (of noise: the time does not depend on it);
- look-up: what `table` does at the beginning of an epoch, beside its steps;
- clouds: stage 2's clouds by the teacher and by the table, whose look-ups are included;
- block: computing the table, a block of images.
The variants take turns for --repeats turns; minimum and median are over the turns.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.report import CPU, compare, write_report
from benchmarks.training_loop import BATCH, TRAINING, networks, random_images
from dataset import ImageSet, TrainLoader
from helper.clouds.embedding import Embedder, cloud_loader
from helper.clouds.outputs import BLOCK, CachedTeacher
from helper.settings import Clouds, ResolvedLoss
from helper.student.distillation import Distillation
from helper.training.loop import make_optimizer, train_steps
from helper.training.meters import Meters
from models import fold_batchnorm

WIDTHS = {"logits": 100, "pooled": 64}  # of ResNet56 on CIFAR-100
CLOUDS = 4  # of a turn with the teacher


def random_tables(folder: Path, images: ImageSet) -> dict[str, Tensor]:
    """Tables of noise in files, mapped."""
    rows, rng = images.view_count * len(images), np.random.default_rng(0)
    found = {}
    for kind, width in WIDTHS.items():
        path = folder / f"{kind}.npy"
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, width))
        noise = rng.standard_normal((len(images), width), dtype=np.float32)
        for view in range(images.view_count):
            array[view * len(images) : (view + 1) * len(images)] = noise
        array.flush()
        found[kind] = torch.from_numpy(np.load(path, mmap_mode="c"))
    return found


def steps(images: ImageSet, alpha: float, cache: CachedTeacher | None = None) -> Iterator[int]:
    """The project's loop; every next() is one training step."""
    student, teacher = networks(CPU)
    loss = ResolvedLoss(alpha=alpha, kd_T=4.0)
    objective = Distillation(student, fold_batchnorm(teacher), loss, epochs=240, cache=cache)
    optimizer = make_optimizer(objective, TRAINING)
    loader = TrainLoader(images, BATCH, seed=0, drop_last=True)
    for epoch in itertools.count(1):
        meters = Meters(list(objective.weights), CPU)
        yield from train_steps(objective, loader, optimizer, epoch, meters)


def clouds(embedder: Embedder, count: int) -> Iterator[int]:
    """Stage 2's clouds; every next() makes so many."""
    for start in itertools.count(0, count):
        list(embedder.clouds(start, start + count))
        yield count


def lookups(cache: CachedTeacher) -> Iterator[int]:
    """Every next() looks an epoch up, whose order and views are drawn already, as they are for the images too."""
    for epoch in itertools.count(1):
        cache.images.plan(cache.seed, epoch)
        yield epoch


@torch.no_grad()
def blocks(images: ImageSet) -> Iterator[int]:
    """Every next() makes the outputs of a block."""
    teacher = fold_batchnorm(networks(CPU)[1])
    indices = torch.arange(BLOCK)
    while True:
        for view in range(images.view_count):
            teacher(images.view(view, indices), is_feat=True)
            yield view


def main(args) -> None:
    images = random_images(CPU, args.images)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        tables = random_tables(Path(folder), images)
        cache, again, third = (CachedTeacher(tables, images, seed=0) for _ in range(3))
        loader = cloud_loader(images, Clouds(batch_size=BATCH), seed=0)
        teacher = networks(CPU)[1]
        epochs = lookups(again)

        def turn(made: Iterator[int], calls: int, per_call: float = 1) -> Callable[[], float]:
            def measure() -> float:
                began = time.perf_counter()
                for _ in range(calls):
                    next(made)
                return (time.perf_counter() - began) / (calls * per_call)

            return measure

        def look_up() -> float:
            epoch = next(epochs)
            began = time.perf_counter()
            again.begin(epoch)
            return (time.perf_counter() - began) / (len(images) / BATCH)

        by_teacher = Embedder(teacher, loader, -1, "eval")
        by_table = Embedder(teacher, loader, -1, "eval", third)
        variants: dict[str, Callable[[], float]] = {
            "student": turn(steps(images, 0.0), args.steps),
            "teacher": turn(steps(images, 0.9), args.steps),
            "table": turn(steps(images, 0.9, cache), args.steps),
            "look-up, by the step": look_up,
            "clouds by the teacher": turn(clouds(by_teacher, CLOUDS), 1, CLOUDS),
            "clouds by the table": turn(clouds(by_table, len(loader)), 1, len(loader)),
            "block, by 64 images": turn(blocks(images), 1, BLOCK / BATCH),
        }
        times = compare(variants, args.repeats)
    lines = times.table("ms a step or cloud", 1e3)
    lines += [
        times.ratio("table", "student", "step with the table over the student alone"),
        times.ratio("teacher", "student", "step with the teacher over the student alone"),
        times.ratio("clouds by the teacher", "clouds by the table", "a cloud by the teacher over one by the table"),
    ]
    look_ups = 100 * times.paired("look-up, by the step", "student")
    table = images.view_count * times.median("block, by 64 images")
    saved = times.median("teacher") - times.median("table") - times.median("look-up, by the step")
    lines += [
        f"- looking the epochs up takes {look_ups:.2f} % of the time of the student alone (median of turns)",
        f"- computing the table takes as long as {table / times.median('student'):.0f} epochs of the student alone, or "
        f"{table / saved:.0f} times what it saves in an epoch with the teacher (medians)",
        f"- {len(images)} images, a table of {sum(each.nbytes for each in tables.values()) / 1e9:.1f} GB",
    ]
    write_report(__doc__, lines, args.output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000, help="in the set (default: 5000)")
    parser.add_argument("--folder", default=None, help="where the table lies while it is needed (default: /tmp)")
    parser.add_argument("--steps", type=int, default=5, help="steps a turn (default: 5)")
    parser.add_argument("--repeats", type=int, default=15, help="turns (default: 15)")
    parser.add_argument("--output", default=None, help="also write the report to this file")
    main(parser.parse_args())
