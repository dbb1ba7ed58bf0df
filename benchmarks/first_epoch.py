"""The first epoch of every method on real images, with its published weights: where its terms start and end.

    python -m benchmarks.first_epoch --path_t save_t_models/<run>/best.pth --model_s resnet8

Each method trains a student of the same initial weights on the same batches for one epoch; a method with a first stage
has one epoch of that before. Terms are unweighted means over the first and the last 50 steps of the epoch; weight_other
is the weight of the method's own term in it (a warm-up of 20 epochs begins with a twentieth). The test accuracy is that
after the epoch. Writes results/first_epoch.csv, a row a method and stage, and goes on with it when it is run again.
"""

import csv
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import train_student
from dataset import TrainLoader
from distiller_zoo import distiller_dict
from helper.cli.parser import Parser, read, run
from helper.data import load_data, num_classes
from helper.errors import RunStopped
from helper.files.atomic import csv_bytes, write_bytes
from helper.files.provenance import device_name, git_commit, versions
from helper.networks import load_network
from helper.settings import Clouds, Data, Loss, Repetition, ResolvedTraining, Training
from helper.student.build import build_objective, build_student
from helper.student.distillation import FirstStage
from helper.student.weights import resolve
from helper.training.loop import evaluate, make_optimizer
from helper.training.meters import Meters
from helper.training.objective import Objective
from helper.training.steps import train_steps

OUTPUT = Path("results/first_epoch.csv")
STEPS = 50
STANDARDIZED = "kd+ls"  # KD with standardised logits
METHODS = [*distiller_dict, STANDARDIZED]


def get_args_parser() -> Parser:
    parser = train_student.get_args_parser()
    parser.description = __doc__
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="(default: all)")
    return parser


def epoch(objective: Objective, loader: TrainLoader, training: ResolvedTraining) -> dict[str, float]:
    """Train for an epoch; the means of the terms and of the loss over its first and its last steps, and the time."""
    began, device = time.perf_counter(), loader.image_set.device
    optimizer, meters = make_optimizer(objective, training), Meters(list(objective.weights), device)
    found: dict[str, float] = {}
    for step in train_steps(objective, loader, optimizer, 1, meters):
        if step in (STEPS, len(loader)):
            meters.check(1, "this method has no row")
            means = meters.means()
            means["loss"] = objective.total(means)
            place = "start" if step == STEPS else "end"
            found |= {f"{name}_{place}": float(f"{value:.5g}") for name, value in means.items()}
        if step == len(loader) - STEPS:
            meters.reset()
    return found | {"seconds": round(time.perf_counter() - began, 1)}


def measure(name: str, args: Namespace) -> list[dict[str, Any]]:
    """The rows of one method."""
    method = {"logit_stand": True} if name == STANDARDIZED else {"distill": name}
    data, repetition = read(args, Data), read(args, Repetition).resolved()
    student = build_student(args.model_s, num_classes(data.dataset), repetition.seed, data.device)
    teacher = load_network(args.path_t, args.model_t, "--model_t", data.device, data.dataset)
    loss, clouds, training = read(args, Loss, **method), read(args, Clouds), read(args, Training)
    settings = resolve(loss, clouds, data, training, repetition, teacher.arch, args.model_s)
    own = settings.loss
    train_set, test_set = load_data(data)
    objective, _ = build_objective(settings, args.path_t, student, teacher, train_set)
    loader = TrainLoader(train_set, settings.training.batch_size, repetition.seed)
    stages: list[tuple[str, Objective, ResolvedTraining]] = [("main", objective, settings.training)]
    if own.first_epochs:
        stages.insert(0, ("first", FirstStage(objective), settings.first_training))
    rows = []
    for stage, trained, schedule in stages:
        terms = epoch(trained, loader, schedule)
        accuracy, _ = evaluate(objective.student, test_set, settings.training.amp)
        rows.append(
            {
                "method": name,
                "stage": stage,
                "teacher": teacher.arch,
                "teacher_acc": teacher.accuracy,
                "teacher_sha256": teacher.sha256,
                "student": args.model_s,
                "gamma": own.gamma,
                "alpha": own.alpha,
                "beta": own.beta,
                "weight_other": trained.weights.get("other", ""),
                "weights_source": own.weights_source,
                "set": " ".join(own.set),
                "test_acc": accuracy if stage == "main" else "",
                **terms,
                "dataset": data.dataset,
                **{name: getattr(schedule, name) for name in ("batch_size", "lr", "amp")},
                "seed": repetition.seed,
                "device": device_name(data.device),
                **versions(),
                "commit": git_commit(),
            }
        )
    return rows


def main(args: Namespace) -> None:
    rows = list(csv.DictReader(OUTPUT.open())) if OUTPUT.exists() else []
    for name in args.methods:
        if any(row["method"] == name for row in rows):
            continue
        try:
            new = measure(name, args)
        except RunStopped as error:  # such as a loss that is not finite
            print(f"{name}: {error}", flush=True)
            continue
        rows += new
        write_bytes(OUTPUT, csv_bytes(rows))
        for row in new:
            shown = [key for key in row if key.endswith(("method", "stage", "_start", "_end", "_acc", "seconds"))]
            print(", ".join(f"{key} {row[key]}" for key in shown), flush=True)


if __name__ == "__main__":
    run(main, get_args_parser)
