"""RKD against distances and angles written out pair by pair and triple by triple."""

import itertools
import math

import numpy as np
import pytest
import torch
from reference_a import EVERY_LOSS, PAIR, STUDENT, TEACHER, check_entry, close, pooled, value

from distiller_zoo.rkd import RKD


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
    s, t = (relation(x[-1].tolist()) for x in (student, teacher))
    return sum(huber(s[key], t[key]) for key in s)


# A student whose one sample lies far away: some of its distances differ by more than Huber's threshold.
FAR = pooled(torch.cat([STUDENT[-1][:3] / 100, STUDENT[-1][3:] * 100]))


@pytest.mark.parametrize("student", [STUDENT, FAR], ids=["near", "far"])
@pytest.mark.parametrize("weights", [{}, {"distance": 0.0, "angle": 3.0}, {"distance": 2.0, "angle": 0.0}])
def test_it_is_the_weighted_mean_of_both_relations(student, weights):
    distance, angle = weights.get("distance", 25), weights.get("angle", 50)
    by_distance, by_angle = total(distances, student, TEACHER) / 4**2, total(angles, student, TEACHER) / 4**3
    close(value(RKD(PAIR, **weights), student, TEACHER), distance * by_distance + angle * by_angle)


def test_some_distances_exceed_hubers_threshold():
    s, t = (distances(x[-1].tolist()) for x in (FAR, TEACHER))
    assert max(abs(s[key] - t[key]) for key in s) > 1


def test_by_hand():
    """Sides 3, 4, 5 (mean 4; cosines 0, 0.6, 0.8) against an equilateral triangle (cosines 1/2)."""
    student, teacher = pooled([[0, 0], [3, 0], [0, 4]]), pooled(np.eye(3))
    by_distance = 2 * (0.5 * 0.25**2 * 2) / 3**2
    by_angle = 2 * 0.5 * (0.5**2 + 0.1**2 + 0.3**2) / 3**3
    close(value(RKD(PAIR), student, teacher), 25 * by_distance + 50 * by_angle)


ROTATION = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]


@pytest.mark.parametrize(
    "change",
    [lambda x: x @ ROTATION, lambda x: x + torch.arange(5), lambda x: 7 * x, lambda x: -x, lambda x: x],
    ids=["rotation", "translation", "scale", "reflection", "nothing"],
)
def test_similar_clouds_are_equal(change):
    close(value(RKD(PAIR), pooled(change(TEACHER[-1])), TEACHER), 0)


def test_the_order_of_the_batch_does_not_matter():
    order = [2, 0, 3, 1]
    reordered = value(RKD(PAIR), pooled(STUDENT[-1][order]), pooled(TEACHER[-1][order]))
    close(reordered, float(value(RKD(PAIR), STUDENT, TEACHER)))


def test_duplicates_have_a_gradient_of_the_usual_size():
    """Two samples that coincide for the student alone: neither nan nor one over something tiny."""
    points = STUDENT[-1][[0, 0, 1, 2]].requires_grad_()
    value(RKD(PAIR), pooled(points), TEACHER).backward()
    assert points.grad.isfinite().all() and points.grad.abs().max() < 100


@EVERY_LOSS
def test_every_loss(check):
    check(RKD(PAIR))


def test_the_entry():
    check_entry("rkd", beta=1.0, options={"distance": 25.0, "angle": 50.0})
