"""RKD against distances and angles written out pair by pair and triple by triple."""

import itertools
import math

import numpy as np
import pytest
import torch
from support.zoo import make_case, only_pooled


def huber(a, b):
    return 0.5 * (a - b) ** 2 if abs(a - b) <= 1 else abs(a - b) - 0.5


def distances(points):
    found = {(i, j): math.dist(points[i], points[j]) for i, j in itertools.product(range(len(points)), repeat=2)}
    positive = [d for d in found.values() if d > 0]
    return {pair: d / (sum(positive) / len(positive)) for pair, d in found.items()}


def angles(points):
    """Cosines by the law of cosines, of the triples (i, j, k) of different points; the angle is at i."""
    found = {}
    for i, j, k in itertools.permutations(range(len(points)), 3):
        a, b, c = math.dist(points[i], points[j]), math.dist(points[i], points[k]), math.dist(points[j], points[k])
        found[i, j, k] = (a**2 + b**2 - c**2) / (2 * a * b)
    return found


def total(relation, student, teacher):
    s, t = (relation(x.features[-1].tolist()) for x in (student, teacher))
    return sum(huber(s[key], t[key]) for key in s), max(abs(s[key] - t[key]) for key in s)


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("distance, angle", [(25.0, 50.0), (0.0, 3.0), (2.0, 0.0)])
def test_formula(far, distance, angle):
    """The weighted mean of both relations. far: some distances differ by more than Huber's threshold."""
    case = make_case("rkd", distance=distance, angle=angle)
    student = case.student
    if far:
        near = student.features[-1].detach()
        student = only_pooled(torch.cat([near[:3] / 100, near[3:] * 100]))
    by_distance, largest = total(distances, student, case.teacher)
    by_angle, _ = total(angles, student, case.teacher)
    assert largest > 1 or not far
    expected = distance * by_distance / 4**2 + angle * by_angle / 4**3
    assert case.loss(student, case.teacher, None).item() == pytest.approx(expected, rel=1e-10)


def test_by_hand():
    """Sides 3, 4, 5 (mean 4; cosines 0, 0.6, 0.8) against an equilateral triangle (cosines 1/2)."""
    student, teacher = only_pooled([[0, 0], [3, 0], [0, 4]]), only_pooled(np.eye(3))
    by_distance = 2 * (0.5 * 0.25**2 * 2) / 3**2
    by_angle = 2 * 0.5 * (0.5**2 + 0.1**2 + 0.3**2) / 3**3
    found = make_case("rkd").loss(student, teacher, None)
    assert found.item() == pytest.approx(25 * by_distance + 50 * by_angle, rel=1e-10)


ROTATION = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]


@pytest.mark.parametrize(
    "change",
    [lambda x: x @ ROTATION, lambda x: x + torch.arange(5), lambda x: 7 * x, lambda x: -x],
    ids=["rotation", "translation", "scale", "reflection"],
)
def test_similar_clouds_are_equal(change):
    case = make_case("rkd")
    found = case.loss(only_pooled(change(case.teacher.features[-1])), case.teacher, None)
    assert found.item() == pytest.approx(0, abs=1e-14)


def test_duplicates_have_a_gradient_of_ordinary_size():
    """Two samples that coincide for the student alone: neither nan nor one over something tiny."""
    case = make_case("rkd")
    points = case.student.features[-1].detach()[[0, 0, 1, 2]].requires_grad_()
    case.loss(only_pooled(points), case.teacher, None).backward()
    assert points.grad.isfinite().all() and points.grad.abs().max() < 100
