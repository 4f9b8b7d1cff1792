"""Muon for the matrices of the blocks, and AdamW for everything else, as one optimiser with one state.

Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") moves a matrix by its momentum with
all singular values brought near 1, so that every direction of the matrix learns at the same pace:

    m <- 0.95 m + 0.05 g                                      momentum of the gradient g
    u  = 0.05 g + 0.95 m                                      Nesterov's look ahead
    W <- W - lr 0.2 sqrt(max(rows, columns)) orthogonal(u)

The factor 0.2 sqrt(max(rows, columns)) makes a step as large as one of AdamW (Liu et al. 2025, "Muon is Scalable for
LLM Training", section 2.2). `torch.optim.Muon` computes the same for one matrix per weight. A weight of DiT may hold
several matrices, such as query, key and value, each of which is brought to its own singular values. Matrices of one
shape are computed together, as many small products would take long, and are divided among the processes.

A matrix n x k with k >= 2n iterates on its Gram matrix n x n. With r = k / n this takes (4 r + 14) n^3 multiply-adds
instead of (10 r + 5) n^3, two thirds for the feed-forward, where r = 4.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..precision import fast_dtype
from .processes.shards import cut_part, local_part, make_whole

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.775, 2.0315)  # of the polynomial a x + b x^3 + c x^5 that is applied to singular values
NUM_ITERATIONS = 5
# Wide matrices iterate on their small Gram matrix, which is taken anew after three iterations: rounding grows in each,
# and five in a row would ruin matrices with small singular values in bfloat16.
ITERATIONS_ON_GRAM = (3, 2)
SMALLEST_NORM = 1e-7  # a matrix of zeros stays one


def orthogonalize(matrices: Tensor) -> Tensor:
    """Bring the singular values of matrices near 1 by Newton-Schulz iterations, in the precision of the matrices.

    The result is U p(S) V^T for a matrix U S V^T, with S scaled to norm 1 and p five times the polynomial of
    `COEFFICIENTS`. Most singular values end between 0.7 and 1.2; those that are nearly 0 stay below.

    Args:
        matrices: Matrices of one shape; (M, rows, columns).

    Returns:
        Tensor of the same shape.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices  # (M, n, k), n <= k
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(SMALLEST_NORM)  # (M, n, k)
    if x.shape[-1] < 2 * x.shape[-2]:
        for _ in range(NUM_ITERATIONS):
            x = torch.baddbmm(x, _polynomial(x @ x.mT), x, beta=COEFFICIENTS[0])  # a x + (b A + c A^2) x
    else:
        for count in ITERATIONS_ON_GRAM:
            x = _composed(x @ x.mT, count) @ x  # (M, n, k)
    return x.mT if is_tall else x


def _polynomial(gram: Tensor) -> Tensor:
    """Return b A + c A^2 for A = x x^T."""
    _, b, c = COEFFICIENTS
    return torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # (M, n, n)


def _composed(gram: Tensor, count: int) -> Tensor:
    """Return the matrix Q that brings x to the result of several iterations, Q x.

    Each multiplies x by P = a I + b A + c A^2, and thus A = x x^T by P^2, as they commute.

    Args:
        gram: Gram matrices x x^T; (M, n, n).
        count: Number of iterations.
    """
    composed = None
    for left in reversed(range(count)):
        factor = _polynomial(gram)  # (M, n, n)
        factor.diagonal(dim1=-2, dim2=-1).add_(COEFFICIENTS[0])
        composed = factor if composed is None else factor @ composed
        if left:
            gram = factor @ (factor @ gram)
    assert composed is not None
    return composed


def orthogonalize_together(matrices: Tensor) -> Tensor:
    """Return `orthogonalize(matrices)`, of which each process computes a share. Every process has to call this.

    Args:
        matrices: Matrices of one shape, the same on every process; (M, rows, columns).
    """
    count = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if count == 1:
        return orthogonalize(matrices)
    share = math.ceil(len(matrices) / count)
    padded = nn.functional.pad(matrices, (0, 0, 0, 0, 0, share * count - len(matrices)))
    whole = torch.empty_like(padded)
    dist.all_gather_into_tensor(whole, orthogonalize(padded.chunk(count)[dist.get_rank()]).contiguous())
    return whole[: len(matrices)]


def block_matrices(model: Any) -> dict[str, int]:
    """Return which weights of a `DiTModel` are matrices for Muon: those of attention and feed-forward in its blocks.

    Args:
        model: A `DiTModel`.

    Returns:
        Names of the model's parameters, each with the number of matrices that stand in it below each other.
    """
    found = {}
    for index, block in enumerate(model.blocks):
        for layer_name in block.layers(model.config):
            layer = getattr(block, layer_name)
            for name, module in layer.named_modules():
                if isinstance(module, nn.Linear) and module.weight.requires_grad:
                    found[f"blocks.{index}.{layer_name}.{name}.weight"] = layer.stacked_matrices.get(name, 1)
    return found


class Muon(torch.optim.Optimizer):
    """Muon for some weights and AdamW for others, whose parameters are the first group.

    Args:
        others: Parameters that AdamW trains.
        matrices: Weights that Muon trains, by the number of matrices of one shape that stand in each below each other.
        learning_rate: Learning rate of AdamW.
        muon_learning_rate: Learning rate of Muon.
        betas: Decays of AdamW's two moments.
        weight_decay: Weight decay of both, each with its own learning rate.
        dtype: Precision of Muon's iterations; that of `fast_dtype` if None.
    """

    def __init__(
        self,
        others: Sequence[nn.Parameter],
        matrices: Mapping[int, Sequence[nn.Parameter]],
        *,
        learning_rate: float,
        muon_learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.dtype = dtype
        self.adamw = torch.optim.AdamW(others, lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True)
        groups = [{"params": list(weights), "stacked": count} for count, weights in matrices.items()]
        defaults = {"lr": muon_learning_rate, "weight_decay": weight_decay}
        super().__init__([*self.adamw.param_groups, *groups], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of both optimisers."""
        # Loading a state and FSDP2 replace these objects, so that AdamW gets those of today.
        self.adamw.state, self.adamw.param_groups = self.state, self.param_groups[:1]
        loss = self.adamw.step(closure)
        for group in self.param_groups[1:]:
            self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        by_shape = defaultdict(list)
        for weight in group["params"]:
            if weight.grad is not None:
                by_shape[weight.shape].append(weight)
        for (rows, columns), weights in by_shape.items():
            dtype = self.dtype or fast_dtype(weights[0].device)
            height = rows // group["stacked"]
            moves = torch.stack([make_whole(each, local_part(self._look_ahead(each)).to(dtype)) for each in weights])
            moves = orthogonalize_together(moves.view(-1, height, columns)).reshape(-1, rows, columns)
            step = group["lr"] * 0.2 * math.sqrt(max(height, columns))
            for weight, move in zip(weights, moves, strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                local_part(weight).add_(cut_part(weight, move), alpha=-step)

    def _look_ahead(self, weight: Tensor) -> Tensor:
        """Update the momentum of a weight, and return Nesterov's mean of gradient and momentum."""
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(state["momentum_buffer"], MOMENTUM)
