"""One station at a time: on a recipe, on a run's folder, or standing alone on paths."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from herdbook import pedigree, road
from herdbook.config import Draft
from herdbook.console import Terminal, emit
from herdbook.corpus.config import CorpusConfig
from herdbook.errors import UserError, user_errors
from herdbook.files import write_text
from herdbook.launched import follows
from herdbook.recipe import Recipe, build_recipe, load_recipe, recipes_folder
from herdbook.verbs import dry
from herdbook.verbs.names import names_for

# What a station standing alone takes its target to be.
MAIN_INPUT = {"tokenizer": "corpus", "tokens": "corpus", "pretrain": "tokens", "sft": "pretrain", "eval": "pretrain"}


def curate(
    targets: list[str],
    out: Path | None,
    terminal: Terminal,
    *,
    dry_run: bool,
    commercial: bool,
    workers: int | None,
    part: str | None = None,
    slurm: int | None = None,
) -> None:
    """`herdbook curate`: a recipe or run, or any number of files and folders to read.

    Args:
        part: `I/N`: only every N-th job of a planned run, beginning with I.
        slurm: only plan the run, and write a script that does it in so many parts.
    """
    files = [word for word in targets if "=" not in word or Path(word).exists()]
    words = [word for word in targets if word not in files]
    words += ["corpus.commercial=true"] if commercial else []
    if (part is not None) + (slurm is not None) + dry_run > 1:
        raise UserError("--slurm, --part and --dry-run do not go together", todo="give one of them")
    if not files:
        raise UserError("nothing to curate", todo="give a recipe, a run's folder, or files to read")
    is_recipe = len(files) == 1 and _is_recipe(files[0])
    if is_recipe and part is None and slurm is None:
        work("corpus", files[0], words, out, terminal, dry_run=dry_run, workers=workers)
        return
    recipe = load_recipe(files[0], words) if is_recipe else _recipe_of(files, words)
    place = out or (recipe.folder / "corpus" if is_recipe else Path("corpus"))
    if part is None and slurm is None:
        _run_one(road.BY_NAME["corpus"], recipe, {}, place, terminal, dry_run=dry_run, workers=workers)
        return
    # A run's folder is kept from others; a corpus that stands alone keeps them out itself.
    kept = road.locked(recipe.folder, shared=part is not None) if is_recipe else nullcontext()
    with user_errors(), kept:
        if part is not None:
            _do_part(recipe, place, part, workers, terminal)
        elif slurm is not None:
            own = [*(["--out", str(out)] if out else []), *(["--commercial"] if commercial else [])]
            _slurm(recipe, place, [sys.executable, "-m", "herdbook", "curate", *targets, *own], slurm, terminal)


def _recipe_of(files: list[str], words: list[str]) -> Recipe:
    sources = [{"name": name, "path": path} for name, path in names_for(files).items()]
    return build_recipe(Draft(values={"corpus": {"sources": sources}}, source="command line"), words)


def _corpus_of(recipe: Recipe) -> CorpusConfig:
    if recipe.corpus is None:
        raise UserError("the recipe has no `corpus:` section", where=recipe.name, todo="name your sources under corpus.sources")
    return recipe.corpus


def _do_part(recipe: Recipe, out: Path, part: str, workers: int | None, terminal: Terminal) -> None:
    from herdbook.corpus.curate import curate_part

    number, parts = _part(part)
    curate_part(_corpus_of(recipe), out, terminal, number, parts, workers=workers)


def _part(text: str) -> tuple[int, int]:
    number, slash, parts = text.partition("/")
    if not (slash and number.isdecimal() and parts.isdecimal() and int(number) < int(parts)):
        raise UserError(f"this is no part: {text}", where="--part", todo="as in --part 0/64, counted from 0")
    return int(number), int(parts)


def _slurm(recipe: Recipe, out: Path, command: list[str], parts: int, terminal: Terminal) -> None:
    from herdbook.corpus.curate import plan
    from herdbook.corpus.executors import slurm_script

    corpus = _corpus_of(recipe)
    if not road.begin_station(road.BY_NAME["corpus"], recipe, {}, out, terminal):
        return
    jobs = plan(corpus, out, terminal)
    parts = min(parts, jobs)
    script = out.with_name(f"{out.name}-slurm.sh")
    write_text(script, slurm_script(command, parts, out.with_name(f"{out.name}-logs")))
    terminal.say(f"{jobs:,} jobs in {parts:,} parts: submit them with `sh {script}`")
    if terminal.as_json:
        emit({"script": str(script), "jobs": jobs, "parts": parts})


def work(
    name: str,
    target: str,
    words: list[str] | None,
    out: Path | None,
    terminal: Terminal,
    paths: Mapping[str, Path | None] | None = None,
    *,
    dry_run: bool = False,
    workers: int | None = None,
) -> None:
    """A station on a recipe or run's folder (its inputs are the run's), or alone on a folder and the given `paths`."""
    station = road.BY_NAME[name]
    given = {key: path for key, path in (paths or {}).items() if path is not None}
    if _is_recipe(target):
        recipe = load_recipe(target, words or ())
        if name == "sft" and recipe.sft is None:
            raise UserError("the recipe has no `sft:` section", where=target, todo="add one, or sft.data=[FILE.jsonl]")
        folder = recipe.folder
        folders = {other.name: folder / other.name for other in road.STATIONS if pedigree.exists(folder / other.name)}
        # A dry run leaves nothing behind, so no lock either; what it finds holds for the moment in which it looks.
        alone = dry_run or follows()  # a process that follows another works under its lock
        with user_errors(), nullcontext() if alone else road.locked(folder):
            if not alone and out is None:
                road.keep_recipe(recipe)
            _run_one(station, recipe, folders | given, out or folder / name, terminal, dry_run=dry_run, workers=workers)
        return
    if not Path(target).exists():
        raise UserError("there is no such recipe or folder", where=target, todo="`herdbook init` writes a recipe")
    values: dict[str, Any] = {"sft": {}} if name == "sft" else {}
    recipe = build_recipe(Draft(values=values, source="command line"), words or ())
    folders = {MAIN_INPUT[name]: Path(target), **given}
    _run_one(station, recipe, folders, out or Path(name), terminal, dry_run=dry_run, workers=workers)


def launch(
    kind: str, target: str, words: list[str] | None, out: Path | None, terminal: Terminal, *, nodes: int, gpus: int
) -> None:
    """`herdbook pretrain RECIPE --launch KIND`: write the script that starts this on `nodes` machines of `gpus` devices."""
    from herdbook.train.launch import Kind, write_script

    if not _is_recipe(target):
        raise UserError(
            "a script is written for a recipe or a run's folder", where=target, todo="`herdbook init` writes a recipe"
        )
    recipe = load_recipe(target, words or ())
    recipe.train.parallel.layout(nodes * gpus)
    own = [*(words or []), *(["--out", str(out)] if out else [])]
    script = write_script(cast(Kind, kind), target, own, nodes=nodes, gpus=gpus, out=recipe.folder)
    starter = "sbatch" if kind == "slurm" else "sh"
    terminal.say(f"{nodes * gpus} processes: start them with `{starter} {script}`; the stations before have to be done")
    if terminal.as_json:
        emit({"script": str(script), "processes": nodes * gpus})


def _run_one(
    station: road.Station,
    recipe: Recipe,
    folders: dict[str, Path],
    out: Path,
    terminal: Terminal,
    *,
    dry_run: bool,
    workers: int | None,
) -> None:
    if dry_run and station.name == "corpus":
        _preview(_corpus_of(recipe), out, terminal, workers)
        return
    if dry_run:
        facts = dry.describe(recipe) | {"run": str(out)}
        facts["stations"] = [row for row in facts["stations"] if row["station"] == station.name]
        if terminal.as_json:
            emit(facts)
        else:
            dry.show(facts, terminal)
        return
    missing = [name for name in station.needs if name not in folders]
    if missing:
        hint = {"tokenizer": "give its folder with --tokenizer DIR"}.get(missing[0], f"`herdbook {missing[0]}` makes it")
        raise UserError(f"{station.name} needs a {missing[0]}", where=out.parent, todo=hint)
    folders = {name: path for name, path in folders.items() if name in (*station.needs, *station.may_use)}
    with user_errors():
        terminal.step(station.title, str(out))
        road.run_station(station, recipe, folders, out, terminal, workers=workers)
    if terminal.as_json and not follows():
        emit({"folder": str(out), **{key: pedigree.read(out)[key] for key in ("station", "wall_s", "counts", "license")}})


def _preview(cfg: CorpusConfig, out: Path, terminal: Terminal, workers: int | None) -> None:
    from herdbook.corpus.preview import preview
    from herdbook.verbs import dry_corpus

    with user_errors():
        facts = preview(cfg, out, workers)
    if terminal.as_json:
        emit(facts)
    else:
        dry_corpus.show(facts, terminal)


def _is_recipe(target: str) -> bool:
    path = Path(target)
    if path.suffix in (".yaml", ".yml"):
        return True
    return (path / "recipe.yaml").is_file() or (not path.exists() and (recipes_folder() / f"{target}.yaml").is_file())
