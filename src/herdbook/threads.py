"""How compute threads wait for each other.

The OpenMP runtime that torch's Linux builds bring lets threads spin at a barrier for milliseconds before they sleep. On a
machine where anything else wants a core, a thread then spins on the core that the one it waits for should run on. Measured
with torch 2.13 on two cores, 2.75M parameters: 9.0K tokens/s alone and 0.9K beside one busy neighbour; with the short
spin set here 9.8K and 9.2K. The runtime reads its settings when it is loaded: call this before torch is imported.
"""

from __future__ import annotations

import os
import sys

SPINS = "2000"


def wait_politely() -> None:
    """Let threads sleep soon at a barrier, unless the user chose how they wait or torch is loaded already."""
    chosen = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys()
    if not chosen and "torch" not in sys.modules:
        os.environ["GOMP_SPINCOUNT"] = SPINS
