"""SP against similarity matrices written out sample by sample."""

import numpy as np
import pytest
import torch
from support.layers import array
from support.zoo import make_case, only_map


def similarity(maps):
    """Products of the samples' maps; every row then has length 1."""
    rows = [sample.ravel() for sample in maps]
    found = np.array([[sum(x * y for x, y in zip(a, b, strict=True)) for b in rows] for a in rows])
    return np.array([row / np.sqrt(sum(x**2 for x in row)) for row in found])


def test_formula():
    """The squared Frobenius norm over the square of the batch size."""
    case = make_case("sp")
    s, t = (similarity(array(output.features[-2])) for output in (case.student, case.teacher))
    assert case.value().item() == pytest.approx(sum(x**2 for x in (s - t).ravel()) / 4**2, rel=1e-10)


def test_by_hand():
    """Samples (1, 0) and (1, 1): rows (1, 1) / sqrt 2 and (1, 2) / sqrt 5. Orthogonal ones: the identity."""
    student, teacher = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), 3 * torch.eye(2)
    expected = (1 - 0.5**0.5) ** 2 + 0.5 + 0.2 + (1 - 0.8**0.5) ** 2
    found = make_case("sp").loss(*(only_map(x[:, :, None, None]) for x in (student, teacher)), None)
    assert found.item() == pytest.approx(expected / 4)


ROTATION = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]


@pytest.mark.parametrize(
    "change",
    [lambda maps: 3 * maps, lambda maps: (maps.flatten(1) @ ROTATION).reshape(maps.shape)],
    ids=["scale", "rotation"],
)
def test_what_a_similarity_matrix_does_not_see(change):
    case = make_case("sp")
    found = case.loss(only_map(change(case.teacher.features[-2])), case.teacher, None)
    assert found.item() == pytest.approx(0, abs=1e-14)


def test_the_scale_of_a_single_sample_is_seen():
    """Normalised are the rows of the matrix, not the samples."""
    case = make_case("sp")
    scaled = case.teacher.features[-2] * torch.tensor([1.0, 1.0, 1.0, 5.0]).reshape(4, 1, 1, 1)
    assert case.loss(only_map(scaled), case.teacher, None) > 0.01
