"""How a model is quantised. Imports no torch, so that the command line can read it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from herdbook.config import Config
from herdbook.units import Count

Method = Literal["rtn", "awq", "gptq"]


class QuantizeConfig(Config):
    """Bits, groups, and how numbers are found for them.

    `rtn` rounds each weight to the nearest number of a grid searched for the least squared error, and needs no text. `awq`
    moves scale from weights that meet large inputs into what comes before them, and rounds then (Lin et al. 2023,
    arXiv:2306.00978). `gptq` rounds column after column and has the columns still open make up for the error (Frantar et al.
    2022, arXiv:2210.17323). The last two look at text, block by block, as the blocks before them are after quantisation.
    """

    bits: Literal[8, 4] = Field(default=4, description="of a number")
    group: Count = Field(
        default=32,
        ge=8,
        multiple_of=8,
        description="columns that share a scale; they must divide the rows, and the kernels are for multiples of 32",
    )
    affine: bool | None = Field(
        default=None, description="a least value beside the scale; null: at 4 bits, where small models need it, not at 8"
    )
    method: Method = Field(default="rtn", description="rtn: nearest number; awq: activation-aware scales; gptq: second order")
    head_bits: Literal[16, 8, 4] = Field(
        default=8, description="of the embedding and the head, symmetric in groups of 32 at 8 bits; 16: they stay as they are"
    )
    tokens: Count = Field(default=32_768, ge=1, description="awq and gptq: tokens of text to look at")
    row: Count = Field(default=512, ge=2, description="awq and gptq: tokens that are read together; the context at most")
    act_order: bool = Field(default=False, description="gptq: columns that meet the largest inputs go first")
    damping: float = Field(default=0.01, gt=0, description="gptq: share of the mean diagonal that is added to the Hessian's")

    @property
    def has_least(self) -> bool:
        """Whether matrices get a least value."""
        return self.bits == 4 if self.affine is None else self.affine

    def in_words(self) -> str:
        """As in `int4 affine, groups of 32, gptq`."""
        return f"int{self.bits} {'affine' if self.has_least else 'symmetric'}, groups of {self.group}, {self.method}"
