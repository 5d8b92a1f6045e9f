"""A linear probe for many samples: multinomial logistic regression on standardised features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from condense.metrics import mean_iou

STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4)  # L2 regularisation tried on VAL, strongest first
BALANCE = 0.5  # a class of n samples weighs n^-BALANCE a sample: 0 as they come, 1 all classes alike
ITERATIONS = 15  # of L-BFGS at each strength, starting where the stronger one ended


@dataclass(frozen=True)
class Probe:
    """A linear classifier.

    Args:
        weight: [C, D].
        bias: [C]; minus infinity for a class that is never predicted.
        centre: [D] and
        spread: [D] of the features it learned from.
    """

    weight: Tensor
    bias: Tensor
    centre: Tensor
    spread: Tensor

    def predict(self, features: Tensor) -> Tensor:
        """[N] int64 the most likely class of features [N, D]."""
        return (((features - self.centre) / self.spread) @ self.weight.T + self.bias).argmax(1)


def fit_probe(x: Tensor, y: Tensor, val_x: Tensor, val_y: Tensor, classes: int) -> Probe:
    """The probe whose mIoU on VAL is best, the stronger regularisation of equals.

    Without VAL samples it is the second strongest. Classes that `y` lacks are never predicted.

    Args:
        x: [M, D] float features that are learned from.
        y: [M] int classes.
        val_x: [V, D] features that choose the regularisation.
        val_y: [V] int classes, 0 = without a label.
        classes: number of classes.

    Raises:
        ValueError: no samples.
    """
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"a probe needs samples, each with a class; got {len(x)} and {len(y)}")
    centre, spread = x.mean(0), x.std(0, unbiased=False).clamp_min(1e-6)
    standard = (x - centre) / spread
    best, reached = None, -1.0
    weight, bias = torch.zeros(classes, x.shape[1]), torch.zeros(classes)
    for number, strength in enumerate(STRENGTHS):
        weight, bias = minimise(standard, y, strength, weight, bias)
        probe = Probe(weight, bias, centre, spread)
        score = mean_iou(probe.predict(val_x).numpy(), val_y.numpy(), classes) if len(val_x) else -abs(number - 1)
        if best is None or score > reached:
            best, reached = probe, score
    assert best is not None
    return best


def rarity(y: Tensor, classes: int) -> Tensor:
    """[classes] n^-BALANCE of a class of n samples, 0 of a class without any."""
    count = torch.bincount(y, minlength=classes).float()
    return torch.where(count > 0, count.clamp_min(1) ** -BALANCE, 0.0)


def minimise(x: Tensor, y: Tensor, strength: float, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Balanced cross-entropy + strength/2 |weight|^2 by L-BFGS.

    Args:
        x: [M, D] standardised features.
        y: [M] int classes.
        strength: of the regularisation.
        weight: [C, D] and
        bias: [C] where to start.

    Returns:
        weight and bias; those of a class that `y` lacks are 0 and minus infinity.
    """
    present, target = torch.unique(y, return_inverse=True)
    weights = rarity(y, len(weight))[present]
    parameters = torch.cat([weight, bias[:, None].nan_to_num(neginf=0.0)], dim=1)[present].requires_grad_()
    optimiser = torch.optim.LBFGS([parameters], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        own = parameters[:, :-1]
        loss = cross_entropy(x @ own.T + parameters[:, -1], target, weights) + strength / 2 * own.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    weight, bias = torch.zeros_like(weight), torch.full_like(bias, -torch.inf)
    weight[present], bias[present] = parameters.detach()[:, :-1], parameters.detach()[:, -1]
    return weight, bias
