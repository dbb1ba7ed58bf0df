"""VID against the density of SciPy's normal distribution."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from support.layers import array, at_smaller_size, through
from support.zoo import make_case


def test_formula():
    """The Gaussian negative log-likelihood without its constant; the larger map is averaged before the regressor."""
    case = make_case("vid")
    expected = 0.0
    for stage in (1, 2, 3):
        raw = torch.nn.init.normal_(case.loss.raw_variances[stage - 1])
        s, t = at_smaller_size(*(array(output.features[stage]) for output in (case.student, case.teacher)))
        deviation = np.sqrt(np.log(1 + np.exp(array(raw))) + 1e-5)[:, None, None]
        density = norm.logpdf(t, through(s, case.loss.regressors[stage - 1]), deviation)
        expected -= (density + 0.5 * math.log(2 * math.pi)).mean()
    assert case.value().item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("variance", [5.0, 0.3])
def test_the_variance_is_the_option_at_first(variance):
    """A regressor of zero and a teacher of zero leave half the logarithm of the variance, once for each stage."""
    found = make_case("vid", fill=(0, 0), variance=variance).value()
    assert found.item() == pytest.approx(3 * 0.5 * math.log(variance), rel=1e-6)


def test_the_best_variance_of_a_channel_is_its_mean_squared_error():
    case = make_case("vid")
    # The first stage's maps are of equal size.
    regressed = case.loss.regressors[0](case.student.features[1])
    error = (regressed - case.teacher.features[1]).square().mean((0, 2, 3))
    case.loss.raw_variances[0].data = (error - 1e-5).expm1().log().detach()
    (gradient,) = torch.autograd.grad(case.value(), [case.loss.raw_variances[0]])
    assert gradient.abs().max() < 1e-12


def test_does_not_depend_on_the_order_of_the_pixels():
    case = make_case("vid")
    before = case.value().item()
    for output in (case.student, case.teacher):
        output.features[1:4] = [feature.flip(2) for feature in output.features[1:4]]
    assert case.value().item() == pytest.approx(before, rel=1e-12)
