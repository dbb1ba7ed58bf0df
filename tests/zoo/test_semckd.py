"""SemCKD against its definition in loops over images, the student's stages and the teacher's."""

import numpy as np
import pytest
import torch
from reference_c import (
    array,
    assert_descends,
    assert_finite,
    assert_gradient,
    average,
    kinds,
    make_case,
    through,
    weights,
)
from torch import nn

from distiller_zoo import distiller_dict


def unit(rows):
    norms = np.sqrt((rows**2).sum(1, keepdims=True))
    return rows / np.where(norms > 0, norms, 1)


def embedded(x, layers, batch_size=4):
    """Row i of the similarities, filled up with zeros, through the two layers, and onto the unit sphere."""
    flat = x.reshape(len(x), -1)
    similarity = np.zeros((len(x), batch_size))
    for i, j in np.ndindex(len(x), len(x)):
        similarity[i, j] = flat[i] @ flat[j]
    return unit(through(similarity, layers))


@pytest.mark.parametrize("count", [2, 4])
def test_formula(count):
    loss, student, teacher, batch = make_case("semckd", count=count, reduction=1)
    maps_s, maps_t = ([array(x) for x in output.features[1:-1]] for output in (student, teacher))
    queries = [embedded(*each) for each in zip(maps_s, loss.queries, strict=True)]
    keys = [embedded(*each) for each in zip(maps_t, loss.keys, strict=True)]
    assert kinds(loss.queries[0]) == kinds(loss.keys[0]) == ["Linear", "ReLU", "Linear"]
    block = ["BatchNorm", "ReLU"]
    assert kinds(loss.projections[0][0]) == ["conv1", *block, "conv3", *block, "conv1"]
    expected = 0.0
    for s, query, projections in zip(maps_s, queries, loss.projections, strict=True):
        projected = []
        for t, layers in zip(maps_t, projections, strict=True):
            size = min(s.shape[2], t.shape[2])
            projected.append((through(average(s, size), layers), average(t, size)))
        for i in range(count):
            powers = [np.exp(query[i] @ key[i]) for key in keys]
            errors = [((a[i] - b[i]) ** 2).mean() for a, b in projected]
            attended = sum(p * error for p, error in zip(powers, errors, strict=True)) / sum(powers)
            expected += attended / (count * len(maps_s))
    assert loss(student, teacher, batch).item() == pytest.approx(expected)


def test_equal_keys_attend_to_all_stages_alike():
    loss, student, teacher, batch = make_case("semckd")
    for layers in (*loss.keys, *loss.queries):
        nn.init.zeros_(layers[-1].weight)  # only the bias is left, and so one key for every image
        nn.init.ones_(layers[-1].bias)
    maps_s, maps_t = student.features[1:-1], teacher.features[1:-1]
    errors = []
    for s, projections in zip(maps_s, loss.projections, strict=True):
        for t, layers in zip(maps_t, projections, strict=True):
            s_, t_ = (average(array(x), min(s.shape[2], t.shape[2])) for x in (s, t))
            errors.append(((through(s_, layers) - t_) ** 2).mean())
    assert loss(student, teacher, batch).item() == pytest.approx(np.mean(errors))


def test_a_projection_is_twice_as_wide_inside_as_the_teachers_map():
    loss, *_ = make_case("semckd")  # stages of 4, 6, 5 channels of the student, 7, 8, 10 of the teacher
    for width_s, projections in zip((4, 6, 5), loss.projections, strict=True):
        for width_t, projection in zip((7, 8, 10), projections, strict=True):
            shapes = [tuple(layer.weight.shape) for layer in projection if isinstance(layer, nn.Conv2d)]
            inside = 2 * width_t
            assert shapes == [(inside, width_s, 1, 1), (inside, inside, 3, 3), (width_t, inside, 1, 1)]


def test_similarities_by_hand():
    """Two images of maps (1, 2) and (3, 0): rows (5, 3) and (3, 9), with zeros for two images that are missing."""
    loss, *_ = make_case("semckd")
    seen = []
    loss.embed(torch.tensor([[[[1.0, 2.0]]], [[[3.0, 0.0]]]]), lambda rows: seen.append(rows) or rows)
    assert seen[0].tolist() == [[5, 3, 0, 0], [3, 9, 0, 0]]


@pytest.mark.parametrize("reduction, width", [(1, 4), (2, 2), (4, 1), (100, 1)])
def test_reduction(reduction, width):
    loss, student, *_ = make_case("semckd", reduction=reduction)
    assert loss.embed(student.features[1], loss.queries[0]).shape == (4, width)


def test_gradient():
    assert_gradient(*make_case("semckd", reduction=1))


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("make", [torch.randn, torch.zeros, torch.ones])
def test_any_batch_has_a_finite_loss(count, make):
    assert_finite(*make_case("semckd", count=count, make=make))


def test_it_descends():
    assert_descends(*make_case("semckd"))


def test_entry():
    assert weights("semckd") == (1, 1, 400)  # SimKD's scripts
    assert distiller_dict["semckd"].trainable and distiller_dict["semckd"].options == {"reduction": 4}
