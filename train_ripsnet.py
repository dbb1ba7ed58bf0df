"""Stage 3: fit a RipsNet, which approximates the persistence image of a point cloud, to a teacher's clouds and images.

    python train_ripsnet.py --path_t save_t_models/resnet56_cifar100_trial1/best.pth            # after stage 2
    python train_ripsnet.py --path_t ... --operator sum --dim 1

The first 75 % of the clouds train, the last 25 % validate: the same training images under other augmentations. Beside
the validation error it reports how much of the topology the approximation carries: R^2 against the constant prediction
of the mean image, on the validation clouds, on clouds made in the other BatchNorm mode, and on clouds of an untrained
network of the teacher's architecture (batch statistics). 1 is exact, 0 no better than a constant.

With --ripsnet_clouds only the first so many of the training clouds train; the validation clouds stay the same.

Writes ripsnet/<teacher run>/<set>/ripsnet_dim<d>_<operator>/ (best.pth, quality.json, log.csv, args.json, last.pth).
"""

import argparse
import math

import torch
import torch.nn.functional as F

from dataset import ImageSet, TrainLoader
from helper import checkpoint
from helper.checkpoint import Network, load_network
from helper.clouds import CloudSet, Embedder, images_of, layer_width
from helper.data import load_data
from helper.loop import seed_everything
from helper.options import (
    Parser,
    UserError,
    add_batch_size,
    add_cloud_options,
    add_data_options,
    add_operator,
    add_ripsnet_clouds,
    add_teacher_options,
    dims,
    number,
    positive,
    run,
    whole,
)
from helper.ripsnet_fit import CloudData, fit_ripsnet, fits_in_memory, predict
from helper.runs import Run, clouds_folder, quality_file, ripsnet_folder, spec_file
from helper.topology import check_spec, load_spec
from models import create_model
from ripsnet import ImageSpec, RipsNet, dim0_deaths, dim1_diagrams, r2_score

FOREIGN_CLOUDS = 512  # clouds on which R^2 is measured in the other BatchNorm mode and for an untrained network


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    add_teacher_options(parser)
    add_data_options(parser)
    add_batch_size(parser)
    add_cloud_options(parser)
    add_operator(parser)
    add_ripsnet_clouds(parser)
    parser.add_argument("--epochs", type=positive, default=25000, help="at most (default: %(default)s)")
    parser.add_argument(
        "--patience",
        type=positive,
        default=50,
        help="stop after so many epochs without a better validation loss (default: %(default)s)",
    )
    parser.add_argument("--batch_clouds", type=positive, default=64, help="clouds a step (default: %(default)s)")
    parser.add_argument("--lr", type=number(float, 0, 1), default=5e-4, help="of Adamax (default: %(default)s)")
    parser.add_argument("--seed", type=whole, default=1, help="of the weights and the shuffling (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    return parser


def main(args) -> None:
    teacher = load_network(args.path_t, args.model_t, "--model_t", args.device, args.dataset)
    train_images, _ = load_data(args)
    for dim in dims(args):
        fit_dimension(dim, teacher, train_images, args)


def fit_dimension(dim: int, teacher: Network, train_images: ImageSet, args) -> None:
    folder = clouds_folder(args)
    spec = load_spec(spec_file(folder, dim))
    width = layer_width(teacher.model, args.tda_layer_t, teacher.num_classes, "--tda_layer_t")
    check_spec(spec, spec_file(folder, dim), teacher, width, dim, args)
    if not quality_file(folder, dim).is_file():
        raise UserError(f"{folder}: the images of dimension {dim} are not complete; run generate_PCD_PI.py again")
    files = CloudSet(folder, spec.num_clouds)
    count = int(0.75 * spec.num_clouds)
    if not 0 < count < spec.num_clouds:
        raise UserError(
            f"{folder}: holds {spec.num_clouds} clouds, expected at least 2 (one to train, one to validate)"
        )
    if (args.ripsnet_clouds or 0) > count:
        raise UserError(
            f"--ripsnet_clouds: found {args.ripsnet_clouds}, but the training part of {folder} has {count}; "
            "lower it, or leave it out for all"
        )
    on_device = fits_in_memory(CloudData.bytes_needed(files, dim), args.device)
    train = CloudData(files, dim, 0, args.ripsnet_clouds or count, args.device, on_device)
    validation = CloudData(files, dim, count, spec.num_clouds, args.device, on_device)

    seed_everything(args.seed)
    network = RipsNet(width, args.operator, spec.pixels).to(args.device)
    # --dim 01 is two runs; --resume refuses other clouds
    own = {"dim": str(dim), "num_clouds": spec.num_clouds, "sigma": spec.sigma}
    ripsnet_run = Run(
        ripsnet_folder(folder, dim, args.operator, args.ripsnet_clouds), argparse.Namespace(**vars(args) | own)
    )
    history = fit_ripsnet(network, train, validation, ripsnet_run, args)
    quality = measure(network, train, validation, spec, teacher, train_images, args)
    quality |= {
        "epochs": len(history),
        "seconds": round(sum(row["seconds"] for row in history), 1),
        "train_clouds": len(train),
        "val_clouds": len(validation),
    }
    checkpoint.save(
        ripsnet_run.best,
        {
            "model": network.state_dict(),
            "operator": args.operator,
            "d": width,
            "dim": dim,
            "spec": spec.to_dict(),
            "quality": quality,
        },
    )
    finite = {name: value if math.isfinite(value) else None for name, value in quality.items()}  # JSON has no infinity
    checkpoint.write_json(ripsnet_run.folder / "quality.json", finite)
    print(
        f"{ripsnet_run.name}: validation MSE {quality['val_mse']:.6f}, of the mean image "
        f"{quality['mean_image_mse']:.6f}, R^2 {quality['r2']:.3f}; other BatchNorm mode "
        f"{quality['r2_other_bn']:.3g}, untrained network {quality['r2_untrained']:.3g}; "
        f"{quality['epochs']} epochs, {quality['seconds']:.1f} s; in {ripsnet_run.best}"
    )


@torch.no_grad()
def measure(
    network: RipsNet,
    train: CloudData,
    validation: CloudData,
    spec: ImageSpec,
    teacher: Network,
    train_images: ImageSet,
    args,
) -> dict:
    """R^2 on the validation clouds against the mean training image; on foreign clouds against their own mean image."""
    mean_image = train.mean_image()
    found, exact = (torch.cat(parts) for parts in zip(*predict(network, validation), strict=True))
    quality = {
        "val_mse": F.mse_loss(found, exact).item(),
        "mean_image_mse": F.mse_loss(mean_image.expand_as(exact), exact).item(),
        "r2": r2_score(found, exact, mean_image),
    }

    untrained = create_model(teacher.arch, teacher.num_classes).to(args.device, memory_format=torch.channels_last)
    other_bn = "train" if spec.pcd_bn == "eval" else "eval"
    loader = TrainLoader(train_images, spec.points, spec.seed, drop_last=True)
    first, last = validation.start, validation.start + min(FOREIGN_CLOUDS, len(validation))
    for name, model, bn in (("other_bn", teacher.model, other_bn), ("untrained", untrained, "train")):
        clouds = torch.cat(list(Embedder(model, loader, spec.layer, bn).clouds(first, last)))
        clouds = clouds.to(getattr(torch, spec.cloud_dtype)).float()
        diagrams = dim0_deaths(clouds) if spec.dim == 0 else dim1_diagrams(clouds)
        quality[f"r2_{name}"] = r2_score(network(clouds), images_of(diagrams, spec).to(args.device))
    return quality


if __name__ == "__main__":
    run(main, get_args_parser())
