"""Tables as text: Markdown and LaTeX from one representation, and Markdown between two marker lines of a file."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

MARKERS = ["<!-- tables -->", "<!-- /tables -->"]
MARKDOWN = str.maketrans({"*": "\\*", "|": "\\|", "<": "\\<", "\n": " "})
LATEX = str.maketrans(
    {character: f"\\{character}" for character in "%_&#${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {">": "$>$", "<": "$<$", "±": r"$\pm$", "²": "$^2$", "−": "$-$"}
    | {"*": "$^*$", "†": r"$^\dagger$", "‡": r"$^\ddagger$"}
)
PACKAGES = r"% \usepackage{booktabs,adjustbox}"


@dataclass(frozen=True)
class TextTable:
    """Cells as text. In `head`, a line break divides a long heading; `notes` are sentences below the table."""

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str]


def markdown(table: TextTable, level: int = 2) -> str:
    """The table under a heading, its columns padded so that it can be read as text."""
    head, *rows = [[cell.translate(MARKDOWN) for cell in row] for row in (table.head, *table.rows)]
    parts = [max(cell.split("\n"), key=len) for cell in table.head]  # a long heading does not widen its column
    widths = [max(map(len, column)) for column in zip(parts, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    texts = [" | ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines]
    notes = [textwrap.fill(note.translate(MARKDOWN), 120) for note in table.notes]
    return "\n\n".join([f"{'#' * level} {table.title}", "\n".join(f"| {text} |" for text in texts), *notes])


def markdown_page(tables: Sequence[TextTable], level: int = 2) -> str:
    return "\n\n".join(markdown(table, level) for table in tables)


def latex(table: TextTable) -> str:
    """The table as a LaTeX float; needs the packages booktabs and adjustbox."""
    head, *rows = [" & ".join(map(latex_cell, row)) + r" \\" for row in (table.head, *table.rows)]
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"\centering",
            rf"\caption{{{latex_cell(table.title)}}}",
            r"\begin{adjustbox}{max width=\textwidth}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
            r"\toprule",
            head,
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{adjustbox}",
            *(rf"\par\smallskip{{\footnotesize {latex_cell(note)}}}" for note in table.notes),
            r"\end{table}",
        ]
    )


def latex_cell(text: str) -> str:
    """A cell, its characters escaped; a minus sign is distinguished from a hyphen by the digit after it."""
    lines = re.sub(r"(?<![\w-])-(?=\d)", "−", text).translate(LATEX).split("\n")
    return lines[0] if len(lines) == 1 else r"\shortstack{" + r" \\ ".join(lines) + "}"


def latex_page(tables: Sequence[TextTable]) -> str:
    return "\n\n".join([PACKAGES, *map(latex, tables)])


def between_markers(path: Path, content: str) -> str:
    """The text of a file with `content` between its two marker lines. UserError unless each is there once, in order."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--into: {path} is not readable as text ({error})") from None
    places = [index for index, line in enumerate(lines) if line.strip() in MARKERS]
    if [lines[index].strip() for index in places] != MARKERS:
        raise UserError(
            f"--into: {path} needs the lines {' and '.join(MARKERS)}, each once and in this order; add them"
        )
    first, last = places
    return "\n".join([*lines[: first + 1], "", content, "", *lines[last:]]) + "\n"
