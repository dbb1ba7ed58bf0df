"""What the training loop costs beyond its computation, and against a plain PyTorch loop; what the topology terms cost.

    python -m benchmarks.training_loop --output benchmarks/results/training_loop.txt

On a GPU steps run as they are here; benchmarks/gpu.py replays them as graphs.
ResNet56 > ResNet20 (untrained weights: the time does not depend on them), batch 64, KD, in one run:
- full: the project's loop (batches made on the device, meters, non-finite check), float32 and bf16;
- bare: the same two forwards, backward and optimizer step on one fixed batch, nothing else;
- plain: torchvision's transforms in a DataLoader with one worker, contiguous float32, no folded BatchNorm, `.item()`
  each step;
- full with each topology term (dimension 0), and each term's own forward and backward.
The variants take turns, --steps steps a turn for --repeats turns; minimum and median are over the turns.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import cycle

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.report import compare, synchronize, write_report
from dataset import ImageSet, TrainLoader, dataset_dict
from distiller_zoo import KD
from helper.cli.parser import exact_kernels
from helper.settings import ResolvedLoss, Training
from helper.student.distillation import Distillation
from helper.training.loop import make_optimizer
from helper.training.meters import Meters
from helper.training.objective import Objective, autocast
from helper.training.steps import train_steps
from models import create_model, fold_batchnorm
from ripsnet import ExactTopology, ImageSpec, RipsNet, RipsNetTopology, WassersteinTopology

BATCH = 64
TRAINING = Training().resolved("resnet20")
SPEC = ImageSpec(dim=0, sigma=0.35, sigma_rule="released", image_range=(0, 0, 1, 15), maximum=100.0)


def random_images(device: torch.device, count: int = 5000) -> ImageSet:
    """Noise in CIFAR-100's shape: a step takes as long on it as on photographs."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 100, (count,), generator=generator)
    return ImageSet(images.to(device), labels.to(device), dataset_dict["cifar100"])


def networks(device: torch.device, channels_last: bool = True):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    torch.manual_seed(0)
    student = create_model("resnet20").to(device, memory_format=layout)
    return student, create_model("resnet56").to(device, memory_format=layout).eval().requires_grad_(False)


def full(images: ImageSet, amp: str, topology=None) -> Iterator[int]:
    """The project's loop; every next() is one training step."""
    student, teacher = networks(images.device)
    loss = ResolvedLoss(alpha=2.0, delta=5.0 if topology else 0.0, kd_T=4.0)
    objective = Distillation(
        student, fold_batchnorm(teacher), loss, amp=amp, topology=topology, widths=(64, 64), epochs=240
    )
    optimizer = make_optimizer(objective, TRAINING)
    loader = TrainLoader(images, BATCH, seed=0, drop_last=True)
    for epoch in range(10**6):
        meters = Meters(list(objective.weights), images.device)
        yield from train_steps(objective, loader, optimizer, epoch, meters)


def bare(images: ImageSet, amp: str) -> Iterator[int]:
    """The computation of `full` alone, on a fixed batch."""
    student, teacher = networks(images.device)
    teacher, kd = fold_batchnorm(teacher), KD()
    optimizer = make_optimizer(Objective(student, {"ce": 1.0}), TRAINING)
    batch, labels, _ = next(TrainLoader(images, BATCH, seed=0).epoch(1))
    student.train()
    while True:
        with autocast(batch.device, amp):
            with torch.no_grad():
                logits_t = teacher(batch)
            logits_s = student(batch)
        loss = F.cross_entropy(logits_s.float(), labels) + 2.0 * kd(logits_s.float(), logits_t.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield 0


class PlainDataset(Dataset):
    """The images as a plain script reads them: one PIL image at a time through torchvision's transforms."""

    def __init__(self, images: ImageSet):
        info = images.info
        self.images, self.labels = images.images.cpu().numpy(), images.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(info.mean, info.std),
            ]
        )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(self.images[index]), self.labels[index]


def plain(images: ImageSet) -> Iterator[int]:
    """A plain training loop, in float32."""
    device = images.device
    student, teacher = networks(device, channels_last=False)
    lr, momentum, weight_decay = TRAINING.lr, TRAINING.momentum, TRAINING.weight_decay
    optimizer = torch.optim.SGD(student.parameters(), lr, momentum, weight_decay=weight_decay)
    data = PlainDataset(images)
    loader = DataLoader(data, BATCH, shuffle=True, num_workers=1, drop_last=True, persistent_workers=True)
    student.train()
    kd, seen, loss_sum, correct = KD(), 0, 0.0, 0.0
    for _ in cycle([0]):
        for batch, labels in loader:
            batch, labels = batch.to(device), labels.to(device)
            logits_s = student(batch)
            with torch.no_grad():
                logits_t = teacher(batch)
            loss = F.cross_entropy(logits_s, labels) + 2.0 * kd(logits_s.float(), logits_t.float())
            loss_sum += loss.item() * len(labels)
            correct += (logits_s.argmax(1) == labels).float().sum().item()
            seen += len(labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield seen


def term(topology, device: torch.device) -> Iterator[int]:
    """Forward and backward of a topology term alone, on clouds of the real shape."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.rand(BATCH, 64, generator=generator).to(device) for _ in range(2))
    student.requires_grad_()
    while True:
        topology(student, teacher).backward()
        yield 0


def main(args) -> None:
    exact_kernels()
    device = torch.device(args.device)
    images = random_images(device)
    topologies = {
        "exact": ExactTopology([SPEC]),
        "wasserstein": WassersteinTopology(),
        "ripsnet": RipsNetTopology([RipsNet(64)]).to(device),
    }
    variants: dict[str, Iterator[int]] = {}
    for amp, label in (("off", "float32"), ("bf16", "bf16")):
        variants |= {f"full {label}": full(images, amp), f"bare {label}": bare(images, amp)}
    variants |= {f"full float32 + {name}": full(images, "off", topology) for name, topology in topologies.items()}
    variants |= {f"term {name}": term(topology, device) for name, topology in topologies.items()}
    variants["plain float32"] = plain(images)

    def turn(steps: Iterator[int]) -> Callable[[], float]:
        def measure() -> float:
            synchronize(device)
            began = time.perf_counter()
            for _ in range(args.steps):
                next(steps)
            synchronize(device)
            return (time.perf_counter() - began) / args.steps

        return measure

    times = compare({name: turn(steps) for name, steps in variants.items()}, args.repeats)
    lines = times.table("ms a step", 1e3)
    for label in ("float32", "bf16"):
        lines.append(times.ratio(f"bare {label}", f"full {label}", "speed of the full loop over the bare computation"))
        lines.append(times.ratio("plain float32", f"full {label}", "speed of the full loop over the plain loop"))
    for name in topologies:
        lines.append(times.ratio(f"term {name}", "full float32", f"cost of the {name} term over the KD step"))
        lines.append(times.ratio(f"full float32 + {name}", "full float32", f"step with {name} over the KD step"))
    write_report(__doc__, lines, args.output, device)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="steps a turn (default: 5)")
    parser.add_argument("--repeats", type=int, default=15, help="turns (default: 15)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.add_argument("--output", default=None, help="also write the report to this file")
    main(parser.parse_args())
