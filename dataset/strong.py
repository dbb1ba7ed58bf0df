"""The strong view of an image: two random operations and a cut-out, batched, on the device of the images.

As RandAugment (Cubuk et al., CVPR workshops 2020) in the form that semi-supervised learning uses and MLKD (Jin et al.,
CVPR 2023) took over: operations are drawn with replacement, each with a strength that is uniform in its range.
"""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional

# An operation and the range of its strength: a factor of the blend with the image without it, bits that stay, degrees,
# pixels by which a pixel's distance from an edge shears it, the least value that is inverted, shares of the width.
OPERATIONS = (
    ("AutoContrast", 0.0, 1.0),
    ("Brightness", 0.05, 0.95),
    ("Color", 0.05, 0.95),
    ("Contrast", 0.05, 0.95),
    ("Equalize", 0.0, 1.0),
    ("Identity", 0.0, 1.0),
    ("Posterize", 4.0, 8.0),
    ("Rotate", -30.0, 30.0),
    ("Sharpness", 0.05, 0.95),
    ("ShearX", -0.3, 0.3),
    ("ShearY", -0.3, 0.3),
    ("Solarize", 0.0, 256.0),
    ("TranslateX", -0.3, 0.3),
    ("TranslateY", -0.3, 0.3),
)
NUMBERS = {name: number for number, (name, *_) in enumerate(OPERATIONS)}
GREY = (125, 123, 114)  # of the cut-out
CUT_OUT = 0.5  # its largest side, as a share of the width
STREAM = 1  # beside (seed, epoch), so that no other choice of the epoch has the same numbers


def strong_view(images: Tensor, seed: int, epoch: int, indices: Tensor, padding: int = 0, flip: bool = False) -> Tensor:
    """Strongly augmented images, uint8 (B, H, W, 3), as they came.

    indices: int64 (B,), of the images in their data set. What is done to an image follows from (seed, epoch, index)
    alone, on every device, whatever else is in the batch. padding, flip: of a random crop and mirroring before, which
    are this view's own; without, the images are taken as cropped already.
    """
    numbers = uniforms(seed, epoch, indices, 10)
    images = images.permute(0, 3, 1, 2).contiguous()  # each channel in one piece: twice as fast on the CPU
    if padding or flip:
        images = crop(images, padding, flip, numbers[7:])
    for first in (0, 2):
        which, strength = (numbers[first] * len(OPERATIONS)).long(), numbers[first + 1].float()
        low, high = bounds(images.device)[:, which]
        images = operate(images, which, low + (high - low) * strength)
    return cut_out(images, *numbers[4:7]).permute(0, 2, 3, 1).contiguous()


def uniforms(seed: int, epoch: int, indices: Tensor, count: int) -> Tensor:
    """Numbers of [0, 1), float64 (count, B): for each index, the next `count` of a stream that (seed, epoch) begins.

    The stream is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), whose n-th output is a function of n: the numbers of any
    image can be had without those before, as tensor operations, where int64 overflows as unsigned integers do.
    """
    start = int(np.random.SeedSequence((seed, epoch, STREAM)).generate_state(1, np.uint64)[0])
    position = indices * count + torch.arange(1, count + 1, device=indices.device)[:, None]
    z = position * signed(0x9E3779B97F4A7C15) + signed(start)
    z = (z ^ shifted(z, 30)) * signed(0xBF58476D1CE4E5B9)
    z = (z ^ shifted(z, 27)) * signed(0x94D049BB133111EB)
    return shifted(z ^ shifted(z, 31), 11).double() * 2.0**-53


def signed(number: int) -> int:
    """The int64 of the same 64 bits as an unsigned integer."""
    return number - (number >> 63 << 64)


def shifted(x: Tensor, bits: int) -> Tensor:
    """int64 shifted to the right as an unsigned integer is."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


@cache
def bounds(device: torch.device) -> Tensor:
    """Lowest and highest strength of each operation, (2, operations)."""
    return torch.tensor([limits for _, *limits in OPERATIONS], device=device).T


@cache
def grey(device: torch.device) -> Tensor:
    """The colour of the cut-out, uint8 (3, 1, 1)."""
    return torch.tensor(GREY, dtype=torch.uint8, device=device)[:, None, None]


def crop(images: Tensor, padding: int, flip: bool, numbers: Tensor) -> Tensor:
    """Random crops of the padded images (B, 3, H, W) at their size, mirrored with probability 1/2 if flip is set."""
    batch, _, height, width = images.shape
    top, left = (numbers[:2] * (2 * padding + 1)).long()
    rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
    if flip:
        columns = torch.where(numbers[2, :, None] < 0.5, columns.flip(0), columns)
    rows, columns = top[:, None] + rows, left[:, None] + columns
    padded = F.pad(images, (padding, padding, padding, padding)).permute(0, 2, 3, 1)
    image = torch.arange(batch, device=images.device)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def operate(images: Tensor, which: Tensor, strength: Tensor) -> Tensor:
    """One operation on each image: images uint8 (B, 3, H, W), which int64 (B,), strength float32 (B,).

    All operations are done to all images and the wanted ones picked: no image waits for another, and the host for none.
    """
    strength = strength[:, None, None, None]

    def pick(name: str, changed: Tensor, other: Tensor) -> Tensor:
        return torch.where((which == NUMBERS[name])[:, None, None, None], changed, other)

    found = pick("AutoContrast", auto_contrast(images), images)
    found = pick("Equalize", functional.equalize(images), found)
    kept = (255 << (8 - strength.int()).clamp(0, 8)).to(torch.uint8)
    found = pick("Posterize", images & kept, found)
    found = pick("Solarize", torch.where(images >= strength, 255 - images, images), found)
    found = blended(images, which, strength, found, pick)
    return moved(images, which, strength, found)


def auto_contrast(images: Tensor) -> Tensor:
    """The values of each channel stretched to 0 to 255; a channel of one value stays."""
    low, high = images.float().amin((2, 3), keepdim=True), images.float().amax((2, 3), keepdim=True)
    flat = low == high
    low, scale = torch.where(flat, 0.0, low), torch.where(flat, 1.0, (high - low) * (1.0 / 255))
    return ((images - low) / scale).clamp(0, 255).to(torch.uint8)


def blended(images: Tensor, which: Tensor, strength: Tensor, otherwise: Tensor, pick) -> Tensor:
    """Brightness, Color, Contrast and Sharpness: strength * image + (1 - strength) * the image without any of it."""
    x = images.float()
    luma = (0.2989 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]).floor()
    without = pick("Color", luma.expand_as(x), torch.zeros_like(x))
    without = pick("Contrast", luma.mean((1, 2, 3), keepdim=True).expand_as(x), without)
    without = pick("Sharpness", smoothed(x), without)
    changed = (x * strength + without * (1 - strength)).clamp(0, 255).to(torch.uint8)
    blends = torch.zeros_like(which, dtype=torch.bool)
    for name in ("Brightness", "Color", "Contrast", "Sharpness"):
        blends = blends | (which == NUMBERS[name])
    return torch.where(blends[:, None, None, None], changed, otherwise)


def smoothed(x: Tensor) -> Tensor:
    """Mean of 3 x 3 pixels in which the middle counts five times, rounded; the outermost pixels stay."""
    rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    summed = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    found = x.clone()
    found[:, :, 1:-1, 1:-1] = ((summed + 4 * x[:, :, 1:-1, 1:-1]) / 13).round()
    return found


def moved(images: Tensor, which: Tensor, strength: Tensor, otherwise: Tensor) -> Tensor:
    """Rotate, ShearX, ShearY, TranslateX, TranslateY: the nearest pixel, black outside.

    Rotated about the middle; sheared from the upper edge and from the left one; moved by a share of the width (height).
    """
    height, width = images.shape[2:]
    strength = strength.flatten()

    def only(name: str, value: Tensor) -> Tensor:
        return torch.where(which == NUMBERS[name], value, 0.0)[:, None, None]

    y = torch.arange(height, device=images.device)[:, None] + 0.5
    x = torch.arange(width, device=images.device) + 0.5
    angle = only("Rotate", strength).deg2rad()
    across, down = x - width / 2, y - height / 2
    source_x = width / 2 + angle.cos() * across - angle.sin() * down
    source_y = height / 2 + angle.sin() * across + angle.cos() * down
    source_x = source_x + only("ShearX", strength) * y - only("TranslateX", strength * width)
    source_y = source_y + only("ShearY", strength) * x - only("TranslateY", strength * height)
    rows, columns = source_y.floor().long(), source_x.floor().long()
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    nearest = images.permute(0, 2, 3, 1)[image, rows.clamp(0, height - 1), columns.clamp(0, width - 1)]
    nearest = (nearest * inside[..., None]).permute(0, 3, 1, 2).contiguous()
    moves = torch.zeros_like(which, dtype=torch.bool)
    for name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"):
        moves = moves | (which == NUMBERS[name])
    return torch.where(moves[:, None, None, None], nearest, otherwise)


def cut_out(images: Tensor, side: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """A grey square of side 0 to CUT_OUT * width around a random pixel, cut at the border; numbers of [0, 1), (B,)."""
    height, width = images.shape[2:]
    half = (side * (CUT_OUT / 2 * width))[:, None, None]
    y = torch.arange(height, device=images.device)[:, None] + 0.5
    x = torch.arange(width, device=images.device) + 0.5
    covered = ((y - (top * height)[:, None, None]).abs() < half) & ((x - (left * width)[:, None, None]).abs() < half)
    return torch.where(covered[:, None], grey(images.device), images)
