"""The first epoch of every method on real images, with its published weights: where its terms start and end.

    python -m benchmarks.first_epoch --path_t save_t_models/<run>/best.pth --model_s resnet8

Each method trains a student of the same initial weights on the same batches for one epoch; a method with a first stage
has one epoch of that before. Terms are unweighted means over the first and the last 50 steps of the epoch; weight_other
is the weight of the method's own term in it (a warm-up of 20 epochs begins with a twentieth). The test accuracy is that
after the epoch. Writes results/first_epoch.csv, a row a method and stage, and goes on with it when it is run again.
"""

import argparse
import csv
import time
from pathlib import Path

import torch

import train_student
from dataset import TrainLoader
from distiller_zoo import distiller_dict
from helper.checkpoint import load_network, write_bytes
from helper.data import load_data, num_classes
from helper.distillation import FirstStage, build_objective
from helper.loop import Meters, evaluate, make_optimizer, seed_everything, train_steps
from helper.options import exact_kernels, resolve_training
from helper.pairs import resolve_weights
from helper.runs import device_name, git_commit, plain, table, versions
from models import create_model

OUTPUT = Path("results/first_epoch.csv")
STEPS = 50
STANDARDIZED = "kd+ls"  # KD with standardised logits
METHODS = [*distiller_dict, STANDARDIZED]


def epoch(objective, loader, args) -> dict:
    """Train for an epoch; the means of the terms and of the loss over its first and its last steps, and the time."""
    began = time.perf_counter()
    optimizer, meters = make_optimizer(objective, args), Meters(list(objective.weights), args.device)
    found = {}
    for step in train_steps(objective, loader, optimizer, 1, meters):
        if step in (STEPS, len(loader)):
            meters.check(1)
            means = meters.means()
            means["loss"] = objective.total(means)
            found |= {f"{name}_{'start' if step == STEPS else 'end'}": float(f"{v:.5g}") for name, v in means.items()}
        if step == len(loader) - STEPS:
            vars(meters).update(vars(Meters(meters.names, args.device)))
    return found | {"seconds": round(time.perf_counter() - began, 1)}


def measure(name: str, options: list[str]) -> list[dict]:
    """The rows of one method."""
    method = ["--logit_stand"] if name == STANDARDIZED else ["--distill", name]
    args = train_student.get_args_parser().parse_args([*options, *method])
    resolve_training(args, args.model_s)
    seed_everything(args.seed)
    student = create_model(args.model_s, num_classes(args)).to(args.device, memory_format=torch.channels_last)
    teacher = load_network(args.path_t, args.model_t, "--model_t", args.device, args.dataset)
    settings = resolve_weights(args, teacher.arch, args.model_s)
    train_set, test_set = load_data(args)
    objective, _ = build_objective(args, settings, student, teacher, train_set)
    loader = TrainLoader(train_set, args.batch_size, args.seed)
    stages = {"first": FirstStage(objective, args.beta)} if args.first_epochs else {}
    rows = []
    for stage, trained in {**stages, "main": objective}.items():
        terms = epoch(trained, loader, args)
        accuracy, _ = evaluate(objective.student, test_set, args.amp)
        rows.append(
            {
                "method": name,
                "stage": stage,
                "teacher": teacher.arch,
                "teacher_acc": teacher.accuracy,
                "teacher_sha256": teacher.sha256,
                "student": args.model_s,
                **{name: getattr(args, name) for name in ("gamma", "alpha", "beta")},
                "weight_other": trained.weights.get("other", ""),
                "weights_source": args.weights_source,
                "set": " ".join(args.set),
                "test_acc": accuracy if stage == "main" else "",
                **terms,
                **{name: plain(args)[name] for name in ("dataset", "batch_size", "lr", "amp", "seed")},
                "device": device_name(args.device),
                **versions(),
                "commit": git_commit(),
            }
        )
    return rows


def main(args, options: list[str]) -> None:
    exact_kernels()
    rows = list(csv.DictReader(OUTPUT.open())) if OUTPUT.exists() else []
    for key in args.methods:
        if any(row["method"] == key for row in rows):
            continue
        new = measure(key, options)
        rows += new
        write_bytes(OUTPUT, table(rows))
        for row in new:
            print(
                ", ".join(
                    f"{name} {row[name]}"
                    for name in row
                    if name.endswith(("method", "stage", "_start", "_end", "_acc", "seconds"))
                ),
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="All other options are those of train_student.py.",
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    main(*parser.parse_known_args())
