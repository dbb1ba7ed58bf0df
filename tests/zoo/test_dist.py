"""DIST against SciPy's correlation of Pearson."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import pearsonr
from support.layers import array
from support.zoo import CLASSES, make_case

from distiller_zoo import Output, Pair, distiller_dict


@pytest.mark.parametrize("T", [1.0, 4.0])
@pytest.mark.parametrize(("inter", "intra"), [(2.0, 2.0), (1.0, 0.0), (0.0, 1.0)])
def test_formula(inter, intra, T):
    case = make_case("dist")
    loss = distiller_dict["dist"].loss(Pair((), (), kd_T=T), inter=inter, intra=intra)
    s, t = (softmax(array(each.logits) / T, axis=1) for each in (case.student, case.teacher))
    rows = np.mean([1 - pearsonr(*each).statistic for each in zip(s, t, strict=True)])
    columns = np.mean([1 - pearsonr(*each).statistic for each in zip(s.T, t.T, strict=True)])
    expected = T**2 * (inter * rows + intra * columns)
    assert loss(case.student, case.teacher, case.batch).item() == pytest.approx(expected, rel=1e-9)


def test_vanishes_for_predictions_that_differ_by_scale_and_shift():
    """Of a row: mixed with the uniform prediction, it correlates as before; of all rows alike, the columns too."""
    case = make_case("dist")
    mixture = 0.3 * (case.teacher.logits / 4).softmax(dim=1) + 0.7 / CLASSES
    assert abs(case.loss(Output([], 4 * mixture.log()), case.teacher, case.batch)) < 1e-9


def test_the_order_of_classes_does_not_matter_and_that_of_the_teachers_images_does():
    case = make_case("dist")
    before = case.value().item()
    turned = [Output([], each.logits.flip(1)) for each in (case.student, case.teacher)]
    assert case.loss(*turned, case.batch).item() == pytest.approx(before, rel=1e-12)
    other = case.loss(case.student, Output([], case.teacher.logits.flip(0)), case.batch)
    assert other.item() != pytest.approx(before, rel=1e-2)


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_constant_correlates_with_nothing(count):
    """One image makes constant columns: 2 * 0 + 2 * 1, times 16. Uniform predictions: (2 + 2) * 16."""
    case = make_case("dist", count=count)
    assert case.loss(Output([], 0 * case.student.logits), case.teacher, case.batch).item() == pytest.approx(64)
    if count == 1:
        assert case.loss(case.teacher, case.teacher, case.batch).item() == pytest.approx(32)


def test_opposed_rankings_by_hand():
    """Two classes: rows and columns are opposed, correlation -1: (2 * 2 + 2 * 2) * 16."""
    logits = torch.tensor([[1.0, -1.0], [-2.0, 2.0]], dtype=torch.double)
    found = make_case("dist").loss(Output([], logits), Output([], -logits), None)
    assert found.item() == pytest.approx(128)
