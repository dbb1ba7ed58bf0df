"""Tables of results: runs that have finished, beside what was published.

    python make_tables.py                     # results/runs/*.csv, results/published.csv -> results/tables.md and .tex
    python make_tables.py --into results/README.md    # and the CIFAR-100 tables into a file, between marker lines
    python make_tables.py --runs results/demo/results/runs --out results/demo/tables.md

The published pairs come first: last epochs, what topology adds to its control, best epochs. Then everything measured, a
table for each data set, teacher and student, and the ablations. Rows are averaged only when all their options agree but
trial and seed; otherwise the differing options are named and no table is written. Rows brought from other machines
belong into the same folder. The LaTeX file needs the packages booktabs and adjustbox.
"""

from pathlib import Path

from helper.checkpoint import write_bytes
from helper.options import Parser, UserError, run
from helper.results import read_published, read_runs, repetitions
from helper.runs import RESULTS
from helper.tables import ablations, all_details, between_markers, brief, comparisons, latex, markdown

RUNS, PUBLISHED = RESULTS / "runs", RESULTS / "published.csv"


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the rows, one a file (default: %(default)s)")
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
    if args.out.suffix == ".tex":
        raise UserError(f"--out: found {args.out}, expected the Markdown file; the LaTeX file is written beside it")
    published = read_published(args.published) if args.published.exists() or args.published != PUBLISHED else []
    if args.into is not None and not published:
        raise UserError(f"--into: needs the published accuracies, found no {args.published}")
    runs = list(repetitions(read_runs(args.runs)).values())
    if not runs and (args.runs != RUNS or not published):
        raise UserError(f"--runs: found no CSV file in {args.runs}; train_teacher.py and train_student.py write them")

    tables = comparisons(published, runs) + all_details(runs) + ablations(runs)
    written = {
        args.out: "\n\n".join(map(markdown, tables)) + "\n",
        args.out.with_suffix(".tex"): "\n\n".join(["% \\usepackage{booktabs,adjustbox}", *map(latex, tables)]) + "\n",
    }
    if args.into is not None:
        content = "\n\n".join(markdown(table, level=3) for table in brief(published, runs, "cifar100"))
        written[args.into] = between_markers(args.into, content)

    print(written[args.out])
    for path, text in written.items():
        write_bytes(path, text.encode())
        print(f"written to {path}")


if __name__ == "__main__":
    run(main, get_args_parser())
