"""Muon (Jordan et al., 2024): momentum, orthogonalised by a Newton-Schulz iteration."""

import torch
from torch import Tensor

# Coefficients of the reference implementation: five iterations bring singular values near 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(g: Tensor, iterations: int = 5) -> Tensor:
    """[n, rows, cols] -> roughly the nearest semi-orthogonal matrix of each, in bf16."""
    a, b, c = COEFFICIENTS
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """For matrices; matrices of one shape are orthogonalised together as a batch."""

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                gradients = [p.grad for p in params]
                velocities = [
                    self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in params
                ]
                torch._foreach_lerp_(velocities, gradients, 1 - group["momentum"])
                updates = torch._foreach_lerp(gradients, velocities, group["momentum"])
                directions = orthogonalise(torch.stack(updates)).to(params[0].dtype).unbind()
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, directions, alpha=-scale)
