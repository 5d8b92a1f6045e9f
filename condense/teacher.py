"""The built-in teacher: a small image network trained to read dense region labels off rendered images.

What it is: a supervised network, taught on a procedural universe with no classes (synthetic/universe.py) to say of
each cell what kind of solid, colour, pattern, size, ... it shows and where in its object it lies. Optionally cells
of two views that show the same surface point are also pulled together (their correspondence is known, the scenes
being rendered). It is not self-supervised, and it has never seen a photograph.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from condense.backbone2d import (
    BuiltinBackbone,
    FeatureStatistics,
    ImageBackbone,
    open_backbone,
    save_backbone,
)
from condense.devices import open_device
from condense.muon import Muon
from condense.params import TeacherParams
from condense.paths import write_atomically
from condense.synthetic.universe import CELLS, IGNORE, LABELS, SIDE, Views, make_universe

INPUT = 64  # pixels of a training crop


def fit_teacher(
    params: TeacherParams, seed: int, folder: Path, processes: int = 1
) -> tuple[BuiltinBackbone, list[dict[str, float]]]:
    """Pre-trains the built-in network; continues from the checkpoint in `folder` if there is one.

    The result depends on `params`, `seed` and torch's number of threads alone, not on interruptions or
    `processes`.

    Args:
        params: settings.
        seed: of the universe, the initial weights and the batches.
        folder: where checkpoints go.
        processes: that render the universe side by side.

    Returns:
        The network (averaged weights, features standardised over its universe), and the training log: one dict
        per `log_every` steps with `step`, `lr`, the losses and each label's accuracy.
    """
    universe = make_universe(params.scenes, params.views, params.rooms, seed, processes)
    run = TeacherRun(params, seed)
    run.resume(folder)
    with tqdm(total=params.steps, initial=run.step, desc="teacher") as bar:
        while run.step < params.steps:
            losses = run.train_step(universe)
            bar.update()
            if run.step % params.log_every == 0 or run.step == params.steps:
                run.log.append(losses)
                bar.set_postfix(loss=f"{losses['loss']:.3f}")
            if run.step % params.checkpoint_every == 0 or run.step == params.steps:
                run.checkpoint(folder)
    network = run.average[0].cpu()
    assert isinstance(network, BuiltinBackbone)
    network.standardise(universe_statistics(network.eval(), universe))
    return network.requires_grad_(False), run.log


def make_teacher(
    params: TeacherParams, seed: int, folder: Path, processes: int, images: Sequence[Tensor], beside: Path
) -> tuple[Path, list[dict[str, float]]]:
    """The frozen network of a run, written to `folder`: the built-in one, or any other, standardised.

    Args:
        params: `params.name` is "builtin", or what `open_backbone` takes.
        seed: of the built-in network.
        folder: where `teacher.safetensors`, `log.json` and checkpoints go.
        processes: that render the built-in network's universe.
        images: [H, W, 3] uint8 training images, over which another network's features are standardised.
        beside: the folder that a relative `params.name` starts from.

    Returns:
        The path of the network, and the training log (empty unless built-in).
    """
    path, record = folder / "teacher.safetensors", folder / "log.json"
    if not record.is_file():
        history: list[dict[str, float]] = []
        network: ImageBackbone
        if params.name == "builtin":
            network, history = fit_teacher(params, seed, folder, processes)
        else:
            local = beside / params.name
            name = str(local) if local.exists() else params.name
            device = open_device(params.device)
            network = open_backbone(name, params.layer or None).eval().requires_grad_(False).to(device)
            with torch.no_grad():
                inputs = ((image.permute(2, 0, 1)[None].float() / 255).to(device) for image in images)
                features = [network(image)[0].flatten(1).T.cpu() for image in inputs]
            network.standardise(FeatureStatistics.of(torch.cat(features)[:, :, None, None]))
        save_backbone(network, path)
        write_atomically(record, lambda temporary: temporary.write_text(json.dumps(history)))
    return path, json.loads(record.read_text())


class TeacherRun:
    """The state of a training run: network and label heads, their running average, optimisers, step, log.

    The attention blocks' matrices are trained by Muon (Jordan et al. 2024), the rest by AdamW.
    """

    def __init__(self, params: TeacherParams, seed: int) -> None:
        self.params, self.seed, self.step = params, seed, 0
        self.log: list[dict[str, float]] = []
        network = BuiltinBackbone(seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            head = nn.Conv2d(network.dim, sum(LABELS.values()), 1)
        self.device = open_device(params.device)
        self.model = nn.Sequential(network, head).to(self.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        matrices = [p for p in self.model.parameters() if p.ndim == 2]  # of the attention blocks
        kernels = [p for p in self.model.parameters() if p.ndim > 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        decay = params.weight_decay
        self.optimisers: tuple[torch.optim.Optimizer, ...] = (
            Muon(matrices, lr=0.0, weight_decay=decay),
            torch.optim.AdamW(
                [{"params": kernels, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}],
                lr=0.0,
                betas=(0.9, 0.98),
            ),
        )

    def train_step(self, universe: Views) -> dict[str, float]:
        """One step; returns what to log. Its randomness depends on the seed and the step's number alone."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        images, labels, points = (part.to(self.device) for part in draw_batch(universe, self.params, generator))
        features = self.model[0](images)
        logits = self.model[1](features)  # [2B, classes, h, w]
        label_loss, accuracy = label_losses(logits, labels)
        match_loss = cross_view_loss(features, points) if self.params.match_weight else features.new_zeros(())
        loss = label_loss + self.params.match_weight * match_loss
        lr = one_cycle(self.step, self.params.steps, self.params.lr)
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr
            optimiser.step()
        self.step += 1
        keep = min(self.params.average, self.step / (self.step + 10))
        for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(value.detach(), 1 - keep)
        losses = {"loss": loss.item(), "label_loss": label_loss.item(), "match_loss": match_loss.item()}
        return {"step": self.step, "lr": lr, **losses, **accuracy}

    def checkpoint(self, folder: Path) -> None:
        """Writes weights, averages and optimiser state, then the small file that says they are there."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for which, optimiser in enumerate(self.optimisers):
            for index, state in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser{which}.{index}.{k}": v for k, v in state.items()}
        tensors = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
        name = f"checkpoint-{self.step:06d}.safetensors"
        write_atomically(folder / name, lambda path: save_file(tensors, path))
        note = json.dumps({"file": name, "step": self.step, "log": self.log, **self._identity()})
        write_atomically(folder / "checkpoint.json", lambda path: path.write_text(note))
        for old in folder.glob("checkpoint-*.safetensors"):
            if old.name != name:
                old.unlink()

    def resume(self, folder: Path) -> None:
        """Takes up the checkpoint in `folder`, unless there is none or it belongs to other settings."""
        path = folder / "checkpoint.json"
        note = json.loads(path.read_text()) if path.is_file() else {}
        if {key: note.get(key) for key in self._identity()} != self._identity():
            return
        tensors = load_file(folder / note["file"])
        self.model.load_state_dict(_below(tensors, "model."))
        self.average.load_state_dict(_below(tensors, "average."))
        for which, optimiser in enumerate(self.optimisers):
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in _below(tensors, f"optimiser{which}.").items():
                index, name = key.split(".")
                state.setdefault(int(index), {})[name] = value
            optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
        self.step, self.log = note["step"], note["log"]

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must have been made with to be continued."""
        return {"params": asdict(self.params), "seed": self.seed, "threads": torch.get_num_threads()}


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def one_cycle(step: int, steps: int, peak: float) -> float:
    """Learning rate: a linear rise over the first tenth, then half a cosine down to 0."""
    rise = max(1, steps // 10)
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def draw_batch(universe: Views, params: TeacherParams, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Augmented crops of two views of each of `params.batch` random scenes; pairs follow each other.

    Returns:
        images [2B, 3, INPUT, INPUT] float in [0, 1]; labels [2B, len(LABELS), h, w] int64; points
        [2B, h, w, 3] float32 in the world, NaN at the background; one cell per 4 pixels.
    """
    scenes = len(universe.images) // params.views
    scene = torch.randint(scenes, (params.batch,), generator=generator)
    view = torch.rand(params.batch, params.views, generator=generator).argsort(1)[:, :2]
    chosen = (scene[:, None] * params.views + view).flatten().numpy()
    images = torch.from_numpy(universe.images[chosen]).permute(0, 3, 1, 2).float() / 255
    count, cells = len(images), INPUT // 4
    sides = torch.randint(int(0.7 * SIDE), SIDE + 1, (count,), generator=generator)
    offsets = (torch.rand(count, 2, generator=generator) * (SIDE - sides + 1)[:, None]).long()
    flips = torch.rand(count, generator=generator) < 0.5
    crops = []
    for image, side, (top, left), flip in zip(images, sides.tolist(), offsets.tolist(), flips, strict=True):
        crop = image[None, :, top : top + side, left : left + side]
        crop = F.interpolate(crop, (INPUT, INPUT), mode="bilinear", antialias=True)
        crops.append(crop.flip(3) if flip else crop)
    at = (torch.arange(cells) + 0.5) / cells * sides[:, None]  # [2B, h] pixels from the crop's corner
    rows, columns = ((at + offsets[:, axis, None]) * (CELLS / SIDE) for axis in (0, 1))
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    where = (
        torch.from_numpy(chosen)[:, None, None].numpy(),
        rows.long()[:, :, None].numpy(),
        columns.long()[:, None, :].numpy(),
    )
    labels = torch.from_numpy(universe.labels.transpose(0, 2, 3, 1)[where]).permute(0, 3, 1, 2).long()
    points = torch.from_numpy(universe.points[where]).float()
    recoloured, strongly = jitter_colours(torch.cat(crops), params.strong_colour, generator)
    labels[strongly, list(LABELS).index("colour")] = IGNORE
    return recoloured, labels, points


def jitter_colours(images: Tensor, strong: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images [B, 3, H, W] with random exposure, contrast, saturation, tint and noise; and which were recoloured.

    With probability `strong` the channels of an image are also mixed at random, so that its colours lose their
    names (bool [B]).
    """
    count = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    grey = torch.full((3, 3), 1 / 3)
    saturation = uniform(0.6, 1.4, 1, 1)
    matrix = saturation * torch.eye(3) + (1 - saturation) * grey  # [B, 3, 3]
    strongly = torch.rand(count, generator=generator) < strong
    mixed = torch.softmax(3 * torch.randn(count, 3, 3, generator=generator), dim=2)
    matrix = torch.where(strongly[:, None, None], mixed, matrix)
    matrix = matrix * uniform(0.9, 1.1, 3, 1)
    gain, lift = uniform(0.7, 1.3, 1, 1, 1), uniform(-0.1, 0.1, 1, 1, 1)
    images = torch.einsum("bij,bjhw->bihw", matrix, images - 0.5) * gain + 0.5 + lift
    noise = torch.randn(images.shape, generator=generator) * uniform(0, 0.03, 1, 1, 1)
    return (images + noise).clamp(0, 1), strongly


def label_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Mean cross-entropy over the labels, each a mean over the cells where it applies; and accuracies.

    Args:
        logits: [B, sum of LABELS, h, w], in the order of LABELS.
        labels: [B, len(LABELS), h, w] int64, IGNORE where a label does not apply.
    """
    losses, accuracy = [], {}
    for index, (name, part) in enumerate(zip(LABELS, logits.split(list(LABELS.values()), dim=1), strict=True)):
        target = labels[:, index]
        applies = target != IGNORE
        entropy = F.cross_entropy(part, target, ignore_index=IGNORE, reduction="sum")
        losses.append(entropy / applies.sum().clamp_min(1))
        right = (part.detach().argmax(1) == target)[applies]
        accuracy[name] = right.float().mean().item() if len(right) else 0.0
    return torch.stack(losses).mean(), accuracy


def cross_view_loss(features: Tensor, points: Tensor, reach: float = 0.06, temperature: float = 0.1) -> Tensor:
    """InfoNCE between the cells of two views of one scene, with soft targets by distance on the surface.

    A cell's positives are the other view's cells whose surface points lie near its own, weighted by
    exp(-d^2 / (2 (reach / 2)^2)); cells with none within `reach` do not count; every other foreground cell of the
    other view is a negative. Differentiable in `features`.

    Args:
        features: [2P, D, h, w], pairs of views following each other.
        points: [2P, h, w, 3], NaN at the background.
        reach: in world units (an object is about 1 wide).
        temperature: of the cosines.
    """
    rows = F.normalize(features.flatten(2).transpose(1, 2), dim=2)  # [2P, hw, D]
    where = points.flatten(1, 2)  # [2P, hw, 3]
    a, b = rows[0::2], rows[1::2]
    there = where.isfinite().all(2)
    both = there[0::2, :, None] & there[1::2, None]  # [P, hw, hw]
    where = where.nan_to_num(0)
    distance = torch.cdist(where[0::2], where[1::2]).masked_fill(~both, math.inf)
    weight = torch.exp(-(distance**2) / (2 * (reach / 2) ** 2)) * (distance < reach)
    scores = (a @ b.transpose(1, 2) / temperature).masked_fill(~both, -1e4)
    total = features.new_zeros(())
    for score, w in ((scores, weight), (scores.transpose(1, 2), weight.transpose(1, 2))):
        mass = w.sum(2)
        target = w / mass.clamp_min(1e-9)[..., None]
        entropy = -(target * score.log_softmax(2)).sum(2)
        total = total + entropy[mass > 0].sum() / (mass > 0).sum().clamp_min(1)
    return total / 2


@torch.no_grad()
def universe_statistics(network: ImageBackbone, universe: Views, views: int = 512) -> FeatureStatistics:
    """Feature statistics over the first `views` views, at full size."""
    images = torch.from_numpy(universe.images[:views]).permute(0, 3, 1, 2).float() / 255
    return FeatureStatistics.of(torch.cat([network(chunk) for chunk in images.split(32)]))
