"""Run what a table, an ablation or a figure needs: teachers, clouds, RipsNets and students that are missing.

    python reproduce.py --list                                       # all of them, and where their values come from
    python reproduce.py --table digits                               # a demonstration, in minutes on two CPU cores
    python reproduce.py --table cifar100_homogeneous --row resnet56:resnet20 --methods KD,TopKD,TopKD-exact --trials 5
    python reproduce.py --table ablation_dimension --jobs 3          # three small networks share one GPU
    python reproduce.py --table cifar100_homogeneous --epochs 24     # every schedule shortened to a tenth
    python reproduce.py --figure pi --row vgg13:MobileNetV2
    python reproduce.py --table ablation_loss --dry_run              # the commands of the stages that would run

Finished runs are skipped and interrupted ones resumed, so the same command continues after any stop. All arms of one
seed run before the next seed. A shortened schedule has names of its own (_e24), and its passes over the training set
for stage 2 are reduced in proportion. At the end the tables are regenerated (make_tables.py).
"""

import helper.cli.early  # noqa: F401

# isort: split

import torch

from helper.cli.parser import Parser, run
from helper.cli.types import device, positive
from helper.data import load_data
from helper.errors import UserError
from helper.experiments.catalogue import FIGURES, TABLES, Table, scaled
from helper.experiments.listing import describe
from helper.experiments.local import Runner
from helper.experiments.plan import Planner, find, find_arms, find_table, undefined
from helper.settings import Data


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="print all tables, rows, arms and figures")
    what.add_argument("--table", type=names, metavar="NAME,...", help="one or more of " + ", ".join(TABLES))
    what.add_argument("--figure", type=str.lower, choices=list(FIGURES), help="one figure of the paper")
    parser.add_argument("--row", type=names, metavar="TEACHER:STUDENT,...", help="(default: all rows of the table)")
    parser.add_argument(
        "--methods", type=names, metavar="NAME,...", help="arms, or any method of distiller_zoo (default: the table's)"
    )
    parser.add_argument("--trials", type=positive, help="seeds of every arm (default: the table's)")
    parser.add_argument("--jobs", type=positive, default=1, help="runs at once (default: %(default)s)")
    parser.add_argument(
        "--epochs", type=positive, help="of the students; decay points and all else in proportion (default: published)"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--data_dir", default="data", help="of all stages (default: %(default)s)")
    parser.add_argument("--device", type=device, help="of all stages (default: cuda if there is one)")
    parser.add_argument("--amp", choices=["off", "bf16"], help="of teachers and students (default: the table's)")
    return parser


def main(args) -> None:
    if args.list:
        print(describe())
        return
    data_dir = args.data_dir if args.data_dir != "data" else None
    planner = Planner(data_dir, str(args.device) if args.device else None, args.amp)
    tables = plan_figure(args, planner) if args.figure else plan_tables(args, planner)
    jobs = list(planner.jobs.values())
    if args.dry_run:
        print("\n".join(f"# {job.name}: finished" if job.finished else job.shell() for job in jobs))
        return
    if args.jobs > 1:  # a download is for one process alone
        for dataset in {table.dataset for table in tables}:
            load_data(Data(dataset=dataset, data_dir=args.data_dir, device=torch.device("cpu")))
    print(f"{sum(job.finished for job in jobs)} of {len(jobs)} jobs are finished", flush=True)
    Runner(args.jobs).run(jobs)


def plan_tables(args, planner: Planner) -> list[Table]:
    tables = [find_table(name) for name in args.table]
    for table in tables:
        table = scaled(table, args.epochs or table.student.epochs)
        rows = [find("--row", row, {row: row for row in table.rows}) for row in args.row or table.rows]
        arms = find_arms(table, args.methods) if args.methods else list(table.arms)
        missing = undefined(rows, arms)
        if missing:
            what = f"the method is not defined for {', '.join(missing)} (train_student.py --list says why)"
            if args.methods and len(missing) == len(rows) * len(arms):
                raise UserError(f"--methods: {what}")
            print(f"# left out: {what}")
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
    return [table_of[row] for row in rows]


if __name__ == "__main__":
    run(main, get_args_parser)
