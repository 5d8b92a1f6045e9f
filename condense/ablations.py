"""Variants of joint training, each with one thing changed."""

from __future__ import annotations

import dataclasses
from typing import Any

from condense.params import PretrainParams

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "no student": {"agree_weight": 0.0, "views_weight": 0.0, "prior_weight": 0.0},
    "raw targets": {"lifted": False, "voxels_weight": 0.0},
    "one generation": {"generations": 1},
    "render detached": {"detach_render": True},
    "no views term": {"views_weight": 0.0},
    "no prior": {"views_weight": 0.0, "prior_weight": 0.0},
    "cosine, no prior": {"consistency": "cosine", "views_weight": 0.0, "prior_weight": 0.0},
    "cosine of 2D and 3D alone": {
        **{"consistency": "cosine", "views_weight": 0.0, "prior_weight": 0.0, "agree_weight": 1.0},
        **{"cells_weight": 0.0, "voxels_weight": 0.0},
    },
    "nearest voxel": {"link": "nearest"},
    "one view": {"views": 1},
    "half the captures": {"share": 0.5},
    "a quarter of the captures": {"share": 0.25},
}

LOOP = ("no student", "one generation")  # ways to leave the loop open


def variant(params: PretrainParams, name: str, steps: int = 0) -> PretrainParams:
    """The settings of a variant, trained for `steps`, or as long as `params` says.

    Raises:
        KeyError: no such variant.
    """
    return dataclasses.replace(params, steps=steps or params.steps, **VARIANTS[name])
