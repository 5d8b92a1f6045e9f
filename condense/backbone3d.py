"""The 3D branch: a sparse U-Net on voxels (submanifold sparse convolution, Graham et al., CVPR 2018)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from condense.distributed import BatchNorm
from condense.paths import write_atomically
from condense.spconv_cpu import algorithm, load_spconv

CHANNELS = (32, 48, 64, 96)  # of the levels, finest first


class ResidualBlock(nn.Module):
    """x + BN(conv(relu(BN(conv(x))))), then relu; 3x3x3 submanifold convolutions at one level of the U-Net."""

    def __init__(self, channels: int, level: int) -> None:
        super().__init__()
        spconv = load_spconv()
        options = {"bias": False, "indice_key": f"level{level}", "algo": algorithm()}
        self.conv1 = spconv.SubMConv3d(channels, channels, 3, padding=1, **options)
        self.norm1 = BatchNorm(channels)
        self.conv2 = spconv.SubMConv3d(channels, channels, 3, padding=1, **options)
        self.norm2 = BatchNorm(channels)

    def forward(self, x):
        """Sparse tensor to sparse tensor, same voxels and channels."""
        hidden = self.conv1(x)
        hidden = self.conv2(hidden.replace_feature(torch.relu(self.norm1(hidden.features))))
        return x.replace_feature(torch.relu(x.features + self.norm2(hidden.features)))


class Resample(nn.Module):
    """Convolution of 2x2x2 cells into one (`down`), or its inverse back onto the voxels it came from; norm, relu."""

    def __init__(self, inputs: int, outputs: int, level: int, down: bool) -> None:
        super().__init__()
        spconv = load_spconv()
        options = {"bias": False, "indice_key": f"down{level}", "algo": algorithm()}
        if down:
            self.conv = spconv.SparseConv3d(inputs, outputs, 2, stride=2, **options)
        else:
            self.conv = spconv.SparseInverseConv3d(inputs, outputs, 2, **options)
        self.norm = BatchNorm(outputs)

    def forward(self, x):
        """Sparse tensor to sparse tensor one level down or up."""
        x = self.conv(x)
        return x.replace_feature(torch.relu(self.norm(x.features)))


class SparseUNet(nn.Module):
    """A U-Net on sparse voxels: one residual block a level on the way down and up.

    At the finest level, where most of the time goes, the way down has the stem alone, as in Minkowski networks (Choy
    et al., CVPR 2019): a block there takes a seventh of a training step, and features are no better for it. Each level
    halves the resolution (2x2x2 convolutions, stride 2); the inverse convolution returns to exactly the voxels of the
    level above, where the skip is added. All convolutions are without bias and followed by batch norm; the head is
    linear. Level-wise rule books (which voxel meets which weight) are built once a forward pass and shared; they take
    about 3 % of a training step on CPU, so they are not kept between steps.

    Args:
        in_channels: values per input voxel.
        channels: width of each level, finest first.
        out_channels: length of the features.
        seed: of the initial weights.
    """

    def __init__(
        self, in_channels: int = 7, channels: Sequence[int] = CHANNELS, out_channels: int = 64, seed: int = 0
    ) -> None:
        super().__init__()
        spconv = load_spconv()
        self.channels = tuple(channels)
        self.out_channels = out_channels
        levels = range(len(self.channels))
        self.stem = spconv.SubMConv3d(
            in_channels, channels[0], 3, padding=1, bias=False, indice_key="level0", algo=algorithm()
        )
        self.stem_norm = BatchNorm(channels[0])
        self.encoder = nn.ModuleList(ResidualBlock(channels[level], level) for level in levels[1:])
        self.down = nn.ModuleList(Resample(channels[i], channels[i + 1], i, down=True) for i in levels[:-1])
        self.up = nn.ModuleList(Resample(channels[i + 1], channels[i], i, down=False) for i in levels[:-1])
        self.decoder = nn.ModuleList(ResidualBlock(channels[level], level) for level in levels[:-1])
        self.head = nn.Linear(channels[0], out_channels)
        self._initialise(seed)

    def _initialise(self, seed: int) -> None:
        """He-normal weights from a generator of our own, so that they do not hang on the global one."""
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.ndim > 1:  # [out, ..., in], spconv's layout and Linear's
                fan_in = parameter[0].numel()
                nn.init.normal_(parameter, std=(2 / fan_in) ** 0.5, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, coords: Tensor, features: Tensor, shape: Sequence[int], scenes: int) -> Tensor:
        """Features of every voxel.

        Args:
            coords: [N, 4] int32, the scene's place in the batch first; not differentiable.
            features: [N, in_channels] float.
            shape: voxels along x, y, z.
            scenes: number of scenes in the batch.

        Returns:
            [N, out_channels], rows in the order of the input; not normalised.

        Raises:
            ValueError: no voxels, or shapes that do not match.
        """
        return self.with_lowest(coords, features, shape, scenes)[0]

    def with_lowest(
        self, coords: Tensor, features: Tensor, shape: Sequence[int], scenes: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What `forward` returns, and the lowest level's features.

        Returns:
            [N, out_channels] as of `forward`; [M, channels[-1]], one row a cell of the lowest level, not
            negative; [M] int64, the scene of each, of no particular order.
        """
        if len(coords) == 0 or coords.shape != (len(features), 4):
            raise ValueError(
                f"the U-Net needs at least one voxel, coords [N, 4] and features [N, C]; "
                f"got {tuple(coords.shape)} and {tuple(features.shape)}"
            )
        # A grid that is no multiple of the lowest level's cell would lose its last voxels on the way down.
        cell = 2 ** (len(self.channels) - 1)
        whole = [-(-side // cell) * cell for side in shape]
        # spconv reads coords as if contiguous; the transposed result of nonzero() would be misread in silence.
        x = load_spconv().SparseConvTensor(features, coords.contiguous(), whole, scenes)
        x = self.stem(x)
        x = x.replace_feature(torch.relu(self.stem_norm(x.features)))
        skips = []
        for down, block in zip(self.down, self.encoder, strict=True):
            skips.append(x)
            x = block(down(x))
        lowest, scene = x.features, x.indices[:, 0].long()
        for level in reversed(range(len(self.up))):
            x = self.up[level](x)
            x = self.decoder[level](x.replace_feature(x.features + skips[level].features))
        return self.head(x.features), lowest, scene


@torch.no_grad()
def recalibrate_batch_norm(model: nn.Module, batches: Iterable[tuple]) -> None:
    """Sets the running statistics of every batch norm to their averages over `batches`, in place.

    After few training steps the running averages lag behind the weights and evaluation reads as chance. Each
    batch is a tuple of arguments of `model`. The model is left in evaluation mode.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    model.train()
    for batch in batches:
        model(*batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def save_net3d(net3d: SparseUNet, folder: Path) -> None:
    """Writes `net3d.safetensors` and `net3d.json` into a folder."""
    tensors = {name: tensor.contiguous() for name, tensor in net3d.state_dict().items()}
    write_atomically(folder / "net3d.safetensors", lambda path: save_file(tensors, path))
    config = json.dumps({"channels": net3d.channels, "out_channels": net3d.out_channels})
    write_atomically(folder / "net3d.json", lambda path: path.write_text(config))


def load_net3d(folder: Path) -> SparseUNet:
    """Reads what `save_net3d` wrote, in evaluation mode."""
    net3d = SparseUNet(**json.loads((folder / "net3d.json").read_text()))
    net3d.load_state_dict(load_file(folder / "net3d.safetensors"))
    return net3d.eval()
