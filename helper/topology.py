"""The topology term of a student: finds what stages 2 and 3 left for a teacher, and refuses what belongs to another."""

from pathlib import Path

from torch import nn

from ripsnet import ExactTopology, ImageSpec, RipsNet, RipsNetTopology, WassersteinTopology

from . import checkpoint, runs
from .checkpoint import Network
from .options import UserError, dims


def check_spec(spec: ImageSpec, path: Path, teacher: Network, width: int, dim: int, args) -> None:
    """Refuse a spec made for another teacher, layer, width, dimension, cloud size, BatchNorm mode or kind of image."""
    expected = {
        "teacher_sha256": teacher.sha256,
        "dim": dim,
        "layer": args.tda_layer_t,
        "cloud_width": width,
        "points": args.batch_size,
        "pcd_bn": args.pcd_bn,
        "sigma_rule": args.sigma_rule,
        "resolution": (args.resolution,) * 2,
        "range_rule": args.range,
    }
    for name, value in expected.items():
        if (found := getattr(spec, name)) != value:
            short = [str(item)[:12] for item in (found, value)]
            raise UserError(
                f"{path}: made for {name} {short[0]}, but this teacher and these options mean {short[1]}; "
                "give the matching options, or run generate_PCD_PI.py (and train_ripsnet.py) with these"
            )


def refuse_without_effect(args, usual: dict, where: str) -> None:
    """Refuse options that do nothing. usual: what they are when they were not given."""
    for name, value in usual.items():
        if getattr(args, name) != value:
            raise UserError(f"--{name}: of no use with {where}; leave it out")


def load_spec(path: Path) -> ImageSpec:
    if not path.is_file():
        raise UserError(
            f"{path}: no image spec there; make it with generate_PCD_PI.py (same --path_t, --tda_layer_t, "
            "--batch_size, --pcd_bn, --sigma_rule, --resolution, --range, --dim)"
        )
    try:
        return ImageSpec.load(path)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def load_ripsnet(path: Path, operator: str, width: int) -> tuple[RipsNet, dict]:
    """A fitted RipsNet, ours or the authors', frozen; and what its file says beside the weights."""
    content = checkpoint.load(path)
    weights = checkpoint.state_dict_of(content, path)
    try:
        found = RipsNet.width_of(weights)
        network = RipsNet(found, content.get("operator", operator), len(weights["layer7.linear.weight"]))
        network.load_state_dict(weights)
    except (KeyError, RuntimeError, ValueError):
        raise UserError(
            f"{path}: not the weights of a RipsNet (layer1.linear.weight ... layer7.linear.weight)"
        ) from None
    if found != width:
        raise UserError(
            f"{path}: a RipsNet for clouds of width {found}, but layer --tda_layer_t of the teacher has {width}"
        )
    if content.get("operator", operator) != operator:
        raise UserError(f"{path}: a RipsNet with --operator {content['operator']}, found --operator {operator}")
    return network.eval().requires_grad_(False), content


def ripsnet_files(args, folder: Path) -> list[Path]:
    """The files of --ripsnet, or those that stage 3 left in a folder of clouds: one a dimension of --dim."""
    if args.ripsnet and len(args.ripsnet) != len(dims(args)):
        raise UserError(
            f"--ripsnet: found {len(args.ripsnet)} files, expected one for each dimension of --dim {args.dim}"
        )
    paths = [Path(path) for path in args.ripsnet or []] or [
        runs.ripsnet_folder(folder, dim, args.operator, args.ripsnet_clouds) / "best.pth" for dim in dims(args)
    ]
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"{path}: no RipsNet there; fit it with train_ripsnet.py --operator {args.operator} (same --path_t, "
                "--dim and cloud options), or name a file with --ripsnet"
            )
    return paths


def build_topology(args, teacher: Network, width: int) -> tuple[nn.Module | None, list[ImageSpec], float | None]:
    """(the topology term, the teacher's image specs, validation R^2 of the RipsNets) that the options ask for.

    width: of the teacher's clouds. The specs are empty for Wasserstein, and for a RipsNet that brings none.
    """
    folder = runs.clouds_folder(args)
    term, specs = None, []
    if args.topology == "wasserstein":
        if args.dim != "0":
            raise UserError(f"--dim: found {args.dim}, but --topology wasserstein is defined for dimension 0")
        term = WassersteinTopology()
    elif args.topology == "exact":
        for dim in dims(args):
            path = runs.spec_file(folder, dim)
            specs.append(load_spec(path))
            check_spec(specs[-1], path, teacher, width, dim, args)
        term = ExactTopology(specs)
    if args.topology != "ripsnet":
        usual = {"ripsnet": None, "ripsnet_clouds": None}
        usual |= {} if specs else {"resolution": 20, "range": "all"}
        refuse_without_effect(args, usual, f"--topology {args.topology} and --delta {args.delta:g}")
        return term, specs, None

    if args.ripsnet:
        refuse_without_effect(args, {"ripsnet_clouds": None}, "--ripsnet")
    networks, specs, r2 = [], [], []
    for dim, path in zip(dims(args), ripsnet_files(args, folder), strict=True):
        network, content = load_ripsnet(path, args.operator, width)
        if network.pixels != args.resolution**2:
            raise UserError(f"{path}: a RipsNet for {network.pixels} pixels, found --resolution {args.resolution}")
        networks.append(network.to(args.device))
        if content.get("spec") is None:
            print(
                f"warning: {path} brings no image spec: only its width is checked, not its teacher, layer, dimension "
                "or cloud size",
                flush=True,
            )
            continue
        try:
            specs.append(ImageSpec.from_dict(content["spec"]))
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
        check_spec(specs[-1], path, teacher, width, dim, args)
        beside = runs.spec_file(path.parent.parent, dim)
        if beside.is_file() and load_spec(beside) != specs[-1]:
            raise UserError(f"{path}: fitted to other images than those of {beside}; run train_ripsnet.py again")
        r2.append(content["quality"]["r2"])
    complete = len(specs) == len(networks)
    return RipsNetTopology(networks), specs if complete else [], sum(r2) / len(r2) if r2 else None
