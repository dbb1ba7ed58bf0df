"""FSP against its formula in loops."""

import numpy as np
import pytest
import torch
from reference_b import DEGENERATE, array, check_entry, check_finite, check_fits, check_gradients, pooled
from reference_b import setup as setup_pair

from distiller_zoo import Pair, distiller_dict
from models import model_dict

SAME = {"widths_t": (2, 2, 3, 4)}


def setup(**options):
    return setup_pair("fsp", **SAME, **options)


def fsp_matrices(features, pool):
    """(B, C, C') of each two consecutive maps, element by element."""
    for x, y in zip(features, features[1:], strict=False):
        size = min(x.shape[-1], y.shape[-1])
        x, y = pooled(x, size, pool), pooled(y, size, pool)
        matrix = np.zeros((len(x), x.shape[1], y.shape[1]))
        for b, i, j in np.ndindex(matrix.shape):
            matrix[b, i, j] = sum(x[b, i, p, q] * y[b, j, p, q] for p, q in np.ndindex(size, size)) / size**2
        yield matrix


@pytest.mark.parametrize("options, pool", [({}, np.mean), ({"pool": "max"}, np.max)], ids=["default", "paper"])
@pytest.mark.parametrize("sizes_t", [(4, 4, 2, 2), (8, 4, 4, 1), (2, 4, 8, 8)])
def test_formula(sizes_t, options, pool):
    loss, student, teacher, batch = setup(sizes_t=sizes_t, **options)
    matrices = (fsp_matrices([array(feature) for feature in each.features[:-1]], pool) for each in (student, teacher))
    expected = sum(np.mean((s - t) ** 2) for s, t in zip(*matrices, strict=True))
    assert loss.first_stage(student, teacher, batch).item() == pytest.approx(expected, rel=1e-12)


def test_vanishes_for_the_same_flow_of_features():
    """Equal features; all their signs turned; or, in maps of one size, the pixels in another order."""
    loss, student, teacher, batch = setup(sizes_s=(2,) * 4, sizes_t=(2,) * 4)
    order = torch.randperm(4)
    for change in (
        lambda feature: feature,
        lambda feature: -feature,
        lambda feature: feature.flatten(2)[:, :, order].view_as(feature),
    ):
        student = student._replace(features=[change(feature) for feature in teacher.features[:-1]] + [None])
        assert loss.first_stage(student, teacher, batch) < 1e-24
    student.features[1][:, 0] *= -1
    assert loss.first_stage(student, teacher, batch) > 0.01


def test_features_three_times_as_large_make_it_81_times_as_large():
    loss, student, teacher, batch = setup()
    larger = [each._replace(features=[3 * feature for feature in each.features]) for each in (student, teacher)]
    assert loss.first_stage(*larger, batch).item() == pytest.approx(
        81 * loss.first_stage(student, teacher, batch).item()
    )


def test_another_pool_is_refused():
    with pytest.raises(ValueError, match="pool: found 'min', expected avg or max"):
        setup(pool="min")


def test_other_widths_are_refused():
    with pytest.raises(ValueError, match=r"equal widths, found \[2, 2, 3, 4\] for the student and \[3, 3, 4, 5\]"):
        setup_pair("fsp")


def shapes(name):
    with torch.no_grad():
        features, _ = model_dict[name](num_classes=2).eval()(torch.zeros(1, 3, 32, 32), is_feat=True)
    return tuple(tuple(feature.shape[1:]) for feature in features)


def test_the_declared_pairs_are_those_of_equal_widths():
    method = distiller_dict["fsp"]
    assert len(method.pairs) == 6
    for teacher, student in method.pairs:
        method.loss(Pair(shapes(student), shapes(teacher)))
    with pytest.raises(ValueError, match="equal widths"):
        method.loss(Pair(shapes("wrn_40_1"), shapes("wrn_40_2")))


@DEGENERATE
def test_short_and_constant_batches(count, fill):
    check_finite("fsp", count, fill, **SAME)


def test_gradients():
    check_gradients("fsp", **SAME)


def test_fits_a_batch():
    check_fits("fsp", rate=0.5, **SAME)


def test_entry():
    """RepDistiller's scripts: 30 epochs of it alone, with weight 1, then cross entropy alone."""
    method = distiller_dict["fsp"]
    assert (method.gamma, method.alpha, method.beta, method.options) == (1, 0, 1, {"pool": "avg"})
    assert method.first_epochs == 30 and method.first_only
    check_entry("fsp", **SAME)
