"""The figures, drawn with matplotlib: every function takes numbers and returns a Figure, 7 inches wide as in print.

The colours are Okabe and Ito's ("Color Universal Design", 2008), which remain distinct in every common kind of colour
vision; in grey, markers and line styles do.
"""

import io
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ripsnet import ImageSpec

from ..files.atomic import csv_bytes, npz, write_bytes

WIDTH = 7.0  # inches
DPI = 200
COLOURS = "#0072B2 #D55E00 #009E73 #CC79A7 #56B4E9 #E69F00 #000000".split()
BLUE, ORANGE, BLACK = COLOURS[0], COLOURS[1], COLOURS[-1]
GREY = "#8C8C8C"
CLASS_COLOURS = [*COLOURS, "#882255", "#999933", "#332288"]  # three more by P. Tol
MARKERS = "osD^vPX<>*"
LINES = ["-", "--", "-.", ":"]
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "figure.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
}
PANELS_A_LINE = 4

TERMS = {"ce": "CE", "kd": "KD", "other": "method's own loss", "top": "topology"}
# Panels of `curves`, line by line: the column of log.csv and the label of its axis.
CURVES = [
    [
        ("test_acc", "test accuracy (%)"),
        ("train_acc", "training accuracy (%)"),
        ("student_r2", "$R^2$ of RipsNet on\nthe student's clouds"),
    ],
    [
        ("ce", "CE (nats)"),
        ("kd", "KD (nats $\\times\\ T^2$)"),
        ("other", "method's own loss"),
        ("top", "topology loss"),
    ],
    [(f"share_{term}", f"share of the loss,\n{name}") for term, name in TERMS.items()],
    [(f"grad_{term}", f"gradient norm,\n{name}") for term, name in TERMS.items()],
]


def save(path: Path, figure: Figure, data: list[dict] | dict[str, np.ndarray]) -> None:
    """Write <path>.png and beside it what it shows: rows as .csv, a dict of arrays as .npz. The path is of --out."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=DPI)
    content, suffix = (npz(data), ".npz") if isinstance(data, dict) else (csv_bytes(data), ".csv")
    data_path, image_path = (path.with_name(path.name + end) for end in (suffix, ".png"))
    write_bytes(data_path, content, option="--out")
    write_bytes(image_path, image.getvalue(), option="--out")
    print(f"{image_path} and {data_path.name}")


def heading(name: str, columns: int, note: str) -> str:
    """The title of a panel: a name and a note on lines of their own, broken to the width of one of so many columns."""
    texts = [text.replace("epoch ", "epoch\N{NO-BREAK SPACE}") for text in (name, note) if text]
    return "\n".join(textwrap.fill(text, 100 // columns) for text in texts)


def panel_grid(figure: Figure, count: int, columns: int) -> Iterator:
    """`count` axes in lines of `columns`; places that are left over stay empty."""
    axes = figure.subplots(-(-count // columns), columns, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.remove()
    return iter(axes[:count])


@dataclass
class Images:
    """A heading, name and note, and the persistence images (400,) to draw under it; there may be none of RipsNet's."""

    name: str
    note: str
    exact: np.ndarray
    ripsnet: np.ndarray | None

    @property
    def layers(self) -> list[np.ndarray | None]:
        """Exact image, RipsNet's, and their difference."""
        return [self.exact, self.ripsnet, None if self.ripsnet is None else self.ripsnet - self.exact]


def pixel_grid(spec: ImageSpec) -> tuple[np.ndarray, np.ndarray]:
    """Births of the image's columns and persistences of its rows."""
    low_b, high_b, low_p, high_p = spec.image_range
    return np.linspace(low_b, high_b, spec.resolution[0]), np.linspace(low_p, high_p, spec.resolution[1])


def pixel_edges(centres: np.ndarray) -> tuple[float, float]:
    """Where an axis of pixels begins and ends: half a pixel outside the first and last grid point."""
    half = (centres[-1] - centres[0]) / (2 * max(1, len(centres) - 1)) or 0.5
    return centres[0] - half, centres[-1] + half


@rc_context(STYLE)
def image_panels(title: str, panels: list[Images], spec: ImageSpec, mean_image: np.ndarray) -> Figure:
    """A column for each panel: exact image, RipsNet's, and their difference; four columns a line.

    In dimension 0, where an image repeats one column of pixels (RipsNet's nearly so: its mean is drawn), the images lie
    on their side under the curve of their 20 values, with the mean training image (400,) beside it.
    """
    lines = [panels[i : i + PANELS_A_LINE] for i in range(0, len(panels), PANELS_A_LINE)]
    figure = Figure(figsize=(WIDTH, 0.5 + len(lines) * (3.4 if spec.dim == 0 else 5)), layout="constrained")
    figure.suptitle(title)
    layers = list(zip(*(panel.layers for panel in panels), strict=True))
    brightest = max(image.max() for image in layers[0] + layers[1] if image is not None)
    largest = max((np.abs(image).max() for image in layers[2] if image is not None), default=1.0) or 1.0
    columns = min(len(panels), PANELS_A_LINE)
    for part, line in zip(figure.subfigures(len(lines), 1, squeeze=False)[:, 0], lines, strict=True):
        if spec.dim == 0:
            axes = part.subplots(4, columns, squeeze=False, sharex=True, gridspec_kw={"height_ratios": [6, 1, 1, 1]})
        else:
            axes = part.subplots(3, columns, squeeze=False, sharex=True)
        for unused in axes[:, len(line) :].flat:
            unused.set_visible(False)  # rather than removed, so that the places of all lines are alike
        for column, panel in enumerate(line):
            axes[0, column].set_title(heading(panel.name, columns, panel.note))
            if spec.dim == 0:
                _curves(axes[0, column], panel, spec, mean_image, brightest)
            _layers(axes[-3:, column], panel, spec, brightest, largest)
            axes[-1, column].set_xlabel("persistence" if spec.dim == 0 else "birth")
        for ax in axes[:, 1:].flat:
            ax.set_yticklabels([])
        if spec.dim == 0:
            axes[0, 0].set_ylabel("pixel value")
            for row, name in zip(axes[1:], ("exact", "RipsNet", "difference"), strict=True):
                row[0].set_ylabel(name, rotation=0, horizontalalignment="right", verticalalignment="center")
            _colour_bar(part, axes[1:3], aspect=6, ticks=MaxNLocator(4))
            _colour_bar(part, axes[3:], aspect=2.3, ticks=[-largest, largest], format="%.2g")
        else:
            for row, name in zip(axes, ("exact", "RipsNet", "difference"), strict=True):
                row[0].set_ylabel(f"{name}\npersistence")
                _colour_bar(part, row, aspect=15)
    if spec.dim == 0:
        handles = {str(line.get_label()): line for ax in figure.axes for line in ax.lines}
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _colour_bar(figure, axes: np.ndarray, **options) -> None:
    """A colour bar beside axes that share one scale, if an image is drawn in any of them."""
    drawn = [ax.images[0] for ax in axes.flat if ax.images]
    if drawn:
        figure.colorbar(drawn[0], ax=list(axes.flat), pad=0.01, **options)


def _curves(ax, panel: Images, spec: ImageSpec, mean_image: np.ndarray, brightest: float) -> None:
    columns, rows = spec.resolution
    persistences = pixel_grid(spec)[1]
    ax.plot(
        persistences,
        mean_image.reshape(rows, columns).mean(axis=1),
        color=GREY,
        lw=2.5,
        label="teacher's mean training image",
    )
    ax.plot(persistences, panel.exact.reshape(rows, columns).mean(axis=1), color=BLUE, marker="o", label="exact")
    if panel.ripsnet is not None:
        found = panel.ripsnet.reshape(rows, columns).mean(axis=1)
        ax.plot(persistences, found, color=ORANGE, linestyle="--", lw=1.8, label="RipsNet")
    ax.set_ylim(0, 1.05 * max(brightest, mean_image.max()))


def _layers(axes, panel: Images, spec: ImageSpec, brightest: float, largest: float) -> None:
    """The images of one panel, in dimension 0 on their side; black outlines show the sign of a difference in grey."""
    columns, rows = spec.resolution
    births, persistences = pixel_grid(spec)
    pixels = {"origin": "lower", "aspect": "auto", "interpolation": "nearest"}
    value = pixels | {"cmap": "viridis", "vmin": 0, "vmax": brightest}
    difference = pixels | {"cmap": "PuOr_r", "vmin": -largest, "vmax": largest}
    for ax, image, colours in zip(axes, panel.layers, (value, value, difference), strict=True):
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 3, 5, 10]))
        if spec.dim == 0:
            ax.set_yticks([])
        if image is None:
            ax.set_facecolor("0.93")
            if ax is axes[1]:
                ax.text(0.5, 0.5, "none of this width", transform=ax.transAxes, ha="center", va="center")
            continue
        image = image.reshape(rows, columns)
        if spec.dim == 0:
            ax.imshow(image.T, extent=[*pixel_edges(persistences), 0, 1], **colours)
            continue
        extent = [*pixel_edges(births), *pixel_edges(persistences)]
        ax.imshow(image, extent=extent, **colours)
        for level, style in ((-largest / 2, "dashed"), (largest / 2, "solid")):
            if colours is difference and image.min() < level < image.max():
                ax.contour(births, persistences, image, [level], colors=BLACK, linestyles=style, linewidths=0.8)


@rc_context(STYLE)
def diagram_panels(title: str, bars: list[dict]) -> Figure:
    """A column for each network: persistence diagram, then the barcodes of dimension 0 and 1. All axes are shared.

    bars: dicts with network, dim, birth, death.
    """
    names = list(dict.fromkeys(bar["network"] for bar in bars))
    figure = Figure(figsize=(WIDTH, 6.5), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(
        3, len(names), squeeze=False, sharex=True, sharey="row", gridspec_kw={"height_ratios": [5, 4, 3]}
    )
    top = 1.05 * max(bar["death"] for bar in bars)
    for column, name in zip(axes.T, names, strict=True):
        column[0].plot([0, top], [0, top], color=GREY, lw=0.8, label="birth = death")
        for dim, colour, marker in ((0, BLUE, "o"), (1, ORANGE, "^")):
            ends = np.array([[b["birth"], b["death"]] for b in bars if (b["network"], b["dim"]) == (name, dim)])
            ends = ends.reshape(-1, 2)
            births, deaths = ends[np.argsort(ends[:, 1 - dim], kind="stable")].T
            column[0].plot(births, deaths, marker, color=colour, mfc="none", ls="", label=f"dimension {dim}")
            column[1 + dim].hlines(np.arange(len(ends)), births, deaths, color=colour, linewidth=1.2)
            column[1 + dim].set_title(f"dimension {dim}: {len(ends)} bars, total {(deaths - births).sum():.1f}")
        column[0].set_title(heading(name, len(names), ""))
        column[0].set(xlim=(-0.03 * top, top), ylim=(0, top), xlabel="birth")
        column[0].tick_params(labelbottom=True)
        column[2].set_xlabel("distance between features")
        for ax in column[1:]:
            ax.set_yticks([])
    for ax, label in zip(axes[:, 0], ("death", "bars, shortest first", "bars by birth"), strict=True):
        ax.set_ylabel(label)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


@rc_context(STYLE)
def embedding_panels(
    title: str,
    headings: list[tuple[str, str]],
    embeddings: np.ndarray,
    classes: np.ndarray,
    names: list[str],
    axis: str,
) -> Figure:
    """A panel for each network. headings: their names and notes; embeddings: (networks, N, 2); classes: (N,) indices
    into names; axis: the method."""
    count = len(headings)
    columns = min(count, 2 if count == 4 else 3)
    height = WIDTH / columns * 0.72 * -(-count // columns)
    figure = Figure(figsize=(WIDTH, 0.9 + 0.16 * -(-len(names) // 5) + height), layout="constrained")
    figure.suptitle(title)
    for ax, (network, note), points in zip(panel_grid(figure, count, columns), headings, embeddings, strict=True):
        for number, name in enumerate(names):
            x, y = points[classes == number].T
            marker = MARKERS[(number + number // len(CLASS_COLOURS)) % len(MARKERS)]
            colour = CLASS_COLOURS[number % len(CLASS_COLOURS)]
            ax.scatter(x, y, s=8, color=colour, marker=marker, linewidths=0, label=name)
        ax.set_title(heading(network, columns, note))
        ax.set(xlabel=f"{axis} 1", ylabel=f"{axis} 2", xticks=[], yticks=[])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, markerscale=1.8, columnspacing=1)
    return figure


@rc_context(STYLE)
def curve_panels(title: str, rows: list[dict], runs: dict[str, int]) -> Figure:
    """A panel for each column of the logs: mean over the repetitions, and a band of one standard deviation.

    rows: dicts with run, column, epoch, n, mean, std (None where n is 1); runs: name -> number of repetitions.
    """
    present = {row["column"] for row in rows}
    lines = [[(key, label) for key, label in line if key in present] for line in CURVES]
    lines = [line for line in lines if line]
    columns = max(map(len, lines))
    figure = Figure(figsize=(WIDTH, 0.9 + 1.6 * len(lines)), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(len(lines), columns, squeeze=False, sharex=True)
    for ax in axes.flat:
        ax.set_axis_off()
    for line, line_axes in zip(lines, axes, strict=True):
        for (key, label), ax in zip(line, line_axes, strict=False):
            ax.set_axis_on()
            ax.set_ylabel(label)
            ax.tick_params(labelbottom=True)
            ax.set_xlabel("epoch")
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            for (run, n), colour, style, marker in zip(
                runs.items(), cycle(COLOURS), cycle(LINES), cycle(MARKERS), strict=False
            ):
                found = [row for row in rows if (row["run"], row["column"]) == (run, key)]
                epochs, means = ([row[name] for row in found] for name in ("epoch", "mean"))
                every = max(1, len(epochs) // 8)
                ax.plot(epochs, means, style, color=colour, marker=marker, markevery=every, label=f"{run} (n = {n})")
                band = [row for row in found if row["std"] is not None]
                ax.fill_between(
                    [row["epoch"] for row in band],
                    [row["mean"] - row["std"] for row in band],
                    [row["mean"] + row["std"] for row in band],
                    color=colour,
                    alpha=0.2,
                    linewidth=0,
                )
    figure.align_ylabels(axes)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


@dataclass
class Density:
    """How many pixels lie in each bin of (exact, RipsNet): counts (bins, bins), edges (bins + 1,) of both axes.

    quantity: what is counted, for the labels of the axes."""

    name: str
    quantity: str
    counts: np.ndarray
    edges: np.ndarray

    @classmethod
    def of(cls, name: str, quantity: str, exact: np.ndarray, found: np.ndarray, bins: int = 80) -> "Density":
        low, high = min(exact.min(), found.min()), max(exact.max(), found.max())
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
        return cls(name, quantity, np.histogram2d(exact.ravel(), found.ravel(), [edges, edges])[0].astype(int), edges)

    def rows(self) -> list[dict]:
        """The bins that are not empty, by their centres."""
        centres = (self.edges[1:] + self.edges[:-1]) / 2
        return [
            {"panel": self.name, "exact": centres[i], "ripsnet": centres[j], "pixels": self.counts[i, j]}
            for i, j in np.argwhere(self.counts)
        ]


@rc_context(STYLE)
def density_panels(title: str, densities: list[Density]) -> Figure:
    """A panel for each density; darker bins hold more pixels, on a logarithmic scale. The line is RipsNet = exact."""
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, len(densities))
    colours = ListedColormap(colormaps["viridis_r"](np.linspace(0.15, 1, 256)))  # single pixels must show on white
    norm = LogNorm(1, max(2, *(density.counts.max() for density in densities)))
    for ax, density in zip(axes, densities, strict=True):
        counts = np.ma.masked_equal(density.counts.T, 0)
        mesh = ax.pcolormesh(density.edges, density.edges, counts, cmap=colours, norm=norm, rasterized=True)
        ends = density.edges[[0, -1]]
        ax.plot(ends, ends, color=ORANGE, linestyle="--", label="RipsNet = exact")
        ax.set(title=density.name, aspect="equal")
        ax.set(xlabel=f"exact {density.quantity}", ylabel=f"RipsNet's {density.quantity}")
    figure.colorbar(mesh, ax=axes, label="pixels in a bin", aspect=25)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", frameon=False)
    return figure
