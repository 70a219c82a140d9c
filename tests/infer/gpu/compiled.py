"""Compiles the kernels for GPUs that need not be there, as they would be launched; `test_compiled.py` runs it as a process.

Prints for each what of the GPU's it uses, as JSON. That a kernel compiles says nothing of its numbers or its speed.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from herdbook.infer.gpu import paged, products
from herdbook.infer.gpu.reference import Bias
from herdbook.infer.memory import Memory
from herdbook.model.config import ModelConfig
from herdbook.model.quantized import Quantized

TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int8: "*i8", torch.uint8: "*u8",
         torch.int32: "*i32", torch.int64: "*i64"}  # fmt: skip
OPTIONS = ("num_warps", "num_stages")
INSTRUCTIONS = ("mma", "cp.async", "ld.global.v4", "ld.local")


class Recorder:
    """Stands for a kernel; keeps what it was launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.launched = kernel, list[tuple[tuple[Any, ...], dict[str, Any]]]()

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **named: self.launched.append((args, named))

    def compiled(self, capability: int) -> dict[str, Any]:
        """The last launch, compiled for a compute capability, 90 for 9.0."""
        args, named = self.launched[-1]
        names = self.kernel.arg_names
        signature = {
            name: TYPES[arg.dtype] if isinstance(arg, torch.Tensor) else "fp32" if isinstance(arg, float) else "i32"
            for name, arg in zip(names, args, strict=False)
        }
        constants = {name: value for name, value in named.items() if name not in OPTIONS}
        round_ones = [place for place, arg in enumerate(args) if isinstance(arg, torch.Tensor) or arg % 16 == 0]
        source = ASTSource(
            self.kernel, {**signature, **dict.fromkeys(constants, "constexpr")}, constants,
            {(place,): [["tt.divisibility", 16]] for place in round_ones},
        )  # fmt: skip
        options = {name: named[name] for name in OPTIONS if name in named}
        made = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        return {"shared": made.metadata.shared, "cubin": len(made.asm["cubin"]),
                **{word: made.asm["ptx"].count(word) for word in INSTRUCTIONS}}  # fmt: skip


def launches() -> dict[str, Recorder]:
    """Launches of each kernel in forms that differ."""
    found = {}

    def record(module: Any, name: str, title: str) -> None:
        found[title] = Recorder(getattr(module, name))
        setattr(module, name, found[title])

    def attend(title: str, heads: int, kv: str, dtype: torch.dtype, width: int, **named: Any) -> None:
        cfg = ModelConfig(n_heads=heads, n_kv_heads=8, head_dim=width, d_model=64)
        kernels = [(name, getattr(paged, name)) for name in ("_attend", "_join", "_keep")]
        for name, _ in kernels:
            record(paged, name, f"{title}{name}")
        memory = Memory.new(cfg, 4, "int8" if kv == "int8" else "auto", dtype, torch.device("cpu"))
        new, ids = torch.zeros(2, 8, width, dtype=dtype), torch.zeros(2, dtype=torch.int64)
        paged.keep(memory, ids, new, new)
        paged.attend(
            torch.zeros(2, heads, width, dtype=dtype), memory, torch.zeros(2, 16, dtype=torch.int32), ids.int(), **named
        )
        for name, kernel in kernels:
            setattr(paged, name, kernel)
            if not found[f"{title}{name}"].launched:
                del found[f"{title}{name}"]

    def multiply(title: str, bits: Any, group: int, rows: int, dtype: torch.dtype, *, affine: bool) -> None:
        kernel = products._multiply
        record(products, "_multiply", f"{title}_multiply")
        scale = torch.zeros(64, 512 // group, dtype=torch.float16)
        matrix = Quantized(bits, torch.zeros(64, 512, dtype=torch.int8), scale, scale if affine else None)
        products.multiply(torch.zeros(rows, 512, dtype=dtype), products.Grouped.of(matrix))
        products._multiply = kernel

    slopes = torch.zeros(32)
    attend("grouped", 32, "auto", torch.bfloat16, 128, splits=8)
    attend("eight bits, ALiBi, window", 32, "int8", torch.bfloat16, 128, bias=Bias(slopes, False), window=4096)
    attend("Falcon's ALiBi", 32, "auto", torch.float16, 64, bias=Bias(slopes, True), splits=2)
    attend("float32, wide", 8, "auto", torch.float32, 256, splits=1)
    multiply("few rows, 4 bits", 4, 32, 1, torch.bfloat16, affine=True)
    multiply("few rows, 8 bits", 8, 128, 16, torch.float16, affine=False)
    multiply("many rows, 4 bits", 4, 128, 300, torch.bfloat16, affine=True)
    multiply("many rows, float32", 8, 32, 100, torch.float32, affine=False)
    return found


if __name__ == "__main__":
    made = launches()
    print(json.dumps({f"{title} {sm}": one.compiled(int(sm)) for sm in sys.argv[1:] for title, one in made.items()}))
