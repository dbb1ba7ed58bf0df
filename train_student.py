"""Stage 4: train a student by  gamma * CE + alpha * KD + beta * L_other + delta * L_top.

    python train_student.py --path_t save_t_models/resnet56_cifar100_trial1/best.pth --model_s resnet20      # KD
    ... -d 5                          # TopKD: topology through RipsNet (stages 2 and 3 first)
    ... -d 5 --topology exact         # exact persistence images instead of RipsNet (stage 2 first)
    ... -d 5 --topology wasserstein   # death times compared directly (needs neither)
    ... -r 1 -a 2 -d 0                # the control: KD with TopKD's weight and no topology
    ... -r 1 -a 0 -d 0                # cross entropy alone
    ... --distill crd                 # another method, by its published settings;  -d 5 adds topology to it
    ... --distill fitnet --set hint=3 # with an option of its own
    python train_student.py --list    # the methods, their settings, options and pairs

With a topology term and no --alpha, the pair's value is taken from helper/pairs.py. All methods with one --seed start
from equal weights and see equal batches. Writes save_s_models/<run>/ (best.pth, last.pth, log.csv, args.json,
TensorBoard), and when it ends results/runs/<run>.csv and results/logs/<run>.csv.
"""

import argparse

import torch

from dataset import TrainLoader
from distiller_zoo import distiller_dict
from helper.checkpoint import load_network
from helper.data import load_data, num_classes
from helper.distillation import FirstStage, build_objective
from helper.loop import fit, seed_everything
from helper.methods import listing
from helper.options import (
    METHOD_HELP,
    MODEL_HELP,
    Listing,
    Parser,
    add_batch_size,
    add_cloud_options,
    add_data_options,
    add_operator,
    add_ripsnet_clouds,
    add_student_layer,
    add_teacher_options,
    add_training_options,
    method,
    model,
    number,
    positive,
    resolve_training,
    run,
    weight,
    whole,
)
from helper.pairs import method_name, resolve_weights, run_name, without_effect
from helper.runs import STUDENTS, Run, results_row
from models import create_model


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    add_teacher_options(parser)
    parser.add_argument("--model_s", type=model, required=True, help=MODEL_HELP)
    loss = parser.add_argument_group("loss")
    loss.add_argument("--distill", type=method, default="kd", help=f"{METHOD_HELP} (default: %(default)s)")
    loss.add_argument("--list", action=Listing, text=listing, help="print the methods and exit")
    loss.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="options of the method, which --list shows (default: the published ones)",
    )
    loss.add_argument(
        "--logit_stand",
        action="store_true",
        help="standardise the logits that KD, DKD or DIST compare (Sun et al., CVPR 2024)",
    )
    loss.add_argument(
        "--kd_T",
        type=number(float, 1e-3, 1e3),
        default=None,
        help="temperature of KD, DKD and DIST (default: 4; 2 with --logit_stand)",
    )
    loss.add_argument(
        "--warmup",
        type=whole,
        default=None,
        help="epochs over which beta rises linearly, for methods that have such a warm-up (default: published)",
    )
    loss.add_argument(
        "--first_epochs",
        type=positive,
        default=None,
        help="epochs of the first stage, for methods that have one (default: published)",
    )
    loss.add_argument("-r", "--gamma", type=weight, default=None, help="weight of CE (default: the method's)")
    loss.add_argument(
        "-a", "--alpha", type=weight, default=None, help="weight of KD (default: the method's, or the pair's)"
    )
    loss.add_argument(
        "-b", "--beta", type=weight, default=None, help="weight of the method's own loss (default: published)"
    )
    loss.add_argument(
        "-d",
        "--delta",
        type=weight,
        default=None,
        help="weight of topology (default: 0, or the pair's when --topology is given)",
    )
    loss.add_argument(
        "--topology",
        choices=["ripsnet", "exact", "wasserstein"],
        default=None,
        help="how topology is compared (default: ripsnet when --delta is positive)",
    )
    add_student_layer(loss)
    add_operator(loss, default=None)
    add_ripsnet_clouds(loss)
    loss.add_argument(
        "--ripsnet",
        nargs="+",
        metavar="PATH",
        default=None,
        help="fitted RipsNet, one a dimension (default: found under ripsnet/ by the teacher and the options)",
    )
    add_cloud_options(parser)
    add_data_options(parser)
    add_batch_size(parser)
    add_training_options(parser)
    return parser


def main(args) -> None:
    resolve_training(args, args.model_s)
    classes = num_classes(args)
    seed_everything(args.seed)  # the student comes first, so that every method starts from the same weights
    student = create_model(args.model_s, classes).to(args.device, memory_format=torch.channels_last)
    teacher = load_network(args.path_t, args.model_t, "--model_t", args.device, args.dataset)
    options = resolve_weights(args, teacher.arch, args.model_s)
    student_run = Run(STUDENTS / (args.name or run_name(args, teacher.arch, args.model_s)), args)
    train_set, test_set = load_data(args)
    objective, ripsnet_r2 = build_objective(args, options, student, teacher, train_set)
    name = method_name(args, teacher.arch, args.model_s)
    print(
        f"{student_run.name}: {name}, "
        + f"first stage of {args.first_epochs} epochs, then " * bool(args.first_epochs)
        + " + ".join(f"{value:g} {term}" for term, value in objective.weights.items())
        + f", other rising over {args.warmup} epochs" * bool(args.warmup)
        + f" ({args.weights_source}); teacher {teacher.arch} {teacher.accuracy or float('nan'):.2f} %",
        flush=True,
    )

    loader, first = TrainLoader(train_set, args.batch_size, args.seed), []
    about = {"arch": args.model_s, "num_classes": classes, "dataset": args.dataset}
    if objective.student is not student:
        about["replaced"] = {"distill": args.distill, "arch_t": teacher.arch}
    if args.first_epochs:
        first_lr = distiller_dict[args.distill].first_rate(args.model_s, args.lr)
        changes = {"epochs": args.first_epochs, "lr": first_lr, "lr_decay_epochs": []}
        first_args = argparse.Namespace(**{**vars(args), **changes})
        first_run = Run(student_run.folder / "first_stage", first_args)
        first = fit(FirstStage(objective, args.beta), loader, test_set, first_run, first_args, about)
    history = fit(objective, loader, test_set, student_run, args, about)
    student_run.finish(
        history,
        results_row(
            history,
            method=name,
            student=args.model_s,
            teacher=teacher.arch,
            teacher_acc=teacher.accuracy,
            teacher_sha256=teacher.sha256,
            ripsnet_r2=ripsnet_r2,
            first_stage=first,
            without_effect=without_effect(args),
        ),
    )


if __name__ == "__main__":
    run(main, get_args_parser())
