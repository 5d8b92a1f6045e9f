"""Volume rendering of voxel features as a sparse matrix.

With the density frozen, rendering is linear in the features: F_r = sum_v A[r, v] F_v with

    A[r, v] = sum_i w_i b_v(x_i),   w_i = T_i (1 - exp(-density_i delta_i)),

where b_v are the trilinear weights at sample i, normalised over the voxels present. A is built once per view.
Rendering is then one sparse product, its gradient another one with the transpose. A row that stands for a cell
of a feature map is the mean of the rows of the rays through that cell. Rows sum to the opacity seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from condense.cameras import Cameras
from condense.raymarch import Samples, render_weights, sample_rays, trilinear
from condense.voxels import VoxelScene, index_volume

_DENSE = 2**22  # entries of the dense block in which a few rows at a time are added up


@dataclass(frozen=True, eq=False)
class RayOperator:
    """A sparse matrix [rows, voxels] in compressed sparse rows.

    Args:
        crow: [rows + 1] int32, where each row starts in `col` and `value`.
        col: [entries] int32, voxels; ascending in each row.
        value: [entries] float.
        voxels: number of columns.
    """

    crow: Tensor
    col: Tensor
    value: Tensor
    voxels: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and voxels."""
        return len(self.crow) - 1, self.voxels

    @property
    def row(self) -> Tensor:
        """[entries] int64, the row of each entry."""
        rows = torch.arange(self.shape[0], device=self.crow.device)
        return torch.repeat_interleave(rows, self.crow.diff(), output_size=len(self.col))

    @cached_property
    def transpose(self) -> RayOperator:
        """The matrix [voxels, rows]; worked out once, then kept."""
        order = torch.argsort(self.col, stable=True)
        counts = torch.bincount(self.col, minlength=self.voxels)
        col = self.row[order].int()
        transposed = RayOperator(_starts(counts), col, self.value[order], self.shape[0])
        transposed.__dict__["transpose"] = self
        return transposed

    @property
    def opacity(self) -> Tensor:
        """[rows] sum of each row: the share of light that the voxels stop."""
        return self.value.new_zeros(self.shape[0]).index_add_(0, self.row, self.value)

    def render(self, features: Tensor) -> Tensor:
        """Volume-renders features [voxels, C] into rows [rows, C]; differentiable in the features only.

        Raises:
            ValueError: the features are not those of the operator's voxels.
        """
        if features.ndim != 2 or len(features) != self.voxels:
            raise ValueError(f"features have shape {tuple(features.shape)}, not ({self.voxels}, C)")
        return _Product.apply(features, self)

    def lift(self, values: Tensor) -> Tensor:
        """Carries values [rows, C] back to the voxels: the transposed product [voxels, C]; differentiable."""
        return self.transpose.render(values)

    def lift_mean(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of the values [rows, C] that see each voxel, weighted by how much they see of it.

        Returns:
            the means [voxels, C], 0 where nothing sees the voxel, and the weights' sums [voxels].
        """
        weight = self.transpose.opacity
        return self.lift(values) / weight.clamp_min(torch.finfo(weight.dtype).tiny)[:, None], weight

    def dense(self) -> Tensor:
        """The matrix [rows, voxels] as a dense tensor."""
        out = self.value.new_zeros(self.shape)
        return out.index_put_((self.row, self.col.long()), self.value, accumulate=True)

    def to(self, target: Any) -> RayOperator:
        """The same operator on another device."""
        return RayOperator(self.crow.to(target), self.col.to(target), self.value.to(target), self.voxels)


class _Product(torch.autograd.Function):
    """A @ x. An embedding bag is the fastest sparse product on CPU (2.5 times MKL's) and sums in a fixed order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, operator: RayOperator) -> Tensor:
        ctx.operator = operator
        if not len(operator.col):
            return x.new_zeros(operator.shape[0], x.shape[1])
        value = operator.value.to(x)
        return torch.nn.functional.embedding_bag(
            operator.col, x, operator.crow, mode="sum", per_sample_weights=value, include_last_offset=True
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Product.apply(grads[0].contiguous(), ctx.operator.transpose), None


def _starts(counts: Tensor) -> Tensor:
    """[n + 1] int32 row starts from [n] entries per row."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()


def build_operator(
    scene: VoxelScene,
    cameras: Cameras,
    view: int,
    height: int,
    width: int,
    subrays: int = 2,
    step: float = 0.5,
    keep: float = 0.999,
) -> RayOperator:
    """The operator that renders a scene's voxels into a `height` x `width` grid of cells laid over one view.

    Args:
        scene: the voxels; its density is frozen here.
        cameras: in the scene's capture units.
        view: which camera.
        height: cells down the image.
        width: cells across the image; rows are in row-major order.
        subrays: rays across and down each cell; a row is their mean.
        step: distance between samples, in voxels.
        keep: see `pruned`.

    Raises:
        ValueError: no cells or sub-rays asked for.
    """
    if min(height, width, subrays) < 1:
        raise ValueError(f"need at least one cell and ray, not {height} x {width} cells of {subrays} rays across")
    rays = [
        # one cell after the other, so that samples come sorted by row
        r.to(scene.density).reshape(height, subrays, width, subrays, 3).transpose(1, 2).reshape(-1, 3)
        for r in cameras.grid_rays(view, height * subrays, width * subrays)
    ]
    index = index_volume(scene)
    samples = sample_rays(rays[0], rays[1], scene.grid, index >= 0, step)
    operator = _assemble(scene.density, index, samples, height * width, subrays**2)
    return pruned(operator, keep)


@torch.no_grad()
def _assemble(density: Tensor, index: Tensor, samples: Samples, rows: int, rays: int) -> RayOperator:
    """Adds up every sample's corners; `rays` consecutive rays make a row, and each counts equally in it."""
    voxel, corner = trilinear(samples.position, index)  # [S, 8] each
    corner = corner.to(density)
    weight = render_weights((corner * density[voxel]).sum(dim=1), samples) / rays  # [S]
    entry = corner * (weight / corner.sum(dim=1).clamp_min(torch.finfo(density.dtype).tiny))[:, None]
    voxels = len(density)
    key = (samples.ray // rays)[:, None] * voxels + voxel  # [S, 8], of (row, voxel)
    block = max(1, _DENSE // max(voxels, 1)) * voxels  # a few rows at a time
    edges = torch.arange(0, rows * voxels + block, block, device=key.device)
    bounds = torch.searchsorted(key[:, 0] - voxel[:, 0], edges).tolist()
    keys, values = [], []
    for first, (begin, end) in zip(edges.tolist(), pairwise(bounds), strict=False):
        dense = entry.new_zeros(min(block, rows * voxels - first))
        dense.index_add_(0, (key[begin:end] - first).reshape(-1), entry[begin:end].reshape(-1))
        kept = dense.nonzero()[:, 0]
        keys.append(kept + first)
        values.append(dense[kept])
    merged, value = torch.cat(keys), torch.cat(values)
    counts = torch.bincount(merged // voxels, minlength=rows)
    return RayOperator(_starts(counts), (merged % voxels).int(), value, voxels)


def pruned(operator: RayOperator, keep: float) -> RayOperator:
    """Drops the smallest entries of each row, at most a share `1 - keep` of its sum, and rescales the rest.

    Row sums stay. With |features| <= m, a rendered value moves by at most 2 (1 - keep) m times the row's
    opacity: what is dropped, and what the rescaling adds, each carry at most that share of the row.

    Raises:
        ValueError: `keep` is not in (0, 1].
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep is {keep}, not in (0, 1]")
    if keep == 1 or not len(operator.col):
        return operator
    row, total = operator.row, operator.opacity
    share = operator.value.double() / total[row]  # sums to 1 in each row
    order = torch.argsort(row + share / 2)  # by row, then by share
    # Each row before this one adds exactly 1, up to rounding, to the running sum.
    filled = operator.crow.diff() > 0
    before = torch.cumsum(filled, 0) - filled.long()
    running = share[order].cumsum(0) - before[row[order]]
    kept = torch.zeros_like(row, dtype=torch.bool)
    kept[order] = running > 1 - keep
    row, col, value = row[kept], operator.col[kept], operator.value[kept]
    counts = torch.bincount(row, minlength=operator.shape[0])
    slim = RayOperator(_starts(counts), col, value, operator.voxels)
    scale = total / slim.opacity.clamp_min(torch.finfo(value.dtype).tiny)
    return RayOperator(slim.crow, col, value * scale[row], operator.voxels)


def on_columns(operator: RayOperator, kept: Tensor) -> RayOperator:
    """The operator on some of its voxels, `kept` [voxels] bool, in their order.

    What is left of a row is scaled up to the row's sum; a row with nothing left stays empty.
    """
    number = kept.cumsum(0) - 1
    entries = kept[operator.col.long()]
    row, col, value = operator.row[entries], number[operator.col[entries].long()].int(), operator.value[entries]
    counts = torch.bincount(row, minlength=operator.shape[0])
    slim = RayOperator(_starts(counts), col, value, int(kept.sum()))
    scale = operator.opacity / slim.opacity.clamp_min(torch.finfo(value.dtype).tiny)
    return RayOperator(slim.crow, col, value * scale[row], slim.voxels)


def heaviest(operator: RayOperator) -> RayOperator:
    """Each row's largest entry alone, scaled to the row's sum: the one voxel that a ray sees most of.

    What linking a pixel to its voxel gives, in place of rendering. Rows without entries stay without.
    """
    filled = torch.nonzero(operator.crow.diff())[:, 0]
    order = torch.argsort(operator.row - operator.value / operator.value.max().clamp_min(1e-30) / 2, stable=True)
    first = order[operator.crow[filled].long()]  # rows keep their entries' places; the largest now comes first
    counts = (operator.crow.diff() > 0).long()
    return RayOperator(_starts(counts), operator.col[first], operator.opacity[filled], operator.voxels)


def stack_operators(operators: Sequence[RayOperator], block_diagonal: bool = True) -> RayOperator:
    """Operators one below the other.

    Args:
        operators: at least one.
        block_diagonal: set for different scenes, whose voxels are joined in the same order (as `batch_scenes`
            does); not set for several views of one scene.

    Raises:
        ValueError: no operators, or views of one scene that differ in the number of voxels.
    """
    if not operators:
        raise ValueError("need at least one operator to stack")
    if not block_diagonal and len({operator.voxels for operator in operators}) > 1:
        raise ValueError(f"views of one scene must share its voxels, not have {[o.voxels for o in operators]}")
    starts = [0, *accumulate(operator.voxels if block_diagonal else 0 for operator in operators)]
    columns = [operator.col + start for operator, start in zip(operators, starts, strict=False)]
    counts = torch.cat([operator.crow.diff() for operator in operators])
    voxels = starts[-1] if block_diagonal else operators[0].voxels
    return RayOperator(_starts(counts), torch.cat(columns), torch.cat([o.value for o in operators]), voxels)
