"""Next-token cross-entropy over a decoder's hidden states: head and loss in one module, so that they compile as one.

Two ways, with the same result up to rounding:

- Whole: all logits at once. Compiled, they are written out in 16 bits only; the fastest while they fit the memory.
- In chunks: the logits of so many positions at a time, whose gradients are made at once and kept instead of them. They never
  exist whole: a vocabulary of 128K at 4,096 positions takes 1 GB in 16 bits, and 4 GB uncompiled. As in Liger's fused linear
  cross-entropy (arXiv:2410.10989, section 3.2), with torch's products.

torch's own `linear_cross_entropy` takes 2.6 to 4 times as long on CPUs (measured with torch 2.13, vocabularies of 8K and 32K).

Shapes: B batch, T time, D model width, V vocabulary, N positions, C positions of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from herdbook.model.decoder import Decoder
from herdbook.train.parallel.tensor import log_sum_exp

IGNORED = -100  # the target of a position that is not trained on


class HeadLoss(nn.Module):
    """Cross-entropies of hidden states against their target tokens.

    Args:
        z_loss: weight of the squared log of the softmax's sum, which keeps logits from drifting (PaLM, arXiv:2204.02311,
            section 5; Falcon).
        chunk: positions whose logits are made at once; None: all. Where tensor parallelism cuts the vocabulary, all are.
    """

    def __init__(self, z_loss: float = 0.0, chunk: int | None = None) -> None:
        super().__init__()
        self.z_loss, self.chunk = z_loss, chunk
        self.piece = _Piece(z_loss)

    def forward(self, model: Decoder, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """`x` (B, T, D) or (N, D), `targets` (B, T) or (N,) with `IGNORED` where nothing is trained.

        Gives the cross-entropies summed over each row (B,), or of each position (N,), and the sum of z-losses; float32. In
        chunks, what is differentiated has to be their plain sum, or that times a number: gradients are made before it is
        known what else would be done with them. Raises ValueError in the backward otherwise.
        """
        if self.chunk is None or targets.numel() <= self.chunk or isinstance(model.head_weights()[0], DTensor):
            losses_N, z = self._whole(model, x.flatten(0, -2), targets.flatten())
        elif not torch.is_grad_enabled():
            parts = zip(torch.split(x.flatten(0, -2), self.chunk), torch.split(targets.flatten(), self.chunk), strict=True)
            losses, zs = zip(*(self._whole(model, *part) for part in parts), strict=True)
            losses_N, z = torch.cat(losses), torch.stack(zs).sum()
        else:
            x_ND = model.before_head(x).flatten(0, -2)
            losses_N, z = _Chunked.apply(x_ND, targets.flatten(), *model.head_weights(), self.piece, self.chunk)  # type: ignore[no-untyped-call]
        return (losses_N.view(targets.shape).sum(-1) if targets.dim() == 2 else losses_N), z

    def _whole(self, model: Decoder, x_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropies (N,) and the sum of z-losses."""
        logits_NV = model.head(x_ND)
        losses_N = F.cross_entropy(logits_NV, targets_N, reduction="none", ignore_index=IGNORED)
        if not self.z_loss:
            return losses_N, losses_N.new_zeros(())
        return losses_N, self.z_loss * (log_sum_exp(logits_NV).square() * (targets_N != IGNORED)).sum()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile in place; in chunks that is what is done to one of them, or the code would grow with their number."""
        if self.chunk is None:
            super().compile(*args, **kwargs)
        else:
            self.piece.compile(*args, **kwargs)


class _Piece(nn.Module):
    """Losses of the positions of one chunk, and the gradients of their sum."""

    def __init__(self, z_loss: float) -> None:
        super().__init__()
        self.z_loss = z_loss

    def forward(
        self, x_CD: Tensor, targets_C: Tensor, weight_VD: Tensor, bias_V: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """Cross-entropies (C,), sum of z-losses, and gradients of x (C, D), weight (V, D) and bias (V,)."""
        logits_CV = F.linear(x_CD, weight_VD, bias_V).float()
        trained_C = targets_C != IGNORED
        places_C1 = torch.where(trained_C, targets_C, 0)[:, None]
        sums_C = torch.logsumexp(logits_CV, -1)
        losses_C = (sums_C - logits_CV.gather(1, places_C1)[:, 0]) * trained_C
        z = self.z_loss * (sums_C.square() * trained_C).sum()
        weights_C = (1 + 2 * self.z_loss * sums_C) * trained_C
        hits_CV = torch.arange(logits_CV.shape[1], device=x_CD.device) == torch.where(trained_C, targets_C, -1)[:, None]
        grad_CV = (logits_CV - sums_C[:, None]).exp() * weights_C[:, None] - hits_CV.float()
        bias_grad_V = None if bias_V is None else grad_CV.sum(0)
        grad_CV = grad_CV.to(x_CD.dtype)
        return losses_C, z, grad_CV @ weight_VD, grad_CV.mT @ x_CD, bias_grad_V


class _Chunked(torch.autograd.Function):
    """Losses of all positions, chunk by chunk, with their gradients made on the way forward."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, targets_N: Tensor, weight_VD: Tensor, bias_V: Tensor | None, piece: _Piece, chunk: int
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropies (N,) and the sum of z-losses, float32."""
        weight, bias = weight_VD.to(x_ND.dtype), None if bias_V is None else bias_V.to(x_ND.dtype)
        dx_ND, losses, z = torch.empty_like(x_ND), [], x_ND.new_zeros((), dtype=torch.float32)
        dw_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        db_V = None if bias_V is None else torch.zeros_like(bias_V, dtype=torch.float32)
        for start in range(0, len(x_ND), chunk):
            rows = slice(start, start + chunk)
            losses_C, z_C, dx_ND[rows], dw, db = piece(x_ND[rows], targets_N[rows], weight, bias)
            losses.append(losses_C)
            z += z_C
            dw_VD += dw
            if db_V is not None:
                db_V += db
        ctx.save_for_backward(dx_ND, dw_VD, db_V)
        ctx.with_z = piece.z_loss > 0
        ctx.kinds = weight_VD.dtype, None if bias_V is None else bias_V.dtype
        return torch.cat(losses), z

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The kept gradients, times the one number that all losses are multiplied with."""
        (dx_ND, dw_VD, db_V), (losses_N, z) = ctx.saved_tensors, grads
        times = losses_N[0]
        if not bool((losses_N == times).all() & ((z == times) | (not ctx.with_z))):
            raise ValueError("losses made in chunks can be differentiated only as the plain sum of rows and z; set no chunk")
        weight_kind, bias_kind = ctx.kinds
        db = None if db_V is None else (db_V * times).to(bias_kind)
        return (dx_ND * times).to(dx_ND.dtype), None, (dw_VD * times).to(weight_kind), db, None, None


@torch.no_grad()
def sum_loss(model: Decoder, tokens_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> tuple[float, int]:
    """Loss in nats summed over all trained positions, and their number; nothing is learned from it."""
    x_BTD = model.hidden(tokens_BT, documents_BT=documents_BT)
    rows_B, _ = HeadLoss()(model, x_BTD, targets_BT)
    return rows_B.sum().item(), int((targets_BT != IGNORED).sum())
