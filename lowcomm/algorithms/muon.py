"""Muon: the momentum of a matrix, orthogonalised by five Newton-Schulz iterations.

Jordan et al. 2024, kellerjordan.github.io/posts/muon; `match_rms_adamw`: Liu et al. 2025, arXiv:2502.16982.

    M = momentum * M + (1 - momentum) * G,    U = (1 - momentum) * G + momentum * M,    X = U / |U|
    5 times: X = a X + (b A + c A A) X,  A = X X^T
    W = (1 - lr * weight_decay) * W - lr * 0.2 * sqrt(max(rows, columns)) * X

`torch.optim.Muon` multiplies in bfloat16 everywhere. On CPUs without instructions for it (those without
AVX-512) that takes some 50 times as long as fp32, and most of a small model's inner step. So the same update
is made in fp32 on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` with `match_rms_adamw`; Newton-Schulz in fp32 on the CPU, in bfloat16 elsewhere."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step for all parameters with a gradient; returns what `closure`, if given, returns."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient, momentum = parameter.grad, group["momentum"]
                if gradient is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(gradient)
                mean = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
                update = orthogonalised(
                    gradient.lerp(mean, momentum), group["ns_coefficients"], group["ns_steps"], group["eps"]
                )
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * 0.2 * max(parameter.shape) ** 0.5)
        return loss


def orthogonalised(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, least_norm: float
) -> Tensor:
    """About U V^T of the singular value decomposition U S V^T of `matrix`, (rows, columns).

    Its singular values are within some 0.5 .. 1.5; fp32 on the CPU, bfloat16 elsewhere.
    """
    a, b, c = coefficients
    x = matrix.float() if matrix.device.type == "cpu" else matrix.bfloat16()
    x = x.T if matrix.size(0) > matrix.size(1) else x
    x = x / x.norm().clamp(min=least_norm)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.size(0) > matrix.size(1) else x
