"""Score a checkpoint on a test set, and compare it with a teacher in predictions and in topology.

    python evaluate.py --path save_s_models/<run>/best.pth
    python evaluate.py --path resnet56_vanilla/ckpt_epoch_240.pth --model resnet56    # the file names none
    ... --adopt save_t_models/resnet56_vanilla/best.pth   # and write it in this project's format, as a teacher
    ... --merge --adopt merged/best.pth       # a student of NORM as the plain network of the same logits
    python evaluate.py --path save_s_models/<run>/best.pth --path_t save_t_models/<run>/best.pth
    ... --topology bottleneck wasserstein     # distances of the persistence diagrams of both
    ... --topology images --ripsnet           # of their exact images (stage 2 first), and RipsNet's R^2 (stage 3 first)
    ... --json scores.json --per_class

Reads checkpoints of this project, of RepDistiller-style code bases, and of TopKD's authors. Accuracies, share of equal
predictions and calibration error (ECE with 15 bins; Guo et al., ICML 2017) are in percent, cross entropy and KL in
nats. With --amp bf16 it gives the accuracy that a run with --amp bf16 logged; without, that of the same weights in
float32. On `imagenet` the accuracy that torchvision publishes stands beside the measured one. Point clouds are
--batch_size, or --cloud_size, consecutive test images, both networks in eval mode.
"""

import helper.cli.early  # noqa: F401

# isort: split

import json
from pathlib import Path
from typing import Any

from dataset import dataset_dict
from helper.cli.parser import Parser, read, run
from helper.cli.types import model, model_help
from helper.data import class_names, image_files, load_data
from helper.errors import UserError
from helper.files.atomic import finite, write_json
from helper.files.provenance import command, device_name, git_commit, versions
from helper.networks import load_network, merged
from helper.report.evaluation import (
    DIAGRAM_DISTANCES,
    Comparison,
    TopologyComparison,
    adopt,
    agreement,
    check_adoption,
    network_report,
    predict,
    report_text,
)
from helper.settings import Clouds, Data, Loss, RipsNetChoice, Teacher, Training


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--path", required=True, help="the checkpoint")
    parser.add_argument(
        "--model", type=model, help=f"needed only when the checkpoint does not name its architecture: {model_help()}"
    )
    parser.add_argument("--per_class", action="store_true", help="print the accuracy on every class")
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="PATH",
        help="write all numbers to a file; without PATH, print them as JSON instead of the table",
    )
    parser.add_argument(
        "--adopt",
        type=Path,
        metavar="PATH",
        help="write the network, with its architecture, data set and the accuracy measured, to a new file of this "
        "project's format, such as save_t_models/<name>/best.pth",
    )
    parser.add_argument(
        "--merge",
        action="store_true",
        help="score, and write with --adopt, the plain network of the same logits, where a method's part of the "
        "student can be merged into its classifier: NORM's before the pooling",
    )
    parser.add_settings("teacher", Teacher, path_t=None)
    comparison = parser.add_argument_group("comparison with the teacher's topology")
    comparison.add_argument(
        "--topology",
        nargs="+",
        choices=["images", *DIAGRAM_DISTANCES],
        help="distance of the exact persistence images; bottleneck, 2-Wasserstein distance of the diagrams. The "
        "student's clouds are taken without projection, which is not deployed: widths may differ",
    )
    comparison.add_argument(
        "--spec",
        nargs="+",
        metavar="PATH",
        help="image spec, one a dimension (default: found under ripsnet/ by the teacher and the options)",
    )
    comparison.add_argument(
        "--ripsnet",
        nargs="*",
        metavar="PATH",
        help="also the exact images, and RipsNet's R^2 on both networks' clouds against them; one file a dimension "
        "(default: found under ripsnet/ by the teacher and the options)",
    )
    parser.add_settings(None, RipsNetChoice)
    parser.add_settings(None, Loss, only=("tda_layer_s",))
    parser.add_settings("clouds and images", Clouds)
    parser.add_settings("data and device", Data)
    parser.add_settings(None, Training, only=("amp",))
    return parser


@image_files()
def main(args) -> None:
    data, asked = read(args, Data), comparison_of(args)
    check_options(args, asked)
    network = load_network(args.path, args.model, "--model", data.device, data.dataset)
    if args.merge:
        network = merged(network, args.path)
    if args.adopt is not None:
        check_adoption(args.adopt, network, args.path, args.merge)
    teacher = load_network(args.path_t, args.model_t, "--model_t", data.device, data.dataset) if args.path_t else None
    _, test_set = load_data(data)
    names = class_names(data)
    comparison = None
    if asked.with_topology and teacher is not None:
        comparison = TopologyComparison(asked, args.path_t, network, teacher, test_set)

    layer_s, layer_t = (asked.tda_layer_s, asked.clouds.tda_layer_t) if comparison else (None, None)
    logits, points = predict(network.model, test_set, args.amp, layer_s)
    report: dict[str, Any] = {
        "command": command(),
        "commit": git_commit(),
        "versions": versions(data.dataset),
        "device": device_name(data.device),
        "dataset": data.dataset,
        "images": len(test_set),
        "amp": args.amp,
        "network": network_report(network, args.path, logits, test_set.labels, names, data.dataset),
    }
    if teacher:
        logits_t, points_t = predict(teacher.model, test_set, args.amp, layer_t)
        report["teacher"] = network_report(teacher, args.path_t, logits_t, test_set.labels, names, data.dataset)
        report["agreement"] = agreement(logits, logits_t)
        if comparison:
            assert points is not None and points_t is not None
            report["topology"] = comparison.measure(points, points_t)
    if args.adopt is not None:
        adopt(args.adopt, network, data.dataset, report["network"]["top1"])
        report["adopted"] = str(args.adopt)

    if args.json == "-":
        print(json.dumps(finite(report), indent=2))
        return
    print(report_text(report, args.per_class))
    if args.json:
        write_json(Path(args.json), finite(report), option="--json")


def comparison_of(args) -> Comparison:
    """What the options ask to compare of topology."""
    return Comparison(
        topology=tuple(args.topology or ()),
        spec=tuple(args.spec or ()),
        ripsnet=None if args.ripsnet is None else tuple(args.ripsnet),
        choice=read(args, RipsNetChoice),
        clouds=read(args, Clouds),
        tda_layer_s=args.tda_layer_s,
    )


def check_options(args, asked: Comparison) -> None:
    """Refuse options that would do nothing."""
    given = [name for name in ("model_t", "topology", "spec", "ripsnet") if getattr(args, name) is not None]
    if given and args.path_t is None:
        raise UserError(f"--{given[0]}: needs a teacher to compare with; give its checkpoint with --path_t")
    asked.check_effect(dataset_dict[args.dataset].recipe)
    if args.per_class and args.json == "-":
        raise UserError("--per_class: has no effect with --json without PATH, which prints all classes; leave it out")


if __name__ == "__main__":
    run(main, get_args_parser)
