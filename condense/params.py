"""The settings of a run: one frozen dataclass per stage, read from `params.yaml`; unknown keys are refused."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import yaml


@dataclass(frozen=True)
class CapturesParams:
    """Which captures a run reads."""

    folder: str = "data"  # relative to the run's folder, or absolute
    per_class: int = 0  # keep only so many instances of each class and split; 0 keeps all
    classes: int = 0  # keep only so many classes of objects, of rooms, and of held-out objects; 0 keeps all


@dataclass(frozen=True)
class FieldsParams:
    """Fitting one radiance field per capture."""

    resolutions: tuple[int, ...] = (32, 64)  # voxels along the longest side, coarse to fine
    steps: tuple[int, ...] = (25, 50)  # gradient steps at each resolution
    pixels: int = 4000  # pixels in a step
    march: float = 1.0  # distance between samples along a ray, in voxels
    subrays: int = 2  # rays along each side of a pixel at the edge of a mask
    harmonics: int = 1  # spherical-harmonic coefficients of a colour: 1, 4 or 9
    density_lr: float = 0.5
    colour_lr: float = 0.1
    density_tv: float = 0.001  # smoothness of density and of colour
    colour_tv: float = 0.003
    opacity: float = 0.1  # weight of the mask against colour
    space: str = "auto"  # without masks: "contracted" (auto) or "bounded"
    reach: float = 1.0  # size of the kept ball, in distances from the cameras to what they look at
    max_side: int = 0  # shrink images so that the longer side has at most so many pixels; 0 keeps them


@dataclass(frozen=True)
class FieldsByKind:
    """Settings of the fields, by kind of capture."""

    object: FieldsParams = field(default_factory=FieldsParams)
    room: FieldsParams = field(default_factory=FieldsParams)
    photographs: FieldsParams = field(default_factory=FieldsParams)
    cutouts: FieldsParams = field(default_factory=FieldsParams)  # other captures that have masks
    device: str = "cpu"  # that they are fitted on; or "cuda"


@dataclass(frozen=True)
class LinksParams:
    """Linking views and voxels."""

    resolution: int = 32  # voxels along the longest side of a scene
    keep: float = 0.985  # voxels beyond this share of what training views see, least seen last, are dropped
    max_side: int = 0  # shrink images for the 2D network likewise; 0 keeps them
    device: str = "cpu"  # of the frozen network and of the ray operators' making
    precision: str = "float32"  # of the frozen network's matrix products; or "bfloat16"


@dataclass(frozen=True)
class TeacherParams:
    """The frozen image network; the built-in one is pre-trained on its own universe."""

    name: str = "builtin"  # or any transformers model: a hub name or a local folder
    layer: int = 0  # which hidden state of a transformers model to use; 0 is its last
    scenes: int = 1200  # of the universe, ...
    views: int = 3  # ... rendered so often each, ...
    rooms: float = 0.2  # ... this share of them rooms
    steps: int = 1800
    batch: int = 8  # scenes a step, two views of each
    lr: float = 2e-3  # highest; of Muon for the attention blocks, of AdamW for the rest
    weight_decay: float = 0.05
    average: float = 0.99  # of the weights, a step
    match_weight: float = 0.1  # of the cross-view term; 0 leaves it out
    strong_colour: float = 0.2  # share of the images whose colours are mixed beyond naming
    device: str = "cpu"
    log_every: int = 20
    checkpoint_every: int = 300


@dataclass(frozen=True)
class PretrainParams:
    """Joint 2D-3D pre-training."""

    seeds: int = 3
    steps: int = 400
    warmup: int = 30  # steps over which the learning rates rise; then they fall along a cosine
    share: float = 1.0  # of the training captures that are used
    captures: int = 6  # a step, at most
    voxels: int = 10_000  # a step, at most: a room is as large as several objects
    views: int = 3  # of each capture that the 3D network is rendered into
    student_views: int = 1  # of those, seen by the student
    cells: int = 1024  # rows contrasted with each other, in each contrastive term
    consistency: str = "contrast"  # or "cosine"
    link: str = "render"  # between cells and voxels; or "nearest", the one voxel a cell sees most of
    lifted: bool = True  # targets are the teacher's features lifted from all views, else those of each view
    generations: int = 2  # above 1, targets are lifted anew from the student's features, so often in all
    temperature: float = 0.1
    drop_above: float = 0.6  # teacher cosine above which a negative is taken for a false one
    seen_at_least: float = 0.01  # voxels that weigh less in all training views have no target
    cells_weight: float = 1.0
    voxels_weight: float = 1.0
    agree_weight: float = 0.1
    views_weight: float = 0.3
    prior_weight: float = 0.3
    colour_weight: float = 1.0  # of the baseline that renders colour and depth
    depth_weight: float = 1.0
    background: float = 0.25  # weight of cells behind the capture in the prior term
    detach_render: bool = False  # keep the agreement's gradient out of the 3D network
    net3d_lr: float = 2e-2  # of Muon for matrices and kernels, of AdamW for vectors
    student_lr: float = 1e-3
    weight_decay: float = 0.01
    clip: float = 1.0  # largest norm of each network's gradient
    any_angle: float = 0.3  # share of scenes turned by any angle; the others by quarter turns
    recolour: float = 0.2  # strength of colour augmentation of voxels
    recolour_images: float = 0.2  # and of images
    hide_colour: float = 0.3  # share of scenes in a step with some voxels' colour hidden
    channels: tuple[int, ...] = (32, 48, 64, 96)  # of the 3D network's levels, finest first
    tuning: str = "full"  # of the student: all weights, or "lora": low-rank corrections of its linear layers
    lora_rank: int = 16
    device: str = "cpu"
    precision: str = "float32"  # of the student's matrix products; or "bfloat16". The 3D network's are float32
    recompute: bool = False  # the student's activations going backward, to save memory (gradient checkpointing)
    log_every: int = 10
    checkpoint_every: int = 200


@dataclass(frozen=True)
class BaselineParams:
    """What another way of pre-training has of its own; all else is as in `PretrainParams`."""

    net3d_lr: float = 2e-2
    temperature: float = 0.1
    hide_colour: float = 0.3


@dataclass(frozen=True)
class BaselinesParams:
    """The other ways of pre-training, in `baselines.py`."""

    render_rgbd: BaselineParams = field(default_factory=BaselineParams)
    pixel_voxel: BaselineParams = field(default_factory=BaselineParams)
    distill: BaselineParams = field(default_factory=BaselineParams)


@dataclass(frozen=True)
class AblationParams:
    """Variants of joint training, each trained so long and so often."""

    seeds: int = 1
    steps: int = 60


@dataclass(frozen=True)
class Rivals2dParams:
    """The image network's rivals, in `rivals2d.py`; all else is as in `PretrainParams`."""

    fit3d_lr: float = 1e-3
    contrast_lr: float = 1e-3
    dvt_lr: float = 1e-3


@dataclass(frozen=True)
class Features2dParams:
    """Measuring image features."""

    views: int = 3  # of each training capture that probes learn from
    cells: int = 16_000  # that one probe is fitted on, at most


@dataclass(frozen=True)
class SparseParams:
    """Key-point training, from the pre-trained networks on; one run for each of their seeds."""

    steps: int = 600
    warmup: int = 30
    captures: int = 6  # a step
    views: int = 4  # of a capture, at least 2
    voxels: int = 2_500  # of the captures whose scenes the 3D network sees, twice, at most
    samples: int = 96  # voxels of a capture
    temperature: float = 0.07
    match_weight: float = 4.0
    reliable_weight: float = 0.2
    distinct_weight: float = 0.2
    follow_weight: float = 1.0
    lift_weight: float = 0.2
    dense_weight: float = 0.1
    cells: int = 512  # rows contrasted in the dense terms, as in `PretrainParams`
    dense_temperature: float = 0.1
    drop_above: float = 0.6
    seen_at_least: float = 0.01
    head_lr: float = 2e-3
    net3d_lr: float = 1e-3
    student_lr: float = 2e-3  # 0 leaves the image network as it is
    weight_decay: float = 0.01
    clip: float = 1.0
    any_angle: float = 0.5  # share of copies turned by any angle; the others by quarter turns
    crop: float = 0.5  # share of second copies that are cropped
    recolour: float = 0.2  # strength of colour augmentation of scenes, and
    recolour_strong: float = 1.0  # in a share
    repaint: float = 0.2  # of them
    hide_colour: float = 0.2  # share of scenes whose colour is hidden
    light: float = 0.25  # how much brighter or darker a view gets, as a whole and towards its border
    white_balance: float = 0.1  # how much of a colour it gets
    replace_background: float = 0.5  # share of views with masks that get another background
    device: str = "cpu"
    log_every: int = 10
    checkpoint_every: int = 100


@dataclass(frozen=True)
class VariantsParams:
    """Test captures that are captured again, and whose near-duplicates are; of built-in captures only."""

    per_class: int = 2  # objects of each class
    rooms: int = 4
    classes: int = 0  # of objects, the first so many; 0 takes all


@dataclass(frozen=True)
class KeypointsParams:
    """Measuring key points."""

    captures: int = 0  # test captures, evenly taken; 0 takes all
    aliked: str = ""  # file of ALIKED's weights, which needs kornia; "" leaves it out


@dataclass(frozen=True)
class ScenesParams:
    """Asking a repository of scenes."""

    distractors: int = 160  # training captures in it, at most
    views: int = 2  # photographs of a capture that ask
    resolution: int = 64  # voxels along the longest side of a scene that is rendered


@dataclass(frozen=True)
class ClassificationParams:
    """Fine-tuning for classification."""

    finetune_steps: int = 50
    finetune_batch: int = 4  # captures a step
    finetune_lr: float = 3e-3


@dataclass(frozen=True)
class SegmentationParams:
    """Probes and fine-tuning for part and semantic segmentation."""

    voxels: int = 16_000  # that one probe is fitted on, at most
    part_steps: int = 40
    part_batch: int = 8  # objects a step
    semantic_steps: int = 30
    semantic_batch: int = 2  # rooms a step: a room is as large as seven objects
    lr: float = 3e-2  # of fine-tuning


@dataclass(frozen=True)
class LanguageParams:
    """Learning the map from captions."""

    steps: int = 200
    batch: int = 48  # captures a step
    lr: float = 4e-3  # highest; rises for a tenth of the steps, then falls along a cosine
    weight_decay: float = 0.1
    dropout: float = 0.2  # of sentence vectors, of scenes' features, and of what is made of them
    word_weight: float = 0.5  # of single words, which captions have them, against whole captions
    centres: int = 24  # that stand for all voxels, or cells, of a capture


@dataclass(frozen=True)
class Params:
    """Every setting of a run."""

    root: str = "."  # where the notebooks and the package lie, from the run folder
    seed: int = 0
    processes: int = 2  # single-threaded worker processes
    device: str = "cpu"  # of the networks that benchmarks apply and fine-tune; or "cuda"
    captures: CapturesParams = field(default_factory=CapturesParams)
    fields: FieldsByKind = field(default_factory=FieldsByKind)
    links: LinksParams = field(default_factory=LinksParams)
    teacher: TeacherParams = field(default_factory=TeacherParams)
    pretrain: PretrainParams = field(default_factory=PretrainParams)
    baselines: BaselinesParams = field(default_factory=BaselinesParams)
    ablations: AblationParams = field(default_factory=AblationParams)
    rivals2d: Rivals2dParams = field(default_factory=Rivals2dParams)
    features2d: Features2dParams = field(default_factory=Features2dParams)
    sparse: SparseParams = field(default_factory=SparseParams)
    variants: VariantsParams = field(default_factory=VariantsParams)
    keypoints: KeypointsParams = field(default_factory=KeypointsParams)
    scenes: ScenesParams = field(default_factory=ScenesParams)
    classification: ClassificationParams = field(default_factory=ClassificationParams)
    segmentation: SegmentationParams = field(default_factory=SegmentationParams)
    language: LanguageParams = field(default_factory=LanguageParams)


def parse(cls: Any, values: dict[str, Any], where: str) -> Any:
    """An instance of dataclass `cls` from a nested dict.

    Raises:
        ValueError: an unknown key (the nearest known one is named) or a value of the wrong type.
    """
    hints = get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(hints)}"
            raise ValueError(f"{where}: unknown key '{key}'{hint}")
        wanted = hints[key]
        if dataclasses.is_dataclass(wanted):
            value = parse(wanted, value or {}, f"{where}: {key}")
        elif wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        elif str(wanted).startswith("tuple"):
            value = tuple(value)
        elif isinstance(wanted, type) and type(value) is not wanted:
            raise ValueError(f"{where}: '{key}' is {value!r}, not {wanted.__name__}")
        arguments[key] = value
    return cls(**arguments)


def merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `override`, nested dicts merged key by key."""
    merged = dict(base)
    for key, value in override.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def load_params(path: Path) -> Params:
    """The settings in a YAML file.

    Raises:
        ValueError: a key is unknown or a value has the wrong type.
    """
    return parse(Params, yaml.safe_load(path.read_text()) or {}, str(path))
