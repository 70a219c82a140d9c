"""The report's sections about the run itself: time and machine, pedigree, licence, and how to repeat it."""

from __future__ import annotations

from pathlib import Path

from herdbook import pedigree
from herdbook.facts.licenses import License
from herdbook.report import numbers as n
from herdbook.report.blocks import (
    Block,
    Bullets,
    Code,
    Command,
    Figure,
    Inline,
    Paragraph,
    Section,
    Strong,
    Swatch,
    Table,
    Tree,
    Words,
)
from herdbook.report.read import STATIONS, Json, Run, blame
from herdbook.report.svg import StackedBar

TITLES = {
    "corpus": "curate",
    "tokenizer": "tokenizer",
    "tokens": "tokens",
    "pretrain": "pre-train",
    "sft": "fine-tune",
    "eval": "evaluate",
}
_COLOURS = dict(zip(STATIONS, ("c1", "c2", "c3", "c4", "c5", "c6"), strict=True))
_COUNTS = ("documents_out", "documents", "tokens", "parameters", "steps", "vocab_size", "samples")


def provenance_sections(run: Run) -> list[Section]:
    """Time, pedigree, licence, and the command that repeats the run."""
    return [time_section(run), *pedigree_section(run), *license_section(run), repeat_section(run)]


def total_seconds(run: Run) -> float | None:
    """The wall time of all stations that ended."""
    return sum(manifest["wall_s"] for manifest in run.pedigrees.values()) if run.pedigrees else None


def time_section(run: Run) -> Section:
    """Wall time of each station, and the machine."""
    done = [station for station in STATIONS if station in run.pedigrees]
    total = total_seconds(run)
    blocks: list[Block] = []
    if total:
        parts = [(TITLES[station], run.pedigrees[station]["wall_s"], _COLOURS[station]) for station in done]
        blocks.append(Figure(StackedBar("Wall time of the stations", parts), f"The stations took {n.seconds(total)} in all."))
    rows: list[list[Words]] = []
    for station in STATIONS:
        manifest = run.pedigrees.get(station)
        if manifest is None:
            state = "not finished" if (run.folder / station).is_dir() else "not run"
            rows.append([Swatch("none", TITLES[station]), state, n.ABSENT, n.ABSENT])
        else:
            spent = manifest["wall_s"]
            part = n.share(spent / total if total else None)
            rows.append([Swatch(_COLOURS[station], TITLES[station]), n.day(manifest["began"]), n.seconds(spent), part])
    blocks.append(Table(("station", "run on", "wall time", "share"), rows, "llrr"))
    machines = list(dict.fromkeys(_machine(manifest["machine"]) for manifest in run.pedigrees.values()))
    blocks += [Paragraph(("Machine: ", text, ".")) for text in machines]
    return Section("time", "Time and machine", blocks)


def _machine(row: Json) -> str:
    parts = [str(row.get("cpu") or "unknown processor"), f"{row['cores']} cores"]
    parts += [f"{n.size(row['memory_bytes'])} of memory"] if row.get("memory_bytes") else []
    return ", ".join([*parts, str(row.get("system") or "")]).rstrip(", ")


def pedigree_section(run: Run) -> list[Section]:
    """What went into the result, back to the files and packages that no station made."""
    last = run.model or next((station for station in reversed(STATIONS) if station in run.pedigrees), None)
    if last is None:
        return []
    folder = run.folder / last
    with blame(folder / pedigree.MANIFEST):
        root = pedigree.tree(folder)
        digest = pedigree.fingerprint(folder, last, folder).sha256
        tree = _branch(root, digest, set())
    command = Code(f"herdbook pedigree --verify {_place(run)}/{last}")
    words = ("Each line is one thing that went in, with the beginning of its SHA-256. ", command, " hashes all of it again.")
    return [Section("pedigree", "Pedigree", [Paragraph(words), tree])]


def _branch(node: pedigree.Node, digest: str, seen: set[Path]) -> Tree:
    """A node of the pedigree; a station met before is named, not unfolded again."""
    role = node.item["role"] if node.item else ""
    words: list[Inline] = [Strong(_title(node)), f" {role}" if role not in ("", node.title) else "", " ", Code(digest[:10])]
    if node.manifest is None:
        item = node.item or {}
        facts = [item.get("license"), n.size(item["bytes"]) if item.get("bytes") else None, item.get("note")]
        return Tree((*words, _facts(facts)))
    if node.path in seen:
        return Tree((*words, " · as above"))
    if node.path is not None:
        seen.add(node.path)
    counts = node.manifest["counts"]
    shown = [f"{n.count(counts[key])} {_words(key)}" for key in _COUNTS if isinstance(counts.get(key), int | float)][:3]
    facts = [*shown, n.seconds(node.manifest["wall_s"])]
    children = [_branch(child, child.item["sha256"] if child.item else "", seen) for child in node.children]
    return Tree((*words, _facts(facts)), children)


def _title(node: pedigree.Node) -> str:
    """A station's name, a thing's name, or the end of a path: where it lies on this machine is nobody's business."""
    is_file = node.manifest is None and node.item is not None and node.item["bytes"]
    return "/".join([part for part in Path(node.title).parts if part not in ("..", "/")][-2:]) if is_file else node.title


def _facts(facts: list[str | None]) -> str:
    return "".join(f" · {fact}" for fact in facts if fact)


def _words(name: str) -> str:
    return name.removesuffix("_out").replace("vocab_size", "entries").replace("_", " ")


def run_license(run: Run) -> tuple[License, list[License]] | None:
    """The licence of the model, or of the last station before it, with the licences that went in."""
    last = run.model or next((station for station in reversed(STATIONS) if station in run.pedigrees), None)
    if last is None:
        return None
    with blame(run.folder / last / pedigree.MANIFEST):
        manifest = run.pedigrees[last]
        return License(**manifest["license"]), [License(**row) for row in manifest["licenses"]]


def license_section(run: Run) -> list[Section]:
    """What the licences of what went in allow, in plain words."""
    found = run_license(run)
    if found is None:
        return []
    license_, parts = found
    blocks: list[Block] = [
        Paragraph(("What came out may be used as the strictest of what went in allows: ", Strong(license_.id), "."))
    ]
    answers = [
        ("Use it commercially", license_.commercial, "yes", "no"),
        ("Pass on changed versions", license_.derivatives, "yes", "no"),
        ("Name the authors and keep their notices", license_.notice, "required", "not required"),
        ("Keep the same licence when passing it on", license_.share_alike, "required", "not required"),
    ]
    blocks.append(Table(("", ""), [[question, yes if flag else no] for question, flag, yes, no in answers], "ll"))
    if parts:
        blocks.append(Paragraph("What went in:"))
        blocks.append(Bullets([(Strong(row.id), f" {row.name}{row.in_words().removeprefix(row.id)}") for row in parts]))
    note = (
        "This is what the licences of the texts say. Whether a model is a changed version of its training text is not settled "
    )
    note += "in law; herdbook assumes the careful answer. It is no legal advice."
    return [Section("licence", "Licence", [*blocks, Paragraph(note, note=True)])]


def repeat_section(run: Run) -> Section:
    """What to type to get the same result."""
    code = next((manifest["code"] for manifest in reversed(run.pedigrees.values())), None)
    blocks: list[Block] = [Command(f"herdbook run {_place(run)}/recipe.yaml name={run.name}-again")]
    words = (
        "The recipe in the run's folder has every setting filled in. Same recipe, same inputs, same code and same machine give "
    )
    words += "the same text, tokens and draws; other machines may round differently."
    blocks.append(Paragraph(words, note=True))
    if code is not None:
        version = f"Made with herdbook {code['herdbook']}"
        version += f", commit {code['commit'][:12]}" if code.get("commit") else ""
        version += " with uncommitted changes" if code.get("dirty") else ""
        blocks.append(Paragraph(f"{version}, Python {code['python']}.", note=True))
    return Section("repeat", "Repeat this run", blocks)


def _place(run: Run) -> str:
    """The run's folder as one types it; a place that names this machine's folders is left out."""
    out = (run.recipe or {}).get("out")
    return f"{out}/{run.name}" if isinstance(out, str) and not Path(out).is_absolute() else run.name
