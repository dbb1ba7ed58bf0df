"""Logit standardisation against SciPy's z-score."""

import numpy as np
import pytest
import torch
from scipy.stats import zscore

from distiller_zoo import standardize

LOGITS = torch.randn(4, 10, dtype=torch.double, generator=torch.Generator().manual_seed(0))


def test_is_the_z_score_of_each_row_with_the_unbiased_deviation():
    assert standardize(LOGITS).numpy() == pytest.approx(zscore(LOGITS.numpy(), axis=1, ddof=1), rel=1e-6)


def test_1e_7_is_added_to_the_deviation():
    """The deviation of (0, 2) * 1e-7 is sqrt(2) 1e-7."""
    found = standardize(torch.tensor([[0.0, 2e-7]], dtype=torch.double))
    assert found.numpy() == pytest.approx(np.array([[-1, 1]]) / (np.sqrt(2) + 1), rel=1e-9)


def test_neither_a_rows_scale_nor_its_shift_matters():
    scale, shift = torch.tensor([[0.1], [1], [5], [100]]), torch.tensor([[3.0], [-7], [0], [50]])
    torch.testing.assert_close(standardize(scale * LOGITS + shift), standardize(LOGITS), rtol=1e-5, atol=0)
    assert standardize(-LOGITS).numpy() == pytest.approx(-standardize(LOGITS).numpy())


def test_one_image_and_equal_logits():
    torch.testing.assert_close(standardize(LOGITS)[:1], standardize(LOGITS[:1]))
    equal = torch.full((2, 5), 3.0, requires_grad=True)
    found = standardize(equal)
    found[:, 0].sum().backward()
    assert (found == 0).all() and equal.grad.isfinite().all()


def test_gradients():
    assert torch.autograd.gradcheck(standardize, LOGITS.clone().requires_grad_())
