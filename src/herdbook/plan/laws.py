"""Scaling laws: how large a model, and on how many tokens, for so many FLOPs.

N parameters, D tokens, C = 6·N·D FLOPs. Hoffmann et al. 2022 (Chinchilla, arXiv:2203.15556) estimate in three ways how N and D
should grow: by the lowest training curve at each C (approach 1), by the lowest point of curves of equal C (approach 2), and by
fitting L(N, D) = E + A/N^α + B/D^β (approach 3). Of the first two the paper prints the exponents (Table 2) and projections
(Tables 3 and A3), not the factors before the power, so those are anchored at the tables' row for 67B, the size of
Chinchilla's class; `TABLES` holds all printed rows, and `herdbook plan chinchilla` shows how far ours are from them.

Approach 3 follows from its coefficients: under C = 6·N·D the loss is least at N = G·(C/6)^(β/(α+β)), D = C/(6·N), with
G = (α·A/(β·B))^(1/(α+β)) (section 3.3). The published coefficients advise smaller models than approaches 1 and 2;
Besiroglu et al. 2024 (Epoch, arXiv:2404.10102) found the fit had stopped early, and theirs agrees with the other two and with
20 tokens a parameter. It is the default here. All were fitted on 70M to 16B parameters; beyond, they extrapolate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from herdbook.units import human_count

TOKENS_PER_PARAMETER = 20  # Table 3 of Hoffmann et al. comes to about this many


@dataclass(frozen=True)
class PowerLaw:
    """The compute-optimal split N = k·C^a, D = C/(6·N), known by its exponent and one point.

    Attributes:
        name: as in `law=approach1`.
        anchor: (FLOPs, parameters) of the printed row it goes through.
    """

    name: str
    title: str
    source: str
    a: float
    anchor: tuple[float, float]

    @property
    def how(self) -> str:
        """The formula in words."""
        return f"N = {human_count(self.anchor[1])}·(C/{self.anchor[0]:.3g})^{self.a:.3g}, D = C/(6·N)"

    def optimum(self, flops: float) -> tuple[float, float]:
        """(parameters, tokens) for `flops` = 6·N·D."""
        parameters = self.anchor[1] * (flops / self.anchor[0]) ** self.a
        return parameters, flops / 6 / parameters

    def loss(self, parameters: float, tokens: float) -> float | None:
        """None: this law says nothing of the loss."""
        return None


@dataclass(frozen=True)
class ScalingLaw:
    """Loss = E + A/N^alpha + B/D^beta, in nats a token of the tokenizer it was fitted on."""

    name: str
    title: str
    source: str
    e: float
    a: float
    b: float
    alpha: float
    beta: float

    @property
    def how(self) -> str:
        """The formula in words."""
        return f"least {self.e:g} + {self.a:g}/N^{self.alpha:g} + {self.b:g}/D^{self.beta:g} at C = 6·N·D"

    def loss(self, parameters: float, tokens: float) -> float:
        """The loss expected of N parameters after D tokens."""
        return float(self.e + self.a / parameters**self.alpha + self.b / tokens**self.beta)

    def optimum(self, flops: float) -> tuple[float, float]:
        """(parameters, tokens) with the least loss for `flops` = 6·N·D."""
        g = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        parameters = g * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return parameters, flops / 6 / parameters

    def tokens_for(self, loss: float, parameters: float) -> float:
        """The tokens after which N parameters reach a loss; infinite when they never do."""
        left = loss - self.e - self.a / parameters**self.alpha
        # A loss at the edge of reach takes more tokens than a float counts: never, in other words.
        power = math.log(self.b / left) / self.beta if left > 0 else math.inf
        return math.exp(power) if power < 700 else math.inf

    def cheapest(self, loss: float, served: float, weight: float = 1.0) -> tuple[float, float]:
        """(parameters, tokens) that reach `loss` at the least 6·N·D + weight·2·N·served.

        Sardana et al. 2023 (arXiv:2401.00448), equation 4: training and serving together under a bound on the loss. Along the
        line of equal loss the sum has one minimum, found by golden section over log N. `weight` is what a FLOP of serving
        costs beside one of training (their section 4: the ratio of utilisations).

        Raises ValueError when no model reaches the loss, which is at most E.
        """
        if loss <= self.e:
            raise ValueError(f"no model has a loss of {loss:g}: text itself holds {self.e:g}")
        smallest = (self.a / (loss - self.e)) ** (1 / self.alpha)

        def cost(log_n: float) -> float:
            n = math.exp(log_n)
            return math.log(6 * n) + math.log(self.tokens_for(loss, n) + weight * served / 3)

        low, high = math.log(smallest) + 1e-9, math.log(smallest) + 20
        ratio = (math.sqrt(5) - 1) / 2
        while high - low > 1e-7:
            left, right = high - ratio * (high - low), low + ratio * (high - low)
            low, high = (low, right) if cost(left) < cost(right) else (left, high)
        parameters = math.exp((low + high) / 2)
        return parameters, self.tokens_for(loss, parameters)


Law = PowerLaw | ScalingLaw


def flops_for(law: Law, *, parameters: float | None = None, tokens: float | None = None) -> float:
    """The FLOPs whose compute-optimal split has so many parameters, or so many tokens.

    Both optima are powers of C, so two points on the line give the exponent and the inverse is exact.
    """
    index, wanted = (0, parameters) if parameters is not None else (1, tokens)
    assert wanted is not None
    low, high = law.optimum(1e20)[index], law.optimum(1e21)[index]
    return float(1e20 * 10 ** (math.log(wanted / low) / math.log(high / low)))


_CHINCHILLA = "Hoffmann et al. 2022, arXiv:2203.15556"
# The published coefficients with the digits of the paper's TeX source: rounded as printed they give another exponent.
HOFFMANN_2022 = ScalingLaw(
    "approach3", "Chinchilla, approach 3 as published", f"{_CHINCHILLA}, section 3.3",
    1.6934, 406.4, 410.7, 0.3392, 0.2849,
)  # fmt: skip
BESIROGLU_2024 = ScalingLaw(
    "epoch", "approach 3 corrected by Epoch", "Besiroglu et al. 2024, arXiv:2404.10102",
    1.8172, 482.01, 2085.43, 0.3478, 0.3658,
)  # fmt: skip
APPROACH_1 = PowerLaw(
    "approach1", "Chinchilla, approach 1", f"{_CHINCHILLA}, Table 2 (a = 0.50) and Table 3", 0.50, (5.76e23, 67e9)
)
APPROACH_2 = PowerLaw(
    "approach2", "Chinchilla, approach 2", f"{_CHINCHILLA}, Table 2 (a = 0.49) and Table A3", 0.49, (6.88e23, 67e9)
)
LAWS: dict[str, Law] = {law.name: law for law in (BESIROGLU_2024, APPROACH_1, APPROACH_2, HOFFMANN_2022)}

# What the paper prints: law → (parameters, FLOPs, tokens). Approach 1 is Table 3, the others Table A3. There 175B under
# approach 3 is printed with 1.26e24 FLOPs, less than its row for 67B and a tenth of 6·N·D of its own tokens: a slip.
TABLES: dict[str, tuple[tuple[float, float, float], ...]] = {
    "approach1": (
        (400e6, 1.92e19, 8.0e9), (1e9, 1.21e20, 20.2e9), (10e9, 1.23e22, 205.1e9), (67e9, 5.76e23, 1.5e12),
        (175e9, 3.85e24, 3.7e12), (280e9, 9.90e24, 5.9e12), (520e9, 3.43e25, 11.0e12), (1e12, 1.27e26, 21.2e12),
        (10e12, 1.30e28, 216.2e12),
    ),
    "approach2": (
        (400e6, 1.84e19, 7.7e9), (1e9, 1.20e20, 20.0e9), (10e9, 1.32e22, 219.5e9), (67e9, 6.88e23, 1.7e12),
        (175e9, 4.54e24, 4.3e12), (280e9, 1.18e25, 7.1e12), (520e9, 4.19e25, 13.4e12), (1e12, 1.59e26, 26.5e12),
        (10e12, 1.75e28, 292.0e12),
    ),
    "approach3": (
        (400e6, 2.21e19, 9.2e9), (1e9, 1.62e20, 27.1e9), (10e9, 2.46e22, 410.1e9), (67e9, 1.71e24, 4.1e12),
        (175e9, 1.26e25, 12.0e12), (280e9, 3.52e25, 20.1e12), (520e9, 1.36e26, 43.5e12), (1e12, 5.65e26, 94.1e12),
        (10e12, 8.55e28, 1425.5e12),
    ),
}  # fmt: skip
