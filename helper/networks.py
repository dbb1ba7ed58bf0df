"""A network from anybody's checkpoint, and the network that a method deploys in place of the student."""

import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dataset import dataset_dict
from distiller_zoo import ABSENT, Method, Pair, classifier, distiller_dict
from models import (
    FOR_IMAGENET,
    FOR_SMALL_IMAGES,
    create_model,
    dry_run,
    feature_shapes,
    map_shape,
    resolve_name,
    to_device,
)

from .errors import UserError
from .files.checkpoint import load, state_dict_of, weights_sha256

SMALLEST, LARGEST = 64, 128  # pixels: of images for networks of ImageNet, and for those of 32 x 32 images
SHORT = 100  # characters of a value in a message
HUB = "https://download.pytorch.org/models"  # where torchvision's files are
HUB_NAME = re.compile(r"[A-Za-z0-9_]+-([0-9a-f]{8})\.pth")  # with the first digits of the file's SHA-256


@dataclass(frozen=True)
class Published:
    """A file of weights that torchvision publishes, and their top-1 accuracy in percent as it states it."""

    file: str
    accuracy: float


# On `imagenet`: the weights that torchvision calls IMAGENET1K_V1, which the literature's teachers are.
TORCHVISION = {
    "resnet18_imagenet": Published("resnet18-f37072fd.pth", 69.758),
    "resnet34_imagenet": Published("resnet34-b627a593.pth", 73.314),
    "resnet50_imagenet": Published("resnet50-0676ba61.pth", 76.13),
    "mobilenetv2_imagenet": Published("mobilenet_v2-b0353104.pth", 71.878),
}


@dataclass
class Network:
    """A network read from a file, in eval mode, with what the file says of it."""

    model: nn.Module
    arch: str
    num_classes: int
    sha256: str
    accuracy: float | None  # top-1 in percent, None where the file does not say
    dataset: str | None
    epoch: int | None  # epochs of training behind the weights


def load_network(
    path: str | Path,
    arch: str | None,
    option: str,
    device: torch.device | str = "cpu",
    dataset: str | None = None,
) -> Network:
    """Read a network from a checkpoint of any of the known kinds.

    arch: the architecture the user gave, None to take the file's. option: the option that gives it, for the message.
    dataset: what --dataset names; a file that names another, or has another number of classes, is refused.
    """
    check_hub_file(Path(path))
    content = load(path)
    state_dict = state_dict_of(content, path)
    found, trained_on = (_text(content, name, path) for name in ("arch", "dataset"))
    if found is None and arch is None and "layer7.linear.weight" in state_dict:
        raise UserError(f"{path}: holds a RipsNet, expected a network that classifies images")
    if found is None and arch is None:
        raise UserError(f"{path}: the file does not name its architecture; give it with {option}")
    try:
        found = None if found is None else resolve_name(found)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if None not in (found, arch) and found != arch:
        raise UserError(f"{option}: found {arch}, but {path} holds a {found}")
    arch = arch or found
    assert arch is not None
    if None not in (dataset, trained_on) and trained_on != dataset:
        raise UserError(f"{path}: trained on {trained_on}, found --dataset {dataset}; give the same")
    if dataset is not None:
        check_image_size(arch, dataset, option if found is None else str(path))
    replaced = _replaced(content, path)
    classes = _num_classes(content)
    if classes is None:
        with torch.device("meta"):  # names and shapes only
            head = list(state_dict if replaced else create_model(arch).state_dict())[-1]
        classes = state_dict[head].shape[0] if head in state_dict and state_dict[head].ndim else 0
    model = create_model(arch, max(1, classes))
    if replaced:
        try:
            model = load_replaced(replaced, model, max(1, classes), dataset_dict[content["dataset"]].image_size)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{path}: 'replaced' is {_short(replaced)}, of which no network can be made ({reason})"
            ) from None
    expected = model.state_dict()
    for key in expected:
        if key.endswith("num_batches_tracked"):  # which files from before PyTorch 0.4.1 have not
            state_dict.setdefault(key, torch.zeros((), dtype=torch.int64))
    wrong = [key for key in expected if key not in state_dict or state_dict[key].shape != expected[key].shape]
    wrong += [key for key in state_dict if key not in expected]
    if wrong:
        raise UserError(
            f"{path}: the weights do not fit {arch} ({len(wrong)} names or shapes differ, first '{wrong[0]}'); "
            f"check {option}"
        )
    if dataset is not None and classes != (wanted := dataset_dict[dataset].num_classes):
        raise UserError(f"{path}: a network for {classes} classes, but --dataset has {wanted}")
    model.load_state_dict(state_dict)
    model = to_device(model.eval(), device)
    if dataset is not None:
        check_contract(model, arch, dataset)
    return Network(
        model=model,
        arch=arch,
        num_classes=classes,
        sha256=weights_sha256(state_dict),
        accuracy=_accuracy(content, path),
        dataset=trained_on,
        epoch=_epoch(content),
    )


def check_image_size(arch: str, dataset: str, where: str) -> None:
    """UserError for a network of ImageNet and a data set of small images, and the reverse. where: what names it."""
    size = dataset_dict[dataset].image_size
    if arch in FOR_IMAGENET and size < SMALLEST:
        made, instead = "ImageNet's images", "a network without _imagenet"
    elif arch in FOR_SMALL_IMAGES and size > LARGEST:
        made, instead = "images of 32 x 32 pixels", "a network whose name ends with _imagenet"
    else:
        return
    raise UserError(
        f"{where}: found {arch}, a network for {made}, but those of --dataset {dataset} are {size} x {size}; take "
        f"{instead}, or another data set"
    )


def check_contract(model: nn.Module, arch: str, dataset: str) -> None:
    """UserError for a network that is not called, or does not answer, as models/__init__.py says."""
    info = dataset_dict[dataset]
    expected = (
        "model(x, is_feat=True, preact=False) -> (features, logits), the last feature (B, C), and logits "
        f"(B, {info.num_classes})"
    )
    try:
        features, logits = dry_run(model, info.image_size)
        shapes = [tuple(feature.shape) for feature in features]
        answered = tuple(logits.shape)
    except Exception as error:  # of a network that is the user's own, which may raise anything
        reason = str(error).partition("\n")[0]
        raise UserError(f"model {arch}: {type(error).__name__} ({reason}), expected {expected}") from None
    if not shapes or len(shapes[-1]) != 2 or answered != (1, info.num_classes):
        raise UserError(
            f"model {arch}: found features {shapes} and logits {answered} for one image, expected {expected}"
        )


def check_hub_file(path: Path) -> None:
    """UserError for a file with a name of torchvision's that is missing, or is another than its name says."""
    named = HUB_NAME.fullmatch(path.name)
    if named is None or os.path.isdir(path):
        return
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; download {HUB}/{path.name} to it")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if not found.startswith(named[1]):
        raise UserError(
            f"{path}: damaged, its SHA-256 begins with {found[:8]} and not as its name says; download "
            f"{HUB}/{path.name} again, or rename it if it is another file"
        )


def _text(content: dict[str, Any], name: str, path: str | Path) -> str | None:
    value = content.get(name)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{path}: '{name}' is a {type(value).__name__}, expected a text")
    return value


def _num_classes(content: dict[str, Any]) -> int | None:
    """What the file says of itself, if that is a number of classes."""
    value = content.get("num_classes")
    return value if isinstance(value, int) and value > 0 else None


def _accuracy(content: dict[str, Any], path: str | Path) -> float | None:
    value = content.get("accuracy")
    if value is None:
        value = content.get("best_acc")
    if value is None:
        return None
    try:
        accuracy = float(value)
    except (TypeError, ValueError, RuntimeError):
        accuracy = math.nan
    if not 0 <= accuracy <= 100:
        raise UserError(f"{path}: its accuracy is {_short(value)}, expected percent, from 0 to 100")
    return accuracy


def _short(value: Any) -> str:
    """A value in a message of one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= SHORT else f"{text[:SHORT]}..."


def _epoch(content: dict[str, Any]) -> int | None:
    """Epochs of training behind the weights: a resumable checkpoint has a log of them."""
    history, epoch = content.get("history"), content.get("epoch")
    if isinstance(history, list):
        return len(history)
    if isinstance(epoch, int) and not isinstance(epoch, bool):
        return epoch
    return None


def _replaced(content: dict[str, Any], path: str | Path) -> dict[str, Any] | None:
    """What the file says of a student in which a method replaced a part."""
    replaced = content.get("replaced")
    if replaced is None:
        return None
    known = (
        isinstance(replaced, dict)
        and isinstance(replaced.get("distill"), str)
        and replaced["distill"] in distiller_dict
        and isinstance(replaced.get("arch_t"), str)
        and isinstance(replaced.get("options", {}), dict)
        and content.get("dataset") in dataset_dict
    )
    if not known:
        raise UserError(f"{path}: 'replaced' is {_short(replaced)}, expected the method and the teacher's architecture")
    return replaced


def check_map(method: Method, name: str, *networks: nn.Module) -> None:
    for network in networks:
        if method.last_map and not hasattr(network, "pool"):
            raise UserError(
                f"--distill {name}: reads the map before the pooling, but {type(network).__name__} has no submodule "
                "`pool` that averages it; add one, or choose another method"
            )


def replaced_student(
    key: str, student: nn.Module, teacher: nn.Module, image_size: int, options: Mapping[str, Any]
) -> nn.Module:
    """The network that a method deploys in place of the student, or the student itself. It takes the student over.

    options: of the method, by name.
    """
    method = distiller_dict[key]
    if method.student is None:
        return student
    check_map(method, key, student, teacher)
    pair = Pair(
        shapes_s=feature_shapes(student, image_size),
        shapes_t=feature_shapes(teacher, image_size),
        map_s=map_shape(student, image_size) or ABSENT,
        map_t=map_shape(teacher, image_size) or ABSENT,
        classifier_t=classifier(teacher)[1],
    )
    device = next(student.parameters()).device
    try:
        deployed = to_device(method.make_student(student, pair, options), device)
        feature_shapes(deployed, image_size)  # shows whether the part fits where it was put
        return deployed
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--distill {key}: {reason} (train_student.py --list shows options and pairs)") from None


def merged(network: Network, path: str | Path) -> Network:
    """The plain network of the same logits as one with a method's part in it. UserError where that is not possible.

    path: its checkpoint.
    """
    merge = getattr(network.model, "merged", None)
    if merge is None:
        raise UserError(f"--merge: {path} holds nothing that can be merged into its classifier; leave it out")
    try:
        model = merge().eval()
    except ValueError as error:
        raise UserError(f"--merge: {path}: {error}; leave it out") from None
    return replace(network, model=model, sha256=weights_sha256(model.state_dict()))


def load_replaced(replaced: dict[str, Any], student: nn.Module, num_classes: int, image_size: int) -> nn.Module:
    """The network that a checkpoint's `replaced` describes, with fresh weights."""
    key, teacher = replaced["distill"], create_model(replaced["arch_t"], num_classes)
    options = distiller_dict[key].options | replaced.get("options", {})
    return replaced_student(key, student, teacher, image_size, options)
