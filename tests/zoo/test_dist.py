"""DIST against SciPy's correlation of Pearson."""

import numpy as np
import pytest
import torch
from reference_b import DEGENERATE, array, check_entry, check_finite, check_fits, check_gradients, setup
from scipy.special import softmax
from scipy.stats import pearsonr

from distiller_zoo import Batch, Output, Pair, distiller_dict


@pytest.mark.parametrize("T", [1.0, 4.0])
@pytest.mark.parametrize(("inter", "intra"), [(2.0, 2.0), (1.0, 0.0), (0.0, 1.0)])
def test_formula(inter, intra, T):
    _, student, teacher, batch = setup("dist", count=4)
    loss = distiller_dict["dist"].loss(Pair((), (), kd_T=T), inter=inter, intra=intra)
    s, t = (softmax(array(each.logits) / T, axis=1) for each in (student, teacher))
    rows = np.mean([1 - pearsonr(*each).statistic for each in zip(s, t, strict=True)])
    columns = np.mean([1 - pearsonr(*each).statistic for each in zip(s.T, t.T, strict=True)])
    assert loss(student, teacher, batch).item() == pytest.approx(T**2 * (inter * rows + intra * columns), rel=1e-9)


def test_vanishes_for_predictions_that_differ_by_scale_and_shift():
    """Of a row: mixed with the uniform prediction, it correlates as before; of all rows alike, the columns too."""
    loss, _, teacher, batch = setup("dist")
    mixture = 0.3 * (teacher.logits / 4).softmax(dim=1) + 0.7 / 5
    assert abs(loss(Output([], 4 * mixture.log()), teacher, batch)) < 1e-9
    assert abs(loss(teacher, teacher, batch)) < 1e-9


def test_the_order_of_images_and_classes_does_not_matter():
    loss, student, teacher, batch = setup("dist")
    before = loss(student, teacher, batch).item()
    for dim in (0, 1):
        turned = [Output([], each.logits.flip(dim)) for each in (student, teacher)]
        assert loss(*turned, batch).item() == pytest.approx(before, rel=1e-12)
    assert loss(student, Output([], teacher.logits.flip(0)), batch).item() != pytest.approx(before, rel=1e-2)


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_constant_correlates_with_nothing(count):
    """One image makes constant columns: 2 * 0 + 2 * 1, times 16. Uniform predictions: (2 + 2) * 16."""
    loss, student, teacher, batch = setup("dist", count=count)
    assert loss(Output([], 0 * student.logits), teacher, batch).item() == pytest.approx(64)
    if count == 1:
        assert loss(teacher, teacher, batch).item() == pytest.approx(32)


def test_opposed_rankings_by_hand():
    """Two classes: rows and columns are opposed, correlation -1: (2 * 2 + 2 * 2) * 16."""
    loss = setup("dist")[0]
    logits = torch.tensor([[1.0, -1.0], [-2.0, 2.0]], dtype=torch.double)
    found = loss(Output([], logits), Output([], -logits), Batch(torch.zeros(2), None))
    assert found.item() == pytest.approx(128)


@DEGENERATE
def test_short_and_constant_batches(count, fill):
    check_finite("dist", count, fill)


def test_gradients():
    check_gradients("dist")


def test_fits_a_batch():
    check_fits("dist", rate=0.5)


def test_entry():
    """The authors' dist_cifar.yaml: CE 1, beta 2 (here inter), gamma 2 (intra)."""
    method = distiller_dict["dist"]
    assert (method.gamma, method.alpha, method.beta, method.options) == (1, 0, 1, {"inter": 2, "intra": 2})
    assert method.source.startswith("published: ")
    check_entry("dist")
