"""CC: the form of the published weight and the paper's own, each written out sample by sample."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from support.layers import array
from support.zoo import make_case, only_pooled


def unit(rows):
    return np.array([row / np.sqrt(sum(x**2 for x in row)) for row in rows])


def embedded(layer, rows):
    weight, bias = array(layer.weight), array(layer.bias)
    return np.array([[w @ row + b for w, b in zip(weight, bias, strict=True)] for row in rows])


def test_difference_is_the_product_of_consecutive_differences():
    case = make_case("cc", feat_dim=7)
    s, t = (array(output.features[-1]) for output in (case.student, case.teacher))
    delta = embedded(case.loss.embed_s, s) - embedded(case.loss.embed_t, t)
    products = [sum(abs(delta[i, k]) * abs(delta[i + 1, k]) for k in range(7)) for i in range(3)]
    assert case.value().item() == pytest.approx(sum(products) / 3, rel=1e-10)


@pytest.mark.parametrize("width, order", [(0.4, 2), (0.4, 1), (1.5, 3)])
def test_kernel_is_the_squared_difference_of_taylor_polynomials(width, order):
    def kernel(a, b):
        return math.exp(-2 * width) * sum((2 * width * (a @ b)) ** p / math.factorial(p) for p in range(order + 1))

    case = make_case("cc", form="kernel", width=width, order=order)
    s, t = (unit(array(output.features[-1])) for output in (case.student, case.teacher))
    squares = [(kernel(s[i], s[j]) - kernel(t[i], t[j])) ** 2 for i in range(4) for j in range(4)]
    assert case.value().item() == pytest.approx(sum(squares) / 4**2, rel=1e-10)


def test_the_kernel_of_high_order_is_the_gaussian():
    points = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = make_case("cc", form="kernel", width=0.7, order=20).loss.kernel(points)
    np.testing.assert_allclose(found, np.exp(-0.7 * cdist(unit(points.numpy()), unit(points.numpy())) ** 2), rtol=1e-12)


def test_equal_embeddings_have_no_difference():
    case = make_case("cc")
    case.loss.embed_s = case.loss.embed_t
    assert case.loss(case.teacher, case.teacher, case.batch) == 0


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_what_the_kernel_does_not_see(scale):
    case = make_case("cc", form="kernel")
    pooled = case.teacher.features[-1]
    changed = only_pooled((pooled * torch.tensor([[0.1], [1.0], [scale], [100.0]])).flip(1))
    assert case.loss(changed, case.teacher, None).item() == pytest.approx(0, abs=1e-14)


def test_the_order_of_the_batch_matters_to_the_differences():
    case, order = make_case("cc"), [2, 0, 3, 1]
    turned = [only_pooled(output.features[-1][order]) for output in (case.student, case.teacher)]
    assert case.loss(*turned, None).item() != pytest.approx(case.value().item(), rel=1e-3)


@pytest.mark.parametrize("form", ["difference", "kernel"])
def test_one_sample_has_no_correlations(form):
    assert make_case("cc", count=1, form=form).value().item() == pytest.approx(0, abs=1e-14)


def test_the_kernel_needs_no_embedding():
    assert not list(make_case("cc", form="kernel").loss.parameters())
