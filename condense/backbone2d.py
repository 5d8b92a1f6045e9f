"""Image networks behind one interface: images [B, 3, H, W] float in [0, 1] -> features [B, dim, h, w].

The h x w feature cells tile the image: cell (i, j) covers rows [i H/h, (i+1) H/h) and columns [j W/w, (j+1) W/w).
A network whose stride does not divide the image sees it resampled to the nearest multiple, so this always holds.
A student is `copy.deepcopy` of its teacher; both are ordinary modules.

`transformers` is imported where it is used: it takes seconds, and the built-in network, which every worker process
loads, needs none of it.
"""

from __future__ import annotations

import abc
import inspect
import json
import math
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from condense.paths import write_atomically

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)  # maps [0, 1] to [-1, 1]


class BackboneError(ValueError):
    """A network's folder or name cannot be used; the message says what to do."""


@dataclass(frozen=True)
class FeatureStatistics:
    """Per-channel mean and standard deviation of a network's features, each [dim]."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, features: Tensor) -> FeatureStatistics:
        """The statistics of features [B, dim, h, w]; a constant channel gets deviation 1e-6."""
        std, mean = torch.std_mean(features.detach().transpose(0, 1).flatten(1), dim=1, correction=0)
        return cls(mean, std.clamp_min(1e-6))


class ImageBackbone(nn.Module, abc.ABC):
    """What every image network here has: `dim` channels, one cell per `stride` pixels, and standardisation.

    Subclasses write `raw_features`. `forward` subtracts `feature_mean` and divides by `feature_std`, which are
    0 and 1 until `standardise` sets them; a student keeps its teacher's. `precision` is that of matrix products and
    convolutions (torch's autocast); weights and what comes out are float32.
    """

    feature_mean: Tensor
    feature_std: Tensor
    precision = torch.float32

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        self.dim, self.stride = dim, stride
        self.register_buffer("feature_mean", torch.zeros(dim))
        self.register_buffer("feature_std", torch.ones(dim))

    @abc.abstractmethod
    def raw_features(self, images: Tensor) -> Tensor:
        """Features before standardisation; H and W are multiples of `stride`."""

    @abc.abstractmethod
    def config(self) -> dict[str, Any]:
        """All that is needed, beside the weights, to build the network again."""

    def recompute_activations(self) -> None:
        """From now on, training keeps few activations and computes the others again going backward.

        Raises:
            BackboneError: the network cannot.
        """
        raise BackboneError(f"{type(self).__name__} cannot recompute its activations; set pretrain: recompute: false")

    def standardise(self, statistics: FeatureStatistics) -> None:
        """Makes features of images with these statistics zero-mean and unit-variance per channel."""
        self.feature_mean.copy_(statistics.mean)
        self.feature_std.copy_(statistics.std)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] float in [0, 1] -> [B, dim, h, w] with h = round(H / stride), at least 1.

        Raises:
            ValueError: the images have another shape or are not floats.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"images are {images.dtype} {tuple(images.shape)}, not float [B, 3, H, W]")
        size = [max(1, round(side / self.stride)) * self.stride for side in images.shape[2:]]
        if size != list(images.shape[2:]):
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        full = self.precision == torch.float32
        with nullcontext() if full else torch.autocast(images.device.type, self.precision):
            features = self.raw_features(images)  # [B, dim, h, w]
        return (features.float() - self.feature_mean[:, None, None]) / self.feature_std[:, None, None]


def precision_of(name: str) -> torch.dtype:
    """The type of a setting "float32" or "bfloat16" (which needs no scaling of the loss, unlike float16).

    Raises:
        ValueError: another name.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in known:
        raise ValueError(f"precision is {name!r}, not one of {', '.join(known)}")
    return known[name]


class Block(nn.Module):
    """Pre-norm transformer block whose position information is a depth-wise convolution (CPVT, Chu et al. 2021).

    With zero padding a convolution tells where the border is, and it works at any grid size.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.position = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w], channels last in memory."""
        B, C, h, w = x.shape
        x = x + self.position(x)
        tokens = x.permute(0, 2, 3, 1).reshape(B, h * w, C)
        qkv = self.qkv(self.norm1(tokens)).reshape(B, h * w, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, hw, C / heads]
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, h * w, C)
        tokens = tokens + self.out(mixed)
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens.reshape(B, h, w, C).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class BuiltinConfig:
    """Sizes of the built-in network."""

    dim: int = 64  # channels of the features
    stem: int = 32  # channels at half resolution; twice that at a quarter
    width: int = 112  # channels of the attention blocks
    blocks: int = 4
    heads: int = 4


class BuiltinBackbone(ImageBackbone):
    """The built-in network: a convolution stem, attention blocks at stride 8, features at stride 4.

    Attention on a quarter of the cells costs a quarter; the stem's own stride-4 map joins the upsampled result,
    so the features keep their detail. 64 x 64 pixels -> 16 x 16 x 64.

    Args:
        sizes: see `BuiltinConfig`.
        seed: of the initial weights.
    """

    def __init__(self, sizes: BuiltinConfig | None = None, seed: int = 0) -> None:
        sizes = sizes or BuiltinConfig()
        super().__init__(sizes.dim, 4)
        self.sizes = sizes
        fine = 2 * sizes.stem
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = nn.Sequential(
                nn.Conv2d(3, sizes.stem, 3, stride=2, padding=1),
                nn.GELU(),
                nn.Conv2d(sizes.stem, fine, 3, stride=2, padding=1),
                nn.GELU(),
                nn.Conv2d(fine, fine, 3, padding=1),
            )
            self.down = nn.Conv2d(fine, sizes.width, 2, stride=2)
            self.blocks = nn.Sequential(*(Block(sizes.width, sizes.heads) for _ in range(sizes.blocks)))
            self.norm = nn.LayerNorm(sizes.width)
            self.skip = nn.Conv2d(fine, sizes.dim, 1)
            self.up = nn.Conv2d(sizes.width, sizes.dim, 1)
            self.head = nn.Sequential(nn.GELU(), nn.Conv2d(sizes.dim, sizes.dim, 3, padding=1))
            for kernel in self.parameters():
                if kernel.ndim == 4 and kernel.shape[1] > 1:  # torch's default would fade layer by layer
                    nn.init.kaiming_normal_(kernel, nonlinearity="relu")
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def config(self) -> dict[str, Any]:
        """Kind and sizes."""
        return {"kind": "builtin", "sizes": asdict(self.sizes)}

    def raw_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim, H/4, W/4]."""
        images = ((images - 0.5) * 4).contiguous(memory_format=torch.channels_last)
        fine = self.stem(images)  # [B, 2 stem, H/4, W/4]
        h, w = fine.shape[2:]
        coarse = self.blocks(self.down(F.gelu(F.pad(fine, (0, w % 2, 0, h % 2)))))  # [B, width, H/8, W/8]
        coarse = self.up(self.norm(coarse.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        coarse = F.interpolate(coarse, scale_factor=2, mode="bilinear")[:, :, :h, :w]
        mixed = self.skip(F.gelu(fine)) + coarse
        return mixed + self.head(mixed)


class TransformersBackbone(ImageBackbone):
    """A vision network of `transformers`: a ViT (DINOv2, ...) or a CNN (MobileNetV2, ResNet, ...).

    From a ViT's tokens only the patch tokens are kept (class and register tokens come first); its position
    embedding is interpolated to the image. Batch norms stay in evaluation mode even in a network being trained:
    batches of a few views of one object have no use as population statistics.

    Args:
        model: the network.
        layer: which of its hidden states to return; None: the last (after a ViT's final norm).
        mean: subtracted from the images, per channel.
        std: divides them after that.
        source: where the weights came from, kept for the record.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: int | None = None,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        source: str = "",
    ) -> None:
        config: Any = model.config
        self.patch = getattr(config, "patch_size", None)
        with torch.no_grad():
            side = self.patch * 4 if self.patch else 256
            arguments = _forward_arguments(model)
            output = model.eval()(torch.zeros(1, 3, side, side), output_hidden_states=True, **arguments)
        states = output.hidden_states
        if layer is not None and not -len(states) <= layer < len(states):
            raise BackboneError(f"{source or 'the network'} has hidden states 0 to {len(states) - 1}, not {layer}")
        last = output.last_hidden_state if layer is None else states[layer]
        if self.patch:
            super().__init__(last.shape[-1], self.patch)
        else:
            super().__init__(last.shape[1], math.ceil(side / last.shape[-1]))
        self.model, self.layer, self.source = model, layer, source
        self.mean, self.std = tuple(mean), tuple(std)
        self._drop_unused_layers()
        self.train()

    @classmethod
    def from_pretrained(cls, name: str, layer: int | None = None) -> TransformersBackbone:
        """The network of a local folder, or of the Hugging Face hub (only then is the network used).

        Args:
            name: a folder in Hugging Face form (config.json, model.safetensors), or a hub name `owner/model`.
            layer: see the class.

        Raises:
            BackboneError: no such folder, a file of it is missing, or only pickled weights exist.
        """
        local = Path(name).expanduser()
        is_folder = local.is_dir()
        if is_folder:
            _check_folder(local)
        elif name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise BackboneError(f"{name}: no such folder; give a folder with config.json and model.safetensors")
        where = str(local) if is_folder else name
        from transformers import AutoModel

        try:
            model = AutoModel.from_pretrained(where, local_files_only=is_folder, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise BackboneError(f"{where}: cannot be loaded as a vision network: {error}") from error
        scaling = _normalisation(where, is_folder, model.config.model_type)
        return cls(model, layer, *scaling, source=local.name if is_folder else name)

    def config(self) -> dict[str, Any]:
        """The model's own configuration, the layer, and how images are scaled."""
        model: Any = self.model
        keep = {"layer": self.layer, "mean": self.mean, "std": self.std, "source": self.source}
        return {"kind": "transformers", "model": model.config.to_diff_dict(), **keep}

    def train(self, mode: bool = True) -> TransformersBackbone:
        """Training mode for everything but batch norms."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def recompute_activations(self) -> None:
        """See the class it extends."""
        model: Any = self.model
        if not model.supports_gradient_checkpointing:
            super().recompute_activations()
        model.gradient_checkpointing_enable({"use_reentrant": False})

    def raw_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim, H / stride, W / stride]."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        wanted = self.layer is not None
        images = (images - mean) / std
        output = self.model(images, output_hidden_states=wanted, **_forward_arguments(self.model))
        last = output.hidden_states[self.layer] if wanted else output.last_hidden_state
        if not self.patch:
            return last
        h, w = (side // self.patch for side in images.shape[2:])
        tokens = last[:, last.shape[1] - h * w :]  # class and register tokens come first
        return tokens.transpose(1, 2).reshape(len(images), self.dim, h, w)

    def _drop_unused_layers(self) -> None:
        """MobileNetV2 above the wanted hidden state: not run, not trained, not stored."""
        model: Any = self.model
        if model.config.model_type == "mobilenet_v2" and self.layer is not None:
            self.layer %= len(model.layer)
            model.layer = model.layer[: self.layer + 1]
            model.conv_1x1 = nn.Identity()


def _forward_arguments(model: nn.Module) -> dict[str, bool]:
    """Some ViTs interpolate their position embedding only when asked."""
    asked = "interpolate_pos_encoding"
    return {asked: True} if asked in inspect.signature(model.forward).parameters else {}


def _check_folder(folder: Path) -> None:
    """Raises BackboneError unless the folder holds a configuration and safetensors weights."""
    if not (folder / "config.json").is_file():
        raise BackboneError(f"{folder}: config.json is missing; give a model's folder in Hugging Face form")
    if not any((folder / f"model.safetensors{ending}").is_file() for ending in ("", ".index.json")):
        pickled = " (pickled weights are not read)" if list(folder.glob("*.bin")) else ""
        remedy = "save the model with model.save_pretrained(FOLDER)"
        raise BackboneError(f"{folder}: model.safetensors is missing{pickled}; {remedy}")


def _normalisation(where: str, is_folder: bool, kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation from the model's preprocessor configuration; without one, what its family uses."""
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        settings, _ = BaseImageProcessor.get_image_processor_dict(where, local_files_only=is_folder)
    except (OSError, ValueError):
        settings = {}
    default = (HALF, HALF) if kind.startswith("mobilenet") else (IMAGENET_MEAN, IMAGENET_STD)
    if not settings.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return tuple(settings.get("image_mean", default[0])), tuple(settings.get("image_std", default[1]))


def save_backbone(backbone: ImageBackbone, path: Path) -> None:
    """Writes `path` (.safetensors) and, beside it, a .json with the network's configuration."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary))
    sidecar = json.dumps({**backbone.config(), "dim": backbone.dim, "stride": backbone.stride}, indent=1)
    write_atomically(path.with_suffix(".json"), lambda temporary: temporary.write_text(sidecar + "\n"))


def load_backbone(path: Path) -> ImageBackbone:
    """The network that `save_backbone` wrote to `path`; its statistics included. Reads no other file.

    Raises:
        BackboneError: one of the two files is missing, or they do not belong together.
    """
    for file in (path, path.with_suffix(".json")):
        if not file.is_file():
            raise BackboneError(f"{file} is missing; write it with save_backbone(network, {path.name!r})")
    config = json.loads(path.with_suffix(".json").read_text())
    backbone: ImageBackbone
    if config["kind"] == "builtin":
        backbone = BuiltinBackbone(BuiltinConfig(**config["sizes"]))
    else:
        from transformers import AutoConfig, AutoModel

        settings = dict(config["model"])
        with torch.random.fork_rng(devices=[]):  # the initial weights are thrown away
            model = AutoModel.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
        backbone = TransformersBackbone(model, config["layer"], config["mean"], config["std"], config["source"])
    try:
        backbone.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise BackboneError(f"{path} does not fit {path.with_suffix('.json').name}: {error}") from error
    return backbone


def open_backbone(name: str, layer: int | None = None) -> ImageBackbone:
    """A network by file (one of `save_backbone`), by local folder, or by hub name."""
    if name.endswith(".safetensors"):
        return load_backbone(Path(name))
    return TransformersBackbone.from_pretrained(name, layer)
