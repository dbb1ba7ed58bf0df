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
    python train_student.py --config save_s_models/<run>/args.json --trial 2    # the same options again, another seed

To go on to more epochs, a student needs a --name from the start, since the epochs stand in the name that it is given.

With a topology term and no --alpha, the pair's value is taken from helper/student/pairs.py. All methods with one --seed
start from equal weights and see equal batches. Writes save_s_models/<run>/ (best.pth, last.pth, log.csv, args.json,
TensorBoard), and when it ends results/runs/<run>.csv and results/logs/<run>.csv.
"""

import helper.cli.early  # noqa: F401

# isort: split

import dataclasses

from dataset import TrainLoader
from helper.cli.parser import Listing, Parser, read, run
from helper.cli.types import model, model_help
from helper.data import image_files, load_data, num_classes
from helper.files.paths import STUDENTS
from helper.files.run import Run, results_row
from helper.networks import check_image_size, load_network
from helper.settings import Clouds, Data, Loss, Repetition, Teacher, Training, plain
from helper.student.build import build_objective, build_student
from helper.student.distillation import FirstStage
from helper.student.listing import listing
from helper.student.names import method_name, student_name
from helper.student.weights import StudentSettings, resolve
from helper.training.loop import fit


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_settings("teacher", Teacher)
    parser.add_argument("--model_s", type=model, required=True, help=model_help())
    parser.add_argument("--list", action=Listing, text=listing, help="print the methods and exit")
    parser.add_settings("loss", Loss)
    parser.add_settings("clouds and images", Clouds)
    parser.add_settings("data and device", Data)
    parser.add_settings("training", Training)
    parser.add_settings("run", Repetition)
    parser.add_config()
    return parser


@image_files()
def main(args) -> None:
    loss, clouds, data = read(args, Loss), read(args, Clouds), read(args, Data)
    training, repetition = read(args, Training), read(args, Repetition).resolved()
    classes, device = num_classes(args.dataset), args.device
    check_image_size(args.model_s, args.dataset, "--model_s")
    student = build_student(args.model_s, classes, repetition.seed, device)  # first: the same for every method
    teacher = load_network(args.path_t, args.model_t, "--model_t", device, args.dataset)
    settings = resolve(loss, clouds, data, training, repetition, teacher.arch, args.model_s)

    values = settings.loss, settings.clouds, settings.data, settings.training, settings.repetition
    options = {**plain(read(args, Teacher)), "model_s": args.model_s, **plain(*values)}
    name = repetition.name or student_name(settings)
    student_run = Run(STUDENTS / name, options, device, repetition.resume)
    train_set, test_set = load_data(settings.data)
    objective, ripsnet_r2 = build_objective(settings, args.path_t, student, teacher, train_set)
    print(
        f"{student_run.name}: {summary(settings, objective.weights)}; teacher {teacher.arch} {known(teacher)}",
        flush=True,
    )

    loader, first = TrainLoader(train_set, settings.training.batch_size, repetition.seed), []
    about = {"arch": args.model_s, "num_classes": classes, "dataset": args.dataset}
    if objective.student is not student:
        about["replaced"] = {
            "distill": settings.loss.distill,
            "arch_t": teacher.arch,
            "options": settings.options,
        }
    student_run.hold()
    if settings.loss.first_epochs:
        own = dataclasses.replace(
            settings.training,
            epochs=settings.loss.first_epochs,
            lr=settings.method.first_rate(args.model_s, settings.training.lr),
            lr_decay_epochs=(),
        )
        first_run = Run(student_run.folder / "first_stage", options | plain(own), device, repetition.resume)
        first = fit(FirstStage(objective), loader, test_set, first_run, own, about)
    history = fit(objective, loader, test_set, student_run, settings.training, about)
    student_run.finish(
        history,
        results_row(
            history,
            method=method_name(settings),
            variant=settings.variant,
            schedule=settings.schedule,
            student=args.model_s,
            teacher=teacher.arch,
            teacher_acc=teacher.accuracy,
            teacher_sha256=teacher.sha256,
            ripsnet_r2=ripsnet_r2,
            first_stage=first,
            without_effect=settings.without_effect,
        ),
    )


def known(teacher) -> str:
    return "of unknown accuracy" if teacher.accuracy is None else f"{teacher.accuracy:.2f} %"


def summary(settings: StudentSettings, weights: dict[str, float]) -> str:
    """'TopKD, 1 ce + 2 kd + 5 top (published: ...)'."""
    loss, parts = settings.loss, " + ".join(f"{value:g} {term}" for term, value in weights.items())
    if loss.first_epochs:
        parts = f"first stage of {loss.first_epochs} epochs, then {parts}"
    if loss.warmup:
        parts += f", other rising over {loss.warmup} epochs"
    return f"{method_name(settings)}, {parts} ({loss.weights_source})"


if __name__ == "__main__":
    run(main, get_args_parser)
