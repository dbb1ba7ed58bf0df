"""Figures, each with the numbers it draws beside it, in results/figures/.

    python visualize.py pi      --path_t save_t_models/resnet56_cifar100_trial1/best.pth       # after stages 2 and 3
    python visualize.py pi      --path_t <teacher>/best.pth --path_s save_s_models/<run>     # a student over training
    python visualize.py scatter --path_t <teacher>/best.pth                                    # after stages 2 and 3
    python visualize.py diagram --path_t <teacher>/best.pth --path_s <run>/best.pth <run>/best.pth
    python visualize.py umap    --path_t <teacher>/best.pth --path_s <run>/best.pth ... --labels teacher KD ...
    python visualize.py curves  --logs results/logs/<pair>_KD_*.csv results/logs/<pair>_TopKD_*.csv

pi: persistence images, exact and as RipsNet approximates them: of the teacher's validation clouds, from the smallest to
the largest error; with --path_s, of a training batch in the teacher and the students.
scatter: RipsNet's pixels against the exact ones, over all validation clouds.
diagram: persistence diagrams and barcodes of a training batch, in dimension 0 and 1.
umap: test images of some classes in each network's feature space, in two dimensions.
curves: accuracy, loss terms, their shares and gradient norms, over the epochs; runs whose rows in results/runs/ differ
only in the trial are drawn as mean and standard deviation.

Networks run in eval mode. The folder of a run in place of a checkpoint means all that it holds, by their epochs.
"""

import helper.cli.early  # noqa: F401

# isort: split

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from helper.cli.parser import Parser, read, run
from helper.cli.types import model, model_help, number, positive
from helper.clouds.embedding import cloud_loader
from helper.data import class_names, class_titles, image_files, image_size, load_data
from helper.errors import UserError
from helper.files.paths import RESULTS, teacher_run
from helper.networks import load_network
from helper.report import figure_data, figures, identity
from helper.report.figure_data import Shown
from helper.settings import LAYER, WHOLE, Clouds, Data, Loss, Number, RipsNetChoice, Teacher
from ripsnet import r2_score

CURVES_AT_MOST = 12
SEED = 0


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="figure", required=True, metavar="figure")

    def figure(name: str, draw: Callable, text: str) -> Parser:
        command = commands.add_parser(name, help=text, description=__doc__)
        command.add_argument("--out", type=Path, default=RESULTS / "figures", help="folder (default: %(default)s)")
        command.set_defaults(draw=draw)
        return command

    pi = figure("pi", persistence_images, "exact persistence images against RipsNet's")
    scatter = figure("scatter", scatter_pixels, "RipsNet's pixels against the exact ones")
    diagram = figure("diagram", persistence_diagrams, "persistence diagrams and barcodes")
    umap = figure("umap", embeddings, "feature spaces in two dimensions")
    curves = figure("curves", training_curves, "accuracies and losses over the epochs")
    for command in (pi, scatter, diagram, umap):
        command.add_settings("teacher", Teacher)
        command.add_settings("data and device", Data)
    for command in (pi, scatter):
        command.add_settings("clouds and images", Clouds)
        command.add_settings("RipsNet", RipsNetChoice, operator="mean")
    diagram.add_settings(None, Clouds, only=("batch_size", "cloud_size"))
    for command in (pi, diagram, umap):
        add_students(command)

    pi.add_settings(None, Loss, only=("tda_layer_s",))
    diagram.add_argument(
        "--layer",
        type=number(LAYER),
        default=-1,
        help="of all networks: -1 the pooled vector, ... 0 the logits (default: -1)",
    )
    pi.add_argument(
        "--clouds",
        type=positive,
        help="clouds to draw (default: 4); with --path_s, batches over which R^2 is taken, of which one is drawn "
        "(default: 16)",
    )
    umap.add_argument(
        "--method", choices=list(figure_data.EMBEDDINGS), default="umap", help="t-SNE where umap-learn is not installed"
    )
    umap.add_argument(
        "--classes",
        nargs="+",
        metavar="CLASS",
        help="numbers, names, or WordNet's numbers of ImageNet's classes (default: the first ten)",
    )
    umap.add_argument(
        "--images", type=number(Number(int, 2)), default=100, help="of a class, at most (default: %(default)s)"
    )
    curves.add_argument(
        "--logs",
        type=Path,
        nargs="+",
        required=True,
        help="logs, folders of runs, or folders of logs, as results/logs",
    )
    return parser


def add_students(parser: Parser) -> None:
    group = parser.add_argument_group("networks beside the teacher")
    group.add_argument("--path_s", type=Path, nargs="+", default=[], help="checkpoints, or folders of runs")
    group.add_argument("--model_s", type=model, help=f"of the checkpoints that do not name theirs: {model_help()}")
    group.add_argument("--labels", nargs="+", help="headings: the teacher's, and one for each --path_s")
    group.add_argument(
        "--seed",
        type=number(WHOLE),
        default=SEED,
        help="of the choice and augmentation of images (default: %(default)s)",
    )


def shown_by(args) -> Shown:
    """The networks that the options name."""
    if args.model_s is not None and not args.path_s:
        raise UserError("--model_s: has no effect without --path_s; leave it out")
    return Shown(args.path_t, tuple(args.path_s), tuple(args.labels or ()), args.model_t, args.model_s)


def training_batches(args, count: int) -> list[torch.Tensor]:
    """The images of the first `count` clouds of training images, shuffled and augmented by --seed."""
    train_set, _ = load_data(read(args, Data))
    return figure_data.mini_batches(cloud_loader(train_set, read(args, Clouds), args.seed), count)


def persistence_images(args) -> None:
    shown, data, clouds, choice = shown_by(args), read(args, Data), read(args, Clouds), read(args, RipsNetChoice)
    if not shown.students:
        for name, default in (("seed", SEED), ("tda_layer_s", -1)):
            if getattr(args, name) != default:
                raise UserError(f"--{name}: has no effect without --path_s; leave it out")
    networks = figure_data.load_networks(shown, data)
    teacher = next(iter(networks.values()))
    for fitted in figure_data.fitted_ripsnets(shown.path_t, clouds, choice, teacher, image_size(data)):
        if shown.students:
            batches = training_batches(args, args.clouds or 16)
            about, panels = figure_data.network_images(fitted, networks, batches, clouds.tda_layer_t, args.tda_layer_s)
        else:
            about, panels = figure_data.validation_images(fitted, next(iter(networks)), args.clouds or 4)
        spec, mean_image = fitted.spec, fitted.mean_image.numpy()
        title = (
            f"{data.dataset}, persistence images of dimension {spec.dim}, {figure_data.description(choice)}\n{about}"
        )
        figures.save(
            args.out / f"pi_{shown.file_name}_{figure_data.images_name(clouds, choice, spec.dim)}",
            figures.image_panels(title, panels, spec, mean_image),
            figure_data.pixel_rows(spec, panels, mean_image),
        )


def scatter_pixels(args) -> None:
    data, clouds, choice = read(args, Data), read(args, Clouds), read(args, RipsNetChoice)
    teacher = load_network(args.path_t, args.model_t, "--model_t", data.device, data.dataset)
    for fitted in figure_data.fitted_ripsnets(args.path_t, clouds, choice, teacher, image_size(data)):
        found, exact = fitted.validation()
        mean_image, spec = fitted.mean_image, fitted.spec
        r2 = r2_score(found, exact, mean_image)
        if spec.dim == 0:  # the 20 columns are equal, RipsNet's nearly so
            found, exact, mean_image = (
                images.reshape(-1, *spec.resolution[::-1]).mean(dim=2) for images in (found, exact, mean_image)
            )
        deviations = [(images - mean_image).numpy() for images in (exact, found)]
        densities = [
            figures.Density.of("pixel values", "value", exact.numpy(), found.numpy()),
            figures.Density.of(
                "less the mean training image: what $R^2$ sees", "deviation", deviations[0], deviations[1]
            ),
        ]
        title = (
            f"{data.dataset}, {teacher.arch}, dimension {spec.dim}: {exact.shape[1]} distinct pixels of {len(exact):,} "
            f"validation clouds of {spec.points} points\n{figure_data.description(choice)}, $R^2$ = {r2:.3f}"
        )
        figures.save(
            args.out / f"scatter_{teacher_run(args.path_t)}_{figure_data.images_name(clouds, choice, spec.dim)}",
            figures.density_panels(title, densities),
            [row for density in densities for row in density.rows()],
        )


def persistence_diagrams(args) -> None:
    shown = shown_by(args)
    networks = figure_data.load_networks(shown, read(args, Data))
    batches = training_batches(args, 1)
    bars = []
    for name, network in networks.items():
        bars += figure_data.bars(name, *figure_data.layer_outputs(network, batches, args.layer, "--layer"))
    title = f"{args.dataset}: Vietoris-Rips persistence of {read(args, Clouds).points} training images in feature space"
    name = f"diagram_{shown.file_name}"
    if args.layer != -1:
        title += f" of layer {args.layer}"
        name += f"_layer{args.layer}"
    figures.save(args.out / name, figures.diagram_panels(title, bars), bars)


def embeddings(args) -> None:
    shown, data = shown_by(args), read(args, Data)
    method = figure_data.available(args.method)
    networks = figure_data.load_networks(shown, data)
    _, test_set = load_data(data)
    names, titles = class_names(data), class_titles(data)
    classes = figure_data.choose_classes(names, args.classes or names[:10], titles)
    names = [titles[i] for i in classes]
    index, labels = figure_data.images_of_classes(test_set, classes, args.images, args.seed)
    points, scores, notes = [], [], []
    for network in networks.values():
        features = figure_data.pooled_features(network, test_set, index)
        embedded, parameters = figure_data.embed(features, method, args.seed)
        points.append(embedded)
        scores.append([figure_data.silhouette(space, labels) for space in (features, embedded)])
        notes.append(f"silhouette {scores[-1][0]:.3f} ({features.shape[1]} dimensions), {scores[-1][1]:.3f} (plane)")
    title = (
        f"{data.dataset}: pooled features of {len(labels):,} test images of {len(names)} classes\n"
        f"{figure_data.EMBEDDINGS[method]}, {parameters}, seed {args.seed}"
    )
    numbers = {
        "network": np.array(list(networks)),
        "class_name": np.array(names),
        "image": index.cpu().numpy(),
        "label": labels,  # an index into class_name
        "embedding": np.array(points, dtype=np.float32),
        "silhouette": np.array(scores),  # of the classes: in feature space, in the plane
    }
    drawn = figures.embedding_panels(
        title,
        list(zip(networks, notes, strict=True)),
        numbers["embedding"],
        labels,
        names,
        figure_data.EMBEDDINGS[method],
    )
    figures.save(args.out / f"{method}_{shown.file_name}", drawn, numbers)


def training_curves(args) -> None:
    columns = [column for line in figures.CURVES for column, _ in line]
    groups = identity.find_logs(args.logs)
    if len(groups) > CURVES_AT_MOST:
        raise UserError(
            f"--logs: found the logs of {len(groups)} settings, expected at most {CURVES_AT_MOST}, which a reader can "
            "distinguish; name those to compare"
        )
    names = identity.distinguish([group[0].run for group in groups])
    rows, counts = [], {}
    for label, group in zip(names.labels, groups, strict=True):
        counts[label] = len(group)
        rows += figure_data.curve_rows(label, [figure_data.read_log(log.file, columns) for log in group], columns)
    title = f"{names.title}: mean over n runs"
    if max(counts.values()) > 1:
        title += ", band of one standard deviation"
    drawn = figures.curve_panels(title, rows, counts)
    figures.save(args.out / f"curves_{identity.several([log.run for group in groups for log in group])}", drawn, rows)


@image_files()
def main(args) -> None:
    args.draw(args)


if __name__ == "__main__":
    run(main, get_args_parser)
