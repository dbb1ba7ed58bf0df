"""PKT against affinities written out pair by pair."""

import math

import pytest
import torch
from support.zoo import make_case, only_pooled


def affinities(points):
    """Rows of (cosine + 1) / 2 over their sum."""
    found = []
    for a in points:
        cosines = [sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b) for b in points]
        total = sum((cosine + 1) / 2 for cosine in cosines)
        found.append([(cosine + 1) / 2 / total for cosine in cosines])
    return found


def test_formula():
    """The mean divergence of the affinities."""
    case = make_case("pkt")
    p_s, p_t = (affinities(output.features[-1].tolist()) for output in (case.student, case.teacher))
    terms = [
        t * math.log((t + 1e-7) / (s + 1e-7)) for rows in zip(p_s, p_t, strict=True) for s, t in zip(*rows, strict=True)
    ]
    assert case.value().item() == pytest.approx(sum(terms) / 4**2, rel=1e-10)


def test_by_hand():
    """Affinities (2/3, 1/3) of orthogonal samples of the teacher, (1/2, 1/2) of parallel ones of the student."""
    found = make_case("pkt").loss(only_pooled([[1, 0], [2, 0]]), only_pooled([[0, 3], [1, 0]]), None)
    assert found.item() == pytest.approx((2 * math.log(4 / 3) + math.log(2 / 3)) / 3 / 2, abs=1e-7)


ROTATION = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]


@pytest.mark.parametrize(
    "change",
    [lambda x: x * torch.tensor([[0.1], [1.0], [10.0], [100.0]]), lambda x: x @ ROTATION],
    ids=["scale of each sample", "rotation"],
)
def test_what_affinities_do_not_see(change):
    case = make_case("pkt")
    found = case.loss(only_pooled(change(case.teacher.features[-1])), case.teacher, None)
    assert found.item() == pytest.approx(0, abs=1e-14)


def test_opposite_samples_have_a_finite_loss():
    """In float32 their cosine comes out below -1, and their affinity would be negative."""
    loss, teacher = make_case("pkt").loss, only_pooled([[1, 0], [0, 1]])
    for seed in range(100):
        half = torch.randn(1, 2048, generator=torch.Generator().manual_seed(seed))
        student = teacher._replace(features=[None, torch.cat([half, -half])])
        assert loss(student, teacher, None).isfinite(), seed
