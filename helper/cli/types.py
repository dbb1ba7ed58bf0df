"""What a text on the command line may be: argparse types, each refusing with what was found and what was expected."""

import argparse
import math
import os
from collections.abc import Callable
from typing import Any

from ..settings import POSITIVE, WEIGHT, Number

NAME_MAX = 200  # characters; a file system allows 255, and suffixes are added


def number(of: Number) -> Callable[[str], Any]:
    """An argparse type: an int or float within the bounds."""
    bounds = []
    if of.minimum > -math.inf:
        bounds.append(f"at least {text_of(of, of.minimum)}")
    if of.maximum < math.inf:
        bounds.append(f"at most {text_of(of, of.maximum)}")
    what = "a whole number" if of.kind is int else "a number"
    expected = f"{what} {' and '.join(bounds)}".rstrip()

    def parse(text: str) -> Any:
        try:
            value = of.kind(text)
        except ValueError:
            value = None
        if value is None or not of.minimum <= value <= of.maximum:  # also refuses nan
            raise argparse.ArgumentTypeError(f"found '{text}', expected {expected}")
        return value

    return parse


def text_of(of: Number, bound: float) -> str:
    return str(int(bound)) if of.kind is int else f"{bound:g}"


positive = number(POSITIVE)
weight = number(WEIGHT)


def folder(text: str) -> str:
    """The name of a run: one folder's name, not a path."""
    if not text or text != os.path.basename(text) or text.startswith("."):
        raise argparse.ArgumentTypeError(f"found '{text}', expected the name of a folder, without slashes")
    if len(text.encode()) > NAME_MAX:
        raise argparse.ArgumentTypeError(f"found {len(text.encode())} bytes, expected a name of at most {NAME_MAX}")
    return text


def epochs(text: str) -> tuple[int, ...]:
    """'150,180,210' -> (150, 180, 210); an empty text means no decay."""
    return tuple(positive(part) for part in text.split(",")) if text else ()


def named(resolve: Callable[[str], str]) -> Callable[[str], str]:
    """An argparse type from a function that returns the canonical name or raises ValueError with one clear line."""

    def parse(text: str) -> str:
        try:
            return resolve(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def model(text: str) -> str:
    from models import resolve_name

    return named(resolve_name)(text)


def method(text: str) -> str:
    from distiller_zoo import resolve_method

    return named(resolve_method)(text)


def device(text: str) -> Any:
    import torch

    try:
        found = torch.device(text)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(
            f"found '{text}', expected cpu, cuda or cuda:<index>; this machine has {devices()}"
        )
    if found.type == "cuda" and not cuda_devices():
        raise argparse.ArgumentTypeError(f"found '{text}', but this PyTorch sees no CUDA device; use --device cpu")
    existing = cuda_devices() if found.type == "cuda" else 1
    if (found.index or 0) >= existing:
        raise argparse.ArgumentTypeError(f"found '{text}', but this machine has {devices()}")
    return found


def cuda_devices() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def devices() -> str:
    """'cpu', 'cpu and cuda:0', 'cpu and cuda:0 to cuda:7'."""
    count = cuda_devices()
    if count == 0:
        return "cpu"
    if count == 1:
        return "cpu and cuda:0"
    return f"cpu and cuda:0 to cuda:{count - 1}"


def default_device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dataset_names() -> list[str]:
    from dataset import dataset_dict

    return sorted(dataset_dict)


def recipe(dataset: str | None) -> Any:
    """The schedule of a data set's own; None where it has none, or is unknown."""
    from dataset import dataset_dict

    info = dataset_dict.get(dataset or "")
    return info.recipe if info else None


def model_help() -> str:
    from models import model_dict

    return "one of " + ", ".join(model_dict)


def method_help() -> str:
    from distiller_zoo import distiller_dict

    return "one of " + ", ".join(distiller_dict)


TYPES: dict[str, Callable[[str], Any]] = {
    "model": model,
    "method": method,
    "device": device,
    "epochs": epochs,
    "folder": folder,
    "text": str,
}
