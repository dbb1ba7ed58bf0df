"""CC: the form of the published weight and the paper's own, each written out sample by sample."""

import math

import numpy as np
import pytest
import torch
from reference_a import EVERY_LOSS, PAIR, STUDENT, TEACHER, arrays, check_entry, close, pooled, value
from scipy.spatial.distance import cdist

from distiller_zoo import Pair
from distiller_zoo.cc import CC

FORMS = [{"feat_dim": 7}, {"form": "kernel"}]


def make(**options):
    torch.manual_seed(0)
    return CC(PAIR, **options)


def unit(feature):
    return np.array([row / np.sqrt(sum(x**2 for x in row)) for row in feature.numpy()])


def test_difference_is_the_product_of_consecutive_differences():
    loss = make(feat_dim=7).double()
    named = arrays(loss)
    embedded = [
        [
            [weights @ row + bias for weights, bias in zip(named[f"{e}.weight"], named[f"{e}.bias"], strict=True)]
            for row in f
        ]
        for e, f in (("embed_s", STUDENT[-1].numpy()), ("embed_t", TEACHER[-1].numpy()))
    ]
    delta = np.array(embedded[0]) - np.array(embedded[1])
    products = [sum(abs(delta[i, k]) * abs(delta[i + 1, k]) for k in range(7)) for i in range(3)]
    close(value(loss, STUDENT, TEACHER), sum(products) / 3)


@pytest.mark.parametrize("width, order", [(0.4, 2), (0.4, 1), (1.5, 3)])
def test_kernel_is_the_squared_difference_of_taylor_polynomials(width, order):
    def kernel(a, b):
        return math.exp(-2 * width) * sum((2 * width * (a @ b)) ** p / math.factorial(p) for p in range(order + 1))

    s, t = unit(STUDENT[-1]), unit(TEACHER[-1])
    squares = [(kernel(s[i], s[j]) - kernel(t[i], t[j])) ** 2 for i in range(4) for j in range(4)]
    close(value(make(form="kernel", width=width, order=order), STUDENT, TEACHER), sum(squares) / 4**2)


def test_the_kernel_of_high_order_is_the_gaussian():
    points = unit(TEACHER[-1])
    found = make(form="kernel", width=0.7, order=20).kernel(TEACHER[-1])
    np.testing.assert_allclose(found, np.exp(-0.7 * cdist(points, points) ** 2), rtol=1e-12)


def test_equal_embeddings_have_no_difference():
    torch.manual_seed(0)
    loss = CC(Pair([(5,)], [(5,)])).double()
    loss.embed_s.load_state_dict(loss.embed_t.state_dict())
    assert value(loss, TEACHER, TEACHER) == 0


@pytest.mark.parametrize(
    "change", [lambda f: f, lambda f: f * torch.tensor([[0.1], [1.0], [10.0], [100.0]]), lambda f: f.flip(1)]
)
def test_what_the_kernel_does_not_see(change):
    close(value(make(form="kernel"), pooled(change(TEACHER[-1])), TEACHER), 0)


def test_the_order_of_the_batch_matters_to_the_differences_alone():
    order = [2, 0, 3, 1]
    for options, matters in zip(FORMS, (True, False), strict=True):
        loss = make(**options).double()
        reordered = value(loss, pooled(STUDENT[-1][order]), pooled(TEACHER[-1][order]))
        assert torch.isclose(reordered, value(loss, STUDENT, TEACHER), rtol=1e-9) != matters


@EVERY_LOSS
@pytest.mark.parametrize("options", FORMS)
def test_every_loss(check, options):
    check(make(**options))


@pytest.mark.parametrize("options", FORMS)
def test_one_sample_has_no_correlations(options):
    close(value(make(**options).double(), pooled(STUDENT[-1][:1]), pooled(TEACHER[-1][:1])), 0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"form": "bilinear"}, "form: found 'bilinear', expected difference or kernel"),
        ({"order": 0}, "order: found 128, 0, expected at least 1"),
        ({"feat_dim": 0}, "feat_dim, order: found 0, 2, expected at least 1"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_the_entry():
    check_entry("cc", beta=0.02, options={"form": "difference", "feat_dim": 128, "width": 0.4, "order": 2})
    assert not list(make(form="kernel").parameters())
