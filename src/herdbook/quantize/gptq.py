"""GPTQ: round column after column, and let the columns still open make up for the error.

With H = X·Xᵀ of a layer's inputs, the error of rounding column k is spread over the later columns by row k of the Cholesky
factor of H⁻¹, which is the best that they can do (Frantar et al. 2022, arXiv:2210.17323, sections 3 and 4). Each group's
grid is fitted when its first column comes up, to the weights as they are then. With `act_order` columns go by the size of
their inputs; then the grids are fitted before anything moves, so that groups stay runs of neighbours.

A row that comes out worse than rounding alone, which no theory excludes, is taken from that.

Shapes: N rows, K columns, B columns of a block, C columns of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from herdbook.model.quantized import Form, Quantized
from herdbook.quantize.grid import Grid, fitted, nearest, quantized, written_out

BLOCK = 128  # columns whose later neighbours are updated at once
MOST_DAMPING = 10.0


def gptq(weight_NK: Tensor, gram_KK: Tensor, form: Form, *, damping: float = 0.01, act_order: bool = False) -> Quantized:
    """A matrix in few bits whose outputs on the inputs behind `gram_KK` are as close as GPTQ gets them.

    Args:
        weight_NK: the matrix; computed in float32.
        gram_KK: mean of x·xᵀ over the inputs x, float32.
        damping: share of the mean diagonal that is added to the diagonal; more where H cannot be factored otherwise.
        act_order: see the module.

    Raises UserError as `grid.quantized` does.
    """
    weight_NK, importance_K = weight_NK.detach().float(), gram_KK.diagonal()
    plain = quantized(weight_NK, form, importance_K)
    order_K = importance_K.argsort(descending=True) if act_order else None
    numbers_NK, scale_NG, least_NG = _columns(weight_NK, gram_KK, form, plain if act_order else None, order_K, damping)
    found = Quantized(form.bits, numbers_NK.to(torch.int8), scale_NG.half(), least_NG.half() if form.affine else None)
    better_N1 = (objective(weight_NK, found, gram_KK) < objective(weight_NK, plain, gram_KK))[:, None]
    least = None if found.least is None or plain.least is None else torch.where(better_N1, found.least, plain.least)
    scale = torch.where(better_N1, found.scale, plain.scale)
    return Quantized(form.bits, torch.where(better_N1, found.numbers, plain.numbers), scale, least)


def objective(weight_NK: Tensor, matrix: Quantized, gram_KK: Tensor) -> Tensor:
    """The mean squared error of each output, (N,): the diagonal of (W − Q)·H·(W − Q)ᵀ."""
    off_NK = weight_NK.float() - matrix.dense()
    return ((off_NK @ gram_KK) * off_NK).sum(1)


def _columns(
    weight_NK: Tensor, gram_KK: Tensor, form: Form, grids: Quantized | None, order_K: Tensor | None, damping: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers (N, K), scales and leasts (N, G), in float32; `grids`: take these, in the order `order_K`."""
    rows, columns = weight_NK.shape
    work_NK, gram = weight_NK.clone(), gram_KK
    if order_K is not None:
        work_NK, gram = work_NK[:, order_K], gram[order_K][:, order_K]
    factor_KK = _inverse_factor(gram, damping)
    numbers_NK = torch.empty_like(work_NK)
    levels = torch.zeros(2, rows, columns // form.group, device=work_NK.device)
    if grids is not None:
        levels[0] = grids.scale.float()
        levels[1] = 0.0 if grids.least is None else grids.least.float()
    group_of = [column // form.group for column in (range(columns) if order_K is None else order_K.tolist())]
    block = form.group * max(1, BLOCK // form.group)
    for start in range(0, columns, block):
        end = min(start + block, columns)
        part_NB, triangle_BB = work_NK[:, start:end], factor_KK[start:end, start:end]
        errors_NB = torch.empty_like(part_NB)
        for at in range(end - start):
            group = group_of[start + at]
            if grids is None and (start + at) % form.group == 0:
                inputs_C = gram.diagonal()[start + at :][: form.group]
                _fit_group(part_NB[:, at : at + form.group], inputs_C, form, levels[:, :, group])
            grid = Grid(levels[0, :, group, None], levels[1, :, group, None] if form.affine else None)
            column_N1 = part_NB[:, at : at + 1]
            number_N1 = nearest(column_N1, grid, form)
            numbers_NK[:, start + at] = number_N1[:, 0]
            error_N1 = (column_N1 - written_out(number_N1, grid)) / triangle_BB[at, at]
            part_NB[:, at:].addmm_(error_N1, triangle_BB[at : at + 1, at:], alpha=-1)
            errors_NB[:, at] = error_N1[:, 0]
        work_NK[:, end:].addmm_(errors_NB, factor_KK[start:end, end:], alpha=-1)
    if order_K is not None:
        numbers_NK = numbers_NK[:, order_K.argsort()]
    return numbers_NK, levels[0], levels[1]


def _fit_group(values_NC: Tensor, importance_C: Tensor, form: Form, levels: Tensor) -> None:
    """Fit the grid of a group to its values as they are now, into `levels` (2, N)."""
    grid = fitted(values_NC.contiguous(), form, (importance_C + 1e-4 * importance_C.mean() + 1e-30).expand_as(values_NC))
    levels[0] = grid.scale[:, 0]
    if grid.least is not None:
        levels[1] = grid.least[:, 0]


def _inverse_factor(gram_KK: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped matrix; columns that no input reached stay by themselves."""
    gram_KK = gram_KK.clone()
    diagonal_K = gram_KK.diagonal()
    mean = diagonal_K.mean().clamp(min=1e-30)
    diagonal_K[diagonal_K == 0] = mean
    while damping <= MOST_DAMPING:
        damped_KK = gram_KK + damping * mean * torch.eye(len(gram_KK), device=gram_KK.device)
        lower_KK, failed = torch.linalg.cholesky_ex(damped_KK)
        if not bool(failed):
            upper_KK: Tensor
            upper_KK, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower_KK), upper=True)
            if not bool(failed) and bool(upper_KK.isfinite().all()):
                return upper_KK
        damping *= 10
    return torch.eye(len(gram_KK), device=gram_KK.device)  # no inputs that tell anything: rounding alone
