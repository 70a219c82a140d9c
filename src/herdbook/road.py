"""The road: runs the stations of a recipe in order, skips what is done and unchanged, resumes what was cut off.

A station is done when its folder has a `pedigree.json`; it is unchanged when that names the same config and the same inputs by
hash. A station that is to be made anew never overwrites what it made before: the old folder moves to `replaced/`.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herdbook import pedigree
from herdbook.console import Terminal
from herdbook.errors import UserError, user_errors
from herdbook.files import lock, read_json, sha256_json, write_json, write_text
from herdbook.launched import follows, launched
from herdbook.recipe import RECIPE_FILE, Recipe, dump_recipe, load_recipe
from herdbook.units import human_seconds

STARTED = "started.json"
Paths = dict[str, Path]


@dataclass(frozen=True)
class Station:
    """One station of the road.

    Attributes:
        name: also the name of its folder.
        title: what it does, for people.
        needs: the stations whose folders it cannot do without.
        may_use: the stations whose folders it reads when they are there.
        config: the settings its result depends on, as JSON.
        work: does it; gets the recipe, the folders by station, its own folder, the terminal and the number of workers.
        adjust: makes a finished folder fit changed settings where that takes no work; says whether it could.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    may_use: tuple[str, ...]
    config: Callable[[Recipe], dict[str, Any]]
    work: Callable[[Recipe, Paths, Path, Terminal, int | None], None]
    adjust: Callable[[Recipe, Paths, Path, Terminal], bool] | None = None

    def inputs(self, recipe: Recipe, folders: Mapping[str, Path]) -> list[tuple[Path, str]]:
        """The folders and files it reads, with their roles."""
        if self.name == "corpus":
            from herdbook.corpus.curate import input_paths, require_sources

            if recipe.corpus is not None:
                require_sources(recipe.corpus)
            return [(path, "source") for path in input_paths(recipe.corpus)] if recipe.corpus else []
        read = [(folders[name], name) for name in (*self.needs, *self.may_use) if name in folders]
        if self.name == "tokenizer" and recipe.tokenizer.path is not None:
            from herdbook.tokens.tokenizer import tokenizer_file

            read.append((tokenizer_file(recipe.tokenizer.path), "tokenizer"))
        if self.name == "sft" and recipe.sft is not None:
            from herdbook.align.data import data_files, require_commercial_sources

            if recipe.sft.commercial and "pretrain" in folders and folders["pretrain"].exists():
                corpus = folders.get("corpus") if recipe.sft.pairs.enabled else None
                require_commercial_sources(folders["pretrain"], recipe.sft.data, corpus)
            read += [(file, "conversations") for data in recipe.sft.data for file in data_files(data.path)]
        return read


def _curate(recipe: Recipe, folders: Paths, out: Path, terminal: Terminal, workers: int | None) -> None:
    from herdbook.corpus.curate import curate

    if recipe.corpus is None:
        raise UserError("the recipe has no `corpus:` section", where=recipe.name, todo="name your sources under corpus.sources")
    curate(recipe.corpus, out, terminal, workers=workers)


def _tokenizer(recipe: Recipe, folders: Paths, out: Path, terminal: Terminal, workers: int | None) -> None:
    from herdbook.tokens.tokenizer import train_tokenizer

    train_tokenizer(recipe.tokenizer, folders["corpus"], out, terminal)


def _tokens(recipe: Recipe, folders: Paths, out: Path, terminal: Terminal, workers: int | None) -> None:
    from herdbook.tokens.build import build_tokens

    build_tokens(recipe.tokens, folders["corpus"], folders["tokenizer"], out, terminal, workers=workers)


def _mix_again(recipe: Recipe, folders: Paths, out: Path, terminal: Terminal) -> bool:
    from herdbook.tokens.build import mix_again

    return mix_again(recipe.tokens, folders["corpus"], folders["tokenizer"], out, terminal)


def _pretrain(recipe: Recipe, folders: Paths, out: Path, terminal: Terminal, workers: int | None) -> None:
    from herdbook.train.pretrain import pretrain

    pretrain(recipe.train, recipe.model, folders["tokens"], folders["tokenizer"], out, terminal, corpus=folders.get("corpus"))


def _sft(recipe: Recipe, folders: Paths, out: Path, terminal: Terminal, workers: int | None) -> None:
    from herdbook.align.sft import sft

    assert recipe.sft is not None
    sft(recipe.sft, folders["pretrain"], out, terminal, corpus=folders.get("corpus"))


def _eval(recipe: Recipe, folders: Paths, out: Path, terminal: Terminal, workers: int | None) -> None:
    from herdbook.evals.run import evaluate

    names: tuple[str, ...] = ("pretrain", "sft")
    models = {folders[name].resolve().name: folders[name] for name in names if name in folders}
    evaluate(recipe.eval, models, out, terminal, corpus=folders.get("corpus"))


def _section(name: str) -> Callable[[Recipe], dict[str, Any]]:
    """All settings of a section."""
    return lambda recipe: recipe.model_dump(mode="json", include={name})[name] or {}


def _corpus_config(recipe: Recipe) -> dict[str, Any]:
    return recipe.corpus.identity() if recipe.corpus is not None else {}


def _pretrain_config(recipe: Recipe) -> dict[str, Any]:
    """What decides which model comes out; how often to save or look is not part of it."""
    return {"train": recipe.train.identity(), "model": recipe.model.model_dump(mode="json")}


def _sft_config(recipe: Recipe) -> dict[str, Any]:
    return recipe.sft.identity() if recipe.sft is not None else {}


STATIONS: tuple[Station, ...] = (
    Station("corpus", "curate the corpus", (), (), _corpus_config, _curate),
    Station("tokenizer", "train the tokenizer", ("corpus",), (), _section("tokenizer"), _tokenizer),
    Station("tokens", "write token shards", ("corpus", "tokenizer"), (), _section("tokens"), _tokens, _mix_again),
    Station("pretrain", "pre-train", ("tokens", "tokenizer"), ("corpus",), _pretrain_config, _pretrain),
    Station("sft", "fine-tune on conversations", ("pretrain",), ("corpus",), _sft_config, _sft),
    Station("eval", "evaluate", ("pretrain",), ("sft", "corpus"), _section("eval"), _eval),
)
BY_NAME = {station.name: station for station in STATIONS}


def stations_of(recipe: Recipe) -> list[Station]:
    """The stations this recipe asks for, in order."""
    return [station for station in STATIONS if not (station.name == "sft" and recipe.sft is None)]


def run(
    recipe: str | Path | Recipe,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    *,
    start_from: str | None = None,
    workers: int | None = None,
    terminal: Terminal | None = None,
) -> Path:
    """Run a whole recipe: curate, tokenize, pre-train, fine-tune, evaluate, report.

    Args:
        recipe: a YAML file, a run's folder, or the name of a recipe that ships with herdbook.
        overrides: `{"train.tokens": "2M"}` or `["train.tokens=2M"]`.
        start_from: make this station and all after it anew, even if they are done.
        workers: processes for the stations that use several; the number of cores if not given.
        terminal: where to tell a person what happens.

    Returns:
        The run's folder, with `report.html` in it.

    Raises:
        UserError: for everything a user can mend. Interrupted: on Ctrl-C or SIGTERM, with everything saved.
    """
    terminal = terminal or Terminal()
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    stations = stations_of(chosen)
    if start_from is not None and start_from not in {station.name for station in stations}:
        names = ", ".join(station.name for station in stations)
        raise UserError(f"this recipe has no station {start_from!r}", where="--from", todo=f"stations: {names}")
    with user_errors(), locked(chosen.folder):
        keep_recipe(chosen)
        forced = False
        folders: Paths = {}
        for number, station in enumerate(stations, 1):
            forced = forced or station.name == start_from
            terminal.step(f"[{number}/{len(stations)}] {station.title}", str(chosen.folder / station.name))
            run_station(station, chosen, folders, chosen.folder / station.name, terminal, forced=forced, workers=workers)
            folders[station.name] = chosen.folder / station.name
        finish(chosen.folder, terminal)
    return chosen.folder


def finish(folder: Path, terminal: Terminal) -> None:
    """Write the report and the model cards of a run."""
    from herdbook.report.card import model_card
    from herdbook.report.report import write_report

    for name in ("pretrain", "sft"):
        if pedigree.exists(folder / name):
            card = folder / name / "README.md"
            text = model_card(folder / name, folder)
            if not card.exists() or card.read_text(encoding="utf-8") != text:
                write_text(card, text)
    report = write_report(folder, terminal)
    terminal.say(f"report: {report}")


def run_station(
    station: Station,
    recipe: Recipe,
    folders: Paths,
    out: Path,
    terminal: Terminal,
    *,
    forced: bool = False,
    workers: int | None = None,
) -> None:
    """Run one station unless its result is there and unchanged. Raises UserError when what it needs is missing."""
    if follows():
        station.work(recipe, folders, out, terminal, workers)
        return
    # Processes that follow this one are at work already, and have to be told there that there is nothing to do.
    if not begin_station(station, recipe, folders, out, terminal, forced=forced) and not launched():
        return
    station.work(recipe, folders, out, terminal, workers)
    (out / STARTED).unlink(missing_ok=True)
    terminal.say(f"  done in {human_seconds(pedigree.read(out)['wall_s'])}", style="dim")


def begin_station(
    station: Station, recipe: Recipe, folders: Paths, out: Path, terminal: Terminal, *, forced: bool = False
) -> bool:
    """Make a station's folder ready for work: what is there of this very work stays, and what is of another moves aside.

    Returns whether there is anything to do. Raises UserError when what the station needs is missing.
    """
    for name in station.needs:
        if name not in folders or not folders[name].exists():
            raise UserError(
                f"{station.name} needs the output of {name}", where=folders.get(name), todo=f"run the {name} station first"
            )
    config, inputs = station.config(recipe), station.inputs(recipe, folders)
    if not forced and pedigree.is_current(out, config, inputs):
        terminal.say("  done and unchanged: skipped")
        return False
    if not forced and station.adjust is not None and station.adjust(recipe, folders, out, terminal):
        terminal.say("  the mixture changed: the shards stay as they are")
        return False
    mark = {"config": sha256_json(config), "inputs": _input_hashes(inputs, out), "forced": forced}
    _refuse_foreign(out, [*folders.values(), *(path for path, _ in inputs)])
    if not _may_resume(out, mark):
        _set_aside(out, terminal)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / STARTED, mark)
    return True


def _input_hashes(inputs: list[tuple[Path, str]], out: Path) -> list[list[str]]:
    return sorted([role, pedigree.fingerprint(path, role, out).sha256] for path, role in inputs)


def _refuse_foreign(out: Path, read: Iterable[Path]) -> None:
    """Never write into a folder that is not ours, nor into one that is read from."""
    place = out.resolve()
    for path in read:
        source = path.resolve()
        if source == place or source.is_relative_to(place) or (place.is_relative_to(source) and not pedigree.exists(source)):
            raise UserError(
                f"this would write to what it reads ({path})", where=out, todo="choose another folder with --out DIR"
            )
    ours = pedigree.exists(out) or (out / STARTED).is_file() or any(out.glob("checkpoint-*/checkpoint.json"))
    if out.exists() and not ours and (not out.is_dir() or any(out.iterdir())):
        raise UserError("there is something here already that herdbook did not make", where=out,
                        todo="choose an empty or new folder with --out DIR")  # fmt: skip


def _may_resume(out: Path, mark: dict[str, Any]) -> bool:
    """Whether an unfinished attempt at exactly this lies in the folder (or nothing at all does)."""
    if not out.exists() or not any(out.iterdir()):
        return True
    if pedigree.exists(out) or not (out / STARTED).is_file():
        return False
    before = read_json(out / STARTED)
    # What `--from` began may be gone on with by `--from` or without; what began without it is made anew by it.
    return all(before.get(key) == mark[key] for key in ("config", "inputs")) and (before.get("forced") or not mark["forced"])


def _set_aside(out: Path, terminal: Terminal) -> None:
    """Move what an earlier run with other settings made out of the way; only an attempt that left nothing is deleted."""
    if not out.exists() or not any(out.iterdir()):
        return
    if not pedigree.exists(out) and not list(out.glob("checkpoint-*")) and not (out / "work").exists():
        shutil.rmtree(out)  # ours, as `_refuse_foreign` saw, unfinished and without anything to go on from
        return
    shelf = out.parent / "replaced"
    shelf.mkdir(exist_ok=True)
    number = next(number for number in itertools.count(1) if not (shelf / f"{out.name}-{number}").exists())
    out.rename(shelf / f"{out.name}-{number}")
    terminal.say(f"  settings or inputs changed: the former {out.name} moves to {shelf / f'{out.name}-{number}'}")


def keep_recipe(recipe: Recipe) -> None:
    """Write the resolved recipe into the run's folder."""
    text = dump_recipe(recipe)
    path = recipe.folder / RECIPE_FILE
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Only one process works in a run's folder at a time; the lock goes with the process, however it ends.

    Args:
        shared: others that share may work there too, as parts of one curation do.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(folder / ".lock", shared=shared))
        except BlockingIOError:
            raise UserError(
                "another herdbook is working in this run", where=folder, todo="wait for it, or take another name=NAME"
            ) from None
        yield


def station_states(recipe: Recipe, problems: list[UserError] | None = None) -> list[tuple[Station, str]]:
    """What `run` would do with each station: "done", "resume", "run" or "run again".

    Args:
        problems: gets what a station would stop at before it begins, as a source that is not there; left out, it is raised.
    """
    states: list[tuple[Station, str]] = []
    folders: Paths = {}
    changed = False
    for station in stations_of(recipe):
        out = recipe.folder / station.name
        ready = not changed and all(folder.exists() for folder in folders.values())
        try:
            current = ready and pedigree.is_current(out, station.config(recipe), station.inputs(recipe, folders))
        except UserError as error:
            if problems is None:
                raise
            problems.append(error)
            current = False
        if current:
            state = "done"
        elif pedigree.exists(out):
            state, changed = "run again", True
        else:
            state, changed = ("resume" if list(out.glob("checkpoint-*")) else "run"), True
        states.append((station, state))
        folders[station.name] = out
    return states
