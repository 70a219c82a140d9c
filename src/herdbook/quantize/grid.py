"""The nearest number, and the grid of each group that makes it nearest.

A grid is a scale and, in affine kinds, a least value, both as float16 holds them. The plainest spans the group's values from
end to end. A group with a few outliers is served better by one that cuts them off: so several spans are tried, each is moved
by least squares to where its own numbers want it, and the one with the least squared error stays, weighed by how large the
inputs of each column are where that is known (AWQ's search for a clip, Lin et al. 2023, arXiv:2306.00978, section 4.1, with the
least squares of llama.cpp's quantisers).

Shapes: N rows, K columns, G groups of a row, C columns of a group, R = N·G groups in all.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from herdbook.errors import UserError
from herdbook.model.quantized import Form, Quantized

LARGEST = 65_504.0  # of float16
AT_ONCE = 1 << 18  # values searched at a time: they stay in the processor's cache
# Shares of the span that are cut off, below and above. Eight bits have numbers to spare.
_CUTS = tuple((low / 100, high / 100) for low, high in (
    (0, 0), (3, 3), (6, 6), (10, 10), (15, 15), (5, 0), (0, 5), (10, 0), (0, 10), (20, 0), (0, 20), (-2, -2),
))  # fmt: skip
_SHRINKS = {4: (1.0, 1.07, 0.93, 0.86, 0.79, 0.72, 0.65), 8: (1.0, 0.97)}


class Grid(NamedTuple):
    """Scales and leasts of groups, float16 values, (R, 1) each; no leasts: symmetric."""

    scale: Tensor
    least: Tensor | None


def quantized(weight_NK: Tensor, form: Form, importance_K: Tensor | None = None, *, search: bool = True) -> Quantized:
    """A matrix in few bits, each weight at the number nearest to it.

    Args:
        weight_NK: any floating type; computed in float32.
        importance_K: how much an error in each column weighs: the mean square of its inputs. None: all alike.
        search: look for the best grid; otherwise it spans each group's values.

    Raises UserError for weights that are no numbers, or too large for a scale in float16; ValueError when groups do not
    divide the rows.
    """
    rows, columns = weight_NK.shape
    if columns % form.group:
        raise ValueError(f"{columns} columns do not divide into groups of {form.group}")
    groups = columns // form.group
    values_RC = weight_NK.detach().float().reshape(-1, form.group)
    numbers_RC = torch.empty(values_RC.shape, dtype=torch.int8, device=values_RC.device)
    levels = torch.empty(2, values_RC.shape[0], 1, dtype=torch.float16, device=values_RC.device)
    weights_GC = None if importance_K is None else _importance(importance_K, form.group)
    step = max(1, AT_ONCE // columns) * groups  # whole rows
    for start in range(0, values_RC.shape[0], step):
        part = slice(start, start + step)
        x_RC = values_RC[part]
        w_RC = None if weights_GC is None else weights_GC.repeat(x_RC.shape[0] // groups, 1)
        grid = fitted(x_RC, form, w_RC, search=search)
        numbers_RC[part] = nearest(x_RC, grid, form)
        levels[0, part] = grid.scale.half()
        if grid.least is not None:
            levels[1, part] = grid.least.half()
    scale_NG, least_NG = levels.view(2, rows, groups).clone().unbind()
    return Quantized(form.bits, numbers_RC.view(rows, columns), scale_NG, least_NG if form.affine else None)


def _importance(importance_K: Tensor, group: int) -> Tensor:
    """(G, C), positive: a column that no input of the sample reached still counts a little."""
    importance_K = importance_K.float()
    return (importance_K + 1e-4 * importance_K.mean() + 1e-30).view(-1, group)


def limits(form: Form) -> tuple[int, int]:
    """The lowest and highest number."""
    if form.affine and form.bits == 4:
        return 0, 15
    return (-8, 7) if form.bits == 4 else (-128 if form.affine else -127, 127)


def nearest(x_RC: Tensor, grid: Grid, form: Form) -> Tensor:
    """The numbers nearest to values, in float32."""
    shifted = x_RC if grid.least is None else x_RC - grid.least
    inverse = torch.where(grid.scale == 0, 0.0, 1 / grid.scale)
    return (shifted * inverse).round_().clamp_(*limits(form))


def written_out(numbers_RC: Tensor, grid: Grid) -> Tensor:
    """The values of numbers, float32."""
    values = numbers_RC * grid.scale
    return values if grid.least is None else values + grid.least


def fitted(x_RC: Tensor, form: Form, w_RC: Tensor | None = None, *, search: bool = True) -> Grid:
    """The grid of each group of values; arguments as for `quantized`."""
    if not bool(x_RC.abs().amax() <= LARGEST):  # written so that it is true of what is no number
        raise UserError("the weights hold values that are too large to be quantised, infinite or no numbers",
                        todo="the model is broken, or wants bfloat16")  # fmt: skip
    spans = _affine_spans(x_RC, form) if form.affine else _symmetric_spans(x_RC, form)
    best = spans[0]
    if not search:
        return best
    error_R1 = _error(x_RC, best, form, w_RC)
    for span in spans:
        moved = _moved(x_RC, nearest(x_RC, span, form), span, w_RC)
        for tried in (span, moved):
            found_R1 = _error(x_RC, tried, form, w_RC)
            better_R1 = found_R1 < error_R1
            error_R1 = torch.where(better_R1, found_R1, error_R1)
            least = None if best.least is None or tried.least is None else torch.where(better_R1, tried.least, best.least)
            best = Grid(torch.where(better_R1, tried.scale, best.scale), least)
    return best


def _symmetric_spans(x_RC: Tensor, form: Form) -> list[Grid]:
    """The value farthest from zero goes to the end of the numbers: at 4 bits to -8, one farther than 7, as in Q4_0, or to 7."""
    farthest_R1 = x_RC.gather(1, x_RC.abs().argmax(1, keepdim=True))
    ends = (-8, 7) if form.bits == 4 else (127,)
    return [Grid(_half(share * farthest_R1 / end), None) for end in ends for share in _SHRINKS[form.bits]]


def _affine_spans(x_RC: Tensor, form: Form) -> list[Grid]:
    low_R1, high_R1 = torch.aminmax(x_RC, dim=1, keepdim=True)
    span_R1, (first, last) = high_R1 - low_R1, limits(form)
    grids = []
    for low, high in _CUTS if form.bits == 4 else _CUTS[:1]:
        scale_R1 = _half(span_R1 * (1 - low - high) / (last - first))
        grids.append(Grid(scale_R1, _half(low_R1 + low * span_R1 - first * scale_R1)))
    return grids


def _moved(x_RC: Tensor, numbers_RC: Tensor, grid: Grid, w_RC: Tensor | None) -> Grid:
    """The scale (and least) that fit these numbers best, by weighed least squares; where none does, the grid as it was."""
    weighed_RC = numbers_RC if w_RC is None else numbers_RC * w_RC
    squares_R1, products_R1 = (weighed_RC * numbers_RC).sum(1, True), (weighed_RC * x_RC).sum(1, True)
    if grid.least is None:
        return Grid(_half(torch.where(squares_R1 > 0, products_R1 / squares_R1, grid.scale)), None)
    ones_R1 = numbers_RC.shape[1] * torch.ones_like(squares_R1) if w_RC is None else w_RC.sum(1, True)
    sums_R1, values_R1 = weighed_RC.sum(1, True), (x_RC if w_RC is None else x_RC * w_RC).sum(1, True)
    spread_R1 = ones_R1 * squares_R1 - sums_R1.square()
    solvable_R1 = spread_R1 > 1e-6 * ones_R1 * squares_R1
    scale_R1 = torch.where(solvable_R1, (ones_R1 * products_R1 - sums_R1 * values_R1) / spread_R1, grid.scale)
    return Grid(_half(scale_R1), _half(torch.where(solvable_R1, (values_R1 - sums_R1 * scale_R1) / ones_R1, grid.least)))


def _error(x_RC: Tensor, grid: Grid, form: Form, w_RC: Tensor | None) -> Tensor:
    """The squared error of each group, (R, 1)."""
    off_RC = written_out(nearest(x_RC, grid, form), grid).sub_(x_RC).square_()
    return (off_RC if w_RC is None else off_RC.mul_(w_RC)).sum(1, True)


def _half(values: Tensor) -> Tensor:
    """Rounded to float16, in float32."""
    return values.clamp(-LARGEST, LARGEST).half().float()
