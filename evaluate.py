"""Score a checkpoint on a test set, and compare it with a teacher in predictions and in topology.

    python evaluate.py --path save_s_models/<run>/best.pth
    python evaluate.py --path resnet56_vanilla/ckpt_epoch_240.pth --model resnet56    # the file names none
    python evaluate.py --path save_s_models/<run>/best.pth --path_t save_t_models/<run>/best.pth
    ... --topology bottleneck wasserstein     # distances of the persistence diagrams of both
    ... --topology images --ripsnet           # of their exact images (stage 2 first), and RipsNet's R^2 (stage 3 first)
    ... --json scores.json --per_class

Reads checkpoints of this project, of RepDistiller-style code bases, and of TopKD's authors. Accuracies, share of equal
predictions and calibration error (ECE with 15 bins; Guo et al., ICML 2017) are in percent, cross entropy and KL in
nats. With --amp bf16 it gives the accuracy that a run with --amp bf16 logged; without, that of the same weights in
float32. Point clouds are --batch_size consecutive test images, both networks in eval mode.
"""

import json
from pathlib import Path

from helper.checkpoint import load_network, write_json
from helper.data import class_names, load_data
from helper.evaluation import (
    DIAGRAM_DISTANCES,
    TopologyComparison,
    agreement,
    finite,
    network_report,
    predict,
    report_text,
)
from helper.options import (
    MODEL_HELP,
    Parser,
    UserError,
    add_amp,
    add_batch_size,
    add_cloud_options,
    add_data_options,
    add_operator,
    add_ripsnet_clouds,
    add_student_layer,
    add_teacher_options,
    model,
    run,
)
from helper.runs import command, device_name, git_commit, versions

TOPOLOGY_OPTIONS = ("topology", "spec", "ripsnet")


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--path", required=True, help="the checkpoint")
    parser.add_argument(
        "--model",
        type=model,
        default=None,
        help=f"needed only when the checkpoint does not name its architecture: {MODEL_HELP}",
    )
    parser.add_argument("--per_class", action="store_true", help="print the accuracy on every class")
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        default=None,
        metavar="PATH",
        help="write all numbers to a file; without PATH, print them as JSON instead of the table",
    )
    add_teacher_options(parser, required=False)
    comparison = parser.add_argument_group("comparison with the teacher's topology")
    comparison.add_argument(
        "--topology",
        nargs="+",
        choices=["images", *DIAGRAM_DISTANCES],
        default=None,
        help="distance of the exact persistence images; bottleneck, 2-Wasserstein distance of the diagrams. The "
        "student's clouds are taken without projection, which is not deployed: widths may differ",
    )
    comparison.add_argument(
        "--spec",
        nargs="+",
        metavar="PATH",
        default=None,
        help="image spec, one a dimension (default: found under ripsnet/ by the teacher and the options)",
    )
    comparison.add_argument(
        "--ripsnet",
        nargs="*",
        metavar="PATH",
        default=None,
        help="also the exact images, and RipsNet's R^2 on both networks' clouds against them; one file a dimension "
        "(default: found under ripsnet/ by the teacher and the options)",
    )
    add_operator(comparison)
    add_ripsnet_clouds(comparison)
    add_student_layer(comparison)
    add_cloud_options(parser)
    add_batch_size(parser)
    add_data_options(parser)
    add_amp(parser)
    return parser


def main(args) -> None:
    given = [name for name in ("model_t", *TOPOLOGY_OPTIONS) if getattr(args, name) is not None]
    if given and args.path_t is None:
        raise UserError(f"--{given[0]}: needs a teacher to compare with; give its checkpoint with --path_t")
    network = load_network(args.path, args.model, "--model", args.device, args.dataset)
    teacher = load_network(args.path_t, args.model_t, "--model_t", args.device, args.dataset) if args.path_t else None
    _, test_set = load_data(args)
    names = class_names(args)
    compares_topology = any(name in TOPOLOGY_OPTIONS for name in given)
    comparison = TopologyComparison(args, network, teacher, len(test_set)) if compares_topology else None

    layer_s, layer_t = (args.tda_layer_s, args.tda_layer_t) if comparison else (None, None)
    logits, points = predict(network.model, test_set, args.amp, layer_s)
    report = {
        "command": command(),
        "commit": git_commit(),
        "versions": versions(),
        "device": device_name(args.device),
        "dataset": args.dataset,
        "images": len(test_set),
        "amp": args.amp,
        "network": network_report(network, args.path, logits, test_set.labels, names),
    }
    if teacher:
        logits_t, points_t = predict(teacher.model, test_set, args.amp, layer_t)
        report["teacher"] = network_report(teacher, args.path_t, logits_t, test_set.labels, names)
        report["agreement"] = agreement(logits, logits_t)
    if comparison:
        report["topology"] = comparison.measure(points, points_t)

    if args.json == "-":
        print(json.dumps(finite(report), indent=2))
        return
    print(report_text(report, args.per_class))
    if args.json:
        write_json(Path(args.json), finite(report))


if __name__ == "__main__":
    run(main, get_args_parser())
