"""A capture as one method sees it: some of its voxels, cells of its images, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from condense.colour import with_colour
from condense.links import LinkedView, Links
from condense.model import Model, ensemble, image_features, lifted_features, voxel_features

VOXELS, VIEWS = 400, 3  # seen voxels, and training views, of a capture that are looked at
SEEN = 0.01  # summed weight in training views from which a voxel counts as seen


@dataclass(frozen=True)
class Described:
    """A capture as one method sees it.

    Args:
        name: of the capture; meta: of the capture.
        rows: [N] of its voxels that are looked at.
        voxels: [N, D] their features.
        cells: [M, D] features of foreground cells of training views.
        asked: [Q, D] features of each test view's foreground cells; none of captures that only train or choose.
        colours: [N, 3], [M, 3] and of each test view [Q, 3] the colours of voxels, cells and asked cells.
    """

    name: str
    meta: dict[str, Any]
    rows: Tensor
    voxels: Tensor
    cells: Tensor
    asked: tuple[Tensor, ...]
    colours: tuple[Tensor, Tensor, tuple[Tensor, ...]]

    def unlearned(self) -> Described:
        """The same without any feature: after `coloured`, colours are all there is."""
        voxels, cells, *asked = (values[:, :0] for values in (self.voxels, self.cells, *self.asked))
        return replace(self, voxels=voxels, cells=cells, asked=tuple(asked))

    def coloured(self) -> Described:
        """The same, with the colours beside the features (`with_colour`)."""
        voxels, cells, asked = self.colours
        return replace(
            self,
            voxels=with_colour(self.voxels, voxels),
            cells=with_colour(self.cells, cells),
            asked=tuple(map(with_colour, self.asked, asked)),
        )


def cell_colours(view: LinkedView) -> Tensor:
    """[h w, 3] mean RGB of each cell of a view, in [0, 1]."""
    pixels = view.image.movedim(2, 0)[None].float() / 255
    return adaptive_avg_pool2d(pixels, view.cells)[0].flatten(1).T


@torch.no_grad()
def describe(links: Links, model: Model | None, both: bool = False) -> Described:
    """The features of a capture by a trained model, or the frozen network's, kept in the links, for None.

    Args:
        links: of the capture, with its training views.
        model: the trained model.
        both: whether its student describes voxels as well (`model.ensemble`), as training views show them.
    """
    seen = torch.nonzero(links.seen > SEEN)[:, 0]
    seen = seen if len(seen) else torch.arange(len(links.scene))
    draw = np.random.default_rng(0).permutation(len(seen))[:VOXELS]
    rows = seen[torch.from_numpy(np.sort(draw))]
    train = [view for view in links.views if view.split == "train"][:VIEWS]
    test = [view for view in links.views if view.split == "test"] if links.meta.get("split") == "test" else []
    if model is None:
        voxels, cells = links.lifted[rows], [view.teacher.float() for view in train + test]
    else:
        voxels = voxel_features(model.net3d, [links.scene])[0][rows]
        if both:
            seen_in = tuple(view for view in links.views if view.split == "train")
            voxels = ensemble(voxels, lifted_features(model.student, replace(links, views=seen_in))[rows])
        sizes = [len(view.teacher) for view in train + test]
        cells = list(image_features(model.student, [view.image for view in train + test]).split(sizes))
    views, first = train + test, len(train)
    kept = [part[view.foreground] for part, view in zip(cells, views, strict=True)]
    shown = [cell_colours(view)[view.foreground] for view in views]
    colours = (links.scene.colour[rows], torch.cat(shown[:first]), tuple(shown[first:]))
    return Described(links.name, links.meta, rows, voxels, torch.cat(kept[:first]), tuple(kept[first:]), colours)


def learns(meta: Mapping[str, Any]) -> bool:
    """Whether the map may learn from a capture's captions."""
    return meta.get("split") == "train" and not meta.get("heldout_class") and bool(meta.get("captions"))
