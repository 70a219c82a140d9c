"""Scripts that start pre-training on several devices or machines: plain `torchrun`, or Slurm around it.

A script is all there is: no service, nothing of ours that stays running. It changes to the folder it was written from and
starts the same `herdbook pretrain` that was typed, once a device; what is done is kept in checkpoints, so starting it again,
by hand, after a crash or after pre-emption, goes on from the newest.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from herdbook.errors import UserError
from herdbook.files import write_text

Kind = Literal["torchrun", "slurm"]

RESTARTS = 3  # after a process died: a GPU that fell off, memory that ran out, a network that hiccuped
WARNING_S = 300  # how long before the end of its time a job is told to save
LAST_CHECKPOINT_S = 240  # how long processes may take to save before they are killed


def write_script(
    kind: Kind, recipe: str | Path, words: Sequence[str], *, nodes: int = 1, gpus: int = 1, out: Path, restarts: int = RESTARTS
) -> Path:
    """Write the script that pre-trains on `nodes` machines with `gpus` devices each; where it is.

    Args:
        recipe: what `herdbook pretrain` takes: a recipe's path or name, or a run's folder.
        words: the rest of its command line, `key=value` and options.
        gpus: processes a machine, one a GPU; on machines without GPUs, processes that share the cores.
        out: the run's folder; the script and, with Slurm, the logs go there. All machines have to see it.
        restarts: how often all processes are started anew when one of them dies.

    Raises UserError for numbers or kinds that make no sense.
    """
    if nodes < 1 or gpus < 1 or restarts < 0:
        raise UserError(f"{nodes} machines with {gpus} devices make no run", where="--launch",
                        todo="give --nodes and --gpus-per-node of at least 1")  # fmt: skip
    if kind not in ("torchrun", "slurm"):
        raise UserError(f"there is no launcher {kind!r}", where="--launch", todo="take torchrun or slurm")
    if any(character in str(out) for character in '"\n\r'):
        raise UserError("the folder's name cannot be written in a script", where=out, todo="take a plainer name, with out=DIR")
    given = Path(recipe)
    target = str(given.resolve()) if given.exists() else str(recipe)
    work = shlex.join(["--module", "herdbook", "pretrain", target, *words])
    text = (_torchrun if kind == "torchrun" else _slurm)(work, out.resolve(), nodes=nodes, gpus=gpus, restarts=restarts)
    path = out / f"pretrain-{kind}.sh"
    write_text(path, text)
    path.chmod(path.stat().st_mode | 0o111)
    return path


def _setup(gpus: int) -> str:
    """The lines that both kinds share: where, how many threads, how much time to save."""
    return f"""cd {shlex.quote(str(Path.cwd()))}
# Each process computes with its share of the cores.
threads=$(($(nproc) / {gpus}))
export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}}"
# Seconds a process has to write a last checkpoint when it is told to stop.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${{TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-{LAST_CHECKPOINT_S}}}"
"""


def _run(nodes: int, gpus: int, restarts: int, meeting: str) -> str:
    """The beginning of torchrun's command line, by the Python that wrote the script."""
    python = shlex.quote(sys.executable)
    counts = f"--nnodes={nodes} --nproc-per-node={gpus} --max-restarts={restarts}"
    return f"{python} -m torch.distributed.run {counts} \\\n    {meeting}"


def _torchrun(work: str, out: Path, *, nodes: int, gpus: int, restarts: int) -> str:
    if nodes == 1:
        how, meeting = "with `sh`", "--standalone"
    else:
        how = "on each machine, with the name of the first one: HOST=name sh pretrain-torchrun.sh"
        host = '"${HOST:?set HOST to the name of the first machine}:${PORT:-29500}"'
        meeting = f"--rdzv-backend=c10d --rdzv-endpoint={host} --rdzv-id={_name(out)}"
    return f"""#!/bin/sh
# Pre-training on {nodes} x {gpus} devices. Start it {how}.
# When a process dies all are started again from the newest checkpoint, up to {restarts} times. Ctrl-C or SIGTERM saves first;
# started again, the script goes on from there.
set -eu
{_setup(gpus)}exec {_run(nodes, gpus, restarts, meeting)} \\
    {work}
"""


def _slurm(work: str, out: Path, *, nodes: int, gpus: int, restarts: int) -> str:
    meeting = f'--rdzv-backend=c10d --rdzv-endpoint="$first:${{PORT:-29500}}" --rdzv-id="{_name(out)}-$SLURM_JOB_ID"'
    # sbatch reads its lines without a shell: %j is the number of the job, and a % in a name has to be doubled.
    log = str(out).replace("%", "%%") + "/slurm-%j.log"
    return f"""#!/bin/bash
# Pre-training on {nodes} x {gpus} devices. Submit it with `sbatch`, which also says where and how long:
#   sbatch --partition=P --account=A --time=24:00:00 pretrain-slurm.sh
# When a process dies all are started again from the newest checkpoint, up to {restarts} times. Before the job's time is over it
# saves and queues itself again; so does Slurm when it takes the machines away.
#SBATCH --job-name={_name(out)}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={gpus}
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@{WARNING_S}
#SBATCH --output="{log}"
set -euo pipefail
{_setup(gpus)}hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first="${{hosts%%$'\\n'*}}"

# Slurm tells this shell alone that the time is nearly over; the processes save and end when they are told in turn.
warned=
trap 'warned=yes; scancel --signal=TERM "$SLURM_JOB_ID.0" || true' TERM
srun --kill-on-bad-exit=1 {_run(nodes, gpus, restarts, meeting)} \\
    {work} &
training=$!
status=0
wait "$training" || status=$?
# A signal ends `wait` and not the training.
while kill -0 "$training" 2>/dev/null; do
    status=0
    wait "$training" || status=$?
done
if [ -n "$warned" ] && [ "$status" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


def _name(out: Path) -> str:
    """A name for the job that needs no quoting."""
    return "herdbook-" + (re.sub(r"[^A-Za-z0-9_.-]+", "-", out.name).strip("-") or "run")
