"""What each process of `test_distributed` runs: one gradient, and a seed trained; it may be killed once."""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import condense.pretrain as pretrain
from condense.backbone2d import load_backbone
from condense.distributed import rank
from condense.launch import process_group
from condense.links import load_links
from condense.model import new_model
from condense.params import PretrainParams, parse


def first_gradient(links: list[Path], teacher: Path, params: PretrainParams) -> dict[str, torch.Tensor]:
    """The gradients of the first step, as the optimiser would get them."""
    model = new_model(load_backbone(teacher), 0).train()
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    still.param_groups[0]["base"] = 0.0
    pretrain.train_step(model, still, [load_links(path) for path in links], params, 0, 0)
    return {name: value.grad.contiguous() for name, value in model.named_parameters()}


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    params = parse(PretrainParams, job["params"], "job.json")
    step = pretrain.train_step

    def deadly(model, optimizer, captures, params, seed, number, method="condense"):
        marker = folder / "killed"
        if number == job.get("killed_at") and rank() == 1 and not marker.exists():
            marker.touch()
            os._exit(9)
        return step(model, optimizer, captures, params, seed, number, method)

    pretrain.train_step = deadly
    links, teacher = [Path(path) for path in job["links"]], Path(job["teacher"])
    with process_group():
        gradient = first_gradient(links, teacher, params)
        if rank() == 0:
            save_file(gradient, folder / "gradient.safetensors")
        pretrain.pretrain_seed(folder / "seed_0", links, teacher, params, 0, job.get("method", "condense"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
