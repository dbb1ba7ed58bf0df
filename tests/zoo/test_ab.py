"""AB against its formula, one element at a time, and numbers worked by hand."""

import itertools

import pytest
from reference_b import DEGENERATE, array, check_entry, check_finite, check_fits, check_gradients, setup, through

from distiller_zoo import distiller_dict

SAME = {"widths_t": (2, 2, 3, 4)}  # as the student's: no connectors


def by_element(s, t, margin):
    if t <= 0:
        return (s + margin) ** 2 if s > -margin else 0.0
    return (margin - s) ** 2 if s <= margin else 0.0


@pytest.mark.parametrize("margin", [1.0, 0.4])
@pytest.mark.parametrize("widths_t", [(2, 2, 3, 4), (3, 3, 4, 5), (2, 2, 3, 5)])
def test_formula(widths_t, margin):
    loss, student, teacher, batch = setup("ab", widths_t=widths_t, margin=margin)
    expected = 0.0
    for weight, stage in zip((1 / 4, 1 / 2, 1), (1, 2, 3), strict=True):
        s, t = array(student.features[stage]), array(teacher.features[stage])
        if s.shape != t.shape:
            s = through(loss.connectors[stage - 1], s)
        terms = [by_element(*each, margin) for each in zip(s.flat, t.flat, strict=True)]
        expected += weight * sum(terms) * 3 / 1000 / len(s)
    assert loss.first_stage(student, teacher, batch).item() == pytest.approx(expected, rel=1e-12)


def test_equal_shapes_are_compared_as_they_are():
    assert not list(setup("ab", **SAME)[0].parameters())


@pytest.mark.parametrize(("s", "t", "expected"), [(0.5, 2, 0.25), (0.5, -2, 2.25), (-3, 1, 16), (-1, 0, 0), (1, 9, 0)])
def test_one_element_by_hand(s, t, expected):
    loss, student, teacher, batch = setup("ab", count=1, fill=-1.0, **SAME)  # beyond the margin everywhere
    student.features[3].data[0, 1, 0, 1], teacher.features[3][0, 1, 0, 1] = s, t
    assert loss.first_stage(student, teacher, batch).item() == pytest.approx(expected * 3 / 1000)


def test_no_loss_beyond_the_margin_on_the_teachers_side_and_its_size_does_not_matter():
    loss, student, teacher, batch = setup("ab", **SAME)
    before = loss.first_stage(student, teacher, batch)
    larger = teacher._replace(features=[7 * feature for feature in teacher.features])
    assert loss.first_stage(student, larger, batch) == before > 0
    same_side = student._replace(features=[feature.sign() for feature in teacher.features])
    assert loss.first_stage(same_side, teacher, batch) == 0


@pytest.mark.parametrize("sizes_t", list(itertools.permutations((2, 4, 8))))
def test_connects_maps_of_other_sizes(sizes_t):
    loss, student, teacher, batch = setup("ab", sizes_t=(4, *sizes_t))
    assert loss.first_stage(student, teacher, batch).isfinite()


def test_sizes_without_a_common_multiple_are_refused():
    with pytest.raises(ValueError, match="no regressor from 2 x 2 to 3 x 3 pixels"):
        setup("ab", sizes_t=(4, 4, 2, 3))


@DEGENERATE
@pytest.mark.parametrize("sizes_t", [(4, 4, 2, 2), (4, 4, 2, 1)])
def test_short_and_constant_batches(count, fill, sizes_t):
    check_finite("ab", count, fill, sizes_t=sizes_t)


def test_gradients():
    check_gradients("ab")


@pytest.mark.parametrize("options", [{}, SAME])
def test_fits_a_batch(options):
    check_fits("ab", rate=20.0, **options)


def test_entry():
    """RepDistiller's scripts: pre-activations, 30 epochs of it alone with weight 1, then cross entropy alone."""
    method = distiller_dict["ab"]
    assert (method.gamma, method.alpha, method.beta, method.options) == (1, 0, 1, {"margin": 1})
    assert method.preact_s and method.preact_t and method.first_epochs == 30 and method.first_only
    check_entry("ab")
