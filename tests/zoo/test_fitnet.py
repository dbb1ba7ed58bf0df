"""FitNet against a regressor written out pixel by pixel, for hints of equal, larger and smaller size."""

import numpy as np
import pytest
import torch
from support.layers import array, batch_norm
from support.zoo import make_case, make_pair, only_map, shapes


def convolve(maps, weights, stride, pad):
    """out_o(y, x) = sum_c,u,v weights[o, c, u, v] in_c(stride y + u - pad, stride x + v - pad)."""
    size, kernel = maps.shape[2], weights.shape[2]
    padded = np.pad(maps, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    found = np.zeros((len(maps), len(weights), size // stride, size // stride))
    for y, x in np.ndindex(size // stride, size // stride):
        window = padded[:, :, stride * y : stride * y + kernel, stride * x : stride * x + kernel]
        found[:, :, y, x] = np.einsum("bcuv,ocuv->bo", window, weights)
    return found


def spread(maps, weights, stride, pad):
    """The transpose of a convolution: pixel (y, x) is added, weighted, to (stride y + u - pad, stride x + v - pad)."""
    size, kernel = maps.shape[2], weights.shape[2]
    found = np.zeros((len(maps), weights.shape[1], stride * size + 2 * pad, stride * size + 2 * pad))
    for y, x in np.ndindex(size, size):
        added = np.einsum("bc,couv->bouv", maps[:, :, y, x], weights)
        found[:, :, stride * y : stride * y + kernel, stride * x : stride * x + kernel] += added
    return found[:, :, pad:-pad, pad:-pad]


@pytest.mark.parametrize("hint, regress, stride, pad", [(1, convolve, 1, 0), (2, spread, 2, 1), (3, convolve, 2, 1)])
def test_formula(hint, regress, stride, pad):
    """The mean squared error after the regressor."""
    case = make_case("fitnet", hint=hint)
    convolution, norm, _ = case.loss.regressor
    maps = regress(array(case.student.features[hint]), array(convolution.weight), stride, pad)
    regressed = np.maximum(batch_norm(maps, norm), 0)
    expected = ((regressed - array(case.teacher.features[hint])) ** 2).mean()
    assert case.value().item() == pytest.approx(expected, rel=1e-10)


def test_its_regressor_reaches_what_it_can_make():
    case = make_case("fitnet", hint=1)
    case.teacher.features[1] = case.loss.regressor(case.student.features[1]).detach()
    assert case.value() == 0
    assert (case.teacher.features[1] >= 0).all()  # as the teacher's, which ends in a ReLU


def test_one_sample_of_one_pixel_has_no_variance_and_a_loss_nevertheless():
    case = make_case("fitnet", make_pair(shapes((3, 4), (8, 1)), shapes((3, 5), (8, 1))), hint=1)
    assert case.loss(only_map(torch.ones(1, 4, 1, 1)), only_map(torch.ones(1, 5, 1, 1)), None).isfinite()
