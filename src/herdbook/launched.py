"""Whether this process is one of several that a launcher started; known from the environment, without torch.

`torchrun` sets these variables for each process it starts. The main process does what is done once: it locks and prepares
folders, writes pedigrees and speaks. The others follow it through the work itself.
"""

from __future__ import annotations

import os


def launched() -> bool:
    """Whether torchrun, or a launcher that sets the same variables, started this process."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"))


def follows() -> bool:
    """Whether this process follows the main one."""
    return launched() and os.environ["RANK"] != "0"
