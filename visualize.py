"""Figures, each with the numbers it draws beside it.

    python visualize.py pi --path_t save_t_models/resnet56_cifar100_trial1/best.pth       # after stages 2 and 3

pi: persistence images of a teacher's validation clouds, exact and as RipsNet approximates them, for clouds from the
smallest to the largest error. Writes results/figures/pi_<teacher run>_dim<d>_<operator>.png and .csv.
"""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor

from helper.checkpoint import load_network, write_bytes
from helper.clouds import CloudSet, layer_width
from helper.options import Parser, UserError, add_batch_size, add_cloud_options, add_teacher_options, dims, positive, run
from helper.ripsnet_fit import CloudData, predict
from helper.runs import RESULTS, clouds_folder, ripsnet_folder, spec_file, table, teacher_run
from helper.topology import check_spec, load_ripsnet, load_spec
from ripsnet import ImageSpec, r2_score

matplotlib.use("Agg")  # no display is needed
import matplotlib.pyplot as plt  # noqa: E402

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
    add_batch_size(pi)
    add_cloud_options(pi)
    pi.add_argument(
        "--operator", choices=["mean", "sum"], default="mean", help="RipsNet's pooling over points (default: mean)"
    )
    pi.add_argument("--clouds", type=positive, default=4, help="clouds to draw (default: %(default)s)")
    pi.add_argument("--out", type=Path, default=RESULTS / "figures", help="folder (default: %(default)s)")
    pi.set_defaults(main=persistence_images)
    return parser


def persistence_images(args) -> None:
    teacher = load_network(args.path_t, args.model_t, "--model_t")
    width = layer_width(teacher.model, args.tda_layer_t, teacher.num_classes, "--tda_layer_t")
    folder = clouds_folder(args)
    for dim in dims(args):
        spec = load_spec(spec_file(folder, dim))
        check_spec(spec, spec_file(folder, dim), teacher, width, dim, args)
        path = ripsnet_folder(folder, dim, args.operator) / "best.pth"
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

        out = args.out / f"pi_{teacher_run(args.path_t)}_dim{dim}_{args.operator}.png"
        rows = pixel_rows(spec, shown + count, exact[shown], found[shown], mean_image)
        write_bytes(out.with_suffix(".csv"), table(rows))
        title = (
            f"RipsNet ({args.operator} pooling) on {len(errors)} validation clouds of {teacher.arch}, dimension {dim}: "
            f"$R^2$ = {r2_score(found, exact, mean_image):.3f}"
        )
        draw = draw_lines if dim == 0 else draw_images
        draw(out, title, spec, (shown + count).tolist(), exact[shown], found[shown], mean_image)
        print(f"{out} and {out.with_suffix('.csv').name}")


def grid(spec: ImageSpec) -> tuple[np.ndarray, np.ndarray]:
    """Births of the image's columns and persistences of its rows."""
    low_b, high_b, low_p, high_p = spec.image_range
    return np.linspace(low_b, high_b, spec.resolution[0]), np.linspace(low_p, high_p, spec.resolution[1])


def pixel_rows(spec: ImageSpec, clouds: Tensor, exact: Tensor, found: Tensor, mean_image: Tensor) -> list[dict]:
    """A row for every pixel of every cloud; in dimension 0, where all columns are equal, for every pixel of the first.

    clouds: the clouds' numbers in the set.
    """
    births, persistences = grid(spec)
    if spec.dim == 0:
        births = births[:1]
    return [
        {
            "cloud": cloud,
            "birth": birth,
            "persistence": persistence,
            "exact": exact[i, pixel].item(),
            "ripsnet": found[i, pixel].item(),
            "training_mean": mean_image[pixel].item(),
        }
        for i, cloud in enumerate(clouds.tolist())
        for row, persistence in enumerate(persistences.tolist())
        for column, birth in enumerate(births.tolist())
        for pixel in [row * spec.resolution[0] + column]
    ]
