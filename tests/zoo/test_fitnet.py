"""FitNet against a regressor written out pixel by pixel, for hints of equal, larger and smaller size."""

import numpy as np
import pytest
import torch
from reference_a import EVERY_LOSS, PAIR, STUDENT, TEACHER, arrays, check_entry, close, value

from distiller_zoo import Pair
from distiller_zoo.fitnet import FitNet


def make(**options):
    torch.manual_seed(0)
    loss = FitNet(PAIR, **options)
    for name, parameter in loss.named_parameters():
        if ".1." in name:  # a batch norm that is not the identity
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return loss


def convolve(maps, weights, stride, pad):
    """out_o(y, x) = sum_c,u,v weights[o, c, u, v] in_c(stride y + u - pad, stride x + v - pad)."""
    size, kernel = maps.shape[2], weights.shape[2]
    padded = np.pad(maps, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    found = np.zeros((len(maps), len(weights), size // stride, size // stride))
    for y in range(size // stride):
        for x in range(size // stride):
            window = padded[:, :, stride * y : stride * y + kernel, stride * x : stride * x + kernel]
            found[:, :, y, x] = np.einsum("bcuv,ocuv->bo", window, weights)
    return found


def spread(maps, weights, stride, pad):
    """The transpose of a convolution: pixel (y, x) is added, weighted, to (stride y + u - pad, stride x + v - pad)."""
    size, kernel = maps.shape[2], weights.shape[2]
    found = np.zeros((len(maps), weights.shape[1], stride * size + 2 * pad, stride * size + 2 * pad))
    for y in range(size):
        for x in range(size):
            added = np.einsum("bc,couv->bouv", maps[:, :, y, x], weights)
            found[:, :, stride * y : stride * y + kernel, stride * x : stride * x + kernel] += added
    return found[:, :, pad:-pad, pad:-pad]


@pytest.mark.parametrize(
    "hint, regress",
    [
        (1, lambda maps, weights: convolve(maps, weights, stride=1, pad=0)),
        (2, lambda maps, weights: spread(maps, weights, stride=2, pad=1)),
        (3, lambda maps, weights: convolve(maps, weights, stride=2, pad=1)),
    ],
)
def test_it_is_the_mean_squared_error_after_a_regressor(hint, regress):
    loss = make(hint=hint).double()
    weights, scale, shift = arrays(loss).values()
    maps = regress(STUDENT[hint].numpy(), weights)
    mean, variance = maps.mean(axis=(0, 2, 3)), maps.var(axis=(0, 2, 3))
    scale, shift, mean, variance = (x[:, None, None] for x in (scale, shift, mean, variance))
    regressed = np.maximum((maps - mean) / np.sqrt(variance + 1e-5) * scale + shift, 0)
    close(value(loss, STUDENT, TEACHER), ((regressed - TEACHER[hint].numpy()) ** 2).mean())


def test_its_regressor_reaches_what_it_can_make():
    loss = make(hint=1).double()
    hint = loss.regressor(STUDENT[1]).detach()
    assert value(loss, STUDENT, [None, hint]) == 0
    assert (hint >= 0).all()  # as the teacher's, which ends in a ReLU


@EVERY_LOSS
@pytest.mark.parametrize("hint", [1, 2, 3])
def test_every_loss(check, hint):
    check(make(hint=hint))


def test_one_sample_of_one_pixel_has_no_variance_and_a_loss_nevertheless():
    pair = Pair([(3, 8, 8), (4, 1, 1), (4,)], [(3, 8, 8), (5, 1, 1), (5,)])
    loss = FitNet(pair, hint=1)
    found = value(loss, [None, torch.ones(1, 4, 1, 1)], [None, torch.ones(1, 5, 1, 1)])
    assert found.isfinite()


@pytest.mark.parametrize("hint", [-1, 4, 5])
def test_a_hint_that_is_no_map_is_refused(hint):
    with pytest.raises(ValueError, match=f"hint: found {hint}, expected 0 to 3"):
        make(hint=hint)


def test_the_last_hint_is_that_of_the_shorter_network():
    with pytest.raises(ValueError, match="hint: found 2, expected 0 to 1"):
        FitNet(Pair(PAIR.shapes_s, PAIR.shapes_t[:2] + PAIR.shapes_t[-1:]))


@pytest.mark.parametrize("size_s, size_t", [(6, 4), (4, 6)])
def test_sizes_that_no_regressor_connects_are_refused(size_s, size_t):
    with pytest.raises(ValueError, match=f"from {size_s} x {size_s} to {size_t} x {size_t} pixels"):
        FitNet(Pair([(3, size_s, size_s), (3,)], [(3, size_t, size_t), (3,)]), hint=0)


def test_the_entry():
    check_entry("fitnet", beta=100.0, options={"hint": 2}, reading=[{"hint": hint} for hint in range(4)])
