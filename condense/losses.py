"""The losses of joint pre-training, and the rank that shows a collapse."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, normalize, smooth_l1_loss


def info_nce(a: Tensor, b: Tensor, temperature: float = 0.1, drop: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE between matched rows (van den Oord et al. 2018; both directions as in CLIP).

    With s_ij = cos(a_i, b_j) / temperature, the mean over i of
    (log sum_j exp(s_ij) - s_ii) / 2 + (log sum_j exp(s_ji) - s_ii) / 2. Differentiable in `a` and `b`.

    Args:
        a: [M, D] features.
        b: [M, D] features; row i belongs to row i of `a`.
        temperature: of the softmax.
        drop: [M, M] bool; pairs (i, j) left out of the negatives of row i of `a` and of row j of `b`
            (a matched pair is never left out), or None.

    Returns:
        A scalar; 0 where M is 0.

    Raises:
        ValueError: the shapes disagree.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"info_nce wants two [M, D] tensors of one shape, not {tuple(a.shape)}, {tuple(b.shape)}")
    if len(a) == 0:
        return (a.sum() + b.sum()) * 0
    logits = normalize(a, dim=1) @ normalize(b, dim=1).T / temperature  # [M, M]
    if drop is not None:
        others = drop & ~torch.eye(len(a), dtype=torch.bool, device=a.device)
        logits = logits.masked_fill(others, -torch.inf)
    matched = torch.arange(len(a), device=a.device)
    return (cross_entropy(logits, matched) + cross_entropy(logits.T, matched)) / 2


def false_negatives(teacher: Tensor, threshold: float) -> Tensor:
    """[M, M] bool: pairs of rows of `teacher` [M, D] whose cosine exceeds `threshold`; the diagonal is False.

    Such rows look alike to the teacher (two legs of one chair), so they should not repel each other.
    Not differentiable.
    """
    with torch.no_grad():
        unit = normalize(teacher, dim=1)
        return (unit @ unit.T > threshold).fill_diagonal_(False)


def prior_loss(student: Tensor, target: Tensor) -> Tensor:
    """The prior term: mean of 1 - cos(student, target) + 0.1 smooth-L1(student, target).

    Ties the trained 2D network to frozen features, so that agreement with the 3D side cannot be had by
    drifting to a constant. Differentiable in both.

    Args:
        student: [M, D] standardised features.
        target: [M, D] standardised features of the same cells.

    Returns:
        A scalar; 0 where M is 0.
    """
    if len(student) == 0:
        return student.sum() * 0
    angle = 1 - cosine_similarity(student, target, dim=1)
    return angle.mean() + 0.1 * smooth_l1_loss(student, target)


def effective_rank(features: Tensor) -> float:
    """Effective rank of centred features [N, D] (Roy & Vetterli 2007), between 1 and min(N - 1, D).

    exp(-sum_k p_k log p_k) with p_k the singular values scaled to sum to 1: D for isotropic features, near 1
    when all lie on a line. Constant features have no direction at all and count as 1. Not differentiable.
    """
    with torch.no_grad():
        centred = (features - features.mean(0)).double()
        covariance = centred.T @ centred  # [D, D]; its eigenvalues are the squared singular values
        singular = torch.linalg.eigvalsh(covariance).clamp_min(0).sqrt()
        if singular.sum() <= 1e-9 * max(1.0, features.abs().max().item()):
            return 1.0
        p = singular / singular.sum()
        p = p[p > 1e-12]
        return float(torch.exp(-(p * p.log()).sum()))
