"""Tables of results: what each shows of the finished runs and of the published accuracies."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ..experiments import catalogue
from .layout import TextTable
from .results import (
    CONFIDENCE,
    EPOCHS,
    LEGEND,
    NONE,
    PUBLISHED_EPOCHS,
    Label,
    Pair,
    Row,
    Runs,
    control_of,
    difference,
    grouped,
    summary,
)

EPOCH_MARKS = {"last": "L", "best": "B", "unknown": "?"}
LONGER, MOST_LIKELY = "+", " epochs, most likely"
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
SCHEDULE_NOTE = (
    "Schedule: where training departs from the published one, such as e8 for 8 epochs with the decay in proportion, or "
    "bf16."
)
Column = tuple[str, dict[Label, str]]  # heading, cells


def notes_of(cells: Iterable[str], runs: Iterable[Runs]) -> list[str]:
    """What the marks in the cells mean, and where the runs come from: by name if it is one place, else how many."""
    texts, notes = list(cells), []
    marks = [f"{mark} {meaning}" for mark, meaning in LEGEND.items() if any(mark in text for text in texts)]
    if marks:
        notes.append("; ".join(marks) + ".")
    rows = list({row["file"]: row for each in runs for row in each.rows}.values())
    if rows:
        places = [f"Runs: {len(rows)}"]
        for name in ("device", "commit"):
            values = list(dict.fromkeys(row.get(name) or "unknown" for row in rows))
            places.append(f"{name}: {values[0]}" if len(values) == 1 else f"{name}s: {len(values)}")
        notes.append("; ".join(places) + ".")
    return notes


def trimmed(table: TextTable) -> TextTable:
    """Without the rows and columns that hold nothing but their name."""
    rows = [row for row in table.rows if set(row[1:]) != {NONE}]
    used = [index for index in range(len(table.head)) if any(row[index] != NONE for row in rows)]
    head, *rows = [[row[index] for index in used] for row in (table.head, *rows)]
    return replace(table, head=head, rows=rows)


def marked(text: str, runs: Runs) -> str:
    return text if text == NONE else f"{text} {runs.marks}".rstrip()


def with_schedule(title: str, schedule: str) -> str:
    return f"{title}, schedule {schedule}" if schedule else title


# All that was measured


def details(runs: Iterable[Runs], others: Sequence[Runs]) -> TextTable:
    """All that was measured of one pair with one teacher, or of the networks trained alone on one data set, by one
    schedule.

    others: where the controls are looked for.
    """
    runs = sorted(runs, key=lambda each: (each.label.name, float(each["delta"] or 0), each["variant"]))
    dataset, teacher, student = runs[0].pair
    accuracy = next(iter(runs[0].values("teacher_acc").values()), None)
    known = "accuracy unknown" if accuracy is None else f"{accuracy:.2f} %"
    rows = []
    for each in runs:
        values = {column: [*each.values(column).values()] for _, column, _ in DETAILS}
        values["ripsnet_r2"] = list(dict.fromkeys(values["ripsnet_r2"]))  # one RipsNet may teach several students
        cells = [summary(values[column], digits) for _, column, digits in DETAILS]
        rows.append([marked(str(each.label), each), *cells, difference(each, control_of(each, others))])
    head = ["method" if teacher else "network", *(heading for heading, _, _ in DETAILS), "last - control"]
    title = f"{dataset}: {teacher} ({known}) > {student}" if teacher else f"{dataset}: trained alone"
    schedule = runs[0]["schedule"]
    table = trimmed(TextTable(with_schedule(title, schedule), head, rows, []))
    notes = [
        "Test accuracy in percent: of the best epoch (chosen on the test set), of the last, and the mean of the last "
        "ten epochs (or of all, in a shorter run). Mean ± standard deviation (number of runs)."
    ]
    if schedule:
        notes.append(SCHEDULE_NOTE)
    if "last - control" in table.head:
        notes.append(CONTROL_NOTE)
    if any(heading.startswith("R²") for heading in table.head):
        notes.append(R2_NOTE)
    return replace(table, notes=notes + notes_of([row[0] for row in rows], runs))


def all_details(runs: Sequence[Runs]) -> list[TextTable]:
    """A table of all that was measured for each data set, pair, teacher and schedule; networks trained alone by one
    schedule share one."""

    def key(each: Runs) -> tuple[str, ...]:
        dataset, teacher, student = each.pair
        return dataset, teacher, student if teacher else "", each["teacher_sha256"], each["schedule"]

    return [details(same, runs) for _, same in sorted(grouped(runs, key).items())]


# Beside what was published


def own_columns(pairs: Iterable[Pair], runs: Sequence[Runs]) -> dict[Pair, list[tuple[str, list[Runs]]]]:
    """Of each pair, (heading, runs) for each teacher that students learned from; one without runs where none did."""
    columns = {}
    for pair in pairs:
        heading = f"{pair[1]}\n> {pair[2]}"
        teachers = grouped([each for each in runs if each.pair == pair], lambda each: each["teacher_sha256"])
        if len(teachers) > 1:
            columns[pair] = [(f"{heading}\nteacher {sha256[:8]}", same) for sha256, same in teachers.items()]
        else:
            columns[pair] = [(heading, [each for same in teachers.values() for each in same])]
    return columns


def laid_out(title: str, columns: Sequence[Column], published: Sequence[Row], notes: list[str]) -> TextTable:
    """A table of the columns; methods in the order of the published ones, variants after theirs."""
    order = list(dict.fromkeys(row["method"] for row in published))

    def rank(label: Label) -> tuple[int, str]:
        """A method that adds something to a published one (KD-control, CRD+Top) comes after it."""
        base = label.name
        if base not in order:
            bases = [name for name in order if base.startswith((f"{name}-", f"{name}+"))]
            base = max(bases, key=len, default="")
        return order.index(base) if base else len(order), str(label)

    labels = sorted({label for _, cells in columns for label in cells}, key=rank)
    rows = [[str(label), *(cells.get(label, NONE) for _, cells in columns)] for label in labels]
    return TextTable(title, ["method", *(heading for heading, _ in columns)], rows, notes)


def other_epochs(row: Row) -> str:
    """'480' where the note of a published row says that most likely these were the epochs, '' elsewhere."""
    return row["note"].removesuffix(MOST_LIKELY) if row["note"].endswith(MOST_LIKELY) else ""


def published_cells(rows: Sequence[Row], sources: Sequence[str]) -> dict[Label, str]:
    """'71.74 B6, 71.66 L6' by method: accuracies, each with the mark of its epoch, the number of its source, and a mark
    where the schedule is another than that of the others."""
    cells = {}
    for method, same in grouped(rows, lambda row: row["method"]).items():
        texts = []
        for row in same:
            accuracy = f"{row['top1']} ± {row['std']}" if row["std"] else row["top1"]
            longer = LONGER if other_epochs(row) else ""
            texts.append(f"{accuracy} {EPOCH_MARKS[row['epoch']]}{sources.index(row['source']) + 1}{longer}")
        cells[Label(method)] = ", ".join(texts)
    return cells


def by_pair(published: Iterable[Row]) -> dict[Pair, list[Row]]:
    """Published rows by (data set, teacher, student), as `Runs.pair`."""
    return grouped(published, lambda row: (row["dataset"], row["teacher"], row["student"]))


def title_of(published: Sequence[Row], what: str) -> str:
    return f"{published[0]['dataset']}, {published[0]['group']} pairs: {what}"


def comparison(published: Sequence[Row], runs: Sequence[Runs], column: str = "last") -> TextTable:
    """Methods against pairs, each pair with our cells and then the published ones.

    published: the rows of one published table, which give the pairs, the methods and their order. column: last or best.
    """
    sources = list(dict.fromkeys(row["source"] for row in published))
    theirs = by_pair(published)
    columns: list[Column] = []
    ours: list[str] = []
    used: list[Runs] = []
    for pair, teachers in own_columns(theirs, runs).items():
        dataset, teacher, student = pair
        alone = [each for each in runs if each.pair == (dataset, "", student) and not each.full_label.departures]
        for heading, trained in teachers:
            # A student that was trained by CE alone and a network trained alone are the same: the more runs are shown.
            shown = {
                each.full_label if each["teacher"] else Label("CE"): each
                for each in sorted(alone + trained, key=lambda each: len(each.rows))
            }
            cells = {label: marked(summary([*each.values(column).values()]), each) for label, each in shown.items()}
            for each in trained:
                cells[Label("teacher")] = next((f"{acc:.2f}" for acc in each.values("teacher_acc").values()), NONE)
            columns.append((heading, cells))
            ours += cells.values()
            used += shown.values()
        columns.append((f"{teacher}\n> {student}\npublished", published_cells(theirs[pair], sources)))
    marks = ", ".join(f"{mark} {EPOCHS[epoch]}" for epoch, mark in EPOCH_MARKS.items())
    numbers = "; ".join(f"{number} {source}" for number, source in enumerate(sources, 1))
    notes = [
        f"Test accuracy in percent; ours: of the {EPOCHS[column]}, mean ± standard deviation (number of runs). CE: the "
        "student trained alone.",
        f"Published: {marks}; {numbers}.",
    ]
    if not used:
        notes.append("Ours: not run.")
    if any(each["schedule"] for each in used):
        notes.append(SCHEDULE_NOTE)
    longer = sorted({other_epochs(row) for row in published} - {""})
    if longer:
        usual = PUBLISHED_EPOCHS[published[0]["dataset"]]
        notes[1] += f" {LONGER} most likely by a schedule of {' or '.join(longer)} epochs instead of {usual}."
    notes += notes_of(ours, used)
    return laid_out(title_of(published, f"top-1, ours of the {EPOCHS[column]}"), columns, published, notes)


def gains(published: Sequence[Row], runs: Sequence[Runs]) -> TextTable:
    """What the topology term adds: differences to the control, for the pairs of one published table."""
    columns: list[Column] = []
    used: list[Runs] = []
    for teachers in own_columns(by_pair(published), runs).values():
        for heading, trained in teachers:
            cells = {}
            for each in trained:
                control = control_of(each, runs)
                text = difference(each, control)
                if control is not None and text != NONE:
                    cells[each.full_label] = marked(text, each)
                    used += [each, control]
            columns.append((heading, cells))
    title = title_of(published, "last epoch against the control without topology")
    notes = [CONTROL_NOTE, *notes_of([text for _, cells in columns for text in cells.values()], used)]
    return laid_out(title, columns, published, notes)


def comparisons(published: Sequence[Row], runs: Sequence[Runs]) -> list[TextTable]:
    """Of each published table: last epochs, and where there are runs what topology adds to them, and best epochs."""
    tables = []
    for rows in grouped(published, lambda row: (row["dataset"], row["group"])).values():
        tables.append(comparison(rows, runs))
        pairs = by_pair(rows)
        if any(each.pair in pairs for each in runs):
            added = gains(rows, runs)
            if added.rows:
                tables.append(added)
            tables.append(comparison(rows, runs, "best"))
    return tables


def brief(published: Sequence[Row], runs: Sequence[Runs], dataset: str) -> list[TextTable]:
    """All that was measured of one data set's pairs of which nothing is published; then the last epochs of its
    published tables, methods at their own settings, with cells that no run has filled yet."""
    known = by_pair(published)
    tables = all_details(
        [each for each in runs if each["dataset"] == dataset and each["teacher"] and each.pair not in known]
    )
    own = [each for each in runs if not each["variant"]]
    for rows in grouped((row for row in published if row["dataset"] == dataset), lambda row: row["group"]).values():
        table, added = comparison(rows, own), gains(rows, own)
        present = {row[0] for row in table.rows}
        to_fill = [[name] + [NONE for _ in table.head[1:]] for name in OWN_METHODS if name not in present]
        tables.append(replace(table, rows=table.rows + to_fill))
        if added.rows:
            tables.append(trimmed(added))
    return tables


# Ablations


def grid(
    title: str,
    arms: Sequence[str],
    columns: Mapping[str, Mapping[str, Runs]],
    control: str | None = None,
    column: str = "last",
) -> TextTable:
    """A table with a row for each arm: mean ± standard deviation (number of runs) in each column, and beside it the
    difference to the arm named `control`, paired by seed.

    columns: the finished runs of each arm, by heading and arm; '-' marks those that are absent. column of the rows:
    last or best.
    """
    head, rows = ["arm"], [[arm] for arm in arms]
    for heading, by_arm in columns.items():
        head.append(heading)
        if control is not None:
            head.append(f"{heading}\n- {control}")
        for row in rows:
            runs = by_arm.get(row[0])
            row.append(NONE if runs is None else marked(summary([*runs.values(column).values()]), runs))
            if control is not None:
                compared = None if runs is None or row[0] == control else by_arm.get(control)
                row.append(NONE if runs is None else difference(runs, compared, column))
    notes = [f"Test accuracy in percent, of the {EPOCHS[column]}: mean ± standard deviation (number of runs)."]
    if control is not None:
        notes.append(f"Columns '- {control}': mean difference, {PAIRED}.")
    used = [runs for by_arm in columns.values() for arm, runs in by_arm.items() if arm in arms]
    return TextTable(title, head, rows, notes + notes_of([cell for row in rows for cell in row[1:]], used))


def ablations(runs: Sequence[Runs]) -> list[TextTable]:
    """The ablations of helper/experiments/catalogue.py, a table for each schedule of which two arms or more have
    finished: one alone may be the method's own run. Those with a schedule of their own have one of it alone."""
    tables = []
    for name, published in catalogue.TABLES.items():
        if "ablation" not in name:
            continue
        students = [each for each in runs if each["teacher"] and each["dataset"] == published.dataset]
        for schedule, epochs in sorted({(each.schedule, int(each["epochs"])) for each in students}):
            if published.tag and schedule != catalogue.student_schedule(published):
                continue
            table = catalogue.scaled(published, epochs)
            columns = arms_of(table, [each for each in students if each.schedule == schedule])
            arms = [arm.name for arm in table.arms]
            if sum(any(arm in by_arm for by_arm in columns.values()) for arm in arms) > 1:
                control = "KD-control" if "KD-control" in arms else None
                tables.append(grid(with_schedule(table.title, schedule), arms, columns, control))
    return tables


def arms_of(table: catalogue.Table, runs: Sequence[Runs]) -> dict[str, dict[str, Runs]]:
    """The runs of a table's arms, those of equal method and variant, by column (a pair with one teacher) and arm. Of
    two, with the teacher's outputs from a table and without, the one with more seeds."""
    columns = {}
    for row in table.rows:
        teacher, student = catalogue.networks(row)
        pair = table.dataset, teacher, student
        for heading, trained in own_columns([pair], runs)[pair]:
            by_seeds = sorted(trained, key=lambda each: len(each.rows))
            own = {(each["method"], each["variant"]): each for each in by_seeds}
            keys = {arm.name: (arm.method, catalogue.arm_variant(table, row, arm)) for arm in table.arms}
            columns[heading] = {arm: own[key] for arm, key in keys.items() if key in own}
    return columns
