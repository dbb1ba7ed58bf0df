"""AB against its formula, one element at a time, and numbers worked by hand."""

import itertools

import pytest
import torch
from support.layers import array, through
from support.zoo import SHAPES_S, make_case, make_pair, shapes

EQUAL = make_pair(SHAPES_S, SHAPES_S)  # no connectors


def by_element(s, t, margin):
    if t <= 0:
        return (s + margin) ** 2 if s > -margin else 0.0
    return (margin - s) ** 2 if s <= margin else 0.0


@pytest.mark.parametrize("margin", [1.0, 0.4])
@pytest.mark.parametrize("widths_t", [(3, 4, 5, 6), (3, 4, 5, 7), (4, 6, 3, 2)])
def test_formula(widths_t, margin):
    """Connected are the stages whose shapes differ."""
    case = make_case("ab", make_pair(SHAPES_S, shapes(widths_t, (8, 8, 4, 4))), margin=margin)
    expected = 0.0
    for weight, stage in zip((1 / 4, 1 / 2, 1), (1, 2, 3), strict=True):
        s, t = array(case.student.features[stage]), array(case.teacher.features[stage])
        if s.shape != t.shape:
            s = through(s, case.loss.connectors[stage - 1])
        terms = [by_element(*each, margin) for each in zip(s.flat, t.flat, strict=True)]
        expected += weight * sum(terms) * 3 / 1000 / len(s)
    assert case.value().item() == pytest.approx(expected, rel=1e-12)


def test_equal_shapes_are_compared_as_they_are():
    assert not list(make_case("ab", EQUAL).loss.parameters())


@pytest.mark.parametrize(("s", "t", "expected"), [(0.5, 2, 0.25), (0.5, -2, 2.25), (-3, 1, 16), (-1, 0, 0), (1, 9, 0)])
def test_one_element_by_hand(s, t, expected):
    case = make_case("ab", EQUAL, count=1, fill=(-1, -1))  # beyond the margin everywhere
    case.student.features[3].data[0, 1, 0, 1], case.teacher.features[3][0, 1, 0, 1] = s, t
    assert case.value().item() == pytest.approx(expected * 3 / 1000)


def test_no_loss_beyond_the_margin_on_the_teachers_side_and_its_size_does_not_matter():
    case = make_case("ab", EQUAL)
    before = case.value()
    case.teacher.features[1:4] = [7 * feature for feature in case.teacher.features[1:4]]
    assert case.value() == before > 0
    case.student.features[1:4] = [feature.sign() for feature in case.teacher.features[1:4]]
    assert case.value() == 0


@pytest.mark.parametrize("sizes_t", list(itertools.permutations((2, 4, 8))))
def test_connects_maps_of_other_sizes(sizes_t):
    case = make_case("ab", make_pair(shapes((2, 2, 3, 4), (4, 4, 2, 2)), shapes((3, 3, 4, 5), (4, *sizes_t))))
    made = [connect(s) for connect, s in zip(case.loss.connectors, case.student.features[1:4], strict=True)]
    assert [x.shape for x in made] == [t.shape for t in case.teacher.features[1:4]]
    assert torch.isfinite(case.value())
