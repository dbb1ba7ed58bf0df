"""PKT against affinities written out pair by pair."""

import math

import pytest
import torch
from reference_a import EVERY_LOSS, PAIR, STUDENT, TEACHER, check_entry, close, pooled, value

from distiller_zoo.pkt import PKT


def affinities(points):
    """Rows of (cosine + 1) / 2 over their sum."""
    found = []
    for a in points:
        cosines = [sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b) for b in points]
        total = sum((cosine + 1) / 2 for cosine in cosines)
        found.append([(cosine + 1) / 2 / total for cosine in cosines])
    return found


def test_it_is_the_mean_divergence_of_the_affinities():
    p_s, p_t = affinities(STUDENT[-1].tolist()), affinities(TEACHER[-1].tolist())
    terms = [
        t * math.log((t + 1e-7) / (s + 1e-7)) for rows in zip(p_s, p_t, strict=True) for s, t in zip(*rows, strict=True)
    ]
    close(value(PKT(PAIR), STUDENT, TEACHER), sum(terms) / 4**2)


def test_by_hand():
    """Affinities (2/3, 1/3) of orthogonal samples of the teacher, (1/2, 1/2) of parallel ones of the student."""
    found = value(PKT(PAIR), pooled([[1, 0], [2, 0]]), pooled([[0, 3], [1, 0]]))
    assert float(found) == pytest.approx((2 * math.log(4 / 3) + math.log(2 / 3)) / 3 / 2, abs=1e-7)


ROTATION = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]


@pytest.mark.parametrize(
    "change",
    [lambda x: x, lambda x: x * torch.tensor([[0.1], [1.0], [10.0], [100.0]]), lambda x: x @ ROTATION],
    ids=["nothing", "scale of each sample", "rotation"],
)
def test_what_affinities_do_not_see(change):
    close(value(PKT(PAIR), pooled(change(TEACHER[-1])), TEACHER), 0)


def test_other_affinities_have_a_positive_divergence():
    assert value(PKT(PAIR), STUDENT, TEACHER) > 1e-3


def test_the_order_of_the_batch_does_not_matter():
    order = [2, 0, 3, 1]
    reordered = value(PKT(PAIR), pooled(STUDENT[-1][order]), pooled(TEACHER[-1][order]))
    close(reordered, float(value(PKT(PAIR), STUDENT, TEACHER)))


def test_opposite_samples_have_a_finite_loss():
    """In float32 their cosine comes out below -1, and their affinity would be negative."""
    for seed in range(100):
        half = torch.randn(1, 2048, generator=torch.Generator().manual_seed(seed))
        student = torch.cat([half, -half])
        assert value(PKT(PAIR), [None, student], pooled([[1, 0], [0, 1]])).isfinite(), seed


@EVERY_LOSS
def test_every_loss(check):
    check(PKT(PAIR))


def test_the_entry():
    check_entry("pkt", beta=30000.0, options={})
