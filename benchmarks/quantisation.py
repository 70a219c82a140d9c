"""What fewer bits cost a real model in perplexity, by method, form and groups.

    python benchmarks/quantisation.py MODEL TEXT CALIBRATION [--tokens 8192] [--sample 8192] [--threads 2] [--on-grid] [--quick]

MODEL is a folder or a GGUF file; perplexity is measured on TEXT, and methods look at CALIBRATION. The weights of a packed GGUF
lie on a grid of 4 bits already, where quantising to the same grid costs nothing and says nothing. So, unless `--on-grid` is
given, the columns of most matrices are first multiplied by random factors between 0.9 and 1.1, and what comes before them
divided: that computes the same function with weights that lie on no grid.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from harness import finish, table
from herdbook.console import Terminal
from herdbook.interop.doors import load_decoder, require_tokenizer
from herdbook.model.decoder import Block, Decoder
from herdbook.quantize import measure
from herdbook.quantize.awq import folds, move
from herdbook.quantize.config import QuantizeConfig
from herdbook.quantize.text import token_rows

FORMS: tuple[dict[str, Any], ...] = (
    {"bits": 8}, {}, {"method": "gptq"}, {"method": "awq"}, {"group": 64}, {"group": 64, "method": "gptq"},
    {"affine": False}, {"affine": False, "method": "gptq"},
)  # fmt: skip
QUICK = FORMS[:2]
LIMITS = {"int8": 0.01, "int4 affine, groups of 32": 0.05}  # of the best method


def off_grid(model: Decoder) -> Decoder:
    """The same function with weights that lie on no grid."""
    generator = torch.Generator().manual_seed(0)
    for block in model.blocks:
        assert isinstance(block, Block)
        for place in folds(block):
            inputs = place.readers[0].weight.shape[1]
            drawn = 0.9 + 0.2 * torch.rand(inputs // place.shared, generator=generator)
            heads = drawn.view(-1, 1, place.width).expand(-1, place.shared, -1)
            move(place, heads.reshape(-1))
    return model


def main() -> None:
    """Measure, print, and hold against the limits."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("model", "text", "calibration"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--tokens", type=int, default=8192, help="to measure on")
    parser.add_argument("--sample", type=int, default=8192, help="to look at")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--on-grid", action="store_true", help="the weights as they are")
    parser.add_argument("--quick", action="store_true", help="only what needs no calibration, in groups of 32")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    words = require_tokenizer(asked.model)
    rows = token_rows(asked.text, words, tokens=asked.tokens, row=512)
    sample = token_rows(asked.calibration, words, tokens=asked.sample, row=512)
    forms = [QuantizeConfig(**form) for form in (QUICK if asked.quick else FORMS)]

    def load() -> Decoder:
        model = load_decoder(asked.model)
        return model if asked.on_grid else off_grid(model)

    found, terminal = [], Terminal()
    for row in measure.table(load, forms, rows, sample, terminal):
        terminal.say(f"{row.form}: {row.perplexity:.3f}")
        found.append(row)
    lines = [
        [row.form, f"{row.bits:.2f}", f"{row.bytes / 1e6:.1f}", f"{row.perplexity:.3f}"]
        + ([""] if row.cost is None or row.cost_stderr is None else [f"{row.cost:+.2%} ± {row.cost_stderr:.2%}"])
        for row in found
    ]
    table(f"perplexity on {rows.numel():,} tokens", ["form", "bits a weight", "MB", "perplexity", "to bf16"], lines)
    costs = {name: min(row.cost for row in found if row.cost is not None and row.form.startswith(name)) for name in LIMITS}
    ratios = {name: (1 + limit) / (1 + costs[name]) for name, limit in LIMITS.items()}
    finish("quantisation", [row.as_dict() for row in found], ratios, dict.fromkeys(LIMITS, 1.0))


if __name__ == "__main__":
    main()
