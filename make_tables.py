"""Tables of results: runs that have finished, beside what was published.

    python make_tables.py                           # results/runs/*.csv and results/published.csv -> results/tables.md
    python make_tables.py --into results/README.md  # and the main tables into a file, between two marker lines
    python make_tables.py --runs results/demo/results/runs --out results/demo/tables.md

A LaTeX file is written beside the Markdown one; it needs the packages booktabs and adjustbox. The published pairs come
first: last epochs, what topology adds to its control, best epochs. Then everything measured, a table for each data set,
teacher, student and schedule, and the ablations. Rows are averaged only when all their options agree but trial and
seed; otherwise the differing options are named and no table is written. Rows brought from other machines belong into
the same folder.
"""

import helper.cli.early  # noqa: F401

# isort: split

from pathlib import Path

from helper.cli.parser import Parser, run
from helper.errors import UserError
from helper.files.atomic import write_bytes
from helper.files.paths import RESULTS, ROWS
from helper.report.layout import between_markers, latex_page, markdown_page
from helper.report.results import read_published, read_runs, repetitions
from helper.report.tables import ablations, all_details, brief, comparisons

PUBLISHED = RESULTS / "published.csv"
SHOWN = ("cifar100", "imagenet")  # data sets of --into


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=ROWS, help="folder of the rows, one a file (default: %(default)s)")
    parser.add_argument(
        "--published", type=Path, default=PUBLISHED, help="published accuracies (default: %(default)s, if it is there)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / "tables.md",
        help="Markdown; the LaTeX file is written beside it (default: %(default)s)",
    )
    parser.add_argument(
        "--into", type=Path, default=None, help="a file whose text between <!-- tables --> lines is replaced"
    )
    return parser


def main(args) -> None:
    if args.out.suffix == ".tex" or not args.out.name:
        raise UserError(f"--out: found {args.out}, expected the Markdown file; the LaTeX file is written beside it")
    if args.into in (args.out, args.out.with_suffix(".tex")):
        raise UserError(f"--into: found {args.into}, a file that --out writes; give another")
    published = read_published(args.published) if args.published != PUBLISHED or PUBLISHED.exists() else []
    if args.into is not None and not published:
        raise UserError(f"--into: needs the published accuracies, found no {args.published}")
    runs = repetitions(read_runs(args.runs))
    if not runs and (args.runs != ROWS or not published):
        raise UserError(f"--runs: found no CSV file in {args.runs}; train_teacher.py and train_student.py write them")

    tables = comparisons(published, runs) + all_details(runs) + ablations(runs)
    text = markdown_page(tables) + "\n"
    files = [("--out", args.out, text), ("--out", args.out.with_suffix(".tex"), latex_page(tables) + "\n")]
    if args.into is not None:
        short = [table for dataset in SHOWN for table in brief(published, runs, dataset)]
        content = between_markers(args.into, markdown_page(short, level=3))
        files.append(("--into", args.into, content))
    for option, path, content in files:
        write_bytes(path, content.encode(), option)

    print(text)  # when all is written, so that nobody has to read it
    for _, path, _ in files:
        print(f"written to {path}")


if __name__ == "__main__":
    run(main, get_args_parser)
