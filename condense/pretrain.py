"""Pre-training: one loop for every method, its checkpoints, and the signs of health it logs.

What a step draws depends on (seed, step) alone: a resumed run goes on with the same numbers.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from condense import baselines
from condense.backbone2d import load_backbone
from condense.backbone3d import CHANNELS, save_net3d
from condense.batches import draw_batch
from condense.devices import device_of, open_device
from condense.distributed import rank, share, splits, sum_gradients, wait_for_all
from condense.joint import Terms, losses, total_loss
from condense.links import Links, load_links
from condense.linkset import LinkedCaptures
from condense.losses import effective_rank
from condense.model import Model, lifted_features, new_model, recalibrate, save_model
from condense.muon import Together, by_shape
from condense.params import PretrainParams
from condense.paths import write_atomically
from condense.tuning import merged, prepare

COLLAPSED = 0.25  # a warning is logged when a rank falls below this share of the targets' rank
log = logging.getLogger(__name__)

METHODS: dict[str, Callable[..., Terms]] = {
    "condense": losses,
    "render_rgbd": baselines.render_rgbd,
    "pixel_voxel": baselines.pixel_voxel,
    "distill": baselines.distill,
}


def monitor(matched: dict[str, Tensor]) -> dict[str, float]:
    """Signs of health: effective ranks, and how well rendered cells agree with the other side's of the same place.

    The other side is the student's, or the targets' without a student. `agreement` is the cosine of matched cells
    minus that of all pairs; `match` the share of cells whose nearest rendered cell is their own. Collapsed features
    have rank and agreement near 0.
    """
    signs = {f"rank_{name}": effective_rank(values) for name, values in matched.items()}
    other = matched.get("student", matched.get("target"))
    if other is None or len(other) == 0:
        return signs
    cosine = nn.functional.normalize(other) @ nn.functional.normalize(matched["rendered"]).T
    own = cosine.diagonal()
    match = (cosine.argmax(1) == torch.arange(len(cosine), device=cosine.device)).float().mean()
    return {**signs, "agreement": float(own.mean() - cosine.mean()), "match": float(match)}


def warmup_cosine(step: int, steps: int, warmup: int) -> float:
    """Factor of the learning rate: a linear rise over `warmup` steps, then half a cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def make_optimizer(model: Model, params: PretrainParams) -> Together:
    """Muon for the 3D network's kernels and matrices, AdamW for its vectors and the student.

    Its 400 steps are far from where training ends, and with Muon it gets further in them: on VAL captures, linear
    probes of parts 18.8 against 16.6 % mIoU (one seed). Batch norms of a pre-trained student are not trained.
    """
    own = [*model.net3d.parameters(), *([] if model.decoder is None else model.decoder.parameters())]
    student = {"params": [p for p in model.student.parameters() if p.requires_grad], "lr": params.student_lr}
    together = by_shape(own, params.net3d_lr, params.weight_decay, [student])
    for group in together.param_groups:
        group["base"] = group["lr"]
    return together


def train_step(
    model: Model,
    optimizer: Together,
    captures: Sequence[Links],
    params: PretrainParams,
    seed: int,
    step: int,
    method: str = "condense",
) -> Terms:
    """One step of gradient descent in place; returns what the method's losses return."""
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * warmup_cosine(step, params.steps, params.warmup)
    batch = draw_batch(captures, params, seed, step).to(device_of(model.net3d))
    generator = torch.Generator().manual_seed(int(np.random.default_rng([seed, step, 1]).integers(2**62)))
    terms, matched = METHODS[method](model, batch, params, generator)
    optimizer.zero_grad(set_to_none=True)
    total_loss(terms, params).backward()
    sum_gradients([*model.student.parameters()], splits(len(batch.images)))
    sum_gradients([*model.net3d.parameters()], splits(len(batch.captures)))
    nn.utils.clip_grad_norm_(model.student.parameters(), params.clip)
    nn.utils.clip_grad_norm_(model.net3d.parameters(), params.clip)
    optimizer.step()
    return {name: term.detach() for name, term in terms.items()}, matched


def pretrain_seed(
    folder: Path,
    links: Sequence[Path],
    teacher: Path,
    params: PretrainParams,
    seed: int,
    method: str = "condense",
    stop: int | None = None,
) -> Path:
    """Trains one seed; picks up its newest checkpoint. One job of `parallel_map`.

    Called by every process of a process group, it is trained by all together (see `distributed`).

    Args:
        folder: of this seed. Gets `net3d.safetensors`, with "condense" `student.safetensors` (each with a .json),
            `history.json` and, meanwhile, checkpoints.
        links: files of the captures to train on; only their training views are read.
        teacher: the frozen network's .safetensors.
        params: the settings.
        seed: of the 3D network's initial weights and of all draws.
        method: a key of METHODS.
        stop: end after so many steps, leaving a checkpoint (for tests); None trains to the end.

    Returns:
        `folder`.
    """
    wait_for_all()
    if (folder / "history.json").is_file():
        return folder
    captures = LinkedCaptures(shared_out(links, params.share, seed))
    network = load_backbone(teacher)
    decoder = baselines.make_decoder(network.dim, seed) if method == "render_rgbd" else None
    model = new_model(network, seed, decoder, params.channels).to(open_device(params.device))
    prepare(model.student, params, seed)
    optimizer = make_optimizer(model, params)
    step, history = load_checkpoint(folder, model, optimizer)
    captures = with_targets(captures, folder, model, step, params)
    while step < params.steps and step != stop:
        model.train()
        terms, matched = train_step(model, optimizer, captures, params, seed, step, method)
        step += 1
        if step % generation_length(params) == 0 and step < params.steps:
            captures = with_targets(captures, folder, model, step, params)
        if step % params.log_every == 0 or step == params.steps:
            row = {"step": step, **{name: float(term) for name, term in terms.items()}, **monitor(matched)}
            history.append(row)
            _warn_of_collapse(row, f"{method}, seed {seed}")
        if (step % params.checkpoint_every == 0 or step == stop) and rank() == 0:
            save_checkpoint(folder, model, optimizer, step, history)
    if step == params.steps and rank() == 0:
        model.student = merged(model.student).cpu()
        recalibrate(model.net3d, (capture.scene for capture in captures), params.captures)
        save_model(folder, model) if method == "condense" else save_net3d(model.net3d, folder)
        write_atomically(folder / "history.json", lambda path: path.write_text(json.dumps(history, indent=1)))
        for path in folder.glob("step_*"):
            path.unlink()
        for path in folder.glob("lifted_*"):
            shutil.rmtree(path)
    wait_for_all()
    return folder


def shared_out(links: Sequence[Path], share: float, seed: int) -> list[Path]:
    """A share of the captures, drawn by `seed`, in their order; at least one."""
    if share >= 1:
        return list(links)
    drawn = np.random.default_rng([seed, 2]).permutation(len(links))[: max(1, round(share * len(links)))]
    return [links[i] for i in sorted(drawn)]


def generation_length(params: PretrainParams) -> int:
    """Steps after which the targets are lifted anew: training is cut into `params.generations` equal parts."""
    return -(-params.steps // params.generations)


def with_targets(
    captures: LinkedCaptures, folder: Path, model: Model, step: int, params: PretrainParams
) -> LinkedCaptures:
    """The captures with the targets of the generation that `step` belongs to.

    The first generation learns from the teacher's lifted features, each later one from the student's, lifted where
    it begins. Those are kept in files, so that a resumed run finds them; each process lifts its share.
    """
    generation = step // generation_length(params)
    if generation == 0:
        return captures
    lifted = folder / f"lifted_{generation}"
    own = share(len(captures))
    for place in range(own.start, own.stop):
        path = lifted / f"{place}.safetensors"
        if not path.is_file():
            target = {"lifted": lifted_features(model.student, captures[place])}
            write_atomically(path, partial(save_file, target))
    wait_for_all()
    return LinkedCaptures(captures.paths, lifted)


def scratch_seed(
    folder: Path,
    links: Sequence[Path],
    teacher: Path,
    seed: int,
    channels: Sequence[int] = CHANNELS,
    size: int = 12,
) -> Path:
    """The model before training in the same form: the lower reference of every probe.

    Args:
        folder: gets the two networks.
        links: files of the captures whose scenes set the batch-norm statistics, as after training.
        teacher: the frozen network's .safetensors.
        seed: of the 3D network's initial weights, the same as `pretrain_seed`'s,
        channels: and its widths likewise.
        size: scenes in a batch.
    """
    model = new_model(load_backbone(teacher), seed, channels=channels)
    recalibrate(model.net3d, (load_links(path, ()).scene for path in links), size)
    save_model(folder, model)
    return folder


def _warn_of_collapse(row: dict[str, float], run: str) -> None:
    for name in ("student", "rendered"):
        rank = row.get(f"rank_{name}", np.inf)
        if rank < COLLAPSED * row.get("rank_target", 0.0):
            log.warning("%s, step %d: %s features collapse (rank %.1f)", run, row["step"], name, rank)


def save_checkpoint(
    folder: Path, model: Model, optimizer: Together | torch.optim.Optimizer, step: int, history: list[dict[str, float]]
) -> None:
    """Writes weights and optimiser state after `step` steps; the sidecar comes last and completes it."""
    path = folder / f"step_{step:06d}.safetensors"
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in state.items()}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(contiguous, temporary))
    sidecar = json.dumps({"step": step, "history": history})
    write_atomically(path.with_suffix(".json"), lambda temporary: temporary.write_text(sidecar))
    for old in folder.glob("step_*"):
        if old.stem < path.stem:
            old.unlink()


def load_checkpoint(
    folder: Path, model: Model, optimizer: Together | torch.optim.Optimizer
) -> tuple[int, list[dict[str, float]]]:
    """Restores the newest complete checkpoint in place; (0, []) where there is none."""
    sidecars = sorted(folder.glob("step_*.json"))
    if not sidecars:
        return 0, []
    tensors = load_file(sidecars[-1].with_suffix(".safetensors"))
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            number, name = rest.split(".")
            state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    sidecar = json.loads(sidecars[-1].read_text())
    return sidecar["step"], sidecar["history"]
