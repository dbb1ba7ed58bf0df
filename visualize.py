"""Figures, each with the numbers it draws beside it, in results/figures/.

    python visualize.py pi      --path_t save_t_models/resnet56_cifar100_trial1/best.pth       # after stages 2 and 3
    python visualize.py pi      --path_t <teacher>/best.pth --path_s save_s_models/<run>     # a student over training
    python visualize.py scatter --path_t <teacher>/best.pth                                    # after stages 2 and 3
    python visualize.py diagram --path_t <teacher>/best.pth --path_s <run>/best.pth <run>/best.pth
    python visualize.py umap    --path_t <teacher>/best.pth --path_s <run>/best.pth ... --labels teacher KD ...
    python visualize.py curves  --logs results/logs

pi: persistence images, exact and as RipsNet approximates them: of the teacher's validation clouds, from the smallest to
the largest error; with --path_s, of a training batch in the teacher and the students.
scatter: RipsNet's pixels against the exact ones, over all validation clouds.
diagram: persistence diagrams and barcodes of a training batch, in dimension 0 and 1.
umap: test images of some classes in each network's feature space, in two dimensions.
curves: accuracy, loss terms, their shares and gradient norms, over the epochs; runs whose names differ only in
_trial<n> are drawn as mean and standard deviation.

Networks run in eval mode. The folder of a run in place of a checkpoint means all that it holds, by their epochs.
"""

from pathlib import Path

import numpy as np
import torch

from helper import figure_data, figures
from helper.checkpoint import load_network
from helper.clouds import images_of
from helper.data import class_names, load_data
from helper.options import (
    Parser,
    UserError,
    add_batch_size,
    add_cloud_options,
    add_data_options,
    add_operator,
    add_teacher_options,
    model,
    number,
    positive,
    run,
    whole,
)
from helper.runs import RESULTS, teacher_run
from ripsnet import dim0_deaths, dim1_diagrams, r2_score

CURVES_AT_MOST = 12


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="figure", required=True, metavar="figure")

    def figure(name, main, text):
        command = commands.add_parser(name, help=text, description=__doc__)
        command.add_argument("--out", type=Path, default=RESULTS / "figures", help="folder (default: %(default)s)")
        command.set_defaults(main=main)
        return command

    pi = figure("pi", persistence_images, "exact persistence images against RipsNet's")
    scatter = figure("scatter", scatter_pixels, "RipsNet's pixels against the exact ones")
    diagram = figure("diagram", persistence_diagrams, "persistence diagrams and barcodes")
    umap = figure("umap", embeddings, "feature spaces in two dimensions")
    curves = figure("curves", training_curves, "accuracies and losses over the epochs")
    for command in (pi, scatter, diagram, umap):
        add_teacher_options(command)
        add_data_options(command)
    for command in (pi, scatter, diagram):
        add_batch_size(command)
    for command in (pi, scatter):
        add_cloud_options(command)
        add_operator(command)
    for command in (pi, diagram, umap):
        add_students(command)

    layer = {"type": number(int, maximum=0), "default": -1}
    pi.add_argument("--tda_layer_s", **layer, help="the students' layer, counted as --tda_layer_t (default: -1)")
    diagram.add_argument(
        "--layer", **layer, help="of all networks: -1 the pooled vector, ... 0 the logits (default: -1)"
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
    umap.add_argument("--classes", nargs="+", metavar="CLASS", help="numbers or names (default: the first ten)")
    umap.add_argument("--images", type=number(int, 2), default=100, help="of a class, at most (default: %(default)s)")
    curves.add_argument(
        "--logs",
        type=Path,
        nargs="+",
        default=[RESULTS / "logs"],
        help="logs, folders of runs, or folders of logs (default: results/logs)",
    )
    return parser


def add_students(parser) -> None:
    group = parser.add_argument_group("networks beside the teacher")
    group.add_argument("--path_s", nargs="+", default=[], metavar="PATH", help="checkpoints, or folders of runs")
    group.add_argument("--model_s", type=model, help="architecture of the checkpoints that do not name it")
    group.add_argument("--labels", nargs="+", help="headings: the teacher's, and one for each --path_s")
    group.add_argument("--seed", type=whole, default=0, help="of the choice of images (default: %(default)s)")


def persistence_images(args) -> None:
    networks = figure_data.load_networks(args)
    for fitted in figure_data.fitted_ripsnets(args, next(iter(networks.values()))):
        draw = network_images if args.path_s else validation_images
        about, panels = draw(args, fitted, networks)
        spec, mean_image = fitted.spec, fitted.mean_image.numpy()
        title = (
            f"{args.dataset}, persistence images of dimension {spec.dim}, RipsNet with {args.operator} pooling\n{about}"
        )
        figures.save(
            args.out / f"pi_{figure_data.network_runs(args)}_dim{spec.dim}_{args.operator}",
            figures.image_panels(title, panels, spec, mean_image),
            figure_data.pixel_rows(spec, panels, mean_image),
        )


def validation_images(args, fitted, networks) -> tuple[str, list[figures.Images]]:
    found, exact = fitted.validation()
    errors = (found - exact).square().mean(dim=1)
    ranks = np.linspace(0, len(errors) - 1, min(args.clouds or 4, len(errors))).round()
    panels = [
        figures.Images(f"cloud {fitted.train_clouds + i}", f"MSE {errors[i]:.4f}", exact[i].numpy(), found[i].numpy())
        for i in errors.argsort()[torch.from_numpy(ranks).long()].tolist()
    ]
    return (
        f"{next(iter(networks))}, {len(errors):,} validation clouds of {args.batch_size} points, "
        f"$R^2$ = {r2_score(found, exact, fitted.mean_image):.3f}; from the smallest to the largest error"
    ), panels


def network_images(args, fitted, networks) -> tuple[str, list[figures.Images]]:
    batches = figure_data.mini_batches(args, args.clouds or 16)
    panels = []
    for name, network in networks.items():
        layer = (args.tda_layer_s, "--tda_layer_s") if panels else (args.tda_layer_t, "--tda_layer_t")
        clouds = torch.stack(figure_data.layer_outputs(network, batches, *layer))
        diagrams = dim0_deaths(clouds) if fitted.spec.dim == 0 else dim1_diagrams(clouds)
        exact, found = images_of(diagrams, fitted.spec).float(), None
        note = f"width {clouds.shape[-1]}, RipsNet's {fitted.network.d}"
        if clouds.shape[-1] == fitted.network.d:
            found = fitted.network(clouds)
            note = f"MSE {(found[0] - exact[0]).square().mean():.4f}, $R^2$ {r2_score(found, exact):.3g}"
        panels.append(figures.Images(name, note, exact[0].numpy(), None if found is None else found[0].numpy()))
    return (
        f"a training batch of {args.batch_size} images; $R^2$ over {len(batches)} batches, against a network's mean "
        "exact image"
    ), panels


def scatter_pixels(args) -> None:
    teacher = load_network(args.path_t, args.model_t, "--model_t", args.device, args.dataset)
    for fitted in figure_data.fitted_ripsnets(args, teacher):
        found, exact = fitted.validation()
        mean_image, spec = fitted.mean_image, fitted.spec
        r2 = r2_score(found, exact, mean_image)
        if spec.dim == 0:  # the 20 columns are equal, RipsNet's nearly so
            found, exact, mean_image = (
                images.reshape(-1, *spec.resolution[::-1]).mean(dim=2) for images in (found, exact, mean_image)
            )
        less_mean = [(images - mean_image).numpy() for images in (exact, found)]
        densities = [
            figures.Density.of("pixel values", "value", exact.numpy(), found.numpy()),
            figures.Density.of("less the mean training image: what $R^2$ sees", "deviation", *less_mean),
        ]
        title = (
            f"{args.dataset}, {teacher.arch}, dimension {spec.dim}: {exact.shape[1]} distinct pixels of {len(exact):,} "
            f"validation clouds of {args.batch_size} points\nRipsNet with {args.operator} pooling, $R^2$ = {r2:.3f}"
        )
        figures.save(
            args.out / f"scatter_{teacher_run(args.path_t)}_dim{spec.dim}_{args.operator}",
            figures.density_panels(title, densities),
            [row for density in densities for row in density.rows()],
        )


def persistence_diagrams(args) -> None:
    networks = figure_data.load_networks(args)
    batches = figure_data.mini_batches(args, 1)
    bars = []
    for name, network in networks.items():
        bars += figure_data.bars(name, *figure_data.layer_outputs(network, batches, args.layer, "--layer"))
    of_layer = f" of layer {args.layer}" * (args.layer != -1)
    title = f"{args.dataset}: Vietoris-Rips persistence of {args.batch_size} training images in feature space{of_layer}"
    figures.save(args.out / f"diagram_{figure_data.network_runs(args)}", figures.diagram_panels(title, bars), bars)


def embeddings(args) -> None:
    method = figure_data.available(args.method)
    networks = figure_data.load_networks(args)
    _, test_set = load_data(args)
    names = class_names(args)
    classes = figure_data.choose_classes(names, args.classes or names[:10])
    names = [names[i] for i in classes]
    index, labels = figure_data.images_of_classes(test_set, classes, args.images, args.seed)
    points, scores, notes = [], [], []
    for network in networks.values():
        features = figure_data.pooled_features(network, test_set, index)
        embedded, parameters = figure_data.embed(features, method, args.seed)
        points.append(embedded)
        scores.append([figure_data.silhouette(space, labels) for space in (features, embedded)])
        notes.append(f"silhouette {scores[-1][0]:.3f} ({features.shape[1]} dimensions), {scores[-1][1]:.3f} (plane)")
    title = (
        f"{args.dataset}: pooled features of {len(labels):,} test images of {len(names)} classes\n"
        f"{figure_data.EMBEDDINGS[method]}, {parameters}, seed {args.seed}"
    )
    data = {
        "network": np.array(list(networks)),
        "class_name": np.array(names),
        "image": index.cpu().numpy(),
        "label": labels,  # an index into class_name
        "embedding": np.array(points, dtype=np.float32),
        "silhouette": np.array(scores),  # of the classes: in feature space, in the plane
    }
    drawn = figures.embedding_panels(
        title, list(zip(networks, notes, strict=True)), data["embedding"], labels, names, figure_data.EMBEDDINGS[method]
    )
    figures.save(args.out / f"{method}_{figure_data.network_runs(args)}", drawn, data)


def training_curves(args) -> None:
    columns = [column for line in figures.CURVES for column, _ in line]
    logs = {name: figure_data.read_log(path, columns) for name, path in figure_data.find_logs(args.logs).items()}
    groups = figure_data.repetitions(list(logs))
    if len(groups) > CURVES_AT_MOST:
        raise UserError(
            f"--logs: found the logs of {len(groups)} settings, expected at most {CURVES_AT_MOST}, which a reader can "
            "tell apart; name those to compare"
        )
    front = figure_data.common_front(list(groups))
    rows, counts = [], {}
    for group, names in groups.items():
        short = group.removeprefix(f"{front}_") if len(groups) > 1 else group
        counts[short] = len(names)
        rows += figure_data.curve_rows(short, [logs[name] for name in names], columns)
    title = f"{front or 'training'}: mean over n runs" + ", band of one standard deviation" * (max(counts.values()) > 1)
    drawn = figures.curve_panels(title, rows, counts)
    figures.save(args.out / f"curves_{figure_data.several(list(groups))}", drawn, rows)


def main(args) -> None:
    args.main(args)


if __name__ == "__main__":
    run(main, get_args_parser())
