"""Other ways to better an image network by many views, without a 3D network: rivals of the jointly trained student.

All learn what the frozen network's features look like once lifted from all training views and rendered back into
one (`Links.lifted`): there the views' errors have averaged out. They see the captures, views, colours and number of
steps that the student sees, in one loop; what differs is the network that learns.

`fit3d` fine-tunes the whole network, as FiT3D (Yue et al., ECCV 2024). Theirs: one Gaussian scene a capture, trained
with the features in it, L1 loss. Ours: the capture's field, with features averaged instead of optimised, and the
prior term of `losses` (a cosine and a smooth L1). They hand the old and the new features together to a probe; here
every method is probed by its own features alone.

`contrast` is the student of `joint` alone: its terms that do not need the 3D network, "views" and "prior". What the
student gains over it, it owes to the 3D network.

`dvt` keeps the network and learns to clean its output, as DVT (Yang et al., ECCV 2024), whose two steps it keeps: first
the clean features of every training image, then a denoiser of one transformer block that predicts them from the raw
ones, for images without other views. Theirs fits, image by image, a neural field over many crops of the image: what
stays with the content, plus an artefact that stays with the position in the image, plus a residual. Here other views
stand for the crops, lifting for the neural field, and the artefact is the mean difference between raw and lifted
features at each position, over all training images; a residual is not modelled. So what an artefact owes to one
image's content is left to the denoiser.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from condense.backbone2d import Block, ImageBackbone, load_backbone, save_backbone
from condense.batches import Batch, draw_batch
from condense.devices import device_of, open_device
from condense.joint import SOLID, agreement, some_rows
from condense.links import Links, lift
from condense.linkset import LinkedCaptures
from condense.losses import prior_loss
from condense.model import student_cells
from condense.params import PretrainParams
from condense.paths import write_atomically
from condense.pretrain import warmup_cosine

METHODS = ("fit3d", "contrast", "dvt")
FEW = 20.0  # images; an artefact seen in fewer is shrunk towards 0


class Denoised(nn.Module):
    """The frozen network, minus the artefact of each position, through one transformer block.

    Args:
        network: frozen.
        artefact: [D, h, w] its mean error at each position; stretched to other feature maps.
        seed: of the block's initial weights; its outputs start at 0, so that training starts from `network`.
    """

    artefact: Tensor

    def __init__(self, network: ImageBackbone, artefact: Tensor, seed: int = 0) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.register_buffer("artefact", artefact)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.block = Block(network.dim, math.gcd(network.dim, 4))
        for layer in (self.block.position, self.block.out, self.block.mlp[-1]):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        """As of `ImageBackbone`; differentiable in the block."""
        with torch.no_grad():
            raw = self.network.eval()(images)
        return self.block(raw - _stretched(self.artefact, raw.shape[2:]))


def _stretched(artefact: Tensor, size: Sequence[int]) -> Tensor:
    return interpolate(artefact[None], tuple(size), mode="bilinear")[0]


def mean_artefact(captures: Sequence[Links]) -> Tensor:
    """[D, h, w] mean of the frozen network's features minus the rendered lifted ones, by position in the image.

    Over the cells of the training views that show the capture. The size is that of the first feature map; others
    are averaged into it.
    """
    first = captures[0].views[0]
    total = torch.zeros(first.teacher.shape[1] + 1, *first.cells)
    for links in captures:
        for view in links.views:
            opacity = view.operator.opacity
            solid = (opacity >= SOLID).float()[:, None]
            error = view.teacher.float() - view.operator.render(links.lifted) / opacity.clamp_min(1e-6)[:, None]
            both = torch.cat([error * solid, solid], dim=1)  # [h w, D + 1]
            total += adaptive_avg_pool2d(both.T.reshape(-1, *view.cells), first.cells)
    return total[:-1] / (total[-1:] + FEW)


def without_artefact(links: Links, artefact: Tensor) -> Links:
    """The capture, with its training views alone, and features lifted from cells that are rid of the artefact."""
    clean = [v.teacher.float() - _stretched(artefact, v.cells).flatten(1).T for v in links.views]
    return dataclasses.replace(links, lifted=lift(clean, [view.operator for view in links.views])[0])


def rival_loss(network: nn.Module, batch: Batch, background: float) -> Tensor:
    """The prior term against rendered lifted features; against the frozen network's own behind the capture.

    Args:
        network: images -> cells.
        batch: all of whose views are seen by the network.
        background: weight of the cells behind the capture.
    """
    return _tied(student_cells(network, batch.images, batch.recolour), batch, background)


def _tied(cells: Tensor, batch: Batch, background: float) -> Tensor:
    opacity = batch.operator.opacity
    solid = opacity >= SOLID
    target = batch.operator.render(batch.lifted) / opacity.clamp_min(1e-6)[:, None]
    return prior_loss(cells[solid], target[solid]) + background * prior_loss(cells[~solid], batch.teacher[~solid])


def contrast_loss(network: nn.Module, batch: Batch, params: PretrainParams, generator: torch.Generator) -> Tensor:
    """The student's terms of `joint.losses` that do not need the 3D network, weighed as there.

    Args:
        network: images -> cells.
        batch: all of whose views are seen by the network.
        params: weights, temperature and sizes.
        generator: draws the rows that are contrasted.
    """
    opacity = batch.operator.opacity
    rows = some_rows(opacity >= SOLID, params.cells, generator)
    target = (batch.operator.render(batch.lifted) / opacity.clamp_min(1e-6)[:, None])[rows]
    cells = student_cells(network, batch.images, batch.recolour)
    views, prior = agreement(cells[rows], target, target, params), _tied(cells, batch, params.background)
    return params.views_weight * views + params.prior_weight * prior


def train_rival(
    folder: Path, method: str, links: Sequence[Path], teacher: Path, params: PretrainParams, lr: float, seed: int
) -> Path:
    """Trains one seed of a rival; does nothing if it is there. One job of `parallel_map`.

    Args:
        folder: gets `student.safetensors` or, of dvt, `denoiser.safetensors`, and `history.json`.
        method: of METHODS.
        links: of the captures to train on; only their training views are read.
        teacher: the frozen network's .safetensors.
        params: as of the student: steps, captures and views a step, colours, weight decay, clipping.
        lr: highest learning rate.
        seed: of all draws and initial weights.

    Raises:
        ValueError: another method.
    """
    if method not in METHODS:
        raise ValueError(f"rival is {method!r}, not one of {', '.join(METHODS)}")
    if (folder / "history.json").is_file():
        return folder
    captures, network = LinkedCaptures(links), load_backbone(teacher)
    learner: nn.Module = network
    if method == "dvt":
        artefact, clean = mean_artefact(captures), folder / "lifted"
        for place, capture in enumerate(captures):
            target = {"lifted": without_artefact(capture, artefact).lifted}
            write_atomically(clean / f"{place}.safetensors", partial(save_file, target))
        captures = LinkedCaptures(links, clean)
        learner = Denoised(network, artefact, seed)
    learner = learner.to(open_device(params.device))
    history = fit(learner, captures, dataclasses.replace(params, views=params.student_views), lr, seed, method)
    if method == "dvt":
        state = {k: v.contiguous() for k, v in learner.state_dict().items() if not k.startswith("network.")}
        write_atomically(folder / "denoiser.safetensors", lambda path: save_file(state, path))
    else:
        save_backbone(network, folder / "student.safetensors")
    write_atomically(folder / "history.json", lambda path: path.write_text(json.dumps(history)))
    shutil.rmtree(folder / "lifted", ignore_errors=True)
    return folder


def fit(
    learner: nn.Module,
    captures: Sequence[Links],
    params: PretrainParams,
    lr: float,
    seed: int,
    method: str = "fit3d",
) -> list[dict[str, float]]:
    """The loop, in place; {"step", "loss"} every `params.log_every` steps. Draws depend on (seed, step) alone."""
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=params.weight_decay, foreach=True)
    history = []
    learner.train()
    for step in range(params.steps):
        optimizer.param_groups[0]["lr"] = lr * warmup_cosine(step, params.steps, params.warmup)
        batch = draw_batch(captures, params, seed, step).to(device_of(learner))
        if method == "contrast":
            generator = torch.Generator().manual_seed(int(np.random.default_rng([seed, step, 1]).integers(2**62)))
            loss = contrast_loss(learner, batch, params, generator)
        else:
            loss = rival_loss(learner, batch, params.background)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, params.clip)
        optimizer.step()
        if (step + 1) % params.log_every == 0:
            history.append({"step": step + 1, "loss": float(loss.detach())})
    return history


def load_image_network(folder: Path | None, teacher: Path) -> nn.Module:
    """The image network in a folder of `train_rival` or of a trained student, in evaluation mode.

    Args:
        folder: of one seed; None for the frozen network itself.
        teacher: the frozen network's .safetensors, which `dvt` cleans.
    """
    if folder is None:
        return load_backbone(teacher).eval()
    if not (folder / "denoiser.safetensors").is_file():
        return load_backbone(folder / "student.safetensors").eval()
    state = load_file(folder / "denoiser.safetensors")
    network = Denoised(load_backbone(teacher), state["artefact"])
    network.load_state_dict(state, strict=False)
    return network.eval()
