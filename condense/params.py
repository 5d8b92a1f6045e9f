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
    max_side: int = 0  # shrink images so that the longer side has at most so many pixels; 0 keeps them


@dataclass(frozen=True)
class FieldsParams:
    """Fitting one radiance field per capture."""


@dataclass(frozen=True)
class TeacherParams:
    """The frozen image network; the built-in one is pre-trained on its own universe."""

    name: str = "builtin"  # or any transformers model: a hub name or a local folder


@dataclass(frozen=True)
class PretrainParams:
    """Joint 2D-3D pre-training."""


@dataclass(frozen=True)
class Params:
    """Every setting of a run."""

    root: str = "."  # where the notebooks and the package lie, from the run folder
    seed: int = 0
    processes: int = 2  # single-threaded worker processes
    captures: CapturesParams = field(default_factory=CapturesParams)
    fields: FieldsParams = field(default_factory=FieldsParams)
    teacher: TeacherParams = field(default_factory=TeacherParams)
    pretrain: PretrainParams = field(default_factory=PretrainParams)


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
