"""Figures, each with the numbers it draws beside it.

    python visualize.py pi --path_t save_t_models/resnet56_cifar100_trial1/best.pth       # after stages 2 and 3

pi: persistence images of a teacher's validation clouds, exact and as RipsNet approximates them, for clouds from the
smallest to the largest error. Writes results/figures/pi_<teacher run>_dim<d>_<operator>.png and .csv.
"""

from pathlib import Path

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from helper.checkpoint import load_network, write_bytes
from helper.clouds import CloudSet, layer_width
from helper.options import (
    Parser,
    UserError,
    add_batch_size,
    add_cloud_options,
    add_data_options,
    add_operator,
    add_teacher_options,
    dims,
    positive,
    run,
)
from helper.ripsnet_fit import CloudData, predict
from helper.runs import RESULTS, clouds_folder, ripsnet_folder, spec_file, table, teacher_run
from helper.topology import check_spec, load_ripsnet, load_spec
from ripsnet import ImageSpec, r2_score

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8C8C8C"  # told apart by every common kind of colour vision, and in grey
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 200,
}


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    figures = parser.add_subparsers(dest="figure", required=True, metavar="figure")
    pi = figures.add_parser("pi", help="exact persistence images against RipsNet's", description=__doc__)
    add_teacher_options(pi)
    add_data_options(pi)
    add_batch_size(pi)
    add_cloud_options(pi)
    add_operator(pi)
    pi.add_argument("--clouds", type=positive, default=4, help="clouds to draw (default: %(default)s)")
    pi.add_argument("--out", type=Path, default=RESULTS / "figures", help="folder (default: %(default)s)")
    pi.set_defaults(main=persistence_images)
    return parser


def persistence_images(args) -> None:
    teacher = load_network(args.path_t, args.model_t, "--model_t", args.device, args.dataset)
    width = layer_width(teacher.model, args.tda_layer_t, teacher.num_classes, "--tda_layer_t")
    folder = clouds_folder(args)
    for dim in dims(args):
        spec = load_spec(spec_file(folder, dim))
        check_spec(spec, spec_file(folder, dim), teacher, width, dim, args)
        path = ripsnet_folder(folder, dim, args.operator) / "best.pth"
        if not path.is_file():
            raise UserError(f"{path}: no RipsNet there; fit it with train_ripsnet.py (same options)")
        network, content = load_ripsnet(path, args.operator, width)
        if content["spec"] != spec.to_dict():
            raise UserError(f"{path}: fitted to other images than those in {folder}; run train_ripsnet.py again")

        files, count = CloudSet(folder, spec.num_clouds), content["quality"]["train_clouds"]
        training = CloudData(files, dim, 0, count, torch.device("cpu"), on_device=False)
        validation = CloudData(files, dim, count, spec.num_clouds, torch.device("cpu"), on_device=False)
        found, exact = (torch.cat(parts) for parts in zip(*predict(network, validation), strict=True))
        mean_image = training.mean_image()
        errors = (found - exact).square().mean(dim=1)
        ranks = np.linspace(0, len(errors) - 1, min(args.clouds, len(errors))).round()
        shown = errors.argsort()[torch.from_numpy(ranks).long()]
        drawn = (spec, (shown + count).tolist(), exact[shown].numpy(), found[shown].numpy(), mean_image.numpy())

        out = args.out / f"pi_{teacher_run(args.path_t)}_dim{dim}_{args.operator}.png"
        write_bytes(out.with_suffix(".csv"), table(pixel_rows(*drawn)))
        title = (
            f"RipsNet ({args.operator} pooling) on {len(errors)} validation clouds of {teacher.arch}, dimension {dim}: "
            f"$R^2$ = {r2_score(found, exact, mean_image):.3f}\nclouds from the smallest to the largest error"
        )
        with rc_context(STYLE):
            draw_pi(title, *drawn).savefig(out)
        print(f"{out} and {out.with_suffix('.csv').name}")


def grid(spec: ImageSpec) -> tuple[np.ndarray, np.ndarray]:
    """Births of the image's columns and persistences of its rows."""
    low_b, high_b, low_p, high_p = spec.image_range
    return np.linspace(low_b, high_b, spec.resolution[0]), np.linspace(low_p, high_p, spec.resolution[1])


def pixel_rows(spec: ImageSpec, clouds: list[int], exact, found, mean_image) -> list[dict]:
    """A row for every pixel of every cloud. clouds: their numbers in the set; exact, found: their images (N, 400)."""
    births, persistences = grid(spec)
    return [
        {
            "cloud": cloud,
            "birth": births[pixel % len(births)],
            "persistence": persistences[pixel // len(births)],
            "exact": exact[i, pixel].item(),
            "ripsnet": found[i, pixel].item(),
            "training_mean": mean_image[pixel].item(),
        }
        for i, cloud in enumerate(clouds)
        for pixel in range(spec.pixels)
    ]


def draw_pi(title: str, spec: ImageSpec, clouds: list[int], exact, found, mean_image) -> Figure:
    """A column for each cloud: exact image, RipsNet's, and their difference. In dimension 0, where an image repeats one
    column of pixels (RipsNet's nearly so: its mean is drawn), the images lie on their side under the curve."""
    curves, (columns, rows) = spec.dim == 0, spec.resolution
    difference = found - exact
    heights = [6] * curves + [1 if curves else 4] * 3
    figure = Figure(figsize=(max(8, 1 + 2.2 * len(clouds)), 5 if curves else 7.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(
        len(heights), len(clouds), squeeze=False, sharex="col", sharey="row", gridspec_kw={"height_ratios": heights}
    )

    if curves:
        persistences = grid(spec)[1]
        curve_mean, curves_exact, curves_found = (
            images.reshape(-1, rows, columns).mean(axis=2) for images in (mean_image, exact, found)
        )
        for ax, curve_exact, curve_found in zip(axes[0], curves_exact, curves_found, strict=True):
            ax.plot(persistences, curve_mean[0], color=GREY, linewidth=2.5, label="mean training image")
            ax.plot(persistences, curve_exact, color=BLUE, marker="o", markersize=3.5, label="exact")
            ax.plot(persistences, curve_found, color=ORANGE, linestyle="--", linewidth=2, label="RipsNet")
        axes[0, 0].set(ylabel="pixel value", ylim=(0, None))
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)

    brightest, largest = max(exact.max(), found.max()), np.abs(difference).max()
    values, differences = {"cmap": "viridis", "vmin": 0, "vmax": brightest}, {"cmap": "PuOr_r", "vmin": -largest}
    names = ["exact", "RipsNet", f"difference\n±{largest:.2g}" if curves else "difference"]
    layers = [(exact, values), (found, values), (difference, differences | {"vmax": largest})]
    for line, name, (images, colours) in zip(axes[-3:], names, layers, strict=True):
        for ax, image in zip(line, images.reshape(-1, rows, columns), strict=True):
            extent = [edge for axis in grid(spec) for edge in edges(axis)]
            if curves:
                image, extent = image.T, [*extent[2:], 0, 1]
                ax.set_yticks([])
            drawn = ax.imshow(image, origin="lower", aspect="auto", extent=extent, **colours)
        if curves:
            line[0].set_ylabel(name, rotation=0, horizontalalignment="right", verticalalignment="center")
        else:
            line[0].set_ylabel(f"{name}\npersistence")
            figure.colorbar(drawn, ax=list(line), aspect=12, pad=0.01)

    for ax, cloud, error in zip(axes[0], clouds, np.square(difference).mean(axis=1), strict=True):
        ax.set_title(f"cloud {cloud}\nMSE {error:.4f}")
    for ax in axes[-1]:
        ax.set_xlabel("persistence" if curves else "birth")
    return figure


def edges(centres: np.ndarray) -> tuple[float, float]:
    """Where an axis of pixels begins and ends: half a pixel outside the first and last grid point."""
    half = (centres[-1] - centres[0]) / (2 * max(1, len(centres) - 1)) or 0.5
    return centres[0] - half, centres[-1] + half


def main(args) -> None:
    args.main(args)


if __name__ == "__main__":
    run(main, get_args_parser())
