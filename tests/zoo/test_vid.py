"""VID against the density of SciPy's normal distribution."""

import math

import numpy as np
import pytest
import torch
from reference_b import (
    DEGENERATE,
    array,
    at_smaller_size,
    check_entry,
    check_finite,
    check_fits,
    check_gradients,
    setup,
    through,
)
from scipy.stats import norm

from distiller_zoo import distiller_dict


@pytest.mark.parametrize("sizes_t", [(4, 4, 2, 2), (8, 8, 4, 4), (2, 2, 1, 1)])
def test_is_the_gaussian_negative_log_likelihood_without_its_constant(sizes_t):
    loss, student, teacher, batch = setup("vid", sizes_t=sizes_t)
    expected = 0.0
    for stage in (1, 2, 3):
        raw = torch.nn.init.normal_(loss.raw_variances[stage - 1])
        s, t = at_smaller_size(student.features[stage], teacher.features[stage])
        deviation = np.sqrt(np.log(1 + np.exp(array(raw))) + 1e-5)[:, None, None]
        density = norm.logpdf(t, through(loss.regressors[stage - 1], s), deviation)
        expected -= (density + 0.5 * math.log(2 * math.pi)).mean()
    assert loss(student, teacher, batch).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("variance", [5.0, 0.3])
def test_the_variance_is_the_option_at_first(variance):
    """A regressor of zero and a teacher of zero leave half the logarithm of the variance, once for each stage."""
    loss, student, teacher, batch = setup("vid", fill=0.0, variance=variance)
    assert loss(student, teacher, batch).item() == pytest.approx(3 * 0.5 * math.log(variance), rel=1e-6)


def test_the_best_variance_of_a_channel_is_its_mean_squared_error():
    loss, student, teacher, batch = setup("vid")
    for stage, (regress, raw) in enumerate(zip(loss.regressors, loss.raw_variances, strict=True), 1):
        error = (regress(student.features[stage]) - teacher.features[stage]).square().mean((0, 2, 3))
        raw.data = (error - 1e-5).expm1().log().detach()
    gradients = torch.autograd.grad(loss(student, teacher, batch), list(loss.raw_variances))
    assert max(gradient.abs().max() for gradient in gradients) < 1e-12


def test_depends_on_neither_the_order_of_the_batch_nor_that_of_the_pixels():
    loss, student, teacher, batch = setup("vid")
    turned = [
        each._replace(features=[f.flip(0, 2) if f.ndim == 4 else f.flip(0) for f in each.features])
        for each in (student, teacher)
    ]
    assert loss(*turned, batch).item() == pytest.approx(loss(student, teacher, batch).item(), rel=1e-12)


@DEGENERATE
def test_short_and_constant_batches(count, fill):
    check_finite("vid", count, fill)


def test_gradients():
    check_gradients("vid")


def test_fits_a_batch():
    check_fits("vid", rate=30.0, variance=0.1)


def test_entry():
    """RepDistiller's scripts: weight 1 beside cross entropy, predicted variance 5 at first."""
    method = distiller_dict["vid"]
    assert (method.gamma, method.alpha, method.beta, method.options) == (1, 0, 1, {"variance": 5})
    assert method.source.startswith("published") and not method.preact_s
    check_entry("vid")
