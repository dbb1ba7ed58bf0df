"""Run what a table, an ablation or a figure needs: teachers, clouds, RipsNets and students that are missing.

    python reproduce.py --list                                       # all of them, and where their values come from
    python reproduce.py --table digits                               # a demonstration, in minutes on two CPU cores
    python reproduce.py --table cifar100_homogeneous --row resnet56:resnet20 --methods KD,TopKD,TopKD-exact --trials 5
    python reproduce.py --table ablation_dimension --jobs 3          # three small networks share one GPU
    python reproduce.py --table cifar100_homogeneous --epochs 24     # every schedule shortened to a tenth
    python reproduce.py --figure pi --row vgg13:MobileNetV2
    python reproduce.py --table ablation_loss --dry_run              # the commands of the stages that would run
    python reproduce.py --table all --dry_run --estimate             # hours and GPU-hours of every table
    python reproduce.py --table cifar100_homogeneous --gpus 0,1,3 --jobs 6      # two runs on each of three GPUs
    python reproduce.py --table cifar100_homogeneous --nproc 4       # each run by four processes, with a GPU each
    python reproduce.py --table cifar100_homogeneous --ray auto      # on a cluster of machines that share this folder

Finished runs are skipped and interrupted ones resumed, so the same command continues after any stop. All arms of one
seed run before the next seed. A shortened schedule has names of its own (_e24), and its passes over the training set
for stage 2 are reduced in proportion, but not for the teachers of ImageNet, which are not trained: one set of clouds
serves all schedules. With --teacher_cache a teacher's outputs are computed once for all students and clouds that they
suffice for, and the students' names say _cache; the other students run their teacher. At the end the tables are
regenerated (make_tables.py).
"""

import helper.cli.early  # noqa: F401

# isort: split

from pathlib import Path

import torch

from dataset import dataset_dict
from helper.cli.parser import Parser, run
from helper.cli.types import device, number, positive
from helper.data import load_data
from helper.errors import UserError
from helper.experiments.catalogue import FIGURES, TABLES, Table, scaled
from helper.experiments.cluster import RayRunner, check_shared, connect, resources
from helper.experiments.estimate import Estimate
from helper.experiments.jobs import Job
from helper.experiments.listing import describe
from helper.experiments.local import Runner, is_mig, visible_gpus
from helper.experiments.plan import Planner, find, find_arms, find_table, missing, undefined
from helper.files.paths import ROWS
from helper.report.results import read_runs
from helper.settings import WHOLE, Data, Number, Training


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def indices(text: str) -> list[int]:
    return [number(WHOLE)(part) for part in text.split(",")]


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="print all tables, rows, arms and figures")
    what.add_argument("--table", type=names, metavar="NAME,...", help="all, or some of " + ", ".join(TABLES))
    what.add_argument("--figure", type=str.lower, choices=list(FIGURES), help="one figure of the paper")
    parser.add_argument("--row", type=names, metavar="TEACHER:STUDENT,...", help="(default: all rows of the table)")
    parser.add_argument(
        "--methods", type=names, metavar="NAME,...", help="arms, or any method of distiller_zoo (default: the table's)"
    )
    parser.add_argument("--trials", type=positive, help="seeds of every arm (default: the table's)")
    parser.add_argument(
        "--epochs", type=positive, help="of the students; decay points and all else in proportion (default: published)"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--estimate", action="store_true", help="with --dry_run: print how long it takes on GPUs")
    parser.add_argument("--data_dir", default="data", help="of all stages (default: %(default)s)")
    parser.add_argument("--device", type=device, help="of all stages (default: cuda if there is one)")
    parser.add_argument("--amp", choices=["off", "bf16"], help="of teachers and students (default: the table's)")
    parser.add_settings(None, Training, only=("teacher_cache",))
    here = parser.add_argument_group("on this machine")
    here.add_argument("--jobs", type=positive, help="runs at once (default: one a GPU; one without GPUs)")
    here.add_argument("--gpus", type=indices, metavar="N,...", help="GPUs that they share (default: all visible ones)")
    here.add_argument(
        "--nproc",
        type=positive,
        metavar="N",
        help="processes of stages 1, 2 and 4, a GPU each; students of CRD and CRCD have one (default: 1)",
    )
    cluster = parser.add_argument_group("on several machines that share this folder")
    cluster.add_argument("--ray", metavar="ADDRESS", help="a Ray cluster: auto, host:port, or local (this machine)")
    cluster.add_argument(
        "--gpus_per_job", type=number(Number(float, 0.01, 1)), metavar="SHARE", help="of a GPU (default: 1)"
    )
    return parser


def main(args) -> None:
    if args.list:
        print(describe())
        return
    check_options(args)
    if "all" in map(str.lower, args.table or ()):
        args.table = list(TABLES)
    gpus = [] if args.ray else visible_gpus(args.gpus, args.device)
    if gpus and len(gpus) < (args.nproc or 1):
        raise UserError(f"--nproc: found {args.nproc} and {len(gpus)} GPUs, expected a GPU for each process")
    if (args.nproc or 1) > 1 and any(map(is_mig, gpus)):
        raise UserError("--nproc: found instances of a divided GPU (MIG), which cannot share a run; leave it out")
    if args.estimate:
        print(Estimate(read_runs(ROWS)).report(by_table(args)))
        return
    planner = new_planner(args)
    tables = plan_figure(args, planner) if args.figure else plan_tables(args, args.table, planner)
    jobs = planner.all()
    lacking = missing(jobs)
    if args.dry_run:
        lines = [f"# {text}" for text in lacking]
        if args.gpus or (args.device is not None and args.device.index is not None):
            lines.append(f"export CUDA_VISIBLE_DEVICES={','.join(gpus)}")
        lines += [f"# {job.name}: finished" if job.finished else job.shell() for job in jobs]
        print("\n".join(lines))
        return
    if lacking:
        raise UserError(lacking[0])
    at_once = args.jobs or max(1, len(gpus) // (args.nproc or 1))
    ray = connect(args.ray) if args.ray else None
    if at_once > 1 or ray is not None:  # a download is for one process alone
        for dataset in {table.dataset for table in tables if dataset_dict[table.dataset].load}:
            load_data(Data(dataset=dataset, data_dir=args.data_dir, device=torch.device("cpu")))
    print(f"{sum(job.finished for job in jobs)} of {len(jobs)} jobs are finished", flush=True)
    if ray is None:
        Runner(at_once, gpus).run(jobs)
        return
    check_shared(ray, Path.cwd())
    on_cpu = args.device is not None and args.device.type == "cpu"
    RayRunner(ray, resources(ray, args.gpus_per_job, on_cpu)).run(jobs)


def check_options(args) -> None:
    """Refuse what would do nothing."""
    unsuited = (
        [("gpus", "--ray"), ("jobs", "--ray"), ("nproc", "--ray")] if args.ray else [("gpus_per_job", "no --ray")]
    )
    for option, where in unsuited:
        if getattr(args, option) is not None:
            raise UserError(f"--{option}: has no effect with {where}; leave it out")
    if args.ray and args.device is not None and args.device.index is not None:
        raise UserError(f"--device: found {args.device}, but Ray gives a job its GPU; give --device cuda")
    if args.estimate and not args.dry_run:
        raise UserError("--estimate: has no effect without --dry_run; give both")


def new_planner(args) -> Planner:
    """A planner with the user's options for all stages. Which GPU a job uses is not one of them."""
    data_dir = args.data_dir if args.data_dir != "data" else None
    device = args.device.type if args.device else None
    return Planner(data_dir, device, args.amp, args.teacher_cache, args.nproc or 1)


def by_table(args) -> dict[str, list[Job]]:
    """The jobs of each table, those shared with others included, or of the figure."""
    if args.figure:
        planner = new_planner(args)
        plan_figure(args, planner)
        return {args.figure: planner.all()}
    found = {}
    for name in args.table:
        planner = new_planner(args)
        plan_tables(args, [name], planner)
        found[name] = planner.all()
    if len(found) > 1:
        found["in all"] = list({job.name: job for jobs in found.values() for job in jobs}.values())
    return found


def plan_tables(args, names: list[str], planner: Planner) -> list[Table]:
    """Of those of --table that are named, with the rows of --row that they have."""
    tables, known = [], {row: row for name in args.table for row in find_table(name).rows}
    asked = [find("--row", row, known) for row in args.row or ()]
    for name in names:
        table = find_table(name)
        rows = [row for row in asked or table.rows if row in table.rows]
        if not rows:
            continue
        tables.append(table)
        table = scaled(table, args.epochs or table.student.epochs)
        arms = find_arms(table, args.methods) if args.methods else list(table.arms)
        without = undefined(rows, arms)
        if without:
            what = f"not defined: {', '.join(without)} (train_student.py --list shows each method's pairs)"
            if args.methods and len(without) == len(rows) * len(arms):
                raise UserError(f"--methods: {what}")
            print(f"# left out, {what}")
        planner.table(table, rows, arms, args.trials)
        for figure in () if args.methods else table.figures:
            for row in rows:
                planner.figure(figure, table, row)
    planner.tables()
    return tables


def plan_figure(args, planner: Planner) -> list[Table]:
    for option in ("methods", "trials"):
        if getattr(args, option) is not None:
            raise UserError(f"--{option}: has no effect with --figure; leave it out")
    table_of = {row: table for table in reversed(TABLES.values()) for row in table.rows}
    rows = [find("--row", row, {row: row for row in table_of}) for row in args.row or [FIGURES[args.figure].row]]
    for row in rows:
        table = table_of[row]
        planner.figure(args.figure, scaled(table, args.epochs or table.student.epochs), row)
    planner.tables()
    return [table_of[row] for row in rows]


if __name__ == "__main__":
    run(main, get_args_parser)
