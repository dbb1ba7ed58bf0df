"""Command-line options that several scripts share, and the one way in which a script reports bad input.

A script ends with `run(main, get_args_parser())`. Anything wrong with what the user gave (an option, a file) is raised
as `UserError` with one line that names the option or file, what was found, what was expected and what to do; `run`
prints that line and exits with code 2. `RunStopped` (exit code 1) is for runs that cannot go on for another reason.
"""

import argparse
import math
import os
import sys

import torch

from dataset import dataset_dict
from distiller_zoo import distiller_dict, resolve_method
from models import model_dict, resolve_name


class UserError(Exception):
    """Bad input: one clear line, exit code 2."""

    exit_code = 2


class RunStopped(UserError):
    """A run that cannot continue (non-finite loss, full disk): one clear line, exit code 1."""

    exit_code = 1


class Interrupted(UserError):
    """Ctrl-C or a termination request, after the state was saved: exit code 130."""

    exit_code = 130


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without the usage text."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class Listing(argparse.Action):
    """An option that prints the text that a function makes, and exits."""

    def __init__(self, option_strings, dest, text, **kwargs):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **kwargs)
        self.text = text

    def __call__(self, parser, namespace, values, option_string=None):
        print(self.text(), flush=True)
        parser.exit()


def exact_kernels() -> None:
    """For all scripts alike: cuDNN's kernels repeat themselves, and float32 is not rounded to TF32 unasked."""
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def run(main, parser: Parser) -> None:
    """Parse the command line, call `main(args)`, and turn a UserError into its one line and exit code. Ends quietly,
    with exit code 1, when nobody reads its output any more."""
    exact_kernels()
    try:
        main(parser.parse_args())
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on, as after `| head`; the interpreter must not write at its end either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except UserError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; what was finished is kept", file=sys.stderr)
        sys.exit(Interrupted.exit_code)


def number(kind, minimum=-math.inf, maximum=math.inf):
    """An argparse type: an int or float within [minimum, maximum]."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not minimum <= value <= maximum:  # also refuses nan
            bounds = [f"at least {minimum:g}"] * (minimum > -math.inf) + [f"at most {maximum:g}"] * (maximum < math.inf)
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(
                f"found '{text}', expected {' '.join([what, ' and '.join(bounds)])}".rstrip()
            )
        return value

    return parse


def whole(text):
    return number(int, 0, 2**63 - 1)(text)


def positive(text):
    return number(int, 1, 2**31 - 1)(text)


def run_folder(text):
    """The name of a run: one folder's name, not a path."""
    if not text or text != os.path.basename(text) or text.startswith("."):
        raise argparse.ArgumentTypeError(f"found '{text}', expected the name of a folder, without slashes")
    return text


def weight(text):
    """A loss weight: a finite number that is not negative."""
    return number(float, 0, sys.float_info.max)(text)


def epoch_list(text):
    """'150,180,210' -> [150, 180, 210]; an empty text means no decay."""
    return [positive(part) for part in text.split(",")] if text else []


def named(resolve):
    """An argparse type from a function that returns the canonical name or raises ValueError with one clear line."""

    def parse(text):
        try:
            return resolve(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def device(text):
    try:
        found = torch.device(text)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"found '{text}', expected cpu, cuda or cuda:<index>")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(f"found '{text}', but this PyTorch sees no CUDA device; use --device cpu")
    return found


model = named(resolve_name)
method = named(resolve_method)


def add_data_options(parser: Parser) -> None:
    group = parser.add_argument_group("data and device")
    group.add_argument(
        "--dataset", choices=sorted(dataset_dict), default="cifar100", help="images (default: %(default)s)"
    )
    group.add_argument(
        "--data_dir", default="data", help="where torchvision finds or puts the files (default: %(default)s)"
    )
    group.add_argument(
        "--device",
        type=device,
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda or cuda:<index> (default: cuda if there is one)",
    )


def add_batch_size(parser: Parser) -> None:
    parser.add_argument(
        "--batch_size",
        type=positive,
        default=64,
        help="images a step, which is also the number of points in a cloud (default: %(default)s)",
    )


def add_amp(parser) -> None:
    parser.add_argument(
        "--amp",
        choices=["off", "bf16"],
        default="off",
        help="bf16 autocast for the networks; the losses stay float32 (default: %(default)s)",
    )


def add_training_options(parser: Parser) -> None:
    """The published schedule (CIFAR-100: SGD, 240 epochs, times 0.1 after 150, 180 and 210), as defaults."""
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=positive, default=240, help="(default: %(default)s)")
    group.add_argument(
        "--lr",
        type=number(float, 0, 1e3),
        default=None,
        help="learning rate (default: 0.01 for MobileNetV2 and the ShuffleNets, 0.05 otherwise)",
    )
    group.add_argument(
        "--lr_decay_epochs",
        type=epoch_list,
        default=[150, 180, 210],
        metavar="E,E,...",
        help="the rate decays AFTER these epochs (default: 150,180,210)",
    )
    group.add_argument("--lr_decay_rate", type=number(float, 0, 1), default=0.1, help="(default: %(default)s)")
    group.add_argument("--weight_decay", type=weight, default=5e-4, help="(default: %(default)s)")
    group.add_argument("--momentum", type=number(float, 0, 1), default=0.9, help="(default: %(default)s)")
    add_amp(group)
    group.add_argument(
        "--trial", type=whole, default=1, help="number of the repetition, part of the run's name (default: 1)"
    )
    group.add_argument("--seed", type=whole, default=None, help="(default: the trial)")
    group.add_argument("--name", type=run_folder, default=None, help="name of the run (default: made from the options)")
    group.add_argument("--resume", action="store_true", help="continue this run from its last checkpoint")


def add_teacher_options(parser: Parser, required: bool = True) -> None:
    group = parser.add_argument_group("teacher")
    group.add_argument("--path_t", required=required, default=None, help="the teacher's checkpoint")
    group.add_argument(
        "--model_t", type=model, default=None, help="its architecture, needed only when the checkpoint does not name it"
    )


def add_cloud_options(parser: Parser) -> None:
    """What a set of clouds and images is known by; the same names in stages 2, 3 and 4."""
    group = parser.add_argument_group("clouds and images")
    group.add_argument(
        "--tda_layer_t",
        type=number(int, maximum=0),
        default=-1,
        help="the teacher's layer: -1, -2, ... count back from the pooled vector, 0 is the logits (default: -1)",
    )
    group.add_argument(
        "--dim",
        choices=["0", "1", "01"],
        default="0",
        help="homology dimension; 01 means one image for each (default: %(default)s)",
    )
    group.add_argument(
        "--pcd_bn",
        choices=["eval", "train"],
        default="eval",
        help="BatchNorm of the teacher when the clouds are made: running (eval) or batch statistics "
        "(train, as the authors did) (default: %(default)s)",
    )
    group.add_argument(
        "--sigma_rule",
        choices=["released", "subsample"],
        default="released",
        help="width of the image's Gaussian: from the first 200 points (as the authors did) or from a "
        "random subsample of all (default: %(default)s)",
    )
    group.add_argument(
        "--resolution",
        type=number(int, 2, 1000),
        default=20,
        help="grid points on each axis of an image (default: %(default)s)",
    )
    group.add_argument(
        "--range",
        choices=["all", "q99"],
        default="all",
        help="what an image spans: all bars (as the authors did), or births and persistences between their 1 %% and "
        "99 %% quantiles (default: %(default)s)",
    )


def add_student_layer(parser) -> None:
    parser.add_argument(
        "--tda_layer_s",
        type=number(int, maximum=0),
        default=-1,
        help="the student's layer, counted as --tda_layer_t (default: -1)",
    )


def add_operator(parser, default: str | None = "mean") -> None:
    parser.add_argument(
        "--operator",
        choices=["mean", "sum"],
        default=default,
        help=f"RipsNet's pooling over the points (default: {default or 'of the pair'})",
    )


def add_ripsnet_clouds(parser) -> None:
    parser.add_argument(
        "--ripsnet_clouds",
        type=positive,
        default=None,
        help="clouds that RipsNet is fitted to, the first so many (default: the whole training part)",
    )


def unusual_images(args) -> list[str]:
    """How --resolution and --range show in names: not at all where they are 20 and all."""
    return [f"res{args.resolution}"] * (args.resolution != 20) + [args.range] * (args.range != "all")


def dims(args) -> list[int]:
    """'01' -> [0, 1]."""
    return [int(character) for character in args.dim]


def resolve_training(args, model_name: str) -> None:
    """Fill in the defaults that depend on other options, in place."""
    if args.lr is None:
        args.lr = 0.01 if model_name in ("MobileNetV2", "ShuffleV1", "ShuffleV2") else 0.05
    if args.seed is None:
        args.seed = args.trial
    if args.lr_decay_epochs != sorted(set(args.lr_decay_epochs)):
        raise UserError(
            f"--lr_decay_epochs: found {args.lr_decay_epochs}, expected ascending epochs, such as 150,180,210"
        )


MODEL_HELP = "one of " + ", ".join(model_dict)
METHOD_HELP = "one of " + ", ".join(distiller_dict)
