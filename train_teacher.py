"""Stage 1: train a teacher (or any network alone) with cross entropy, by the published schedule.

    python train_teacher.py --model resnet56                     # CIFAR-100, 240 epochs
    python train_teacher.py --model resnet56 --trial 2 --amp bf16
    python train_teacher.py --model resnet56 --resume            # continue after an interruption

Writes save_t_models/<model>_<dataset>_trial<n>/ (best.pth, last.pth, log.csv, args.json, TensorBoard), and when it ends
results/runs/<run>.csv and results/logs/<run>.csv.
"""

import torch

from dataset import TrainLoader
from helper.data import load_data, num_classes
from helper.loop import Objective, fit, seed_everything
from helper.options import (
    MODEL_HELP,
    Parser,
    add_batch_size,
    add_data_options,
    add_training_options,
    model,
    resolve_training,
    run,
)
from helper.runs import TEACHERS, Run, results_row
from models import create_model


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", type=model, default="resnet110", help=f"{MODEL_HELP} (default: %(default)s)")
    add_data_options(parser)
    add_batch_size(parser)
    add_training_options(parser)
    return parser


def main(args) -> None:
    resolve_training(args, args.model)
    teacher_run = Run(TEACHERS / (args.name or f"{args.model}_{args.dataset}_trial{args.trial}"), args)
    seed_everything(args.seed)
    network = create_model(args.model, num_classes(args)).to(args.device, memory_format=torch.channels_last)
    train_set, test_set = load_data(args)

    loader = TrainLoader(train_set, args.batch_size, args.seed)
    about = {"arch": args.model, "num_classes": num_classes(args), "dataset": args.dataset}
    history = fit(Objective(network, {"ce": 1.0}, args.amp), loader, test_set, teacher_run, args, about)
    teacher_run.finish(history, results_row(history, method="CE", student=args.model))


if __name__ == "__main__":
    run(main, get_args_parser())
