"""A trained model to use elsewhere: from a folder or the Hugging Face hub, and back.

A folder holds safetensors weights, JSON configurations and a model card (Mitchell et al. 2019), and neither code nor
pickle. The network is used only when a hub name is given, or when asked to push.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.constants import CONFIG_NAME
from torch import Tensor

from condense.devices import device_of
from condense.links import as_batch
from condense.model import voxel_features
from condense.paths import write_atomically
from condense.sparse import SparseModel, load_sparse, save_sparse
from condense.voxels import VoxelScene

CARD = """---
{{ card_data }}
---

# Joint 2D-3D features of pixels, voxels and key points

Two networks with one embedding space, pre-trained as ConDense (ECCV 2024, <{{ paper_url }}>) describes: an image
network and a sparse 3D U-Net whose features agree when rendered along camera rays, and heads that describe and
score key points of both.

- **Input of the image network**: [B, 3, H, W] RGB in [0, 1]; it scales them itself.
- **Input of the 3D network**: occupied voxels with density and colour, +Z up; see `VoxelScene`.
- **Features**: compared after L2 normalisation.

```python
from condense.pretrained import PretrainedModel

model = PretrainedModel.from_pretrained("this folder or its name on the hub")
```

## Training data

{{ data }}

## Measured

{{ metrics }}

## Limits

{{ limits }}
"""


class PretrainedModel(
    SparseModel,
    ModelHubMixin,
    model_card_template=CARD,
    library_name="condense",
    license="apache-2.0",
    tags=["3d", "multi-view", "feature-extraction"],
    paper_url="https://arxiv.org/abs/2408.17027",
):
    """Both networks and their heads, with `from_pretrained`, `save_pretrained` and `push_to_hub`.

    `extraction.condense_scene` and `extraction.detect_image` make key points with it.
    """

    @classmethod
    def from_folder(cls, folder: Path) -> PretrainedModel:
        """The model of a folder that `save_sparse` or `save_pretrained` wrote, in evaluation mode.

        Raises:
            FileNotFoundError: the folder holds no model.
        """
        for part in ("student", "net3d", "heads"):
            if not (folder / f"{part}.safetensors").is_file():
                raise FileNotFoundError(f"{folder} is no trained model: {part}.safetensors is missing")
        loaded = load_sparse(folder)
        model = cls(loaded.dense)
        model.load_state_dict(loaded.state_dict())
        return model.eval()

    @torch.no_grad()
    def image_features(self, image: Tensor) -> Tensor:
        """[D, h, w] dense features of an image [H, W, 3] uint8, on the CPU."""
        features: Tensor = self.dense.student(as_batch([image]).to(device_of(self)))
        return features[0].cpu()

    @torch.no_grad()
    def scene_features(self, scene: VoxelScene) -> Tensor:
        """[N, D] features of a scene's voxels, on the CPU."""
        return voxel_features(self.dense.net3d, [scene])[0]

    def _save_pretrained(self, save_directory: Path) -> None:
        save_sparse(save_directory, self)
        config = json.dumps({"model_type": "condense", "dim": self.dense.student.dim}, indent=1)
        write_atomically(save_directory / CONFIG_NAME, lambda path: path.write_text(config + "\n"))

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **model_kwargs: Any,
    ) -> PretrainedModel:
        if Path(model_id).is_dir():
            return cls.from_folder(Path(model_id))
        folder = snapshot_download(
            model_id,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            allow_patterns=["*.safetensors", "*.json"],
        )
        return cls.from_folder(Path(folder))


def card_metrics(metrics: Mapping[str, Mapping[str, Any]], method: str, names: Mapping[str, str]) -> str:
    """A table of some metrics for a model card, with 95 % intervals, beside every other method's.

    Args:
        metrics: {method: {metric: {"mean", "ci95", "n"}}}, a file of `reports/metrics`.
        method: whose column comes first.
        names: {metric: title}.
    """
    order = [method, *(other for other in metrics if other != method)]
    rows = {
        title: {m: f"{metrics[m][k]['mean']:.3f} ± {metrics[m][k]['ci95'] or 0:.3f}" for m in order if k in metrics[m]}
        for k, title in names.items()
        if k in metrics[method]
    }
    columns = [m for m in order if any(m in row for row in rows.values())]
    table = [[title, *(row.get(m, "") for m in columns)] for title, row in rows.items()]
    lines = [["", *columns], ["---"] * (len(columns) + 1), *table]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


SHOWN = {
    "features2d": (
        "student",
        {"consistency_margin": "consistency margin", "match_at_4px": "match at 4 px"},
    ),
    "classification": (
        "condense",
        {"linear_probe_acc": "3D classes, linear probe", "few_shot_5_acc": "3D classes, 5 labels"},
    ),
    "segmentation": ("condense", {"part_probe_miou": "parts, mIoU", "semantic_probe_miou": "things in rooms, mIoU"}),
    "matching": ("condense", {"recall_at_1": "right scene first", "recall_at_10": "right scene among ten"}),
}
DATA = (
    "Built-in captures, rendered by a seeded generator that is part of the code: single objects of sixteen classes and "
    "furnished rooms, 64 pixels wide. For each a radiance field was fitted and turned into 32 voxels a side."
)
LIMITS = (
    "The networks are small and saw synthetic images alone: they show that the method works, and are no substitute for "
    "networks trained on photographs. Train your own with `make repro CAPTURES=... BACKBONE=...`."
)


def card_of(reports: Path) -> dict[str, str]:
    """What `CARD` says of a model: its data, limits, and those metrics of its run that are there."""

    def read(name: str) -> dict[str, Any]:
        path = reports / "metrics" / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    tables = []
    for name, (method, names) in SHOWN.items():
        metrics = read(name)
        if method in metrics:
            tables.append(card_metrics(metrics, method, names))
    text = "Unseen captures; mean ± 95 % interval.\n\n" + "\n\n".join(tables) if tables else "Not measured."
    captures = read("fields")
    if "builtin" in captures:
        return {"data": DATA, "metrics": text, "limits": LIMITS}
    data = f"Captures: {', '.join(captures)}." if captures else "Not recorded."
    return {"data": data, "metrics": text, "limits": "Few captures were seen; elsewhere the features are untested."}
