"""SemCKD against its definition in loops over images, the student's stages and the teacher's."""

import numpy as np
import pytest
import torch
from support.layers import array, at_smaller_size, kinds, through
from support.zoo import make_case
from torch import nn


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


def maps_of(case):
    return [[array(x) for x in output.features[1:-1]] for output in (case.student, case.teacher)]


@pytest.mark.parametrize("count", [2, 4])
def test_formula(count):
    case = make_case("semckd", count=count)
    loss, (maps_s, maps_t) = case.loss, maps_of(case)
    queries = [embedded(*each) for each in zip(maps_s, loss.queries, strict=True)]
    keys = [embedded(*each) for each in zip(maps_t, loss.keys, strict=True)]
    expected = 0.0
    for s, query, projections in zip(maps_s, queries, loss.projections, strict=True):
        projected = []
        for t, layers in zip(maps_t, projections, strict=True):
            small_s, small_t = at_smaller_size(s, t)
            projected.append((through(small_s, layers), small_t))
        for i in range(count):
            powers = [np.exp(query[i] @ key[i]) for key in keys]
            errors = [((a[i] - b[i]) ** 2).mean() for a, b in projected]
            attended = sum(p * error for p, error in zip(powers, errors, strict=True)) / sum(powers)
            expected += attended / (count * len(maps_s))
    assert case.value().item() == pytest.approx(expected)


def test_the_layers():
    """SimKD's scripts: a projection is twice as wide inside as the teacher's map, and ends in its convolution."""
    loss, block = make_case("semckd").loss, ["BatchNorm", "ReLU"]
    assert kinds(loss.queries[0]) == kinds(loss.keys[0]) == ["Linear", "ReLU", "Linear"]
    for width_s, projections in zip((4, 5, 6), loss.projections, strict=True):
        for width_t, projection in zip((4, 7, 5), projections, strict=True):
            assert kinds(projection) == ["conv1", *block, "conv3", *block, "conv1"]
            widths = [(layer.in_channels, layer.out_channels) for layer in projection[::3]]
            assert widths == [(width_s, 2 * width_t), (2 * width_t, 2 * width_t), (2 * width_t, width_t)]


def test_similarities_by_hand():
    """Two images of maps (1, 2) and (3, 0): rows (5, 3) and (3, 9), with zeros for two images that are missing."""
    seen = []
    maps = torch.tensor([[[[1.0, 2.0]]], [[[3.0, 0.0]]]])
    make_case("semckd").loss.embed(maps, lambda rows: seen.append(rows) or rows)
    assert seen[0].tolist() == [[5, 3, 0, 0], [3, 9, 0, 0]]


def test_equal_keys_attend_to_all_stages_alike():
    case = make_case("semckd")
    for layers in (*case.loss.keys, *case.loss.queries):
        nn.init.zeros_(layers[-1].weight)  # only the bias is left, and so one key for every image
        nn.init.ones_(layers[-1].bias)
    maps_s, maps_t = maps_of(case)
    errors = []
    for s, projections in zip(maps_s, case.loss.projections, strict=True):
        for t, layers in zip(maps_t, projections, strict=True):
            small_s, small_t = at_smaller_size(s, t)
            errors.append(((through(small_s, layers) - small_t) ** 2).mean())
    assert case.value().item() == pytest.approx(np.mean(errors))


@pytest.mark.parametrize("reduction, width", [(1, 4), (2, 2), (4, 1), (100, 1)])
def test_reduction(reduction, width):
    case = make_case("semckd", reduction=reduction)
    assert case.loss.embed(case.student.features[1], case.loss.queries[0]).shape == (4, width)
