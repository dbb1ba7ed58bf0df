"""Times of all stages on a GPU: steps as they are and as CUDA graphs, and the sums of their kernels as the floor.

    CUBLAS_WORKSPACE_CONFIG=:4096:8 CUDA_DEVICE_MAX_CONNECTIONS=32 python -m benchmarks.gpu --output gpu.txt
    python -m benchmarks.gpu --only steps,side                      # some of the sections, which main names
    python -m benchmarks.gpu --device cpu --teacher resnet8 --student resnet8 --images 640 --steps 2 --repeats 1

Untrained networks and random images of CIFAR-100's shape, on which a step takes as long as on photographs; batch 64;
one process. A time is the median of --repeats turns of --steps steps, at the end of which the device is waited for. A
kernel sum is what the kernels of a step take alone, by PyTorch's profiler: no launch can be faster. A variant that
fails is a line of its own, and the others go on; stderr shows the lines as they are measured. The last command is a
rehearsal without a GPU, where nothing is captured.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from benchmarks.report import synchronize, write_report
from dataset import EpochPlan, ImageSet, TrainLoader, dataset_dict
from helper.cli.parser import exact_kernels
from helper.clouds.fitting import CloudData, TrainStep, train_epoch
from helper.clouds.fitting import ReplayedSteps as FitSteps
from helper.files import checkpoint
from helper.settings import ResolvedLoss, Training
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
from ripsnet import ExactTopology, ImageSpec, RipsNet, RipsNetTopology, WassersteinTopology, dim0_deaths

BATCH, VIEWS = 64, 162
SPEC = ImageSpec(dim=0, sigma=0.35, sigma_rule="released", image_range=(0, 0, 1, 15), maximum=100.0)
TOPOLOGIES: dict[str, Callable[[], nn.Module]] = {
    "RipsNet": lambda: RipsNetTopology([RipsNet(64)]),
    "exact": lambda: ExactTopology([SPEC]),
    "Wasserstein": WassersteinTopology,
}
ARMS = ("teacher alone", "student alone", "KD", *TOPOLOGIES)
# Name, autocast, and memory layout of the networks; images come in channels_last.
NUMBERS = (
    ("bf16", "bf16", torch.channels_last),
    ("float32", "off", torch.channels_last),
    ("float32, channels first", "off", torch.contiguous_format),
)


class Bench:
    """What the sections share. lines: of the report."""

    def __init__(self, args):
        self.args, self.device, self.lines = args, torch.device(args.device), list[str]()
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (args.images, 32, 32, 3), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 100, (args.images,), generator=generator)
        self.images = ImageSet(pixels.to(self.device), labels.to(self.device), dataset_dict["cifar100"])

    def say(self, line: str) -> None:
        self.lines.append(line)
        print(line, file=sys.stderr, flush=True)

    def attempt(self, name: str, measure: Callable[[], str]) -> None:
        """A row of a table: the name, and what is measured, or why it could not be."""
        try:
            found = measure()
        except (RuntimeError, NotImplementedError, torch.OutOfMemoryError) as error:
            found = f"failed: {str(error).strip().splitlines()[0]}"
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

    def kernels(self, act: Callable[[], object], count: int = 20) -> float:
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
        return create_model(arch).to(self.device, memory_format=layout)

    def objective(self, arm: str, amp: str, layout: torch.memory_format) -> Objective:
        if arm.endswith("alone"):
            return Objective(self.network(getattr(self.args, arm.split()[0]), layout), {"ce": 1.0}, amp)
        teacher = self.network(self.args.teacher, layout).eval().requires_grad_(False)
        topology = TOPOLOGIES[arm]().to(self.device) if arm in TOPOLOGIES else None
        loss = ResolvedLoss(alpha=2.0, delta=5.0 if topology else 0.0)
        student = self.network(self.args.student, layout)
        found = Distillation(student, fold_batchnorm(teacher), loss, amp=amp, topology=topology, widths=(64, 64))
        found.probe = Probe(probe_batches(self.images, BATCH), [SPEC] if topology else ())
        return found.to(self.device)

    def steps(self, objective: Objective, replay: bool) -> Iterator[int]:
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


def of_steps(bench: Bench) -> None:
    """Eager against replayed, and the floor."""
    replays = (False, True) if bench.device.type == "cuda" else (False,)
    bench.say("| step | ms | ms of its kernels | s an epoch of 782 |\n|---|---|---|---|")
    for arm in ARMS:
        for name, amp, layout in NUMBERS:
            for replay in replays:

                def measure(arm=arm, amp=amp, layout=layout, replay=replay) -> str:
                    steps = bench.steps(bench.objective(arm, amp, layout), replay)
                    for _ in range(min(20, bench.args.steps)):
                        next(steps)
                    time_of_step = bench.seconds(lambda: next(steps), bench.args.steps)
                    floor = bench.kernels(lambda: next(steps))
                    return f"{1e3 * time_of_step:.3f} | {1e3 * floor:.3f} | {782 * time_of_step:.2f}"

                bench.attempt(f"{arm}, {name}, {'graph' if replay else 'eager'}", measure)


def of_turns(bench: Bench) -> None:
    """Students side by side: KD and RipsNet, float32."""
    bench.say("\n| students side by side | ms of a round | ms a student's step | |\n|---|---|---|---|")
    for count in range(1, 5):

        def measure(count=count) -> str:
            turns = []
            for number in range(count):
                objective = bench.objective("RipsNet", "off", torch.channels_last)
                endless = (None for _ in bench.steps(objective, replay=True))
                turns.append(Turn(str(number), endless, bench.device))  # type: ignore[arg-type]
            with StopRequest():
                for _ in range(min(20, bench.args.steps)):
                    [turn.take() for turn in turns]
                time_of_round = bench.seconds(lambda: [turn.take() for turn in turns], bench.args.steps)
            return f"{1e3 * time_of_round:.3f} | {1e3 * time_of_round / count:.3f} | "

        bench.attempt(str(count), measure)


def of_flags(bench: Bench) -> None:
    """What it costs that kernels repeat themselves: cudnn.deterministic is set, cudnn.benchmark is not."""
    bench.say("\n| cudnn deterministic, benchmark | ms of a KD step, bf16 | ms, float32 | |\n|---|---|---|---|")
    for deterministic, benchmark in ((True, False), (True, True), (False, True)):

        def measure(deterministic=deterministic, benchmark=benchmark) -> str:
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, benchmark
            found = []
            try:
                for _, amp, layout in NUMBERS[:2]:
                    steps = bench.steps(bench.objective("KD", amp, layout), replay=True)
                    for _ in range(min(20, bench.args.steps)):
                        next(steps)
                    found.append(bench.seconds(lambda steps=steps: next(steps), bench.args.steps))  # type: ignore[misc]
            finally:
                exact_kernels()
            return " | ".join(f"{1e3 * value:.3f}" for value in found) + " | "

        bench.attempt(f"{deterministic}, {benchmark}", measure)


def of_epoch_ends(bench: Bench) -> None:
    """What an epoch's end takes: evaluation on as many images as there are, the diagnosis, and a plan of the next."""
    bench.say("\n| at an epoch's end | ms |\n|---|---|")
    test, objective = bench.images, bench.objective("RipsNet", "off", torch.channels_last)
    plan = EpochPlan(bench.images, 0, 1)
    numbers = iter(range(10**6))
    for name, act in {
        f"evaluation of the student, {len(test):,} images": lambda: evaluate(objective.student, test),
        "diagnosis of a step with RipsNet": objective.diagnose,
        f"plan of an epoch of {len(test):,} images": lambda: plan.draw(0, next(numbers)),
    }.items():
        act()
        bench.attempt(name, lambda act=act: f"{1e3 * bench.seconds(act):.2f}")  # type: ignore[misc]


def of_views(bench: Bench) -> None:
    """The teacher on all images as fast as it goes, from which the time of all views of 50,000 images follows."""
    bench.say(f"\n| the folded teacher, batches of 2,000 | images/s | s for {VIEWS} views of 50,000 |\n|---|---|---|")
    for name, amp, layout in NUMBERS:

        def measure(amp=amp, layout=layout) -> str:
            teacher = fold_batchnorm(bench.network(bench.args.teacher, layout).eval().requires_grad_(False))
            plan, count = EpochPlan(bench.images, 0, 1), min(2000, len(bench.images))
            places = torch.arange(count, device=bench.device)

            @torch.no_grad()
            def act() -> None:
                pictures, _, _ = plan.at(places)
                with autocast(bench.device, amp):
                    teacher(pictures, is_feat=True)

            act()
            rate = count / bench.seconds(act, max(1, bench.args.steps // 20))
            return f"{rate:,.0f} | {VIEWS * 50_000 / rate:.0f}"

        bench.attempt(name, measure)


class Clouds(CloudData):
    """Random clouds on the device."""

    def __init__(self, count: int, device: torch.device):
        generator = torch.Generator().manual_seed(0)
        clouds, pictures = torch.rand(count, 64, 64, generator=generator), torch.rand(count, 400, generator=generator)
        self.tensors = [clouds.half().to(device), pictures.to(device)]
        self.start, self.stop, self.device, self.on_device = 0, count, device, True


def of_clouds(bench: Bench) -> None:
    """Stage 2: diagrams of clouds of 64 points; stage 3: an epoch's steps."""
    count = min(8192, len(bench.images))
    data = Clouds(count, bench.device)
    clouds = data.tensors[0].float()
    bench.say("\n| stages 2 and 3 | |\n|---|---|")

    def diagrams() -> str:
        dim0_deaths(clouds)
        return f"{count / bench.seconds(lambda: dim0_deaths(clouds)):,.0f} clouds/s"

    bench.attempt(f"diagrams of dimension 0, {count:,} clouds at once", diagrams)
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
    "ends": of_epoch_ends,
    "clouds": of_clouds,
    "views": of_views,
    "disk": of_disk,
    "flags": of_flags,
}


def main(args) -> None:
    exact_kernels()
    bench = Bench(args)
    for name in args.only.split(","):
        with own_stream(bench.device):
            SECTIONS[name](bench)
    write_report(__doc__, bench.lines, args.output, bench.device)


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
