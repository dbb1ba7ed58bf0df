"""FSP against its formula in loops."""

import numpy as np
import pytest
import torch
from support.layers import array, average
from support.zoo import make_case, make_pair, shapes

from distiller_zoo import Pair, distiller_dict
from models import create_model, feature_shapes

WIDTHS = (2, 2, 3, 4)


def setup(sizes_s=(4, 4, 2, 2), sizes_t=(4, 4, 2, 2), **options):
    return make_case("fsp", make_pair(shapes(WIDTHS, sizes_s), shapes(WIDTHS, sizes_t)), **options)


def fsp_matrices(features, reduce):
    """(B, C, C') of each two consecutive maps, element by element."""
    for x, y in zip(features, features[1:], strict=False):
        size = min(x.shape[-1], y.shape[-1])
        x, y = average(x, size, reduce), average(y, size, reduce)
        matrix = np.zeros((len(x), x.shape[1], y.shape[1]))
        for b, i, j in np.ndindex(matrix.shape):
            matrix[b, i, j] = sum(x[b, i, p, q] * y[b, j, p, q] for p, q in np.ndindex(size, size)) / size**2
        yield matrix


@pytest.mark.parametrize("pool, reduce", [("avg", np.mean), ("max", np.max)], ids=["default", "paper"])
@pytest.mark.parametrize("sizes_t", [(4, 4, 2, 2), (8, 4, 4, 1), (2, 4, 8, 8)])
def test_formula(sizes_t, pool, reduce):
    case = setup(sizes_t=sizes_t, pool=pool)
    both = (fsp_matrices(list(map(array, output.features[:-1])), reduce) for output in (case.student, case.teacher))
    expected = sum(np.mean((s - t) ** 2) for s, t in zip(*both, strict=True))
    assert case.value().item() == pytest.approx(expected, rel=1e-12)


def test_vanishes_for_the_same_flow_of_features():
    """All their signs turned; or, in maps of one size, the pixels in another order."""
    case, order = setup((2,) * 4, (2,) * 4), torch.randperm(4)
    for change in (lambda maps: -maps, lambda maps: maps.flatten(2)[:, :, order].view_as(maps)):
        case.student.features[:-1] = [change(feature) for feature in case.teacher.features[:-1]]
        assert case.value() < 1e-24
    case.student.features[1][:, 0] *= -1
    assert case.value() > 0.01


def test_features_three_times_as_large_make_it_81_times_as_large():
    case = setup()
    before = case.value().item()
    for output in (case.student, case.teacher):
        output.features[:-1] = [3 * feature for feature in output.features[:-1]]
    assert case.value().item() == pytest.approx(81 * before)


def test_the_declared_pairs_are_those_of_equal_widths():
    method = distiller_dict["fsp"]
    assert len(method.pairs) == 6
    for teacher, student in method.pairs:
        method.loss(Pair(*(feature_shapes(create_model(name)) for name in (student, teacher))))
    with pytest.raises(ValueError, match="equal widths"):
        method.loss(Pair(*(feature_shapes(create_model(name)) for name in ("wrn_40_1", "wrn_40_2"))))
