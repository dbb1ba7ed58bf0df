"""MLKD: Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .method import Batch, Output, Pair

FURTHER = (3.0, 5.0, 2.0, 6.0)  # the temperatures beside --kd_T


def divergences(student: Tensor, teacher: Tensor, T: float) -> Tensor:
    """T^2 * KL(teacher || student) of each image, (B,), from logits (B, classes)."""
    log_p_s, log_p_t = (F.log_softmax(logits / T, dim=1) for logits in (student, teacher))
    return F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(dim=1) * T**2


def correlations(student: Tensor, teacher: Tensor, T: float) -> tuple[Tensor, Tensor]:
    """Squared differences of the batch's and of the classes' correlation matrices, summed over rows: (B,), (classes,).

    Of images: P P' (B, B), of classes: P' P (classes, classes), P being the softened predictions (B, classes).
    """
    p_s, p_t = (F.softmax(logits / T, dim=1) for logits in (student, teacher))
    return (p_t @ p_t.T - p_s @ p_s.T).square().sum(dim=1), (p_t.T @ p_t - p_s.T @ p_s).square().sum(dim=1)


class MLKD(nn.Module):
    """Logits aligned at the levels of instance, batch and class, on a weak and a strong view of each image.

    ce * CE(strong) + kd * [ KD(weak) + KD(strong) + class and batch correlations(weak) ], each term summed over the
    temperatures --kd_T, 3, 5, 2 and 6. KD carries T^2, the correlations do not; they are the squared Frobenius norms of
    the differences of P' P over the number of classes, and of P P' over the batch size. CE on the weak view
    is the objective's own, of weight gamma, which is `ce`, too, as published. Both networks see the two views in two
    forward passes.

    Images count as masked in when the teacher's highest probability (T = 1, weak view) is at most the batch's median,
    classes when its probabilities summed over the batch are at most the median over the classes.
    form "public": as the public code runs. KD(weak), the class and the batch correlations are multiplied by the shares
    of images and classes masked in, a half but for ties; and KD(strong) at 2 and 6 takes the weak view instead.
    form "masked": what that code evidently means. Each image and class is masked in or out of those three terms, and
    KD(strong) takes the strong view throughout.

    Published for CIFAR-100: ce 0.1, kd 0.9, --kd_T 4, at a learning rate of 0.025 (0.01 for MobileNet and ShuffleNet)
    and, most likely, 480 epochs for pairs of one family; 480 and for resnet32x4 > ShuffleNet 960 epochs for the others,
    with steps after 150, 180 and 210. The defaults here are this project's schedule, as for every method. ImageNet:
    0.5, 0.5, --kd_T 1, 100 epochs in batches of 512. The strong view is that of dataset/strong.py.
    """

    def __init__(self, pair: Pair, *, ce: float = 0.1, kd: float = 0.9, form: str = "public"):
        super().__init__()
        if form not in ("public", "masked"):
            raise ValueError(f"form: found {form!r}, expected public or masked")
        self.ce, self.kd, self.form = ce, kd, form
        self.T = pair.kd_T

    def masks(self, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """What multiplies images (B,) and classes (classes,): 0 or 1 each, or their share for all."""
        probabilities = F.softmax(teacher, dim=1)
        highest, summed = probabilities.max(dim=1).values, probabilities.sum(dim=0)
        images, classes = ((x <= x.median()).to(x.dtype) for x in (highest, summed))
        if self.form == "public":
            return images.mean().expand_as(images), classes.mean().expand_as(classes)
        return images, classes

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        weak, strong = (student.logits, teacher.logits), (student.strong.logits, teacher.strong.logits)
        of_images, of_classes = self.masks(teacher.logits)
        loss = torch.zeros(())
        for i, T in enumerate((self.T, *FURTHER)):
            of_batch, between_classes = correlations(*weak, T)
            loss = (
                loss + (of_images * (divergences(*weak, T) + of_batch)).mean() + (of_classes * between_classes).mean()
            )
            unmasked = weak if self.form == "public" and i >= 3 else strong
            loss = loss + divergences(*unmasked, T).mean()
        return self.ce * F.cross_entropy(student.strong.logits, batch.labels) + self.kd * loss
