"""The report as a whole: title, headline numbers, what this is in plain words, and the sections in order."""

from __future__ import annotations

from herdbook.report import numbers as n
from herdbook.report.blocks import Block, Page, Paragraph, Section, Strong, Tile
from herdbook.report.data import data_sections, published
from herdbook.report.provenance import provenance_sections, run_license, total_seconds
from herdbook.report.read import Run, blame
from herdbook.report.scores import headline_bits, score_sections
from herdbook.report.training import training_sections

_BUILTIN = {
    "pydoc": "Python's documentation as pydoc prints it",
    "docstrings": "the docstrings of installed Python packages",
    "prose": "lead sections of encyclopedia articles",
}
_SMALL = 1e9


def build_page(run: Run) -> Page:
    """The page of a run, with the sections for which the run has facts."""
    with blame(run.folder):
        sections = [
            about_section(run), *data_sections(run), *training_sections(run), *score_sections(run), *provenance_sections(run)
        ]  # fmt: skip
        return Page(run.name, lead(run), tiles(run), sections, _footer(run))


def lead(run: Run) -> str:
    """The run in one sentence."""
    parameters, documents = run.count(run.model or "", "parameters"), (run.funnel or {}).get("documents_out")
    subject = f"A language model with {n.in_words(parameters)} parameters" if parameters else "A run of herdbook"
    origin = f", raised from {n.whole(documents)} documents" if documents is not None else ""
    total = total_seconds(run)
    cores = next((manifest["machine"]["cores"] for manifest in run.pedigrees.values()), None)
    spent = f" in {n.seconds(total)} on {cores} cores" if total and cores else ""
    return f"{subject}{origin}{spent}."


def tiles(run: Run) -> list[Tile]:
    """The headline numbers that are known."""
    found: list[Tile] = []
    if run.funnel is not None:
        came, kept = run.funnel["documents_in"], run.funnel["documents_out"]
        share = n.share(kept / came if came else None, 0)
        found.append(Tile("documents kept", n.whole(kept), f"of {n.whole(came)} read, {share}"))
    if run.tokens is not None:
        available = sum(run.source_tokens.values())
        trained = run.count("pretrain", "tokens")
        found.append(Tile("tokens", n.count(available), f"{n.count(trained)} seen in training" if trained else ""))
    if run.model is not None and run.count(run.model, "parameters"):
        found.append(Tile("parameters", n.count(run.count(run.model, "parameters"))))
    bits = headline_bits(run.results)
    if bits is not None:
        error = "" if bits[1] is None else f"± {n.fixed(bits[1])}, "
        found.append(Tile("bits per byte", n.fixed(bits[0]), f"{error}{bits[2]} model, held-out text"))
    total = total_seconds(run)
    if total is not None:
        found.append(Tile("time", n.seconds(total), "all stations"))
    license_ = run_license(run)
    if license_ is not None:
        use = "commercial use allowed" if license_[0].commercial else "no commercial use"
        terms = ", share alike" if license_[0].share_alike else ""
        strict, *others = license_[0].id.split(" AND ")
        more = f"and {len(others)} more: " if others else ""
        found.append(Tile("licence", strict, more + use + terms))
    return found


def about_section(run: Run) -> Section:
    """What the text is, and what such a model can and cannot do."""
    blocks: list[Block] = []
    description = (run.recipe or {}).get("description")
    if description:
        blocks.append(Paragraph(str(description)))
    blocks += _about_text(run)
    parameters, tokens = run.count(run.model or "", "parameters"), run.count("pretrain", "tokens")
    if parameters and parameters < _SMALL:
        blocks += _about_small_model(parameters, tokens)
    if not blocks:
        blocks.append(Paragraph("This page says what went into the run, what came out, and at what cost."))
    return Section("about", "What this is", blocks)


def _about_text(run: Run) -> list[Paragraph]:
    sources = run.pedigrees.get("corpus", {}).get("config", {}).get("sources", [])
    builtin = [str(source.get("builtin")) for source in sources if isinstance(source, dict)]
    if not builtin or not all(kind in _BUILTIN for kind in builtin):
        return []
    listing = [_BUILTIN[kind] for kind in dict.fromkeys(builtin)]
    named = listing[0] if len(listing) == 1 else f"{', '.join(listing[:-1])} and {listing[-1]}"
    text = f"The text it learned from is what this machine had at hand: {named}. It is real text written by people, but "
    return [Paragraph(f"{text}it is narrow: software documentation and the openings of articles, not the breadth of the web.")]


def _about_small_model(parameters: float, tokens: float | None) -> list[Paragraph]:
    peer = published()["llama2"]
    ratio = f"It has about {_times(peer['parameters'] / parameters)} fewer parameters than {peer['name']}"
    ratio += f" and saw about {_times(peer['tokens'] / tokens)} fewer tokens" if tokens else ""
    can = "a model of this size learns how its texts are built: spelling, grammar, layout and tone. It continues them "
    can += "in kind, and after fine-tuning it answers in the form of the questions it was taught."
    cannot = (
        "know facts, calculate, follow an argument, or help with anything outside its few sources. What it says reads like an "
    )
    cannot += "answer and is mostly wrong. It shows that every part of the road works; it is no assistant."
    return [
        Paragraph((Strong("What it can do: "), can)),
        Paragraph((Strong("What it cannot do: "), cannot)),
        Paragraph(f"{ratio}.", note=True),
    ]


def _times(ratio: float) -> str:
    return f"{float(f'{ratio:.2g}'):,.0f} times"


def _footer(run: Run) -> str:
    began = [manifest["began"] for manifest in run.pedigrees.values()]
    when = f" Last station run on {n.day(max(began))}." if began else ""
    return f"Written by herdbook from the files of this run; nothing on this page is loaded from elsewhere.{when}"
