"""How the student is trained where it is large: in lower precision, in less memory, or only in part."""

from __future__ import annotations

import torch
from torch import nn

from condense.backbone2d import BackboneError, ImageBackbone, precision_of
from condense.params import PretrainParams


def prepare(student: ImageBackbone, params: PretrainParams, seed: int) -> None:
    """Applies `precision`, `recompute`, `tuning` and `lora_rank` of the settings, in place.

    Raises:
        ValueError: a setting has no such value, or the network cannot do it.
        ImportError: "lora" needs the package peft.
    """
    student.precision = precision_of(params.precision)
    if params.recompute:
        student.recompute_activations()
    if params.tuning == "lora":
        _add_corrections(student, params.lora_rank, seed)
    elif params.tuning != "full":
        raise ValueError(f"pretrain: tuning is {params.tuning!r}, not 'full' or 'lora'")


def _add_corrections(student: ImageBackbone, rank: int, seed: int) -> None:
    """W + B A beside each linear layer, B 0 at first (LoRA, Hu et al., ICLR 2022); only A and B are trained."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("pretrain: tuning: lora needs peft: pip install 'condense[scale]'") from error
    linear = [name for name, module in student.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise BackboneError("pretrain: the student has no linear layers for tuning: lora; set tuning: full")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=linear), student)


def merged(student: ImageBackbone) -> ImageBackbone:
    """The network with its low-rank corrections added to its weights, in place: then it is as it was in form."""
    for name, module in list(student.named_modules()):
        if hasattr(module, "get_base_layer") and hasattr(module, "merge"):  # of peft
            module.merge()
            student.set_submodule(name, module.get_base_layer())
    return student
