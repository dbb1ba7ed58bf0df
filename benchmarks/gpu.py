"""Times of all stages on a GPU: steps as they are and as CUDA graphs, and the sums of their kernels as the floor.

    CUBLAS_WORKSPACE_CONFIG=:4096:8 CUDA_DEVICE_MAX_CONNECTIONS=32 python -m benchmarks.gpu --output gpu.txt
    python -m benchmarks.gpu --only steps,side                      # some of the sections, which main names
    python -m benchmarks.gpu --device cpu --teacher resnet8 --student resnet8 --images 640 --steps 2 --repeats 1

Untrained networks, random images of CIFAR-100's shape and random tables of the teacher's outputs (`cache`), on which a
step takes as long as on photographs; batch 64; one process, but where a section says two. A time is the median of
--repeats turns of --steps steps, at the end of which the device is waited for. A kernel sum is what the kernels of a
step take alone, by PyTorch's profiler: no launch can be faster. A variant that fails is a line of its own, and the
others go on; stderr shows the lines as they are measured. The last command is a rehearsal without a GPU, where nothing
is captured.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.report import saved_report, synchronize
from dataset import EpochPlan, ImageSet, TrainLoader, dataset_dict
from helper.cli.parser import exact_kernels
from helper.clouds.embedding import Embedder, cloud_loader
from helper.clouds.fitting import CloudData, FitSteps, TrainStep, train_epoch
from helper.clouds.outputs import BLOCK, DONE, CachedTeacher, OutputFiles
from helper.files import checkpoint
from helper.settings import Clouds, ResolvedLoss, Training
from helper.student.distillation import Distillation
from helper.student.probe import Probe, probe_batches
from helper.training.graphs import capture_on, own_stream
from helper.training.interrupts import StopRequest
from helper.training.loop import evaluate, make_optimizer
from helper.training.meters import Meters
from helper.training.objective import Objective, autocast
from helper.training.steps import ReplayedSteps, train_steps
from helper.training.turns import Turn
from models import create_model, fold_batchnorm
from ripsnet import ExactTopology, ImageSpec, RipsNet, RipsNetTopology, WassersteinTopology, dim0_deaths, dim0_images

BATCH, VIEWS = 64, 162
WIDTHS = {"logits": 100, "pooled": 64}  # of a teacher's outputs
SPEC = ImageSpec(dim=0, sigma=0.35, sigma_rule="released", image_range=(0, 0, 1, 15), maximum=100.0)
TOPOLOGIES: dict[str, Callable[[], nn.Module]] = {
    "RipsNet": lambda: RipsNetTopology([RipsNet(64)]),
    "exact": lambda: ExactTopology([SPEC]),
    "Wasserstein": WassersteinTopology,
}
# The steps, and whether the teacher's outputs come from a table.
ARMS = (
    ("teacher alone", False),
    ("student alone", False),
    ("KD", False),
    ("KD", True),
    ("RipsNet", False),
    ("RipsNet", True),
    ("exact", False),
    ("Wasserstein", False),
)
# Name, autocast, and memory layout of the networks; images come in channels_last.
NUMBERS = (
    ("bf16", "bf16", torch.channels_last),
    ("float32", "off", torch.channels_last),
    ("float32, channels first", "off", torch.contiguous_format),
)


def cause(error: BaseException) -> str:
    """What went wrong first: the end of a capture that has failed is an error of its own."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


class Bench:
    """What the sections share. lines: of the report."""

    def __init__(self, args):
        self.args, self.device, self.lines = args, torch.device(args.device), list[str]()
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (args.images, 32, 32, 3), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 100, (args.images,), generator=generator)
        self.images = ImageSet(pixels.to(self.device), labels.to(self.device), dataset_dict["cifar100"])

    @cached_property
    def tables(self) -> dict[str, Tensor]:
        """The teacher's outputs on all views of the images, as random numbers on the device."""
        rows = VIEWS * len(self.images)
        return {kind: torch.rand(rows, width, device=self.device) for kind, width in WIDTHS.items()}

    def say(self, line: str) -> None:
        self.lines.append(line)
        print(line, file=sys.stderr, flush=True)

    def attempt(self, name: str, measure: Callable[[], str]) -> None:
        """A row of a table: the name, and what is measured, or why it could not be."""
        try:
            found = measure()
        except Exception as error:  # of the device, its memory, or an operation that it lacks: the others go on
            found = f"failed: {cause(error)}"
        self.say(f"| {name} | {found} |")

    def seconds(self, act: Callable[[], object], count: int = 1) -> float:
        """The median time of `count` calls, of one of them."""
        found = []
        for _ in range(self.args.repeats):
            synchronize(self.device)
            began = time.perf_counter()
            for _ in range(count):
                act()
            synchronize(self.device)
            found.append((time.perf_counter() - began) / count)
        return statistics.median(found)

    def kernels(self, act: Callable[[], object], count: int = 5) -> float:
        """Seconds that the kernels of a call take, without the gaps between them; 0 on a CPU."""
        if self.device.type != "cuda":
            return 0.0
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            for _ in range(count):
                act()
            synchronize(self.device)
        return sum(event.self_device_time_total for event in profile.key_averages()) / count / 1e6

    def network(self, arch: str, layout: torch.memory_format) -> nn.Module:
        torch.manual_seed(0)
        network = create_model(arch).to(self.device, memory_format=layout)
        if layout is torch.contiguous_format:
            network.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
        return network

    def teacher(self, layout: torch.memory_format = torch.channels_last) -> nn.Module:
        return self.network(self.args.teacher, layout).eval().requires_grad_(False)

    def objective(
        self, arm: str, amp: str = "off", layout: torch.memory_format = torch.channels_last, cache: bool = False
    ) -> Objective:
        if arm.endswith("alone"):
            return Objective(self.network(getattr(self.args, arm.split()[0]), layout), {"ce": 1.0}, amp)
        topology = TOPOLOGIES[arm]().to(self.device) if arm in TOPOLOGIES else None
        loss = ResolvedLoss(alpha=2.0, delta=5.0 if topology else 0.0, kd_T=4.0)
        found = Distillation(
            self.network(self.args.student, layout),
            fold_batchnorm(self.teacher(layout)),
            loss,
            amp=amp,
            topology=topology,
            widths=(64, 64),
            epochs=240,
            cache=CachedTeacher(self.tables, self.images, 0) if cache else None,
        )
        batches = probe_batches(self.images, BATCH, BATCH)
        found.probe = Probe(batches, [SPEC] if topology else (), self.images.normalize)
        return found.to(self.device)

    def steps(self, objective: Objective, replay: bool = True) -> Iterator[int]:
        """Training without an end; every next() is a step on a whole batch."""
        optimizer = make_optimizer(objective, Training().resolved("resnet20"))
        loader, meters = (
            TrainLoader(self.images, BATCH, 0, drop_last=True),
            Meters(list(objective.weights), self.device),
        )
        replayed, capture = None, capture_on(self.device)
        if replay and capture is not None:
            replayed = ReplayedSteps(objective, loader, optimizer, meters, capture)
        for epoch in range(1, 10**6):
            yield from train_steps(objective, loader, optimizer, epoch, meters, replayed=replayed)

    def warm(self, act: Callable[[], object]) -> Callable[[], object]:
        """An act that has been done often enough to be captured, and to take the time that it takes from then on."""
        for _ in range(min(20, self.args.steps)):
            act()
        return act

    def time_and_kernels(self, act: Callable[[], object]) -> tuple[float, float]:
        """Milliseconds of a step, and of its kernels alone."""
        self.warm(act)
        return 1e3 * self.seconds(act, self.args.steps), 1e3 * self.kernels(act)


def of_steps(bench: Bench) -> None:
    """Eager against replayed, with the teacher and with its table, and the floor."""
    replays = (False, True) if bench.device.type == "cuda" else (False,)
    bench.say("| step | ms | ms of its kernels | s an epoch of 782 |\n|---|---|---|---|")
    for arm, cache in ARMS:
        for name, amp, layout in NUMBERS:
            for replay in replays:

                def measure(arm=arm, cache=cache, amp=amp, layout=layout, replay=replay) -> str:
                    steps = bench.steps(bench.objective(arm, amp, layout, cache), replay)
                    time_of_step, floor = bench.time_and_kernels(lambda: next(steps))
                    return f"{time_of_step:.3f} | {floor:.3f} | {0.782 * time_of_step:.2f}"

                how = "graph" if replay else "eager"
                if cache:
                    how += " + cache"
                bench.attempt(f"{arm}, {name}, {how}", measure)


def of_turns(bench: Bench) -> None:
    """Students side by side, which share a table: KD and RipsNet, float32."""
    bench.say(
        "\n| students side by side | ms of a round | ms of its kernels | ms a student's step |\n|---|---|---|---|"
    )
    for cache in (False, True):
        for count in range(1, 5):

            def measure(count=count, cache=cache) -> str:
                turns = []
                for number in range(count):
                    objective = bench.objective("RipsNet", cache=cache)
                    endless = (None for _ in bench.steps(objective))
                    turns.append(Turn(str(number), endless, bench.device))
                with StopRequest():
                    time_of_round, floor = bench.time_and_kernels(lambda: [turn.take() for turn in turns])
                return f"{time_of_round:.3f} | {floor:.3f} | {time_of_round / count:.3f}"

            bench.attempt(f"{count}{' + cache' if cache else ''}", measure)


def of_processes(bench: Bench) -> None:
    """One and two processes on the device at once, each with a student: KD and RipsNet, float32, a table in each."""
    bench.say("\n| processes at once, graph + cache | ms of a step in each |\n|---|---|")
    command = [sys.executable, "-m", "benchmarks.gpu", "--only", "one"]
    for name in ("device", "teacher", "student", "images", "steps", "repeats"):
        command += [f"--{name}", str(getattr(bench.args, name))]
    for count in (1, 2):

        def measure(count=count) -> str:
            pipe = subprocess.PIPE
            started = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(count)]
            try:
                if any(child.stdout.readline() != "ready\n" for child in started):
                    raise RuntimeError("a process ended before it was ready")
                for child in started:
                    child.stdin.close()
                found = [child.stdout.read().strip() or "failed" for child in started]
            finally:
                for child in started:
                    child.kill()
                    child.wait()
            return ", ".join(found)

        bench.attempt(str(count), measure)


def of_one_process(bench: Bench) -> None:
    """What each process of `of_processes` does: say that it is ready, wait until its input ends, and say what a step
    takes while the others do the same."""
    steps = bench.steps(bench.objective("RipsNet", cache=True))
    bench.warm(lambda: next(steps))
    synchronize(bench.device)
    print("ready", flush=True)
    sys.stdin.read()
    print(f"{1e3 * bench.seconds(lambda: next(steps), bench.args.steps):.3f}", flush=True)


def of_flags(bench: Bench) -> None:
    """What it costs that kernels repeat themselves: cudnn.deterministic is set, cudnn.benchmark is not."""
    bench.say("\n| step; cudnn deterministic, benchmark | ms | ms of its kernels |\n|---|---|---|")
    for arm in ("teacher alone", "student alone"):
        for name, amp, layout in NUMBERS[:2]:
            for deterministic, benchmark in ((True, False), (True, True), (False, True)):

                def measure(arm=arm, amp=amp, layout=layout, deterministic=deterministic, benchmark=benchmark) -> str:
                    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, benchmark
                    try:
                        steps = bench.steps(bench.objective(arm, amp, layout))
                        time_of_step, floor = bench.time_and_kernels(lambda: next(steps))
                    finally:
                        exact_kernels()
                    return f"{time_of_step:.3f} | {floor:.3f}"

                bench.attempt(f"{arm}, {name}; {deterministic}, {benchmark}", measure)


def of_epoch_ends(bench: Bench) -> None:
    """What an epoch's end takes: evaluation on as many images as there are, the diagnosis, and a plan of the next."""
    bench.say("\n| at an epoch's end | ms |\n|---|---|")
    test, objective = bench.images, bench.objective("RipsNet")
    plan = EpochPlan(bench.images, 0, 1)
    numbers, epochs = iter(range(10**6)), iter(range(10**6))
    on_device = CachedTeacher(bench.tables, bench.images, 0)
    on_host = CachedTeacher({kind: table.cpu() for kind, table in bench.tables.items()}, bench.images, 0)
    for name, act in {
        f"evaluation of the student, {len(test):,} images": lambda: evaluate(objective.student, test),
        "diagnosis of a step with RipsNet": objective.diagnose,
        f"plan of an epoch of {len(test):,} images": lambda: plan.draw(0, next(numbers)),
        f"plan and look-up of {len(test):,} images, table on the device": lambda: on_device.begin(next(epochs)),
        f"plan and look-up of {len(test):,} images, table on the host": lambda: on_host.begin(next(epochs)),
    }.items():
        act()
        bench.attempt(name, lambda act=act: f"{1e3 * bench.seconds(act):.2f}")  # type: ignore[misc]


def of_views(bench: Bench) -> None:
    """One view of all images, from which the time of a table of all views of 50,000 images follows. --teacher_cache
    computes in float32, in blocks of BLOCK images; whether larger ones or bf16 would be faster is seen here."""
    count = len(bench.images)
    bench.say(
        f"\n| a view of {count:,} images by the folded teacher | images/s | images/s by its kernels | "
        f"s for {VIEWS} views of 50,000 |\n|---|---|---|---|"
    )
    indices = torch.arange(count, device=bench.device)

    def line(seconds: float, floor: float) -> str:
        by_kernels = f"{count / floor:,.0f}" if floor else "-"
        return f"{count / seconds:,.0f} | {by_kernels} | {VIEWS * 50_000 * seconds / count:.0f}"

    for name, amp, layout in NUMBERS:
        for block in (BLOCK, 2000):

            def measure(amp=amp, layout=layout, block=block) -> str:
                teacher = fold_batchnorm(bench.teacher(layout))

                @torch.no_grad()
                def act() -> None:
                    for part in indices.split(block):
                        with autocast(bench.device, amp):
                            teacher(bench.images.view(0, part), is_feat=True)

                act()
                return line(bench.seconds(act), bench.kernels(act, 1))

            bench.attempt(f"{name}, blocks of {block:,}", measure)

    def fill() -> str:
        origin = {"images": count, "views": 1, "classes": WIDTHS["logits"], "width": WIDTHS["pooled"]}
        teacher = fold_batchnorm(bench.teacher())
        with tempfile.TemporaryDirectory() as folder:

            def act() -> None:
                files = OutputFiles(Path(folder), origin)
                (files.folder / DONE).unlink(missing_ok=True)
                files.fill(teacher, bench.images)

            return line(bench.seconds(act), bench.kernels(act, 1))

    bench.attempt("as --teacher_cache fills its files", fill)


def of_stage_2(bench: Bench) -> None:
    """From images to clouds of 64 points, diagrams and persistence images, all on the device; by the teacher, and by
    its table."""
    loader = cloud_loader(bench.images, Clouds(batch_size=BATCH), seed=0)
    count = len(loader)  # clouds of a pass
    bench.say(f"\n| stage 2, a pass of {count} clouds | clouds/s | clouds/s by its kernels |\n|---|---|---|")
    for cache in (False, True):

        def measure(cache=cache) -> str:
            table = CachedTeacher(bench.tables, bench.images, 0) if cache else None
            embedder, passes = Embedder(bench.teacher(), loader, -1, "eval", table), iter(range(10**6))

            def act() -> None:
                first = next(passes) * count  # a new pass each time, whose outputs are looked up anew
                clouds = torch.cat(list(embedder.clouds(first, first + count))).half().float()
                dim0_images(dim0_deaths(clouds), SPEC)

            act()
            seconds, floor = bench.seconds(act), bench.kernels(act, 1)
            return f"{count / seconds:,.0f} | {f'{count / floor:,.0f}' if floor else '-'}"

        bench.attempt(f"images to persistence images, {'cache' if cache else 'teacher'}", measure)


class RandomClouds(CloudData):
    """Random clouds on the device."""

    def __init__(self, count: int, device: torch.device):
        generator = torch.Generator().manual_seed(0)
        clouds, pictures = torch.rand(count, 64, 64, generator=generator), torch.rand(count, 400, generator=generator)
        self.tensors = [clouds.half().to(device), pictures.to(device)]
        self.start, self.stop, self.device, self.on_device = 0, count, device, True


def of_clouds(bench: Bench) -> None:
    """Stage 2's diagrams and images of clouds of 64 points alone; stage 3: an epoch's steps."""
    count = min(8192, len(bench.images))
    data = RandomClouds(count, bench.device)
    clouds = data.tensors[0].float()
    bench.say("\n| stages 2 and 3 | |\n|---|---|")

    def diagrams() -> Tensor:
        return dim0_images(dim0_deaths(clouds), SPEC)

    def rate() -> str:
        diagrams()
        return f"{count / bench.seconds(diagrams):,.0f} clouds/s, {1e3 * bench.kernels(diagrams, 1):.2f} ms of kernels"

    bench.attempt(f"clouds to persistence images, {count:,} at once", rate)
    for replay in (False, True) if bench.device.type == "cuda" else (False,):

        def fit(replay=replay) -> str:
            step, capture = TrainStep(RipsNet(64).to(bench.device), 5e-4), capture_on(bench.device)
            replayed = FitSteps(step, data, BATCH, capture) if replay and capture is not None else None
            order = data.order(0, 0)

            def act() -> torch.Tensor:
                return train_epoch(step, data, order, BATCH, replayed)

            act()
            floor = bench.kernels(act, 1) / (count / BATCH)
            return f"{1e6 * bench.seconds(act) / (count / BATCH):.1f} us a step, {1e6 * floor:.1f} us of kernels"

        bench.attempt(f"a step of RipsNet, {'graph' if replay else 'eager'}", fit)


def of_disk(bench: Bench) -> None:
    """A checkpoint of a student, as an epoch's end writes it."""
    bench.say("\n| on the disk | ms |\n|---|---|")
    state = {"model": bench.network(bench.args.student, torch.channels_last).state_dict()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "best.pth")
        bench.attempt(
            "the weights of a student", lambda: f"{1e3 * bench.seconds(lambda: checkpoint.save(path, state)):.1f}"
        )


SECTIONS = {
    "steps": of_steps,
    "side": of_turns,
    "processes": of_processes,
    "ends": of_epoch_ends,
    "views": of_views,
    "stage2": of_stage_2,
    "clouds": of_clouds,
    "disk": of_disk,
    "flags": of_flags,
}


def main(args) -> None:
    exact_kernels()
    bench = Bench(args)
    if args.only == "one":
        with own_stream(bench.device):
            of_one_process(bench)
        return
    text = ""
    for name, section in [(name, SECTIONS[name]) for name in args.only.split(",")]:
        try:
            with own_stream(bench.device):
                section(bench)
        except Exception as error:
            bench.say(f"\n{name}: failed: {cause(error)}")
        text = saved_report(__doc__, bench.lines, args.output, bench.device)  # after each, as time may run out
    print(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)"
    )
    parser.add_argument("--teacher", default="resnet56", help="(default: resnet56)")
    parser.add_argument("--student", default="resnet20", help="(default: resnet20)")
    parser.add_argument("--images", type=int, default=10_000, help="(default: 10000)")
    parser.add_argument("--steps", type=int, default=200, help="steps a turn (default: 200)")
    parser.add_argument("--repeats", type=int, default=5, help="turns (default: 5)")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas between them (default: all)")
    parser.add_argument("--output", default=None, help="also write the report to this file")
    main(parser.parse_args())
