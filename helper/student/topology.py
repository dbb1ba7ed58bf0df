"""The topology term of a student: finds what stages 2 and 3 left for a teacher, and refuses what belongs to another."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ripsnet import ExactTopology, ImageSpec, RipsNet, RipsNetTopology, WassersteinTopology

from ..errors import UserError
from ..files import checkpoint
from ..files.atomic import read_json
from ..files.paths import clouds_folder, spec_file
from ..networks import Network
from ..settings import Clouds, RipsNetChoice
from .weights import StudentSettings

SAME_CLOUDS = (
    "--path_t, --tda_layer_t, --batch_size, --cloud_size, --pcd_bn, --sigma_rule, --resolution, --range, --dim"
)


class Topology(NamedTuple):
    """module: called with the clouds (N, n, d) of student and teacher; None where there is no term. specs: the
    teacher's image specs, empty where the module has none. r2: validation R^2 of the RipsNets. sha256: of the weights
    of the RipsNets, or of the exact images; several are joined by '+', and of what reads no file it is empty."""

    module: nn.Module | None = None
    specs: Sequence[ImageSpec] = ()
    r2: float | None = None
    sha256: str = ""


def check_spec(spec: ImageSpec, path: Path, expected: Mapping[str, Any]) -> None:
    """Refuse a spec made for another teacher, layer, width, dimension, cloud size, BatchNorm mode or kind of image.

    expected: `Clouds.expected`.
    """
    for name, value in expected.items():
        if (found := getattr(spec, name)) != value:
            short = [str(item)[:12] for item in (found, value)]
            raise UserError(
                f"{path}: made for {name} {short[0]}, but this teacher and these options mean {short[1]}; "
                "give the matching options, or run generate_PCD_PI.py (and train_ripsnet.py) with these"
            )


def load_spec(path: Path) -> ImageSpec:
    if not os.path.isfile(path):
        raise UserError(f"{path}: no image spec there; make it with generate_PCD_PI.py (same {SAME_CLOUDS})")
    return spec_from(read_json(path), path)


def spec_from(content: Any, path: Path) -> ImageSpec:
    """The image spec that a file holds; UserError naming the file once, where it holds none."""
    try:
        return ImageSpec.from_dict(content)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not an image spec ({error}); run generate_PCD_PI.py again") from None


def load_specs(paths: Sequence[Path], clouds: Clouds, teacher_sha256: str, width: int) -> list[ImageSpec]:
    """The specs of the dimensions of --dim; UserError where one is not of these clouds of the teacher's. width: of
    the clouds."""
    specs = []
    for dim, path in zip(clouds.dims, paths, strict=True):
        spec = load_spec(path)
        check_spec(spec, path, clouds.expected(teacher_sha256, width, dim))
        specs.append(spec)
    return specs


def load_ripsnet(path: Path, operator: str, width: int) -> tuple[RipsNet, dict]:
    """A fitted RipsNet, ours or the authors', frozen; and what its file says beside the weights."""
    content = checkpoint.load(path)
    weights = checkpoint.state_dict_of(content, path)
    fitted_with = content.get("operator", operator)
    if fitted_with != operator:
        raise UserError(f"{path}: a RipsNet with --operator {fitted_with}, found --operator {operator}")
    try:
        found = RipsNet.width_of(weights)
        network = RipsNet(found, operator, len(weights["layer7.linear.weight"]))
        network.load_state_dict(weights)
    except (KeyError, RuntimeError, ValueError, IndexError, TypeError):
        raise UserError(
            f"{path}: not the weights of a RipsNet (layer1.linear.weight ... layer7.linear.weight)"
        ) from None
    if found != width:
        raise UserError(
            f"{path}: a RipsNet for clouds of width {found}, but layer --tda_layer_t of the teacher has {width}"
        )
    return network.eval().requires_grad_(False), content


def ripsnet_files(choice: RipsNetChoice, clouds: Clouds, folder: Path, given: Sequence[str] = ()) -> list[Path]:
    """The files of --ripsnet, or those that stage 3 left in a folder of clouds: one a dimension of --dim."""
    if given and len(given) != len(clouds.dims):
        raise UserError(f"--ripsnet: found {len(given)} files, expected one for each dimension of --dim {clouds.dim}")
    paths = [Path(path) for path in given]
    if not paths:
        paths = [folder / choice.folder_name(dim) / "best.pth" for dim in clouds.dims]
    for path in paths:
        if given and os.path.isdir(path):
            raise UserError(f"--ripsnet: {path} is a folder, expected the file of a RipsNet in it, as best.pth")
        if not os.path.isfile(path):
            raise UserError(
                f"{path}: no RipsNet there; fit it with train_ripsnet.py --operator {choice.operator} (same --path_t, "
                "--dim and cloud options)"
            )
    return paths


def build_topology(settings: StudentSettings, path_t: str | Path, teacher: Network, width: int) -> Topology:
    """The topology term that the settings ask for, on the device. width: of the teacher's clouds."""
    folder, kind = clouds_folder(path_t, settings.clouds), settings.loss.topology
    if kind is None:
        return Topology()
    if kind == "wasserstein":
        return Topology(WassersteinTopology())
    if kind == "exact":
        paths = [spec_file(folder, dim) for dim in settings.clouds.dims]
        specs = load_specs(paths, settings.clouds, teacher.sha256, width)
        return Topology(ExactTopology(specs), specs, sha256="+".join(spec.sha256 for spec in specs))
    return _through_ripsnet(settings, folder, teacher, width)


def _through_ripsnet(settings: StudentSettings, folder: Path, teacher: Network, width: int) -> Topology:
    loss, clouds = settings.loss, settings.clouds
    networks, specs, r2 = [], [], []
    for dim, path in zip(clouds.dims, ripsnet_files(loss, clouds, folder, loss.ripsnet or ()), strict=True):
        network, content = load_ripsnet(path, loss.operator, width)
        if network.pixels != clouds.resolution**2:
            raise UserError(f"{path}: a RipsNet for {network.pixels} pixels, found --resolution {clouds.resolution}")
        networks.append(network.to(settings.data.device))
        if content.get("spec") is None:
            print(
                f"warning: {path} brings no image spec: only its width is checked, not its teacher, layer, dimension "
                "or cloud size",
                flush=True,
            )
            continue
        specs.append(spec_from(content["spec"], path))
        check_spec(specs[-1], path, clouds.expected(teacher.sha256, width, dim))
        beside = spec_file(path.parent.parent, dim)
        if beside.is_file() and load_spec(beside) != specs[-1]:
            raise UserError(
                f"{path}: fitted to other images than those of {beside}; remove {path.parent} and run train_ripsnet.py "
                "again"
            )
        quality = checkpoint.check_fields(content.get("quality"), {"r2": (int, float)}, path, "a RipsNet of stage 3")
        r2.append(quality["r2"])
    complete = len(specs) == len(networks)
    return Topology(
        RipsNetTopology(networks),
        specs if complete else (),
        sum(r2) / len(r2) if r2 else None,
        "+".join(checkpoint.weights_sha256(network.state_dict()) for network in networks),
    )
