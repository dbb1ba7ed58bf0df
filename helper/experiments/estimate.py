"""How long experiments take on GPUs, before they run: from the seconds a step of finished rows where a GPU made them,
and from an estimate elsewhere.

Both are for one GPU, float32 and no --teacher_cache, however the experiments are to be run. The estimate is for the
class of an H100 without CUDA graphs. At these sizes a step waits for its kernels to be launched, or, for wide networks
in float32, for the arithmetic: the larger of the two counts.
"""

import functools
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from graphlib import TopologicalSorter

import torch
from torch.utils.flop_counter import FlopCounterMode

from dataset import dataset_dict
from distiller_zoo import distiller_dict
from models import create_model

from .catalogue import topology
from .jobs import Job, Work, before
from .plan import methods

GPUS = (1, 8, 64)
LAUNCH = 1.5e-3, 0.10e-3  # seconds of a training step, and for each of its convolutions
LAUNCH_FROZEN = 0.06e-3  # for each convolution of a teacher
FLOPS = 20e12  # a second, float32 without TF32, as convolutions of this size reach
TOPOLOGY = {"ripsnet": 0.4e-3, "exact": 0.8e-3, "wasserstein": 0.7e-3}
# A step of methods whose own loss costs, over KD's (benchmarks/results/methods.txt, methods_newer.txt).
OWN_LOSS = {"ReviewKD": 3.4, "SemCKD": 1.8, "KD-SVD": 1.6, "NORM": 1.2}
CLOUD = {"0": 0.15e-3, "1": 0.6e-3}  # its diagram, its image and its part of a file, by homology dimension
FITTED_EPOCHS, FITTED_STEPS, FIT_STEP = 500, 2343, 0.2e-3  # RipsNet stops early; steps an epoch; seconds
START = 15.0  # seconds of a process, the end of its epochs included
FIGURE = 60.0


def images_in(dataset: str) -> tuple[int, int]:
    """(training images, test images) of the complete data set; of one that does not say so, as of CIFAR."""
    return dataset_dict[dataset].images or (50_000, 10_000)


@functools.cache
def costs(network: str, dataset: str) -> tuple[int, float]:
    """(convolutions, floating-point operations of one image's forward pass), counted without computing."""
    info = dataset_dict[dataset]
    with torch.device("meta"):
        model = create_model(network, info.num_classes)
        images = torch.empty(1, 3, info.image_size, info.image_size)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(images)
    return sum(isinstance(module, torch.nn.Conv2d) for module in model.modules()), counter.get_total_flops()


def steps(work: Work) -> int:
    """In an epoch, or in a pass of stage 2."""
    return max(1, images_in(work.dataset)[0] // work.batch_size)


def step_seconds(work: Work) -> float:
    """The estimate for a training step of stage 1 or 4."""
    convolutions, flops = costs(work.student, work.dataset)
    seconds = max(LAUNCH[0] + LAUNCH[1] * convolutions, 3 * flops * work.batch_size / FLOPS)
    if work.teacher and work.what != "CE":  # cross entropy alone asks no teacher
        convolutions, flops = costs(work.teacher, work.dataset)
        seconds += max(LAUNCH_FROZEN * convolutions, flops * work.batch_size / FLOPS)
        seconds += TOPOLOGY.get(topology(work.what) or "", 0.0)
        entry = distiller_dict.get(methods()[work.what])
        if entry is not None and entry.loss is not None:
            seconds *= OWN_LOSS.get(entry.name, 1.0) * (2 if entry.strong else 1)
    return seconds


def estimated(work: Work) -> float:
    """Seconds of a whole job, by the estimate."""
    if work.script in ("train_teacher", "train_student"):
        return START + work.epochs * steps(work) * step_seconds(work)
    if work.script == "generate_PCD_PI":
        _, flops = costs(work.teacher, work.dataset)
        return START + work.epochs * steps(work) * (flops * work.batch_size / FLOPS + CLOUD[work.what])
    if work.script == "train_ripsnet":
        clouds = min(1.0, images_in(work.dataset)[0] / 50_000)  # larger sets make fewer passes
        return START + min(work.epochs, FITTED_EPOCHS) * max(1.0, FITTED_STEPS * clouds) * FIT_STEP
    if work.script == "evaluate":
        return START + images_in(work.dataset)[1] * costs(work.teacher, work.dataset)[1] / FLOPS
    return FIGURE if work.script == "visualize" else START


def measured(rows: Iterable[Mapping[str, str]]) -> dict[Work, float]:
    """Seconds a step by kind of work (with 0 epochs), of the rows that one GPU has made in float32 without
    --teacher_cache: the mean of several. A first stage counts in the steps, as it does in the seconds."""
    found: dict[Work, list[float]] = {}
    for row in rows:
        device, epochs = row.get("device", ""), int(float(row["epochs"])) + int(row.get("first_epochs") or 0)
        if "threads)" in device or not device or not float(row.get("seconds") or 0):
            continue
        how = row.get("amp") or "off", row.get("teacher_cache") == "True", row.get("processes") or "1"
        if how != ("off", False, "1"):
            continue
        script = "train_student" if row["teacher"] else "train_teacher"
        batch_size = int(row.get("batch_size") or 64)
        variant = row.get("variant") or ""
        work = Work(script, row["dataset"], row["teacher"], row["student"], row["method"], 0, batch_size, variant)
        found.setdefault(work, []).append(float(row["seconds"]) / (epochs * steps(work)))
    return {work: sum(values) / len(values) for work, values in found.items()}


class Estimate:
    """Durations of jobs. rows: of finished runs."""

    def __init__(self, rows: Iterable[Mapping[str, str]]):
        self.measured = measured(rows)

    def is_measured(self, work: Work) -> bool:
        return replace(work, epochs=0) in self.measured

    def step(self, work: Work) -> float:
        """Seconds of a step of stage 1 or 4."""
        return self.measured.get(replace(work, epochs=0)) or step_seconds(work)

    def seconds(self, job: Job) -> float:
        work = job.work
        return START + work.epochs * steps(work) * self.step(work) if self.is_measured(work) else estimated(work)

    def makespan(self, jobs: Sequence[Job], slots: int) -> float:
        """Seconds until all jobs are done, with so many at once in their order, each after those that it needs."""
        place = {job.name: index for index, job in enumerate(jobs)}
        sorter = TopologicalSorter(before(jobs))
        sorter.prepare()
        ready: list[int] = []
        running: list[tuple[float, str]] = []
        now = 0.0
        while sorter.is_active():
            for name in sorter.get_ready():
                heapq.heappush(ready, place[name])
            while ready and len(running) < slots:
                job = jobs[heapq.heappop(ready)]
                heapq.heappush(running, (now + self.seconds(job), job.name))
            now, name = heapq.heappop(running)
            sorter.done(name)
        return now

    def report(self, tables: Mapping[str, Sequence[Job]]) -> str:
        """For each table: GPU-hours of its unfinished jobs, and hours on GPUS, one job each; then the steps."""
        wide = max(map(len, tables))
        heads = [f"{count} GPU{'s' if count > 1 else ''}" for count in GPUS]
        lines = [f"{'hours':{wide}} {'jobs':>6} {'GPU-hours':>10} " + " ".join(f"{head:>8}" for head in heads)]
        kinds: dict[Work, None] = {}
        for name, all_jobs in tables.items():
            jobs = [job for job in all_jobs if not job.finished]
            total = sum(map(self.seconds, jobs)) / 3600
            spans = [self.makespan(jobs, count) / 3600 for count in GPUS]
            lines.append(f"{name:{wide}} {len(jobs):6} {total:10.1f} " + " ".join(f"{span:8.1f}" for span in spans))
            kinds |= dict.fromkeys(replace(job.work, epochs=0) for job in jobs if job.work.student)
        lines += [
            "",
            "milliseconds a float32 step, m: measured in rows that a GPU has made, e: estimated for an H100",
        ]
        grouped: dict[tuple[str, str, int], dict[str, list[str]]] = {}
        for work in kinds:
            text = f"{1000 * self.step(work):.1f} {'m' if self.is_measured(work) else 'e'}"
            by_text = grouped.setdefault((work.teacher, work.student, work.batch_size), {})
            by_text.setdefault(text, []).append(f"{work.what} {work.variant}".rstrip())
        for (teacher, student, batch_size), by_text in grouped.items():
            what = f"{teacher} > {student}" if teacher else f"{student} alone"
            cells = "; ".join(f"{text}: {', '.join(methods)}" for text, methods in by_text.items())
            lines.append(f"{what}, {batch_size} images: {cells}")
        return "\n".join(lines)
