"""What two processes compute together, into a file in the current folder; and the same objectives for one process.

Run by `support.several.together`, not by itself.
"""

import torch

from dataset import ImageSet, TrainLoader, dataset_dict, load_dataset
from distiller_zoo import Pair, distiller_dict
from helper import distributed
from helper.cli.parser import Parser, run
from helper.errors import UserError
from helper.settings import Data, ResolvedLoss, ResolvedTraining
from helper.student.distillation import Distillation
from helper.training.loop import evaluate, make_optimizer, train_steps
from helper.training.meters import Meters
from models import create_model, feature_shapes
from ripsnet import WassersteinTopology
from support.images import TINY

CPU, BATCH = torch.device("cpu"), 16
LOSSES = {
    "kd": ({"gamma": 0.1, "alpha": 0.9}, None),
    "fitnet": ({"gamma": 1.0, "beta": 100.0, "distill": "fitnet"}, None),
    "clouds of a process": ({"gamma": 1.0, "alpha": 1.0, "delta": 50.0, "topology": "wasserstein"}, BATCH // 2),
    "clouds of two": ({"gamma": 1.0, "alpha": 1.0, "delta": 50.0, "topology": "wasserstein"}, BATCH),
}


def objective(kind):
    """The objective of a small student, with the same weights wherever it is made."""
    torch.manual_seed(0)
    student, teacher = create_model("resnet8", 4), create_model("resnet8x4", 4).eval()
    loss, cloud_size = LOSSES[kind]
    other = None
    if "distill" in loss:
        pair = Pair(shapes_s=feature_shapes(student, 32), shapes_t=feature_shapes(teacher, 32))
        method = distiller_dict[loss["distill"]]
        other = method.make_loss(pair, method.options)
    return Distillation(
        student,
        teacher,
        ResolvedLoss(kd_T=4.0, **loss),
        other=other,
        topology=WassersteinTopology() if cloud_size else None,
        cloud_size=cloud_size,
        epochs=2,
        widths=(64, 256),
    )


def gradients(kind, loader):
    """Of the loss of the first batch, with running statistics."""
    whole = objective(kind).eval()
    called = distributed.parallel(whole)
    _, terms = called(*next(iter(loader.epoch(1))))
    whole.total(terms).backward()
    return {name: parameter.grad for name, parameter in whole.named_parameters()}


def two_steps(loader):
    """Weights and buffers after the first two steps of an epoch, and the meters of both processes."""
    whole = objective("kd")
    optimizer, meters = make_optimizer(whole, ResolvedTraining(lr=0.05)), Meters(["ce", "kd"], CPU)
    steps = train_steps(whole, loader, optimizer, 1, meters, forward=distributed.parallel(whole))
    for done in steps:
        if done == 2:
            break
    total = meters.over_processes()
    return whole.state_dict(), {"images": total.images, "correct": int(total.correct), **total.means()}


def odd_test_set():
    _, test = load_dataset("tiny", "")
    return ImageSet(test.images[:39], test.labels[:39], test.info)


def tested():
    torch.manual_seed(2)
    return evaluate(create_model("resnet8", 4), odd_test_set(), batch_size=8)


def fail():
    raise UserError(f"process {distributed.rank()}")


def fail_in_the_second():
    if distributed.rank() == 1:
        fail()


def error_of(function, *arguments):
    try:
        function(*arguments)
    except UserError as error:
        return str(error)
    return None


def main(args):
    dataset_dict["tiny"] = TINY
    train, _ = load_dataset("tiny", "")
    loader = TrainLoader(train, BATCH, 0, rank=distributed.rank(), world=distributed.world())
    found = {
        "gradients": {kind: gradients(kind, loader) for kind in LOSSES},
        "two steps": two_steps(loader),
        "evaluation": tested(),
        "errors": [error_of(distributed.on_first, fail), error_of(distributed.together, fail_in_the_second)],
        "agreed": [distributed.agree(distributed.rank() == 1), distributed.agree(False)],
        "values": [distributed.on_first(distributed.rank), distributed.all_states(distributed.rank())],
    }
    torch.save(found, f"found{distributed.rank()}.pt")


def get_args_parser():
    parser = Parser()
    parser.add_settings("data and device", Data)
    return parser


if __name__ == "__main__":
    run(main, get_args_parser, several=True)
