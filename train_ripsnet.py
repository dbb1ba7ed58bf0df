"""Stage 3: fit a RipsNet, which approximates the persistence image of a point cloud, to a teacher's clouds and images.

    python train_ripsnet.py --path_t save_t_models/resnet56_cifar100_trial1/best.pth            # after stage 2
    python train_ripsnet.py --path_t ... --operator sum --dim 1

The first 75 % of the clouds train, the last 25 % validate: the same training images under other augmentations. Beside
the validation error it reports how much of the topology the approximation carries: R^2 against the constant prediction
of the mean image, on the validation clouds, on clouds made in the other BatchNorm mode, and on clouds of an untrained
network of the teacher's architecture (batch statistics). 1 is exact, 0 no better than a constant.

With --ripsnet_clouds only the first N of the training clouds train; the validation clouds stay the same.

Writes ripsnet/<teacher run>/<set>/ripsnet_dim<d>_<operator>/ (best.pth, quality.json, log.csv, args.json, last.pth).
"""

import helper.cli.early  # noqa: F401

# isort: split

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from dataset import LabelledImages, TrainLoader
from helper.cli.parser import Parser, read, run
from helper.clouds.embedding import Embedder
from helper.clouds.fitting import CloudData, fit_ripsnet, fits_in_memory, predict
from helper.clouds.layers import layer_width
from helper.clouds.store import CLAIM, CloudSet, images_of, locked
from helper.data import image_files, load_data
from helper.errors import UserError
from helper.files import checkpoint
from helper.files.atomic import finite, write_json
from helper.files.paths import clouds_folder, quality_file, spec_file
from helper.files.run import Run
from helper.networks import Network, load_network
from helper.settings import Clouds, Data, Fit, RipsNetChoice, Teacher, plain
from helper.student.topology import check_spec, load_spec
from helper.training.seeding import seed_everything
from models import create_model, to_device
from ripsnet import ImageSpec, RipsNet, diagrams_of, r2_score

FOREIGN_CLOUDS = 512  # clouds on which R^2 is measured in the other BatchNorm mode and for an untrained network


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_settings("teacher", Teacher)
    parser.add_settings("clouds and images", Clouds)
    parser.add_settings("RipsNet", RipsNetChoice, operator="mean")
    parser.add_settings("fit", Fit)
    parser.add_settings("data and device", Data)
    parser.add_config()
    return parser


@image_files()
def main(args) -> None:
    data = read(args, Data)
    teacher = load_network(args.path_t, args.model_t, "--model_t", data.device, data.dataset)
    train_images, _ = load_data(data)
    for dim in read(args, Clouds).dims:
        fit_dimension(dim, teacher, train_images, args)


def fit_dimension(dim: int, teacher: Network, train_images: LabelledImages, args) -> None:
    data, clouds, choice, fit = read(args, Data), read(args, Clouds), read(args, RipsNetChoice), read(args, Fit)
    image_size = train_images.info.image_size
    width = layer_width(teacher.model, clouds.tda_layer_t, teacher.num_classes, "--tda_layer_t", image_size)
    folder = clouds_folder(args.path_t, clouds)
    with locked(folder):  # so that stage 2 does not change the set before it can see that it is in use
        spec, files = complete_set(folder, dim, clouds.expected(teacher.sha256, width, dim))
        # --dim 01 is two runs; --resume refuses other clouds
        own = {"dim": str(dim), "num_clouds": spec.num_clouds, "sigma": spec.sigma}
        options = plain(read(args, Teacher), data, clouds, choice, fit) | own
        ripsnet_run = Run(folder / choice.folder_name(dim), options, data.device, fit.resume)
        ripsnet_run.hold()
    if ripsnet_run.ended(ripsnet_run.folder / "quality.json"):
        return
    train, validation = split(files, dim, choice.ripsnet_clouds, data.device)

    seed_everything(fit.seed)
    assert choice.operator is not None  # this script has a default for it
    network = RipsNet(width, choice.operator, spec.pixels).to(data.device)
    history = fit_ripsnet(network, train, validation, ripsnet_run, fit)
    quality = measure(network, train, validation, spec, teacher, train_images)
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
            "operator": choice.operator,
            "d": width,
            "dim": dim,
            "spec": spec.to_dict(),
            "quality": quality,
        },
    )
    write_json(ripsnet_run.folder / "quality.json", finite(quality))
    print(
        f"{ripsnet_run.name}: validation MSE {quality['val_mse']:.6f}, of the mean image "
        f"{quality['mean_image_mse']:.6f}, R^2 {quality['r2']:.3f}; other BatchNorm mode "
        f"{quality['r2_other_bn']:.3g}, untrained network {quality['r2_untrained']:.3g}; "
        f"{quality['epochs']} epochs, {quality['seconds']:.1f} s; in {ripsnet_run.best}"
    )


def complete_set(folder: Path, dim: int, expected: dict[str, Any]) -> tuple[ImageSpec, CloudSet]:
    """The images of a dimension and their spec, which must say what is expected; UserError if stage 2 is not done."""
    path = spec_file(folder, dim)
    if (folder / CLAIM).is_file() and not quality_file(folder, dim).is_file():
        raise UserError(f"{folder}: the images of dimension {dim} are not complete; run generate_PCD_PI.py again")
    spec = load_spec(path)
    check_spec(spec, path, expected)
    return spec, CloudSet.of(folder, spec)


def split(files: CloudSet, dim: int, ripsnet_clouds: int | None, device: torch.device) -> tuple[CloudData, CloudData]:
    """The clouds that train, all or the first N of them, and those that validate."""
    count = int(0.75 * files.num_clouds)
    if not 0 < count < files.num_clouds:
        raise UserError(
            f"{files.folder}: holds {files.num_clouds} clouds, expected at least 2 (one to train, one to validate)"
        )
    if (ripsnet_clouds or 0) > count:
        raise UserError(
            f"--ripsnet_clouds: found {ripsnet_clouds}, but the training part of {files.folder} has {count}; "
            "lower it, or leave it out for all"
        )
    on_device = fits_in_memory(CloudData.bytes_needed(files, dim), device)
    train = CloudData(files, dim, 0, ripsnet_clouds or count, device, on_device)
    return train, CloudData(files, dim, count, files.num_clouds, device, on_device)


@torch.no_grad()
def measure(
    network: RipsNet,
    train: CloudData,
    validation: CloudData,
    spec: ImageSpec,
    teacher: Network,
    train_images: LabelledImages,
) -> dict[str, float]:
    """R^2 on the validation clouds against the mean training image; on foreign clouds against their own mean image."""
    mean_image, device, origin = train.mean_image(), train.device, validation.files.origin
    found, exact = (torch.cat(parts) for parts in zip(*predict(network, validation), strict=True))
    quality = {
        "val_mse": F.mse_loss(found, exact).item(),
        "mean_image_mse": F.mse_loss(mean_image.expand_as(exact), exact).item(),
        "r2": r2_score(found, exact, mean_image),
    }

    untrained = to_device(create_model(teacher.arch, teacher.num_classes), device)
    other_bn = "train" if origin.pcd_bn == "eval" else "eval"
    loader = TrainLoader(train_images, origin.points, origin.seed, drop_last=True)
    first, last = validation.start, validation.start + min(FOREIGN_CLOUDS, len(validation))
    for name, model, bn in (("other_bn", teacher.model, other_bn), ("untrained", untrained, "train")):
        clouds = torch.cat(list(Embedder(model, loader, origin.layer, bn).clouds(first, last)))
        clouds = clouds.to(getattr(torch, origin.cloud_dtype)).float()
        exact = images_of(diagrams_of(clouds, spec.dim), spec).to(device)
        quality[f"r2_{name}"] = r2_score(network(clouds), exact)
    return quality


if __name__ == "__main__":
    run(main, get_args_parser)
