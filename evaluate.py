"""Score a checkpoint: top-1 accuracy on a test set, in percent.

    python evaluate.py --path save_s_models/<run>/best.pth
    python evaluate.py --path resnet56_vanilla/ckpt_epoch_240.pth --model resnet56    # the file names none

With --amp bf16 it gives the accuracy that a run with --amp bf16 logged; without, that of the same weights in float32.
Reads checkpoints of this project, of RepDistiller-style code bases, and of TopKD's authors.
"""

from helper.checkpoint import load_network
from helper.data import load_data
from helper.loop import evaluate
from helper.options import MODEL_HELP, Parser, add_amp, add_data_options, model, run


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--path", required=True, help="the checkpoint")
    parser.add_argument(
        "--model",
        type=model,
        default=None,
        help=f"needed only when the checkpoint does not name its architecture: {MODEL_HELP}",
    )
    add_data_options(parser)
    add_amp(parser)
    return parser


def main(args) -> None:
    network = load_network(args.path, args.model, "--model", args.device, args.dataset)
    _, test_set = load_data(args)
    top1, _ = evaluate(network.model, test_set, args.amp)
    print(f"{args.path}: {network.arch} on {args.dataset}, top-1 {top1:.2f} %")


if __name__ == "__main__":
    run(main, get_args_parser())
