"""OFD: margins against integrals, the distance one element at a time."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from support.layers import array, at_smaller_size, through
from support.zoo import make_case, make_pair, only_map, shapes
from torch import nn

from distiller_zoo import Batch, Pair, distiller_dict
from distiller_zoo.ofd import margins


def batch_norm(weight, bias):
    norm = nn.BatchNorm2d(1).double()
    norm.weight.data.fill_(weight)
    norm.bias.data.fill_(bias)
    return norm


@pytest.mark.parametrize(("weight", "bias"), [(1, 0), (0.5, 0.3), (-0.5, -0.3), (2, 5), (0.1, -0.4)])
def test_a_margin_is_the_mean_of_a_normal_variables_negative_values(weight, bias):
    deviation = abs(weight)
    lowest = min(bias, 0) - 12 * deviation

    def integral(function):
        return integrate.quad(function, lowest, 0, points=[bias] if bias < 0 else None, epsabs=0, epsrel=1e-10)[0]

    mass = integral(lambda x: stats.norm.pdf(x, bias, deviation))
    expected = integral(lambda x: x * stats.norm.pdf(x, bias, deviation)) / mass
    assert margins(batch_norm(weight, bias)).item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("ratio", [-40, -8, 0, 3, 8, 30])
def test_margins_far_from_zero(ratio):
    """Against SciPy's truncated normal distribution; (0, inf) of the mirrored variable."""
    expected = -0.2 * stats.truncnorm.mean(ratio, math.inf, loc=-ratio)
    assert margins(batch_norm(0.2, 0.2 * ratio)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("bias", "expected"), [(0.3, 0), (-0.2, -0.2), (0, 0)])
def test_margin_of_a_channel_that_does_not_vary(bias, expected):
    assert margins(batch_norm(0, bias)).item() == pytest.approx(expected, abs=1e-11)


def test_rounding_makes_no_margin_positive():
    norm = nn.BatchNorm2d(1000).double()
    norm.weight.data.fill_(1e-9)
    norm.bias.data = torch.linspace(0.1, 5, 1000, dtype=torch.double)
    assert (margins(norm) <= 0).all()


def test_connectors_begin_as_published():
    """From N(0, 2 / output channels), kernels being 1 x 1."""
    torch.manual_seed(0)
    loss = distiller_dict["ofd"].loss(
        make_pair(shapes((2, 64, 64, 64), (4, 4, 2, 2)), shapes((3, 96, 96, 96), (4, 4, 2, 2)))
    )
    for connector in loss.connectors:
        assert connector[0].weight.std().item() == pytest.approx((2 / 96) ** 0.5, rel=0.05)


@pytest.mark.parametrize("sizes_s", [(4, 4, 2, 2), (4, 2, 2, 1), (8, 8, 4, 2)])
def test_formula(sizes_s):
    case = make_case("ofd", make_pair(shapes((2, 2, 3, 4), sizes_s), shapes((3, 3, 4, 5), (4, 4, 2, 2))))
    expected = 0.0
    for stage, weight in zip((1, 2, 3), (1 / 4, 1 / 2, 1), strict=True):
        s = through(array(case.student.features[stage]), case.loss.connectors[stage - 1])
        s, t = at_smaller_size(s, array(case.teacher.features[stage]))  # the teacher's raw values
        t = np.maximum(t, array(case.loss.get_buffer(f"margin{stage - 1}")))
        terms = [0 if a <= b <= 0 else (a - b) ** 2 for a, b in zip(s.flat, t.flat, strict=True)]
        expected += weight * sum(terms) / len(s)
    assert case.value().item() == pytest.approx(expected, rel=1e-12)


def by_hand(student, teacher):
    """The loss of two maps of one channel without a connector.

    A normal variable of deviation 1 and mean 0 has the margin -sqrt(2 / pi), here scaled to -0.8.
    """
    norm = batch_norm(0.8 / math.sqrt(2 / math.pi), 0)
    loss = distiller_dict["ofd"].loss(Pair(((1, 1, 1),) * 3, ((1, 1, 1),) * 3, norms_t=[norm])).double()
    loss.connectors[0] = nn.Identity()
    return loss(only_map([[student]]), only_map([[teacher]]), Batch(torch.zeros(1), None)).item()


@pytest.mark.parametrize(
    ("s", "t", "expected"),
    [(1.5, 2, 0.25), (3, 2, 1), (-2, 1, 9), (0.5, -0.25, 0.5625), (-0.5, -0.25, 0), (0, -9, 0.64), (-1, -9, 0)],
)
def test_one_element_by_hand(s, t, expected):
    assert by_hand([[s]], [[t]]) == pytest.approx(expected, abs=1e-12)


def test_a_larger_map_of_the_teacher_is_pooled_before_the_cut_by_hand():
    """-3 and 1 have the mean -1, which the margin -0.8 cuts to -0.8; cut first, they would have the mean 0.1."""
    assert by_hand([[0.2]], [[-3.0, 1.0]]) == pytest.approx(1.0)


def test_margins_are_no_part_of_the_checkpoint():
    assert not any("margin" in name for name in make_case("ofd").loss.state_dict())
