"""Inner optimizers: AdamW for everything, or Muon for hidden matrices and AdamW for the rest.

AdamW: Loshchilov and Hutter 2019, arXiv:1711.05101. Muon (muon.py) orthogonalises the momentum of a
matrix; its learning rate has AdamW's scale. Muon inside DiLoCo: Therien et al. 2025, arXiv:2505.23725.
"""

from __future__ import annotations

import torch
from torch import nn

from lowcomm.algorithms.muon import Muon
from lowcomm.errors import ConfigError


def make_inner_optimizers(
    model: nn.Module,
    *,
    name: str,
    lr: float,
    adamw_lr: float,
    muon_momentum: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> list[torch.optim.Optimizer]:
    """The inner optimizers for all trainable parameters of `model`.

    Args:
        model: its `hidden_matrices()`, if it has this method, are Muon's; else the weights
            of all linear layers but the last, which is taken for the output layer.
        name: `adamw`, or `muon`.
        lr: peak learning rate of Muon, or of AdamW if there is no Muon.
        adamw_lr: peak learning rate of AdamW beside Muon.
        weight_decay: decoupled; applied to matrices, not to norms and biases.

    Raises:
        ConfigError: there is no such optimizer, nothing is trainable, or nothing is for Muon.

    Returns:
        Optimizers whose groups keep the peak in `peak_lr`, for `learning_rate.set_lr`.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ConfigError(f"{type(model).__name__}: expected trainable parameters, found none to optimize")
    if name == "adamw":
        optimizers = [_adamw(trainable, lr, betas, weight_decay)]
    elif name == "muon":
        hidden = [p for p in _hidden_matrices(model) if p.requires_grad]
        if not hidden:
            raise ConfigError("shared.inner.name = muon: this model has no hidden matrices; use adamw")
        chosen = {id(parameter) for parameter in hidden}
        rest = [p for p in trainable if id(p) not in chosen]
        muon = Muon(hidden, lr=lr, momentum=muon_momentum, weight_decay=weight_decay)
        optimizers = [muon, *([_adamw(rest, adamw_lr, betas, weight_decay)] if rest else [])]
    else:
        raise ConfigError(f"shared.inner.name: expected adamw or muon, got {name!r}")
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _adamw(
    parameters: list[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=True)


def _hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    chosen = getattr(model, "hidden_matrices", None)
    if chosen is not None:
        matrices: list[nn.Parameter] = chosen()
        return matrices
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    others = [module for module in model.modules() if isinstance(module, nn.Embedding)] + linear[-1:]
    excluded = {id(module.weight) for module in others}  # an embedding may be tied to the output layer
    unique: dict[int, nn.Parameter] = {}  # layers may share a weight, which Muon must see once
    for module in linear[:-1]:
        weight = module.weight
        if isinstance(weight, nn.Parameter) and id(weight) not in excluded:
            unique[id(weight)] = weight
    return list(unique.values())
