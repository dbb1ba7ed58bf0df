"""Students of every method on a few random images, ready for their first step."""

import copy

import torch

import train_student
from dataset import ImageSet, TrainLoader, dataset_dict
from distiller_zoo import distiller_dict
from helper.cli.parser import read
from helper.networks import Network
from helper.settings import Clouds, Data, Loss, Repetition, ResolvedTraining, Training
from helper.student.build import build_objective
from helper.student.weights import resolve
from helper.training.loop import make_optimizer
from helper.training.meters import Meters
from helper.training.steps import ReplayedSteps
from models import create_model, to_device
from ripsnet import ExactTopology, ImageSpec, RipsNet, RipsNetTopology, WassersteinTopology

from .zoo import teacher_of

CPU = torch.device("cpu")
SPEC = ImageSpec(dim=0, sigma=0.35, sigma_rule="released", image_range=(0, 0, 1, 15), maximum=100.0)
TOPOLOGIES = {
    "ripsnet": lambda: RipsNetTopology([RipsNet(64)]),
    "exact": lambda: ExactTopology([SPEC]),
    "wasserstein": WassersteinTopology,
}
SMALL = {"crd": ["nce_k=8", "feat_dim=8"], "crcd": ["feat_dim=8"]}
METHODS = [key for key in distiller_dict if key != "kd"]


def images(count, device=CPU):
    """Random ones, whose labels are their numbers."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels.to(device), (torch.arange(count) % 100).to(device), dataset_dict["cifar100"])


def build(
    shown,
    key="kd",
    topology=None,
    pair=("resnet8", "resnet8"),
    batch_size=4,
    epochs=3,
    amp="off",
    cloud_size=None,
    more=(),
):
    """The objective of `train_student.py --distill <key> --topology <topology> <more>` for fresh networks, on the
    device of the images."""
    options = ["--path_t", "", "--model_s", pair[1], "--distill", key, "--batch_size", batch_size, "--amp", amp]
    options += ["--epochs", epochs, "--device", "cpu", *more]
    if topology:
        options += ["-d", 5, "--topology", "wasserstein"]
    if cloud_size:
        options += ["--cloud_size", cloud_size]
    known = distiller_dict[key].options
    if chosen := [each for each in SMALL.get(key, []) if each.split("=")[0] in known]:
        options += ["--set", *chosen]
    args = train_student.get_args_parser().parse_args([*map(str, options)])
    sections = read(args, Loss), read(args, Clouds), read(args, Data, device=shown.device), read(args, Training)
    settings = resolve(*sections, read(args, Repetition), *pair)
    model_t = to_device(copy.deepcopy(teacher_of(pair[0]).model), shown.device)
    teacher = Network(model_t, pair[0], num_classes=100, sha256="", accuracy=None, dataset=None, epoch=None)
    torch.manual_seed(0)
    student = to_device(create_model(pair[1]), shown.device)
    found, _ = build_objective(settings, "", student, teacher, shown)
    if topology:
        found.frozen = found.frozen._replace(topology=TOPOLOGIES[topology]().to(shown.device))
    return found


def training(objective, shown, capture=None, lr=0.01, batch_size=4):
    """What `train_steps` needs: (optimizer, meters, loader, replayed)."""
    optimizer = make_optimizer(objective, ResolvedTraining(lr=lr))
    meters, loader = Meters(list(objective.weights), shown.device), TrainLoader(shown, batch_size, 0)
    replayed = ReplayedSteps(objective, loader, optimizer, meters, capture) if capture else None
    return optimizer, meters, loader, replayed


def state_of(objective, optimizer, meters):
    """Everything that training changes, by name."""
    found = {f"objective {name}": tensor for name, tensor in objective.state_dict().items()}
    for number, slots in optimizer.state_dict()["state"].items():
        found |= {f"optimizer {number} {name}": value for name, value in slots.items()}
    found |= {f"meters {name}": value for name, value in meters.state_dict().items()}
    return {name: torch.as_tensor(0 if value is None else value).clone() for name, value in found.items()}
