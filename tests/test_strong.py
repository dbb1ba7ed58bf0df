"""The strong view: its random numbers against SplitMix64 in plain integers, its operations against torchvision's."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torchvision.transforms.v2 import functional as tv

from dataset import DatasetInfo, FolderSet, ImageSet
from dataset.folder import Listing
from dataset.strong import CUT_OUT, GREY, NUMBERS, OPERATIONS, crop, cut_out, operate, strong_view, uniforms

RANGES = {name: limits for name, *limits in OPERATIONS}
COUNT, SIZE = 24, 32
INFO = DatasetInfo("photographs", COUNT, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), flip=True, padding=4)


def photographs(count=COUNT, size=SIZE):
    """Smooth gradients with noise, of different means and contrasts; the first is of one colour, the second black."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    images = []
    for i in range(count):
        slopes = rng.uniform(-1, 1, size=(2, 3))
        image = 128 + rng.uniform(20, 110) * (y[..., None] * slopes[0] + x[..., None] * slopes[1])
        image += rng.normal(0, 3 + i, image.shape)
        images.append(image.clip(rng.integers(0, 60), rng.integers(180, 256)))
    images[0], images[1] = np.full_like(images[0], 77.0), np.zeros_like(images[1])
    return torch.from_numpy(np.stack(images).astype(np.uint8)).permute(0, 3, 1, 2).contiguous()


def affine(image, **changes):
    given = dict(angle=0.0, translate=[0.0, 0.0], scale=1.0, shear=[0.0, 0.0]) | changes
    return tv.affine(image, **given)


def sheared(image, x=0.0, y=0.0):
    """From the corner, by the tangents of angles; torchvision's RandAugment calls it so."""
    return affine(image, shear=[math.degrees(math.atan(x)), math.degrees(math.atan(y))], center=[0.0, 0.0])


EXACT = {
    "AutoContrast": lambda image, v: tv.autocontrast(image),
    "Equalize": lambda image, v: tv.equalize(image),
    "Identity": lambda image, v: image,
    "Posterize": lambda image, v: tv.posterize(image, int(v)),
    "Solarize": lambda image, v: tv.solarize(image, min(v, 255.0)) if v <= 255 else image,
}
BLENDS = {
    "Brightness": tv.adjust_brightness,
    "Color": tv.adjust_saturation,
    "Contrast": tv.adjust_contrast,
    "Sharpness": tv.adjust_sharpness,
}
MOVES = {
    "Rotate": lambda image, v: tv.rotate(image, v),
    "ShearX": lambda image, v: sheared(image, x=v),
    "ShearY": lambda image, v: sheared(image, y=v),
    "TranslateX": lambda image, v: affine(image, translate=[v * SIZE, 0.0]),
    "TranslateY": lambda image, v: affine(image, translate=[0.0, v * SIZE]),
}


def both(name, torchvision):
    """(ours, torchvision's), each image at its own strength from end to end of the range."""
    images = photographs()
    strengths = torch.linspace(*RANGES[name], COUNT)
    ours = operate(images, torch.full((COUNT,), NUMBERS[name]), strengths)
    theirs = torch.stack([torchvision(i, v) for i, v in zip(images, strengths.tolist(), strict=True)])
    assert ours.dtype == torch.uint8 and ours.shape == images.shape
    return ours, theirs, images


def test_there_are_fourteen_operations_each_of_them_compared():
    assert len(OPERATIONS) == 14 and set(RANGES) == {*EXACT, *BLENDS, *MOVES}
    assert {name for name, limits in RANGES.items() if limits == [0.05, 0.95]} == set(BLENDS)
    assert [RANGES[name] for name in ("Posterize", "Rotate", "Solarize")] == [[4, 8], [-30, 30], [0, 256]]
    assert all(RANGES[name] == [-0.3, 0.3] for name in ("ShearX", "ShearY", "TranslateX", "TranslateY"))


@pytest.mark.parametrize("name", EXACT)
def test_pixelwise_operations_equal_torchvisions(name):
    ours, theirs, images = both(name, EXACT[name])
    assert torch.equal(ours, theirs)
    assert torch.equal(ours, images) == (name == "Identity")


@pytest.mark.parametrize("name", BLENDS)
def test_blends_equal_torchvisions_up_to_rounding(name):
    """A value just below an integer is cut to the one below: they may differ by 1, in few places."""
    ours, theirs, images = both(name, BLENDS[name])
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= 1 and (difference > 0).double().mean() < 0.01
    assert not torch.equal(ours, images)


@pytest.mark.parametrize("name", MOVES)
def test_moves_equal_torchvisions_but_where_two_pixels_are_as_near(name):
    ours, theirs, images = both(name, MOVES[name])
    assert (ours != theirs).any(dim=1).double().mean() < 0.01
    assert ours[-1].eq(0).all(dim=0).any()  # black comes in
    assert (ours != images).any(dim=1).double().mean() > 0.3


def test_every_image_has_its_own_operation():
    images = photographs(14)
    which, strengths = torch.arange(14), torch.tensor([sum(RANGES[name]) / 2 + 0.01 for name in RANGES])
    together = operate(images, which, strengths)
    for i in range(14):
        assert torch.equal(together[i : i + 1], operate(images[i : i + 1], which[i : i + 1], strengths[i : i + 1]))
    order = torch.randperm(14, generator=torch.Generator().manual_seed(0))
    assert torch.equal(operate(images[order], which[order], strengths[order]), together[order])


def split_mix(start, count):
    """The generator as its authors give it, in integers without bounds."""
    mask, state, found = 2**64 - 1, start, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        found.append(z ^ (z >> 31))
    return found


def test_split_mix_is_the_one_that_others_use():
    """The first outputs for seed 1234567, as Rosetta Code lists them."""
    assert split_mix(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_the_numbers_of_an_image_are_its_part_of_the_stream():
    start = int(np.random.SeedSequence((7, 3, 1)).generate_state(1, np.uint64)[0])
    stream = np.array(split_mix(start, 12 * 5), dtype=object).reshape(12, 5)
    found = uniforms(7, 3, torch.tensor([11, 0, 4]), 5)
    assert found.shape == (5, 3) and found.dtype == torch.float64
    assert found.T.tolist() == [[(number >> 11) * 2**-53 for number in stream[i]] for i in (11, 0, 4)]
    assert 0 <= found.min() and found.max() < 1


def test_the_numbers_are_uniform_and_differ_between_images_epochs_and_seeds():
    indices = torch.arange(20_000)
    numbers = uniforms(1, 1, indices, 10)
    for row in numbers:
        assert scipy.stats.kstest(row.numpy(), "uniform").pvalue > 1e-3
    correlation = np.corrcoef(
        np.concatenate([numbers.numpy(), uniforms(1, 2, indices, 10), uniforms(2, 1, indices, 10)])
    )
    assert np.abs(correlation - np.eye(30)).max() < 5 / len(indices) ** 0.5


def test_a_view_follows_from_seed_epoch_and_index_alone():
    images = photographs().permute(0, 2, 3, 1)
    indices = torch.arange(100, 100 + COUNT)
    view = strong_view(images, 5, 2, indices, padding=4, flip=True)
    assert view.shape == images.shape and view.dtype == torch.uint8
    random = torch.get_rng_state()
    some = [3, 17, 9]
    assert torch.equal(strong_view(images[some], 5, 2, indices[some], padding=4, flip=True), view[some])
    assert torch.equal(torch.get_rng_state(), random)
    for other in ((6, 2, indices), (5, 3, indices), (5, 2, indices + 1)):
        assert (strong_view(images, *other, padding=4, flip=True) != view).flatten(1).any(dim=1)[2:].all()


def by_hand(images, numbers):
    """Two operations and a cut-out in turn, of images (B, 3, H, W), as their ten numbers say."""
    for first in (0, 2):
        names = [OPERATIONS[int(x * 14)] for x in numbers[first]]
        which = torch.tensor([NUMBERS[name] for name, *_ in names])
        limits = torch.tensor([limits for _, *limits in names])
        strength = limits[:, 0] + (limits[:, 1] - limits[:, 0]) * numbers[first + 1].float()
        images = operate(images, which, strength)
    return cut_out(images, *numbers[4:7]).permute(0, 2, 3, 1)


def cropped(images, numbers):
    """Each image cropped and mirrored by torchvision, as the last three of its ten numbers say."""
    found = []
    for image, (top, left, side) in zip(images, numbers[7:].T.tolist(), strict=True):
        crop_of = tv.crop(tv.pad(image, 4), int(top * 9), int(left * 9), SIZE, SIZE)
        found.append(tv.horizontal_flip(crop_of) if side < 0.5 else crop_of)
    return torch.stack(found)


def test_a_view_is_two_operations_and_a_cut_out_in_turn():
    images, indices = photographs(), torch.arange(COUNT)
    expected = by_hand(images, uniforms(0, 1, indices, 10))
    assert torch.equal(strong_view(images.permute(0, 2, 3, 1), 0, 1, indices), expected)


def test_a_crop_and_a_mirroring_come_before_them_with_numbers_of_their_own():
    images, indices = photographs(), torch.arange(COUNT)
    numbers = uniforms(0, 1, indices, 10)
    expected = by_hand(cropped(images, numbers), numbers)
    assert torch.equal(strong_view(images.permute(0, 2, 3, 1), 0, 1, indices, padding=4, flip=True), expected)


def normalized(pixels):
    """ToTensor and Normalize with the constants of INFO, one image after the other."""
    return torch.stack([tv.normalize(x.permute(2, 0, 1) / 255, INFO.mean, INFO.std) for x in pixels])


def test_a_view_of_images_on_the_device_has_a_crop_of_its_own():
    """Whatever the weak view is that the images of the batch have been cropped to."""
    indices = torch.tensor([17, 3, 3, 20])
    numbers = uniforms(5, 2, indices, 10)
    images = ImageSet(photographs().permute(0, 2, 3, 1), torch.arange(COUNT), INFO)
    expected = normalized(by_hand(cropped(photographs()[indices], numbers), numbers))
    assert torch.equal(images.strong_view(5, 2, torch.zeros(4, 3, SIZE, SIZE), indices), expected)


def test_a_view_of_image_files_is_of_the_images_as_they_were_cropped():
    indices = torch.tensor([17, 3, 20])
    files = FolderSet(Listing("", np.array([b""] * COUNT), np.arange(COUNT), []), INFO)
    shown = photographs(3)
    expected = normalized(by_hand(shown, uniforms(5, 2, indices, 10)))
    assert torch.equal(files.strong_view(5, 2, normalized(shown.permute(0, 2, 3, 1)), indices), expected)


@pytest.mark.parametrize("flip", [False, True])
def test_the_crop_is_torchvisions_at_the_same_offsets(flip):
    images = photographs()
    numbers = uniforms(3, 1, torch.arange(COUNT), 3)
    found = crop(images, 4, flip, numbers)
    mirrored = [flip and x < 0.5 for x in numbers[2].tolist()]
    for i, mirror in enumerate(mirrored):
        top, left = (int(x * 9) for x in numbers[:2, i])
        expected = tv.crop(tv.pad(images[i], 4), top, left, SIZE, SIZE)
        assert torch.equal(found[i], tv.horizontal_flip(expected) if mirror else expected)
    assert not flip or 0 < sum(mirrored) < COUNT


def test_the_cut_out_is_a_grey_square_around_a_point_up_to_half_as_wide():
    images = photographs(3)
    side, top, left = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.5, 0.0, 0.5]), torch.tensor([0.5, 0.5, 0.5])
    found = cut_out(images, side, top, left)
    expected = images.clone()
    expected[0, :, 8:24, 8:24] = expected[1, :, :4, 12:20] = torch.tensor(GREY, dtype=torch.uint8)[:, None, None]
    assert CUT_OUT == 0.5 and torch.equal(found, expected)
