"""Stage 4: train a student by  gamma * CE + alpha * KD + beta * L_other + delta * L_top.

    python train_student.py --path_t save_t_models/resnet56_cifar100_trial1/best.pth --model_s resnet20      # KD
    ... -d 5                          # TopKD: topology through RipsNet (stages 2 and 3 first)
    ... -d 5 --topology exact         # exact persistence images instead of RipsNet (stage 2 first)
    ... -d 5 --topology wasserstein   # death times compared directly (needs neither)
    ... -r 1 -a 2 -d 0                # the control: KD with TopKD's weight and no topology
    ... -r 1 -a 0 -d 0                # cross entropy alone
    ... --distill crd                 # another method, by its published settings;  -d 5 adds topology to it
    ... --distill fitnet --set hint=3 # with an option of its own
    ... --teacher_cache               # the teacher's outputs from a table, computed once for all its students
    ... --trial 1 2 3                 # three seeds side by side in one process, which fills a GPU; each ends as alone
    torchrun --standalone --nproc_per_node 4 train_student.py ...   # by four GPUs, which share every batch
    python train_student.py --list    # the methods, their settings, options and pairs
    python train_student.py --config save_s_models/<run>/args.json --trial 2    # the same options again, another seed

To go on to more epochs, a student needs a --name from the start, since the epochs stand in the name that it is given.

--teacher_cache serves what reads the teacher's logits and pooled vector alone, on images that are kept on the device.
The table lies beside the teacher's checkpoint, and holds every image in its 162 views: it pays where the epochs of all
students and the passes of stage 2 are more. A student by the table differs from one without in the last digits.

With a topology term KD has gamma 1 and, without --alpha, the pair's alpha (helper/student/pairs.py); other methods keep
their weights, and their control is the method without -d. All runs with one --seed start from equal weights and see
equal batches. Writes save_s_models/<run>/ (best.pth, last.pth, log.csv, args.json, TensorBoard), and when it ends
results/runs/<run>.csv and results/logs/<run>.csv.
"""

import helper.cli.early  # noqa: F401

# isort: split

import argparse
from typing import Any, NamedTuple

from dataset import LabelledImages, dataset_dict
from helper import distributed
from helper.cli.parser import Listing, Parser, read, run
from helper.cli.types import model, model_help, number
from helper.data import image_files, load_data, num_classes, train_loader
from helper.errors import UserError
from helper.files.paths import STUDENTS, row_file
from helper.files.run import Run, results_row
from helper.networks import Network, check_contract, check_image_size, load_network
from helper.settings import (
    WHOLE,
    Clouds,
    Data,
    Loss,
    Repetition,
    ResolvedRepetition,
    Teacher,
    Training,
    plain,
)
from helper.student.build import build_objective, build_student, check_processes
from helper.student.distillation import Distillation, FirstStage
from helper.student.listing import listing
from helper.student.names import method_name, student_name
from helper.student.topology import Topology
from helper.student.weights import StudentSettings, resolve
from helper.training.interrupts import StopRequest
from helper.training.loop import Trainer, training_run
from helper.training.turns import Steps, Turn, alone, side_by_side


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_settings("teacher", Teacher)
    parser.add_argument("--model_s", type=model, required=True, help=model_help())
    parser.add_argument("--list", action=Listing, text=listing, help="print the methods and exit")
    parser.add_settings("loss", Loss)
    parser.add_settings("clouds and images", Clouds)
    parser.add_settings("data and device", Data)
    parser.add_settings("training", Training)
    group = parser.add_argument_group("run")
    group.add_argument(
        "--trial",
        type=number(WHOLE),
        nargs="+",
        action=Trials,
        default=1,
        help="number of the repetition, part of the run's name; of several, each is a run of its own, and they are "
        "trained side by side in this process (default: %(default)s)",
    )
    group.set_defaults(trials=None)
    parser.add_settings("repetition", Repetition, without=("trial",))
    parser.add_config()
    return parser


class Trials(argparse.Action):
    """`trials` are the numbers of --trial, and `trial` the first of them."""

    def __call__(self, parser, namespace, values, option_string=None):
        namespace.trials, namespace.trial = values, values[0]


class Student(NamedTuple):
    """A student that is ready to be trained, and what its row says of it."""

    settings: StudentSettings
    run: Run
    teacher: Network
    objective: Distillation
    topology: Topology
    sets: tuple[LabelledImages, LabelledImages]
    about: dict[str, Any]


@image_files()
def main(args) -> None:
    trials = args.trials or [args.trial]
    check_trials(args, trials)
    stop, turns, student = StopRequest(), [], None
    for trial in trials:
        before = f"trial {trial}, " if len(trials) > 1 else ""
        student = prepare(args, read(args, Repetition, trial=trial).resolved(), student)
        turns.append(Turn(student.run.name, training(student, before, stop), args.device))
    with stop:
        if len(turns) == 1:
            alone(turns[0])
        else:
            side_by_side(turns, stop)


def check_trials(args, trials: list[int]) -> None:
    if len(set(trials)) < len(trials):
        raise UserError(f"--trial: found {' '.join(map(str, trials))}, in which a trial is duplicated")
    if len(trials) > 1 and distributed.world() > 1:
        raise UserError(
            f"--trial: found {len(trials)} trials and {distributed.world()} processes; give one trial, or start it "
            "without torchrun"
        )
    if len(trials) > 1 and dataset_dict[args.dataset].open is not None:
        raise UserError(
            f"--trial: found {len(trials)} trials, but image files, as of --dataset {args.dataset}, are read for one "
            "student at a time; give one trial"
        )
    for option in ("name", "seed"):
        if len(trials) > 1 and getattr(args, option) is not None:
            raise UserError(f"--{option}: one cannot serve {len(trials)} trials, which need one each; leave it out")


def prepare(args, repetition: ResolvedRepetition, earlier: Student | None) -> Student:
    """earlier: of another repetition, with which images and the table of the teacher's outputs are shared; a teacher is
    loaded for each student, as random numbers are drawn meanwhile."""
    loss, clouds, data, training = read(args, Loss), read(args, Clouds), read(args, Data), read(args, Training)
    classes, device = num_classes(args.dataset), args.device
    check_image_size(args.model_s, args.dataset, "--model_s")
    student = build_student(args.model_s, classes, repetition.seed, device)  # first: the same for every method
    check_contract(student, args.model_s, args.dataset)
    teacher = load_network(args.path_t, args.model_t, "--model_t", device, args.dataset)
    settings = resolve(loss, clouds, data, training, repetition, teacher.arch, args.model_s)
    check_processes(settings)

    values = settings.loss, settings.clouds, settings.data, settings.training, settings.repetition
    options = {**plain(read(args, Teacher)), "model_s": args.model_s, **plain(*values)}
    name = repetition.name or student_name(settings)
    sets = earlier.sets if earlier else load_data(settings.data)
    shared = earlier.objective.cache if earlier else None
    objective, topology = build_objective(settings, args.path_t, student, teacher, sets[0], shared)
    inputs = {"teacher_sha256": teacher.sha256, "topology_sha256": topology.sha256}
    student_run = Run(STUDENTS / name, options, device, repetition.resume, inputs)
    print(
        f"{student_run.name}: {summary(settings, objective.weights)}; teacher {teacher.arch} {known(teacher)}",
        flush=True,
    )
    about = {"arch": args.model_s, "num_classes": classes, "dataset": args.dataset}
    if objective.student is not student:
        about["replaced"] = {
            "distill": settings.loss.distill,
            "arch_t": teacher.arch,
            "options": settings.options,
        }
    student_run.hold()
    return Student(settings, student_run, teacher, objective, topology, sets, about)


def training(student: Student, before: str, stop: StopRequest) -> Steps[None]:
    """Train a student and write its row; yields after each step. before: of the lines that say how far it is."""
    settings, student_run, objective, (train_set, test_set) = (
        student.settings,
        student.run,
        student.objective,
        student.sets,
    )
    if student_run.ended(row_file(student_run.name)):
        return
    repetition, first = settings.repetition, []
    loader = train_loader(train_set, settings.training.batch_size, repetition.seed)
    if settings.loss.first_epochs:
        own = settings.first_training
        options = student_run.options | plain(own)
        folder, inputs = student_run.folder / "first_stage", student_run.inputs
        first_run = Run(folder, options, student_run.device, repetition.resume, inputs)
        stage = FirstStage(objective)
        stage.label = before + stage.label
        first = yield from training_run(Trainer(stage, loader, test_set, first_run, own, student.about), stop)
    objective.label = before
    trainer = Trainer(objective, loader, test_set, student_run, settings.training, student.about)
    history = yield from training_run(trainer, stop)
    student_run.finish(
        history,
        results_row(
            history,
            method=method_name(settings),
            variant=settings.variant,
            schedule=settings.schedule,
            student=settings.student,
            teacher=student.teacher.arch,
            teacher_acc=student.teacher.accuracy,
            ripsnet_r2=student.topology.r2,
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
    run(main, get_args_parser, several=True)
