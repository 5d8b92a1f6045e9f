"""Key-point training on top of the dense networks: both networks go on learning, in the same space.

Terms, of a pixel u of one view, the same place t carried to the voxels from the other views, and its voxel v:

- `match`: InfoNCE between the descriptors of u and t, every view asking in turn; v finds u and t among those of all
  captures; v finds its other copy (turned, recoloured, cropped). Next neighbours do not repel each other;
- `reliable`: the score's first factor is the probability that the descriptor matches (binary cross-entropy), and 0
  beside the object where there is a mask;
- `distinct`: the second factor looks alike around u, t and v, and peaks: cosine similarity and peakiness of patches,
  as R2D2 (Revaud et al., NeurIPS 2019) has them between two images;
- `follow`: the score follows an image under a known affine map, and its maxima do, between cells (see `warps`);
- `lift`: 2D and 3D scores agree through the ray operator: voxels with the mean of the 2D scores that the operator's
  transpose carries to them, and rendered voxels with the 2D scores;
- `dense`: agreement and voxel targets of dense pre-training, which keep the networks what they are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import (
    adaptive_avg_pool2d,
    binary_cross_entropy_with_logits,
    cosine_similarity,
    cross_entropy,
    l1_loss,
    normalize,
)

from condense.devices import device_of, open_device
from condense.joint import SOLID, some_rows
from condense.keypoints import sample_map
from condense.links import Links
from condense.linkset import LinkedCaptures
from condense.losses import false_negatives, info_nce
from condense.model import batch_features, load_model, recalibrate
from condense.params import SparseParams
from condense.paths import write_atomically
from condense.pretrain import load_checkpoint, save_checkpoint, warmup_cosine
from condense.sparse import SparseModel, keypoint_score, save_sparse
from condense.sparsebatch import SparseBatch, draw_sparse
from condense.warps import astray, repeatable_loss

NEAR = 1.8  # voxels; samples closer than that do not repel each other
PATCH, ANCHORS = 12, 16  # samples of a patch of the term "distinct", and patches of a capture
Maps = list[tuple[Tensor, Tensor, Tensor]]  # of each image: dense [D, h, w], descriptors [D, H, W], logits [2, H, W]


def sparse_losses(
    model: SparseModel, batch: SparseBatch, params: SparseParams, generator: torch.Generator
) -> dict[str, Tensor]:
    """The terms of one step, each a scalar; differentiable in the heads and in both networks."""
    features = batch_features(model.dense.net3d, batch.voxels, batch.visible)  # [N of both copies, D]
    described, voxel_logits = model.voxel_head(features)
    maps = image_maps(model, [*batch.images, *batch.copies])
    maps, copies = maps[: len(batch.images)], maps[len(batch.images) :]
    descriptors, logits = sampled(maps, batch)  # [S, V, D], [S, V, 2]
    near = too_near(batch)
    views_match, views_reliable, chance = between_views(descriptors, logits, batch, near, params.temperature)
    solid, here, each = (
        batch.samples >= 0,
        batch.twins >= 0,
        torch.arange(len(batch.samples), device=batch.samples.device),
    )
    closest = batch.weights.argmax(1)  # the view that shows a sample best
    # images see more than voxels: the 3D network follows them, and does not hold them back
    pixel = descriptors[each, closest].detach()
    lifted = normalize(weighted(descriptors, batch.weights), dim=1).detach()
    voxel, twin = described[batch.samples[solid]], described[batch.twins[here]]
    matches = [
        views_match,
        finding(voxel, pixel, solid, near, params.temperature),
        finding(voxel, lifted, solid, near, params.temperature),
        info_nce(described[batch.samples[here]], twin, params.temperature, near[here][:, here]),
    ]
    patches, solid_patches = draw_patches(batch, generator)
    scores = logits.sigmoid()
    distinct = [scores[each, closest, 1], weighted(scores, batch.weights)[:, 1]]
    distinct3d = voxel_logits[batch.samples.clamp_min(0), 1].sigmoid()
    scores2d = [_cells(keypoint_score(m[2].movedim(0, -1)), size) for m, size in zip(maps, batch.cells, strict=True)]
    dense2d = [m[0].flatten(1).T for m in maps]
    views = _views_with_scene(batch)
    return {
        "match": torch.stack(matches).mean(),
        "reliable": views_reliable
        + binary_cross_entropy_with_logits(voxel_logits[batch.samples[solid], 0], chance[solid])
        + beside(maps, batch),
        "distinct": distinct_loss([values[patches] for values in distinct])
        + distinct_loss([values[solid_patches] for values in (*distinct, distinct3d)]),
        "follow": follow_loss(maps, copies, batch),
        "lift": score_agreement(
            keypoint_score(voxel_logits[: batch.operator.voxels]), torch.cat(scores2d[:views]), batch
        ),
        "dense": dense_loss(features[: batch.operator.voxels], torch.cat(dense2d[:views]), batch, params, generator),
    }


def between_views(
    descriptors: Tensor, logits: Tensor, batch: SparseBatch, near: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Each view in turn asks where the others show what it shows.

    Args:
        descriptors: [S, V, D], unit length.
        logits: [S, V, 2].
        batch: with the weights of the samples in the views.
        near: [S, S] pairs that do not repel each other.
        temperature: of the softmax.

    Returns:
        InfoNCE and binary cross-entropy of "reliable", means over the views; and [S] the probability that a sample
        matches, mean over the views that it was asked in.
    """
    matches, reliable = [], []
    chance, asked = logits.new_zeros(len(logits)), logits.new_zeros(len(logits))
    for place in range(logits.shape[1]):
        others = batch.weights.clone()
        others[:, place] = 0
        rows = torch.nonzero((batch.weights[:, place] > 0) & (others.amax(1) > 0))[:, 0]
        if len(rows):
            pixel, apart = descriptors[rows, place], near[rows][:, rows]
            lifted = normalize(weighted(descriptors[rows], others[rows]), dim=1)
            matches.append(info_nce(pixel, lifted, temperature, apart))
            found = match_probability(pixel, lifted, batch.owner[rows], apart, temperature)
            reliable.append(binary_cross_entropy_with_logits(logits[rows, place, 0], found))
            chance[rows] += found
            asked[rows] += 1
    return torch.stack(matches).mean(), torch.stack(reliable).mean(), chance / asked.clamp_min(1)


def follow_loss(maps: Maps, copies: Maps, batch: SparseBatch) -> Tensor:
    """`repeatable_loss` and half of `astray` of each capture's first image and its copy, mean over captures."""
    views = len(maps) // len(copies)
    losses = []
    for (_, _, first), (_, _, copy), by, cover in zip(maps[::views], copies, batch.warps, batch.covers, strict=True):
        first, copy = first.sigmoid(), copy.sigmoid()
        distinct, score = repeatable_loss(first[1], copy[1], by, cover), astray(first.prod(0), copy.prod(0), by, cover)
        losses.append(distinct + score / 2)
    return torch.stack(losses).mean()


def _views_with_scene(batch: SparseBatch) -> int:
    """How many of the images belong to captures whose scene is there: their cells are the operator's rows."""
    ends = np.cumsum([h * w for h, w in batch.cells])
    return int(np.searchsorted(ends, batch.operator.shape[0])) + 1


def image_maps(model: SparseModel, images: Sequence[Tensor]) -> Maps:
    """What `SparseModel.image_maps` makes of each image; images of one size run together."""
    found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for size in sorted({tuple(image.shape) for image in images}):
        group = [i for i, image in enumerate(images) if tuple(image.shape) == size]
        maps = model.image_maps(torch.stack([images[i] for i in group]))
        found |= {i: (maps[0][k], maps[1][k], maps[2][k]) for k, i in enumerate(group)}
    return [found[i] for i in range(len(images))]


def _cells(score: Tensor, cells: tuple[int, int]) -> Tensor:
    """[h w] means of a score map over the cells of a feature map."""
    return adaptive_avg_pool2d(score[None, None], cells).flatten()


def sampled(maps: Maps, batch: SparseBatch) -> tuple[Tensor, Tensor]:
    """Descriptors [S, V, D], unit length, and logits [S, V, 2] where each sample shows in its capture's views."""
    count, found = batch.pixels.shape[1], []
    for number in range(len(maps) // count):
        pixels = batch.pixels[batch.owner == number]
        columns = []
        for place in range(count):
            _, descriptors, logits = maps[number * count + place]
            height, width = batch.images[number * count + place].shape[1:]
            columns.append(sample_map(torch.cat([descriptors, logits]), pixels[:, place], (width, height)))
        found.append(torch.stack(columns, dim=1))
    values = torch.cat(found)
    return normalize(values[..., :-2], dim=-1), values[..., -2:]


def weighted(values: Tensor, weights: Tensor) -> Tensor:
    """[S, D] means of values [S, V, D] over the views, by weights [S, V]; 0 without any weight."""
    return (values * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp_min(1e-6)


def too_near(batch: SparseBatch) -> Tensor:
    """[S, S] bool: other samples of the same scene within NEAR voxels; not differentiable."""
    close = torch.cdist(batch.places, batch.places) < NEAR
    return (close & (batch.owner[:, None] == batch.owner)).fill_diagonal_(False)


def finding(voxel: Tensor, other: Tensor, solid: Tensor, near: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding each voxel's own sample among all samples; 0 without voxels.

    Args:
        voxel: [K, D] unit descriptors of the samples where `solid`.
        other: [S, D] unit descriptors of all samples.
        solid: [S] bool, K of them.
        near: [S, S] pairs that do not repel each other.
        temperature: of the softmax.
    """
    if not len(voxel):
        return voxel.sum()
    logits = (voxel @ other.T / temperature).masked_fill(near[solid], -torch.inf)
    return cross_entropy(logits, torch.nonzero(solid)[:, 0])


@torch.no_grad()
def match_probability(pixel: Tensor, lifted: Tensor, owner: Tensor, near: Tensor, temperature: float) -> Tensor:
    """[S] how likely a pixel and its voxel find each other among the samples of their scene: both softmaxes multiplied.

    Args:
        pixel: [S, D] descriptors.
        lifted: [S, D] descriptors.
        owner: [S] whose sample each is.
        near: [S, S] pairs that do not compete.
        temperature: of the softmax.
    """
    logits = (pixel @ lifted.T / temperature).masked_fill(near | (owner[:, None] != owner), -torch.inf)
    return logits.softmax(0).diagonal() * logits.softmax(1).diagonal()


def beside(maps: Maps, batch: SparseBatch) -> Tensor:
    """Binary cross-entropy of "reliable" against 0 in the cells outside the images' masks; 0 without such cells."""
    logits = torch.cat([_cells(m[2][0], size) for m, size in zip(maps, batch.cells, strict=True)])
    logits = logits[~torch.cat(batch.inside)]
    return binary_cross_entropy_with_logits(logits, torch.zeros_like(logits)) if len(logits) else logits.sum()


def draw_patches(batch: SparseBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """[P, PATCH] rows of samples: random ones, each with its nearest neighbours in the same scene.

    Returns:
        All patches, and those of captures whose scene is there.
    """
    patches = [batch.samples.new_zeros(0, PATCH)]
    for number in batch.owner.unique():
        rows = torch.nonzero(batch.owner == number)[:, 0]
        if len(rows) >= PATCH:
            anchors = rows[torch.randperm(len(rows), generator=generator)[:ANCHORS]]
            distance = torch.cdist(batch.places[anchors], batch.places[rows])
            patches.append(rows[distance.topk(PATCH, largest=False).indices])
    every = torch.cat(patches)
    return every, every[batch.samples[every[:, 0]] >= 0]


def distinct_loss(patches: Sequence[Tensor]) -> Tensor:
    """Half of 1 - cosine similarity of matching patches' scores [P, PATCH], half of 1 - (maximum - mean) of each.

    The last of `patches` is compared with each of the others.
    """
    if not len(patches[0]):
        return patches[0].sum()
    *others, last = patches
    alike = torch.stack([1 - cosine_similarity(other, last).mean() for other in others])
    peaks = torch.stack([1 - (scores.amax(1) - scores.mean(1)).mean() for scores in patches])
    return (alike.mean() + peaks.mean()) / 2


def score_agreement(scores3d: Tensor, scores2d: Tensor, batch: SparseBatch) -> Tensor:
    """L1 between the scores of cells [rows] and of voxels [N], rendered one way and lifted the other."""
    rendered, opacity = batch.operator.render(scores3d[:, None])[:, 0], batch.operator.opacity
    lifted, weight = batch.operator.lift_mean(scores2d[:, None])
    solid, seen = opacity >= SOLID, weight > 0
    return l1_loss(rendered[solid] / opacity[solid], scores2d[solid]) + l1_loss(
        scores3d[seen], lifted[seen, 0].detach()
    )


def dense_loss(
    features: Tensor, cells: Tensor, batch: SparseBatch, params: SparseParams, generator: torch.Generator
) -> Tensor:
    """What keeps the dense space: rendered voxels agree with the student's cells, and voxels with the lifted targets.

    Args:
        features: [N, D] of voxels.
        cells: [rows, D] of the student.
        batch: where they belong.
        params: temperature and sizes.
        generator: draws the rows that are contrasted.
    """
    opacity = batch.operator.opacity
    rows = some_rows(opacity >= SOLID, params.cells, generator)
    inside = some_rows(batch.seen > params.seen_at_least, params.cells, generator)
    target = (batch.operator.render(batch.target) / opacity.clamp_min(1e-6)[:, None])[rows]
    rendered = batch.operator.render(features)[rows]
    voxels = batch.target[inside]
    return info_nce(
        cells[rows], rendered, params.dense_temperature, false_negatives(target, params.drop_above)
    ) + info_nce(features[inside], voxels, params.dense_temperature, false_negatives(voxels, params.drop_above))


def train_sparse(
    folder: Path, dense: Path, links: Sequence[Path], params: SparseParams, seed: int, stop: int | None = None
) -> Path:
    """Trains the heads and both networks of one seed; picks up its newest checkpoint. One job of `parallel_map`.

    Args:
        folder: of this seed; gets the model (`save_sparse`), `history.json` and, meanwhile, checkpoints.
        dense: the pre-trained model's folder.
        links: files of the captures to train on; only their training views are read.
        params: the settings.
        seed: of the heads' weights and of all draws.
        stop: end after so many steps, leaving a checkpoint (for tests); None trains to the end.

    Returns:
        `folder`.
    """
    if (folder / "history.json").is_file():
        return folder
    captures = LinkedCaptures(links)
    model = SparseModel(load_model(dense), seed).to(open_device(params.device))
    optimizer = make_optimizer(model, params)
    step, history = load_checkpoint(folder, model, optimizer)  # type: ignore[arg-type]
    while step < params.steps and step != stop:
        model.train()
        terms = train_step(model, optimizer, captures, params, seed, step)
        step += 1
        if step % params.log_every == 0 or step == params.steps:
            history.append({"step": step, **{name: float(term) for name, term in terms.items()}})
        if step % params.checkpoint_every == 0 or step == stop:
            save_checkpoint(folder, model, optimizer, step, history)  # type: ignore[arg-type]
    if step == params.steps:
        recalibrate(model.dense.net3d, (capture.scene for capture in captures), params.captures)
        save_sparse(folder, model)
        write_atomically(folder / "history.json", lambda path: path.write_text(json.dumps(history, indent=1)))
        for path in folder.glob("step_*"):
            path.unlink()
    return folder


def make_optimizer(model: SparseModel, params: SparseParams) -> torch.optim.AdamW:
    """AdamW: one learning rate for the heads, and one for each network; an image network with a rate of 0 is frozen."""
    student = model.dense.student.requires_grad_(params.student_lr > 0)
    parts: list[tuple[list[nn.Parameter], float]] = [
        ([*model.image_head.parameters(), *model.voxel_head.parameters()], params.head_lr),
        (list(model.dense.net3d.parameters()), params.net3d_lr),
        ([p for p in student.parameters() if p.requires_grad], params.student_lr),
    ]
    groups = [{"params": some, "lr": rate, "base": rate} for some, rate in parts if some]
    return torch.optim.AdamW(groups, weight_decay=params.weight_decay, foreach=True)


def train_step(
    model: SparseModel,
    optimizer: torch.optim.Optimizer,
    captures: Sequence[Links],
    params: SparseParams,
    seed: int,
    step: int,
) -> dict[str, Tensor]:
    """One step of gradient descent in place; returns the terms."""
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * warmup_cosine(step, params.steps, params.warmup)
    batch = draw_sparse(captures, params, seed, step).to(device_of(model.dense.net3d))
    generator = torch.Generator().manual_seed(int(np.random.default_rng([seed, step, 4]).integers(2**62)))
    terms = sparse_losses(model, batch, params, generator)
    optimizer.zero_grad(set_to_none=True)
    torch.stack([getattr(params, f"{name}_weight") * term for name, term in terms.items()]).sum().backward()
    for part in (model.dense.net3d, model.dense.student, model.image_head, model.voxel_head):
        nn.utils.clip_grad_norm_(part.parameters(), params.clip)
    optimizer.step()
    return {name: term.detach() for name, term in terms.items()}
