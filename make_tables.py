"""Tables of results, from the one-row CSV files that finished runs leave.

    python make_tables.py                       # results/runs/*.csv -> the terminal and results/tables.md
    python make_tables.py --runs results/demo/results/runs --out results/demo/tables.md

One table for each data set, teacher and student; a row is a method, over its seeds. Rows are averaged only when all
their options agree but trial and seed; otherwise the differing options are named and no table is written.
"""

import csv
import statistics
from pathlib import Path

from helper.checkpoint import write_bytes
from helper.options import Parser, UserError, run
from helper.runs import RESULTS

# What may differ between the runs of a row: what was measured, which repetition it is, and where it ran.
MEASURED = {"best", "best_epoch", "last", "mean_last10", "ripsnet_r2", "student_r2", "seconds"}
REPETITION = {"run", "trial", "seed"}
PLACE = {"path_t", "device", "python", "torch", "torchvision", "numpy", "gudhi", "commit", "command"}
MAY_DIFFER = MEASURED | REPETITION | PLACE  # the teacher itself is known by teacher_sha256, wherever it lies

# Heading, column of the CSV file, digits.
COLUMNS = [
    ("best", "best", 2),
    ("last", "last", 2),
    ("mean of last 10", "mean_last10", 2),
    ("R² validation", "ripsnet_r2", 3),
    ("R² student", "student_r2", 3),
    ("seconds", "seconds", 0),
]
ENOUGH_SEEDS = 3
NOTES = f"""\
Test accuracy in percent: of the best epoch (chosen on the test set), of the last, and the mean of the last ten epochs.
R²: of RipsNet's images against exact ones, on the teacher's validation clouds and on the student's own after the last
epoch; 1 is exact, 0 no better than a constant image. Mean ± standard deviation (number of seeds).
\\* fewer than {ENOUGH_SEEDS} seeds.
"""


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=RESULTS / "runs", help="the rows (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "tables.md", help="(default: %(default)s)")
    return parser


def read_rows(folder: Path) -> list[dict]:
    """The rows of all files in a folder; 'file' is added."""
    rows = []
    for path in sorted(folder.glob("*.csv")):
        with open(path, newline="") as file:
            found = list(csv.DictReader(file))
        if len(found) != 1 or not {"run", "method", "dataset", "seed", "last"} <= found[0].keys():
            raise UserError(f"{path}: {len(found)} rows, expected one row of a finished run; remove the file")
        rows.append(found[0] | {"file": path.name})
    if not rows:
        raise UserError(f"--runs: found no CSV file in {folder}; train_teacher.py and train_student.py write them")
    return rows


def pair(row: dict) -> tuple[str, ...]:
    """What has a table of its own. Networks trained alone share one a data set."""
    return (row["dataset"], row["teacher"], row["student"] if row["teacher"] else "", row["teacher_sha256"])


def label(row: dict) -> str:
    """The name of a row: the network's if it was trained alone, else the method and what departs from its settings."""
    if not row["teacher"]:
        return row["student"]
    prefix, trial = f"{row['teacher']}-{row['student']}_{row['dataset']}_", f"_trial{row['trial']}"
    if row["run"].startswith(prefix) and row["run"].endswith(trial):
        return row["run"].removeprefix(prefix).removesuffix(trial).replace("_", " ")
    return row["method"]  # the run has a --name of its own


def grouped(rows: list[dict], key) -> dict:
    groups = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return dict(sorted(groups.items()))


def check_repetitions(rows: list[dict]) -> None:
    """Refuse rows that are not repetitions of one another with different seeds."""
    options = sorted(set().union(*rows) - MAY_DIFFER - {"file"})
    values = {name: list(dict.fromkeys(row.get(name) or "nothing" for row in rows)) for name in options}
    if differing := [f"{name} is {' and '.join(found)}" for name, found in values.items() if len(found) > 1]:
        what = "; ".join(differing)
    elif len({row["seed"] for row in rows}) < len(rows):
        what = "a seed comes twice"
    else:
        return
    files = ", ".join(row["file"] for row in rows)
    raise UserError(f"{files}: no repetitions of one run ({what}); move those that do not belong out of the folder")


def summary(values: list[float], digits: int) -> str:
    """'97.50 ± 0.31 (3)', with the sample standard deviation; '97.50' for one value, '-' for none."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f} ({len(values)})"


def heading(row: dict) -> str:
    if not row["teacher"]:
        return f"{row['dataset']}: trained alone"
    accuracy = f"{float(row['teacher_acc']):.2f} %" if row["teacher_acc"] else "accuracy unknown"
    return f"{row['dataset']}: {row['teacher']} ({accuracy}) > {row['student']}"


def table(rows: list[dict]) -> str:
    """The Markdown table of one pair, padded so that it can be read as text."""
    cells = [["method" if rows[0]["teacher"] else "network", *(title for title, _, _ in COLUMNS)]]
    for name, runs in grouped(rows, label).items():
        check_repetitions(runs)
        name += " \\*" * (len(runs) < ENOUGH_SEEDS)
        cells.append(
            [name, *(summary([float(r[key]) for r in runs if r.get(key)], digits) for _, key, digits in COLUMNS)]
        )
    used = [column for column in zip(*cells, strict=True) if set(column[1:]) != {"-"}]
    widths = [max(map(len, column)) for column in used]
    lines = [[f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)] for row in zip(*used, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(args) -> None:
    tables = [f"## {heading(rows[0])}\n\n{table(rows)}" for rows in grouped(read_rows(args.runs), pair).values()]
    text = "\n\n".join([*tables, NOTES])
    print(text)
    write_bytes(args.out, text.encode())
    print(f"written to {args.out}")


if __name__ == "__main__":
    run(main, get_args_parser())
