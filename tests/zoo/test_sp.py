"""SP against similarity matrices written out sample by sample."""

import numpy as np
import pytest
import torch
from reference_a import EVERY_LOSS, PAIR, STUDENT, TEACHER, check_entry, close, value

from distiller_zoo.sp import SP


def similarity(maps):
    """Products of the samples' maps; every row then has length 1."""
    rows = [sample.ravel() for sample in maps]
    found = np.array([[sum(x * y for x, y in zip(a, b, strict=True)) for b in rows] for a in rows])
    return np.array([row / np.sqrt(sum(x**2 for x in row)) for row in found])


def last_stage(maps):
    return [None, maps, None]


def test_it_is_the_squared_frobenius_norm_over_the_square_of_the_batch_size():
    difference = similarity(STUDENT[-2].numpy()) - similarity(TEACHER[-2].numpy())
    close(value(SP(PAIR), STUDENT, TEACHER), sum(x**2 for x in difference.ravel()) / 4**2)


def test_by_hand():
    """Samples (1, 0) and (1, 1): rows (1, 1) / sqrt 2 and (1, 2) / sqrt 5. Orthogonal ones: the identity."""
    student, teacher = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), 3 * torch.eye(2)
    expected = (1 - 0.5**0.5) ** 2 + 0.5 + 0.2 + (1 - 0.8**0.5) ** 2
    found = value(SP(PAIR), *(last_stage(x.double()[:, :, None, None]) for x in (student, teacher)))
    close(found, expected / 4)


ROTATION = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]


@pytest.mark.parametrize(
    "change",
    [lambda maps: maps, lambda maps: 3 * maps, lambda maps: (maps.flatten(1) @ ROTATION).reshape(maps.shape)],
    ids=["nothing", "scale", "rotation"],
)
def test_what_a_similarity_matrix_does_not_see(change):
    close(value(SP(PAIR), last_stage(change(TEACHER[-2])), TEACHER), 0)


def test_the_scale_of_a_single_sample_is_seen():
    """Normalised are the rows of the matrix, not the samples."""
    scaled = TEACHER[-2] * torch.tensor([1.0, 1.0, 1.0, 5.0]).reshape(4, 1, 1, 1)
    assert value(SP(PAIR), last_stage(scaled), TEACHER) > 0.01


def test_the_order_of_the_batch_does_not_matter():
    order = torch.tensor([2, 0, 3, 1])
    reordered = value(SP(PAIR), last_stage(STUDENT[-2][order]), last_stage(TEACHER[-2][order]))
    close(reordered, float(value(SP(PAIR), STUDENT, TEACHER)))


@EVERY_LOSS
def test_every_loss(check):
    check(SP(PAIR))


def test_the_entry():
    check_entry("sp", beta=3000.0, options={})
