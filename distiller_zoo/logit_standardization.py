"""Logit standardisation: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024 (2403.01427)."""

from torch import Tensor

EPS = 1e-7


def standardize(logits: Tensor) -> Tensor:
    """The z-scores of each row of logits (B, classes): (z - mean) / (deviation + 1e-7), unbiased deviation.

    For the logits of teacher and student alike, before a method that compares logits softens them by its temperature.
    """
    return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True) + EPS)
