"""Fine-tuning the 3D network with labels, of whole scenes or of their voxels: one loop for every benchmark."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from condense.backbone3d import SparseUNet, recalibrate_batch_norm
from condense.batches import draw_recolour, recoloured
from condense.devices import device_of
from condense.model import network_inputs
from condense.muon import Together, by_shape
from condense.tasks.descriptors import descriptors, length
from condense.tasks.voxelprobe import minimise, rarity
from condense.voxels import VoxelScene, batch_scenes, input_features, random_turn

Value = TypeVar("Value")
LEVELS = ("scene", "voxel")
RECOLOUR = 0.2  # strength of colour augmentation, as in pre-training
WARMUP = 0.1  # share of the steps over which the learning rate rises
WEIGHT_DECAY, CLIP = 0.01, 1.0
LEAST_SPREAD = (
    0.5  # of a feature's spread, as a share of the median's: one that was silent would drown all when it awakes
)
PROBE_STRENGTH = 1e-2  # regularisation of the probe that the linear layer starts as
UNSEEN = 2.0  # how far below all others a class starts that the probe did not see
START, CALIBRATE = 200, 48  # scenes that the linear layer starts from, and batch norm is calibrated on, at most
START_ROWS = 20_000  # of their voxels, those that the linear layer starts from, at most
TOGETHER = 8  # scenes in one forward pass without gradients


class FineTuned(nn.Module):
    """The 3D network and a linear layer on standardised features.

    Args:
        net3d: is trained in place.
        classes: number of classes.
        level: "scene" (the linear layer sees scenes' descriptors) or "voxel".
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, net3d: SparseUNet, classes: int, level: str) -> None:
        super().__init__()
        if level not in LEVELS:
            raise ValueError(f"level is {level!r}, not one of {LEVELS}")
        inputs = length(net3d) if level == "scene" else net3d.out_channels
        self.net3d, self.level = net3d, level
        self.register_buffer("centre", torch.zeros(inputs))
        self.register_buffer("spread", torch.ones(inputs))
        self.head = nn.Linear(inputs, classes)

    def forward(self, coords: Tensor, inputs: Tensor, shape: Sequence[int], scenes: int) -> Tensor:
        """Logits [scenes, classes], or [N, classes] of voxels; arguments as of `SparseUNet.forward`."""
        seen = _features(self.net3d, self.level, coords, inputs, shape, scenes)
        return self.head((seen - self.centre) / self.spread)

    @torch.no_grad()
    def calibrate(self, scenes: Sequence[VoxelScene]) -> None:
        """Sets batch norm from scenes without augmentation; leaves the model in evaluation mode."""
        recalibrate_batch_norm(
            self.net3d, (network_inputs(part, device_of(self)) for part in _parts(_some(scenes, CALIBRATE)))
        )
        self.eval()

    @torch.no_grad()
    def start(self, frozen: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        """Starts the linear layer as a probe of the features before training (Kumar et al., ICLR 2022).

        Else the noise of its first steps would spoil what the network brings along. The features' centre and
        spread are fixed, so that scale is no advantage.

        Args:
            frozen: of some scenes, as of `frozen_features`.
            targets: of the same scenes.
        """
        features, target = torch.cat(list(frozen)), torch.cat([each.reshape(-1) for each in targets])
        self.centre.copy_(features.mean(0))
        spread = features.std(0, unbiased=False)
        self.spread.copy_(spread.clamp_min(LEAST_SPREAD * float(spread.median())).clamp_min(1e-3))
        rows = torch.nonzero(target)[:, 0] if self.level == "voxel" else torch.arange(len(target))
        kept = rows[np.random.default_rng(0).permutation(len(rows))[:START_ROWS]]
        x = (features[kept] - self.centre.cpu()) / self.spread.cpu()
        zeros = (torch.zeros(each.shape) for each in (self.head.weight, self.head.bias))
        weight, bias = minimise(x, target[kept], PROBE_STRENGTH, *zeros)
        self.head.weight.copy_(weight)
        self.head.bias.copy_(torch.maximum(bias, bias[bias.isfinite()].min() - UNSEEN))

    @torch.no_grad()
    def predict(self, scenes: Sequence[VoxelScene]) -> list[Tensor]:
        """The most likely class of each scene, [] int64; or of each of its voxels, [N], never 0; on the CPU."""
        self.eval()
        result: list[Tensor] = []
        for part in _parts(scenes):
            logits = self(*network_inputs(part, device_of(self))).cpu()
            if self.level == "voxel":
                result += (logits[:, 1:].argmax(1) + 1).split([len(scene) for scene in part])
            else:
                result += logits.argmax(1).unbind()
        return result


def _features(
    net3d: SparseUNet, level: str, coords: Tensor, inputs: Tensor, shape: Sequence[int], scenes: int
) -> Tensor:
    """What the linear layer sees, not standardised: [scenes, `length`], or [N, D] of voxels."""
    if level == "scene":
        return descriptors(net3d, coords, inputs, shape, scenes)
    return net3d(coords, inputs, shape, scenes)


@torch.no_grad()
def frozen_features(net3d: SparseUNet, scenes: Sequence[VoxelScene], level: str) -> list[Tensor]:
    """What the linear layer sees of each scene before training, [1, `length`], or [N, D] of its voxels; on the CPU."""
    net3d.eval()
    found: list[Tensor] = []
    for part in _parts(scenes):
        features = _features(net3d, level, *network_inputs(part, device_of(net3d))).cpu()
        found += features.split([1 if level == "scene" else len(scene) for scene in part])
    return found


def _some(values: Sequence[Value], most: int) -> Sequence[Value]:
    """Up to `most` of the scenes, or of their targets, in a fixed mixed order: neighbours are often of one class.

    A batch of one class would calibrate batch norm on what is common to that class.
    """
    return [values[i] for i in np.random.default_rng(0).permutation(len(values))[:most]]


def _parts(scenes: Sequence[VoxelScene]) -> Iterator[Sequence[VoxelScene]]:
    """TOGETHER scenes at a time."""
    return (scenes[start : start + TOGETHER] for start in range(0, len(scenes), TOGETHER))


def finetune(
    net3d: SparseUNet,
    scenes: Sequence[VoxelScene],
    targets: Sequence[Tensor],
    classes: int,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    level: str,
    frozen: Sequence[Tensor] | None = None,
) -> FineTuned:
    """Trains a copy of the whole network and a linear layer with cross-entropy; rare classes weigh more.

    Muon for matrices and kernels and AdamW for vectors, with a short warm-up and a cosine, and scenes turned and
    mildly recoloured, as in pre-training. The same arguments give the same result: nothing reads a global generator.

    Args:
        net3d: where to start; is not changed.
        scenes: labelled ones.
        targets: of each scene its class [] int; or, of voxels, [N] int with 0 where there is no label.
        classes: number of classes, the 0 of voxels included.
        steps: gradient steps.
        batch: scenes a step; fewer scenes than that are all taken in every step.
        lr: highest learning rate.
        seed: of the order of scenes and of augmentation.
        level: "scene" or "voxel".
        frozen: `frozen_features` of the scenes, where they are at hand already.

    Returns:
        The trained model, in evaluation mode, batch norm calibrated on `scenes`.

    Raises:
        ValueError: an unknown level, scenes and targets that do not match, or not one label.
    """
    model = FineTuned(copy.deepcopy(net3d), classes, level).to(device_of(net3d))
    rows = _labelled(scenes, targets, level)
    scenes, targets = [scenes[i] for i in rows], [targets[i].long() for i in rows]
    if frozen is not None:
        model.start([frozen[i] for i in rows], targets)
    else:
        some = _some(range(len(rows)), START)
        model.start(frozen_features(net3d, [scenes[i] for i in some], level), [targets[i] for i in some])
    optimiser = by_shape(model.parameters(), lr, WEIGHT_DECAY)
    rare = _class_weights(targets, classes, level).to(device_of(model))
    rng = np.random.default_rng(seed)
    order: list[int] = []
    model.train()
    for step in range(steps):
        while len(order) < min(batch, len(scenes)):
            order += rng.permutation(len(scenes)).tolist()
        chosen, order = order[:batch], order[batch:]
        for group in optimiser.param_groups:
            group["lr"] = lr * schedule(step, steps)
        _step(model, optimiser, [scenes[i] for i in chosen], [targets[i] for i in chosen], rare, rng)
    model.calibrate(scenes)
    return model


def schedule(step: int, steps: int) -> float:
    """Share of the highest learning rate: a straight rise over WARMUP of the steps, then half a cosine."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _labelled(scenes: Sequence[VoxelScene], targets: Sequence[Tensor], level: str) -> list[int]:
    """The places of scenes that have a label at all; targets are checked."""
    for number, (scene, target) in enumerate(zip(scenes, targets, strict=True)):
        wanted = (len(scene),) if level == "voxel" else ()
        if tuple(target.shape) != wanted:
            raise ValueError(f"target {number} has shape {tuple(target.shape)}, not {wanted} as level {level!r} wants")
    rows = [place for place, target in enumerate(targets) if level == "scene" or bool((target > 0).any())]
    if not rows:
        raise ValueError(f"none of {len(scenes)} scenes has a label")
    return rows


def _class_weights(targets: Sequence[Tensor], classes: int, level: str) -> Tensor:
    """[classes] of each class in the loss, as in the probes; voxels without a label count nothing."""
    weights = rarity(torch.cat([each.reshape(-1) for each in targets]), classes)
    if level == "voxel":
        weights[0] = 0.0
    return weights


def _step(
    model: FineTuned,
    optimiser: Together,
    scenes: Sequence[VoxelScene],
    targets: Sequence[Tensor],
    rare: Tensor,
    rng: np.random.Generator,
) -> None:
    """One gradient step on augmented scenes."""
    voxels = batch_scenes(scenes, [random_turn(rng) for _ in scenes])
    colour = torch.cat([recoloured(scene.colour, draw_recolour(rng, RECOLOUR)) for scene in scenes])
    voxels = dataclasses.replace(voxels, colour=colour).to(device_of(model))
    logits = model(voxels.coords, input_features(voxels), voxels.shape, len(scenes))
    target = torch.cat([each.reshape(-1) for each in targets]).to(logits.device)
    loss = cross_entropy(logits, target, rare)
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimiser.step()
