"""Tables of results, as Markdown and LaTeX from one representation: a `Table`, whose cells are text."""

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import experiments
from .options import UserError
from .results import (
    ASSUMED,
    CONFIDENCE,
    EPOCHS,
    FEW,
    LEGEND,
    NONE,
    SHORT,
    Runs,
    control_of,
    difference,
    grouped,
    summary,
)

MARKERS = ["<!-- tables -->", "<!-- /tables -->"]
EPOCH_MARKS = {"last": "L", "best": "B", "unknown": "?"}
# Heading, column of a run's row, digits.
DETAILS = [
    ("best", "best", 2),
    ("last", "last", 2),
    ("mean of last 10", "mean_last10", 2),
    ("R² validation", "ripsnet_r2", 3),
    ("R² student", "student_r2", 3),
    ("seconds", "seconds", 0),
]
OWN_METHODS = ("KD-control", "TopKD", "TopKD-exact", "TopKD-wasserstein")
PAIRED = f"paired by seed, with its {100 * CONFIDENCE:g} % confidence interval (Student's t) and the number of pairs"
CONTROL_NOTE = (
    "Control: the same loss, teacher, schedule and seeds without topology (for TopKD: KD with its alpha, KD-control). "
    f"Mean difference of the last epoch, {PAIRED}."
)
R2_NOTE = (
    "R²: of RipsNet's images against exact ones, on the teacher's validation clouds and on the student's own after the "
    "last epoch; 1 is exact, 0 no better than a constant image."
)


@dataclass(frozen=True)
class Table:
    """Cells as text. In `head`, a line break divides a long heading; `notes` are sentences below the table."""

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str]


def notes_of(cells: Sequence[str], runs: Sequence[Runs]) -> list[str]:
    """What the marks in the cells mean, and where the runs come from: by name if it is one place, else how many."""
    rows = {row["file"]: row for found in runs for row in found.rows}.values()
    marks = [f"{mark} {meaning}" for mark, meaning in LEGEND.items() if any(mark in cell for cell in cells)]
    places = [f"Runs: {len(rows)}"]
    for name in ("device", "commit"):
        found = list(dict.fromkeys(row.get(name) or "unknown" for row in rows))
        places.append(f"{name}: {found[0]}" if len(found) == 1 else f"{name}s: {len(found)}")
    return [f"{'; '.join(marks)}."] * bool(marks) + [f"{'; '.join(places)}."] * bool(rows)


def trimmed(table: Table) -> Table:
    """Without the rows and columns that hold nothing but their name."""
    rows = [row for row in table.rows if set(row[1:]) != {NONE}]
    used = [index for index in range(len(table.head)) if any(row[index] != NONE for row in rows)]
    head, *rows = [[row[index] for index in used] for row in (table.head, *rows)]
    return Table(table.title, head, rows, table.notes)


def marked(text: str, runs: Runs) -> str:
    return text if text == NONE else f"{text} {runs.marks}".rstrip()


def details(runs: Sequence[Runs], others: Sequence[Runs]) -> Table:
    """All that was measured of one pair with one teacher, or of the networks trained alone on one data set.

    others: where the controls are looked for.
    """
    runs = sorted(runs, key=lambda found: (found.name, float(found["delta"] or 0)))
    dataset, teacher, student = runs[0].pair
    accuracy = next(iter(runs[0].values("teacher_acc").values()), None)
    known = "accuracy unknown" if accuracy is None else f"{accuracy:.2f} %"
    rows = []
    for found in runs:
        values = {column: [*found.values(column).values()] for _, column, _ in DETAILS}
        values["ripsnet_r2"] = list(dict.fromkeys(values["ripsnet_r2"]))  # one RipsNet may teach several students
        cells = [summary(values[column], digits) for _, column, digits in DETAILS]
        rows.append([marked(found.label, found), *cells, difference(found, control_of(found, others))])
    head = ["method" if teacher else "network", *(heading for heading, _, _ in DETAILS), "last - control"]
    title = f"{dataset}: {teacher} ({known}) > {student}" if teacher else f"{dataset}: trained alone"
    table = trimmed(Table(title, head, rows, []))
    notes = [
        "Test accuracy in percent: of the best epoch (chosen on the test set), of the last, and the mean of the last "
        "ten epochs (or of all, in a shorter run). Mean ± standard deviation (number of runs)."
    ]
    notes += [CONTROL_NOTE] * ("last - control" in table.head)
    notes += [R2_NOTE] * any(heading.startswith("R²") for heading in table.head)
    return Table(title, table.head, table.rows, notes + notes_of([row[0] for row in rows], runs))


def own_columns(pairs: Iterable[tuple], runs: Sequence[Runs]) -> dict[tuple, list[tuple[str, list[Runs]]]]:
    """Of each pair, (heading, runs) for each teacher that students learned from; one without runs where none did."""
    columns = {}
    for pair in pairs:
        teachers = grouped([found for found in runs if found.pair == pair], lambda found: found["teacher_sha256"])
        heading = f"{pair[1]}\n> {pair[2]}"
        columns[pair] = [
            (heading + f"\nteacher {sha256[:8]}" * (len(teachers) > 1), found)
            for sha256, found in (teachers or {"": []}).items()
        ]
    return columns


def laid_out(title: str, columns: Sequence[tuple[str, dict]], published: Sequence[dict], notes: list[str]) -> Table:
    """A table of (heading, cells by method); methods in the order of the published ones, variants after theirs."""
    order = list(dict.fromkeys(row["method"] for row in published))

    def rank(label: str) -> tuple:
        names = (label, label.split()[0], re.split("[-+ ]", label)[0])
        return next((order.index(name) for name in names if name in order), len(order)), label

    labels = sorted({label for _, cells in columns for label in cells}, key=rank)
    rows = [[label, *(cells.get(label, NONE) for _, cells in columns)] for label in labels]
    return Table(title, ["method", *(heading for heading, _ in columns)], rows, notes)


def published_cells(rows: Sequence[dict], sources: Sequence[str]) -> dict[str, str]:
    """'71.74 B6, 71.66 L6' by method: accuracies, each with the mark of its epoch and the number of its source."""
    cells = {}
    for row in rows:
        accuracy = " ± ".join(filter(None, (row["top1"], row["std"])))
        mark = f"{EPOCH_MARKS[row['epoch']]}{sources.index(row['source']) + 1}"
        cells.setdefault(row["method"], []).append(f"{accuracy} {mark}")
    return {method: ", ".join(texts) for method, texts in cells.items()}


def by_pair(published: Sequence[dict]) -> dict[tuple, list[dict]]:
    """Published rows by (data set, teacher, student), as `Runs.pair`."""
    return grouped(published, lambda row: (row["dataset"], row["teacher"], row["student"]))


def title_of(published: Sequence[dict], what: str) -> str:
    return f"{published[0]['dataset']}, {published[0]['group']} pairs: {what}"


def comparison(published: Sequence[dict], runs: Sequence[Runs], column: str = "last") -> Table:
    """Methods against pairs, each pair with our cells and then the published ones.

    published: the rows of one published table, which give the pairs, the methods and their order. column: last or best.
    """
    sources = list(dict.fromkeys(row["source"] for row in published))
    theirs = by_pair(published)
    columns, ours, used = [], [], []
    for pair, teachers in own_columns(theirs, runs).items():
        dataset, teacher, student = pair
        alone = [found for found in runs if found.stem == f"{student}_{dataset}"]
        for heading, trained in teachers:
            cells = {}
            for found in alone + trained:  # a student of this pair trained by CE alone replaces the network alone
                label = found.label if found["teacher"] else "CE"
                cells[label] = marked(summary([*found.values(column).values()]), found)
            for found in trained:
                cells["teacher"] = next((f"{value:.2f}" for value in found.values("teacher_acc").values()), NONE)
            columns.append((heading, cells))
            ours += cells.values()
            used += alone + trained
        columns.append((f"{teacher}\n> {student}\npublished", published_cells(theirs[pair], sources)))
    marks = ", ".join(f"{mark} {EPOCHS[epoch]}" for epoch, mark in EPOCH_MARKS.items())
    numbers = "; ".join(f"{number} {source}" for number, source in enumerate(sources, 1))
    notes = [
        f"Test accuracy in percent; ours: of the {EPOCHS[column]}, mean ± standard deviation (number of runs). CE: the "
        "student trained alone.",
        f"Published: {marks}; {numbers}.",
        *notes_of(ours, used),
    ]
    return laid_out(title_of(published, f"top-1, ours of the {EPOCHS[column]}"), columns, published, notes)


def gains(published: Sequence[dict], runs: Sequence[Runs]) -> Table:
    """What the topology term adds: differences to the control, for the pairs of one published table."""
    columns, used = [], []
    for teachers in own_columns(by_pair(published), runs).values():
        for heading, trained in teachers:
            cells = {}
            for found in trained:
                control = control_of(found, runs)
                if (text := difference(found, control)) != NONE:
                    cells[found.label] = marked(text, found)
                    used += [found, control]
            columns.append((heading, cells))
    title = title_of(published, "last epoch against the control without topology")
    notes = [CONTROL_NOTE, *notes_of([cell for _, cells in columns for cell in cells.values()], used)]
    return laid_out(title, columns, published, notes)


def comparisons(published: Sequence[dict], runs: Sequence[Runs]) -> list[Table]:
    """Of each published table: last epochs, and where there are runs what topology adds to them, and best epochs."""
    tables = []
    for rows in grouped(published, lambda row: (row["dataset"], row["group"])).values():
        tables.append(comparison(rows, runs))
        pairs = by_pair(rows)
        if any(found.pair in pairs for found in runs):
            added = gains(rows, runs)
            tables += [added] * bool(added.rows) + [comparison(rows, runs, "best")]
    return tables


def brief(published: Sequence[dict], runs: Sequence[Runs], dataset: str) -> list[Table]:
    """All that was measured of one data set's pairs of which nothing is published; then the last epochs of its
    published tables, methods at their own settings, with cells that no run has filled yet."""
    usual, known = [found for found in runs if not found.departs], by_pair(published)
    unpublished = [
        found for found in runs if found["dataset"] == dataset and found["teacher"] and found.pair not in known
    ]
    tables = all_details(unpublished)
    for rows in grouped((row for row in published if row["dataset"] == dataset), lambda row: row["group"]).values():
        table, added = comparison(rows, usual), gains(rows, usual)
        missing = [label for label in OWN_METHODS if label not in [row[0] for row in table.rows]]
        table.rows.extend([label, *[NONE] * (len(table.head) - 1)] for label in missing)
        tables += [table] + [trimmed(added)] * bool(added.rows)
    return tables


def all_details(runs: Sequence[Runs]) -> list[Table]:
    """A table of all that was measured for each data set, pair and teacher; networks trained alone share one."""

    def key(found: Runs) -> tuple:
        dataset, teacher, student = found.pair
        return dataset, teacher, student if teacher else "", found["teacher_sha256"]

    return [details(found, runs) for _, found in sorted(grouped(runs, key).items())]


# Ablations


def grid(
    title: str,
    arms: Sequence[str],
    columns: Sequence[str],
    stem: Callable[[str, str], str],
    runs: dict[str, Runs],
    control: str | None = None,
    column: str = "last",
) -> Table:
    """A table of finished runs, a row for each arm: mean ± standard deviation (number of runs) in each column, and
    beside it the difference to the arm named `control`, paired by seed.

    stem(arm, column): the runs' name without `_trial<n>`. runs: `repetitions(read_runs(folder))`; '-' marks what has no
    finished run. column of the rows: last or best.
    """
    head, rows, used = ["arm"], [[arm] for arm in arms], []
    for name in columns:
        head += [name] + [f"{name}\n- {control}"] * (control is not None)
        against = None if control is None else runs.get(stem(control, name))
        for row in rows:
            found = runs.get(stem(row[0], name))
            used += [found] * (found is not None)
            row.append(marked(summary([*found.values(column).values()]), found) if found else NONE)
            if control is not None:
                row.append(difference(found, against, column) if found and row[0] != control else NONE)
    notes = [f"Test accuracy in percent, of the {EPOCHS[column]}: mean ± standard deviation (number of runs)."]
    if control is not None:
        notes.append(f"Columns '- {control}': mean difference, {PAIRED}.")
    return Table(title, head, rows, notes + notes_of([cell for row in rows for cell in row[1:]], used))


def ablations(runs: Sequence[Runs]) -> list[Table]:
    """The ablations of helper/experiments.py, at the published or at scaled schedules, with two finished arms or more:
    one alone may be the method's usual run."""
    by_stem = {found.stem: found for found in runs}
    scales = {int(epochs) for epochs in re.findall(r"_e(\d+)(?:\n|$)", "\n".join(by_stem))}
    tables = []
    for name, table in experiments.TABLES.items():
        for epochs in [table.student.epochs, *sorted(scales)] if name.startswith("ablation_") else []:
            scaled = experiments.scaled(table, epochs)
            stem = partial(experiments.stem, scaled)
            arms, title = [arm.name for arm in table.arms], f"{table.title} ({epochs} epochs)"
            if sum(any(stem(row, arm) in by_stem for row in table.rows) for arm in arms) > 1:
                control = "KD-control" if "KD-control" in arms else None
                tables.append(grid(title, arms, table.rows, lambda arm, row, s=stem: s(row, arm), by_stem, control))
    return tables


# Layout

MARKDOWN = str.maketrans({"*": "\\*", "|": "\\|", "<": "\\<", "\n": " "})
LATEX = str.maketrans(
    {character: f"\\{character}" for character in "%_&#${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {">": "$>$", "<": "$<$", "±": r"$\pm$", "²": "$^2$"}
    | {FEW: "$^*$", SHORT: r"$^\dagger$", ASSUMED: r"$^\ddagger$"}
)


def markdown(table: Table, level: int = 2) -> str:
    """The table under a heading, its columns padded so that it can be read as text."""
    head, *rows = [[cell.translate(MARKDOWN) for cell in row] for row in (table.head, *table.rows)]
    parts = [max(cell.split("\n"), key=len) for cell in table.head]  # a long heading does not widen its column
    widths = [max(map(len, column)) for column in zip(parts, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    lines = [" | ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines]
    notes = [textwrap.fill(note.translate(MARKDOWN), 120) for note in table.notes]
    return "\n\n".join([f"{'#' * level} {table.title}", "\n".join(f"| {line} |" for line in lines), *notes])


def latex(table: Table) -> str:
    """The table as a LaTeX float; needs the packages booktabs and adjustbox."""

    def text(cell: str) -> str:
        lines = re.sub(r"(?<![\w-])-(?=\d)", "−", cell).translate(LATEX).replace("−", "$-$").split("\n")
        return lines[0] if len(lines) == 1 else r"\shortstack{" + r" \\ ".join(lines) + "}"

    head, *rows = [" & ".join(map(text, row)) + r" \\" for row in (table.head, *table.rows)]
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"\centering",
            rf"\caption{{{text(table.title)}}}",
            r"\begin{adjustbox}{max width=\textwidth}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
            r"\toprule",
            head,
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{adjustbox}",
            *(rf"\par\smallskip{{\footnotesize {text(note)}}}" for note in table.notes),
            r"\end{table}",
        ]
    )


def between_markers(path: Path, content: str) -> str:
    """The text of a file with `content` between its two marker lines. UserError unless each comes once, in order."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--into: {path} is not readable as text ({error})") from None
    found = [index for index, line in enumerate(lines) if line.strip() in MARKERS]
    if [lines[index].strip() for index in found] != MARKERS:
        raise UserError(
            f"--into: {path} needs the lines {' and '.join(MARKERS)}, each once and in this order; add them"
        )
    first, last = found
    return "\n".join([*lines[: first + 1], "", content, "", *lines[last:]]) + "\n"
