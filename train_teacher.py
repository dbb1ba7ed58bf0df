"""Stage 1: train a teacher (or any network alone) with cross entropy, by the published schedule.

    python train_teacher.py --model resnet56                     # CIFAR-100, 240 epochs
    python train_teacher.py --model resnet56 --trial 2 --amp bf16
    python train_teacher.py --model resnet56 --resume            # continue after an interruption
    torchrun --standalone --nproc_per_node 4 train_teacher.py --model resnet34_imagenet --dataset imagenet    # 4 GPUs
    python train_teacher.py --config save_t_models/<run>/args.json --trial 2    # the same options again, another seed

Writes save_t_models/<model>_<dataset>_trial<n>/ (best.pth, last.pth, log.csv, args.json, TensorBoard), and when it ends
results/runs/<run>.csv and results/logs/<run>.csv.
"""

import helper.cli.early  # noqa: F401

# isort: split

from dataset import dataset_dict
from helper.cli.parser import Parser, read, run
from helper.cli.types import model, model_help
from helper.data import load_data, train_loader
from helper.files.paths import TEACHERS, row_file
from helper.files.run import Run, results_row
from helper.networks import check_contract, check_image_size
from helper.settings import Data, Repetition, Training, plain
from helper.student.build import build_student
from helper.student.names import schedule, teacher_name, variant
from helper.training.loop import Trainer, fit
from helper.training.objective import Objective


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", type=model, default="resnet110", help=f"{model_help()} (default: %(default)s)")
    parser.add_settings("data and device", Data)
    parser.add_settings("training", Training, without=("teacher_cache",))
    parser.add_settings("run", Repetition)
    parser.add_config()
    return parser


def main(args) -> None:
    data, info = read(args, Data), dataset_dict[args.dataset]
    check_image_size(args.model, args.dataset, "--model")
    training, repetition = read(args, Training).resolved(args.model, info.recipe), read(args, Repetition).resolved()
    name = repetition.name or teacher_name(args.model, data, training, repetition, info.recipe)
    options = {"model": args.model, **plain(data, training, repetition)}
    teacher_run = Run(TEACHERS / name, options, data.device, repetition.resume)

    network = build_student(args.model, info.num_classes, repetition.seed, data.device)
    check_contract(network, args.model, args.dataset)
    train_set, test_set = load_data(data)
    teacher_run.hold()
    if teacher_run.ended(row_file(name)):
        return

    loader = train_loader(train_set, training.batch_size, repetition.seed)
    about = {"arch": args.model, "num_classes": info.num_classes, "dataset": data.dataset}
    objective = Objective(network, {"ce": 1.0}, training.amp)
    history = fit(Trainer(objective, loader, test_set, teacher_run, training, about))
    row = results_row(
        history,
        method="CE",
        student=args.model,
        variant=variant({"batch_size": training.batch_size}, {"batch_size": Training.of(info.recipe).batch_size}),
        schedule=schedule(training, args.model, info.recipe),
        without_effect=("teacher_cache",),
    )
    teacher_run.finish(history, row)


if __name__ == "__main__":
    run(main, get_args_parser, several=True)
