"""Attention with ALiBi, by the paths there are: a bias in memory, columns in the dot product, FlexAttention.

    python benchmarks/attention.py [--quick] [--device cuda]

The limit is causal attention without any bias by the same fused kernel; each path is shown as a share of its speed. Where a
path does not run (FlexAttention has no backward on CPU) it is reported as absent.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness import arguments, finish, in_turns, table
from herdbook.model import attention as ours

SHAPES = ((4, 8, 1024, 64), (1, 8, 2048, 64), (16, 6, 256, 32))  # batch, heads, tokens, head width


def make(batch: int, heads: int, tokens: int, width: int, device: str) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
    """Random 16-bit queries, keys and values that want gradients; slopes; positions."""
    generator = torch.Generator(device).manual_seed(0)
    made = [torch.randn(batch, heads, tokens, width, device=device, generator=generator).bfloat16() for _ in range(3)]
    q, k, v = (x.requires_grad_() for x in made)
    return (q, k, v), ours.alibi_slopes(heads).to(device), torch.arange(tokens, device=device)[None]


def paths(qkv: tuple[Tensor, Tensor, Tensor], slopes: Tensor, places: Tensor, device: str) -> dict[str, Callable[[], Tensor]]:
    """Every way to compute it, and the limit."""
    width = qkv[0].shape[-1]
    bias = ours.with_alibi(ours.Sight(), slopes, places, places, head_width=width, dtype=torch.float32)
    if device == "cuda":
        assert bias.bias is not None
        bias = bias._replace(bias=bias.bias.bfloat16())
    columns = ours.Sight(columns=ours._alibi_columns(slopes * math.sqrt(width), places, torch.bfloat16))
    found: dict[str, Callable[[], Tensor]] = {
        "no bias (limit)": lambda: F.scaled_dot_product_attention(*qkv, is_causal=True),
        "bias": lambda: ours.attention(*qkv, bias),
        "columns": lambda: ours.attention(*qkv, columns),
    }
    if device == "cuda":
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        flex, tokens = torch.compile(flex_attention), qkv[0].shape[2]
        block = create_block_mask(lambda b, h, i, j: i >= j, None, None, tokens, tokens, device=device)
        found["FlexAttention"] = lambda: flex(
            *qkv, score_mod=lambda score, b, h, i, j: score + slopes[h] * (j - i), block_mask=block
        )
    return found


def backward(run: Callable[[], Tensor]) -> Callable[[], None]:
    """The path and its gradients."""

    def both() -> None:
        out = run()
        out.backward(torch.ones_like(out))

    return both


def main() -> None:
    options = arguments(__doc__ or "")
    results, ratios, rows = {}, {}, []
    for shape in SHAPES[: 2 if options.quick else None]:
        qkv, slopes, places = make(*shape, options.device)
        found = paths(qkv, slopes, places, options.device)
        name = "x".join(map(str, shape))
        times = in_turns({path: backward(run) for path, run in found.items()}, 5 if options.quick else 15, options.device)
        limit = times["no bias (limit)"]
        results[name] = {path: {"ms": round(ms, 2), "share_of_limit": round(limit / ms, 3)} for path, ms in times.items()}
        ratios[f"{name} columns/bias"] = times["bias"] / times["columns"]
        rows += [[name, path, f"{ms:.1f}", f"{limit / ms:.0%}"] for path, ms in times.items()]
        if "FlexAttention" not in times:
            rows.append([name, "FlexAttention", "absent: no backward on CPU", ""])
    table("ALiBi, forward and backward, bfloat16", ["shape B×H×T×E", "path", "ms", "of the limit"], rows)
    goals = {key: 1.2 for key in ratios if "x1024x" in key or "x2048x" in key}
    finish("attention", results, ratios, goals, options.device)


if __name__ == "__main__":
    main()
