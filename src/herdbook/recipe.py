"""A recipe: one whole run as one strict YAML file.

The sections are the stations' own configs, each defined beside its component; this file only composes them. Values come from
the defaults, then the recipe, then `key=value` words; see `herdbook.config` for how mistakes are reported. Relative paths are
taken from the folder the command is typed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, model_validator

from herdbook.align.config import SftConfig
from herdbook.config import Config, Draft, Problem, apply_overrides, build, parse_path, read_yaml, set_value
from herdbook.corpus.config import CorpusConfig
from herdbook.errors import UserError
from herdbook.evals.config import EvalConfig
from herdbook.facts.licenses import find_expression
from herdbook.facts.models import find_model
from herdbook.model.config import ModelConfig
from herdbook.tokens.config import TokenizerConfig, TokensConfig
from herdbook.train.config import TrainConfig

RECIPE_FILE = "recipe.yaml"
SECTIONS = ("corpus", "tokenizer", "tokens", "model", "train", "sft", "eval")
OPTIONAL = ("corpus", "sft")  # left out, they are not done; the others are done with their defaults


class Recipe(Config):
    """Everything a run is made from. `corpus` and `sft` are left out when there is nothing to curate or to fine-tune on."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="the run's folder is OUT/NAME")
    out: Path = Field(Path("runs"), description="the folder that holds the runs")
    description: str | None = Field(None, description="a sentence or two for the report")
    seed: int = Field(0, description="seed of every section that does not set its own")
    corpus: CorpusConfig | None = Field(None, description="what to read, how to filter and deduplicate it")
    tokenizer: TokenizerConfig = Field(TokenizerConfig(), description="the tokenizer to train or to take")
    tokens: TokensConfig = Field(TokensConfig(), description="the mixture of sources, packed into shards")
    model: ModelConfig = Field(ModelConfig(), description="the architecture")
    train: TrainConfig = Field(TrainConfig(), description="pre-training")
    sft: SftConfig | None = Field(None, description="fine-tuning on conversations; left out, the base model is the result")
    eval: EvalConfig = Field(EvalConfig(), description="what to measure at the end")

    @model_validator(mode="after")
    def _commercial_throughout(self) -> Self:
        if self.corpus is None or not self.corpus.commercial:
            return self
        licenses = {f"sft.data.{n}": data.license for n, data in enumerate(self.sft.data if self.sft else [])}
        if self.tokenizer.license is not None:
            licenses["tokenizer"] = self.tokenizer.license
        for where, license_id in licenses.items():
            if not find_expression(license_id).commercial:
                raise ValueError(f"{where}: the licence {license_id or 'unknown'} does not allow commercial use")
        return self

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.out / self.name


def load_recipe(path: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Recipe:
    """The recipe in a YAML file, or of a run's folder, with overrides laid over it.

    Args:
        path: a YAML file, a run's folder (its `recipe.yaml` is read), or the name of a recipe that ships with herdbook.
        overrides: `key=value` words, or a mapping from dotted keys to values.

    Raises:
        UserError: there is no such recipe; ConfigError (a UserError) with all mistakes in it at once.
    """
    return build_recipe(read_draft(Path(path)), overrides)


def build_recipe(draft: Draft, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Recipe:
    """The recipe that a draft describes once the overrides are laid over it."""
    if isinstance(draft.values.get("model"), str):
        draft.values["model"] = {"preset": draft.values["model"]}  # so that keys below it can be set beside it
    if isinstance(overrides, Mapping):
        named = {key: value for key, value in overrides.items() if _names_preset(key, value)}
        for key, value in [*named.items(), *((key, value) for key, value in overrides.items() if key not in named)]:
            set_value(draft, ("model",) if key in named else parse_path(key), {"preset": value} if key in named else value,
                      "overrides")  # fmt: skip
    else:
        words = list(overrides)
        named_words = [word for word in words if _names_preset(*word.partition("=")[::2])]
        # A model that is named now goes before the shape that the recipe gives, and other words change that model.
        apply_overrides(draft, [f"model={{preset: {word.partition('=')[2]}}}" for word in named_words])
        apply_overrides(draft, [word for word in words if word not in named_words])
    for section in SECTIONS:
        # `train:` with nothing below it is a section with all its defaults, not a missing one.
        if section in draft.values and draft.values[section] is None and section not in OPTIONAL:
            draft.values[section] = {}
    _take_preset(draft)
    _spread_seed(draft)
    _spread_commercial(draft)
    return build(Recipe, draft)


def _names_preset(key: str, value: Any) -> bool:
    """Whether an override names a model of the catalogue: `model=falcon-tiny`, `model.preset=falcon-tiny`."""
    named = isinstance(value, str) and value[:1] not in ("", "{") and value not in ("null", "~")
    return named and key in ("model", "model.preset")


def _take_preset(draft: Draft) -> None:
    """`model: falcon-tiny`, or `preset: falcon-tiny` below `model:`, stands for that model's shape; other keys change it."""
    model = draft.values.get("model")
    values = {"preset": model} if isinstance(model, str) else model
    if not isinstance(values, dict) or "preset" not in values:
        return
    try:
        shape = find_model(str(values["preset"])).shape
    except UserError as error:
        where = draft.where(("model", "preset") if isinstance(model, dict) else ("model",))
        draft.problems.append(Problem("model.preset", where, f"{error.what}; {error.todo}"))
        shape = {}
    draft.values["model"] = {**shape, **{key: value for key, value in values.items() if key != "preset"}}


def _spread_seed(draft: Draft) -> None:
    """Hand the run's seed to each section that has a seed of its own and does not set it."""
    seed = draft.values.get("seed")
    if not isinstance(seed, int):
        return
    for section in SECTIONS:
        config = next(iter(_section_types(section)))
        values = draft.values.get(section, None if section in OPTIONAL else {})
        if "seed" in config.model_fields and isinstance(values, dict):
            draft.values[section] = {"seed": seed, **values}


def _spread_commercial(draft: Draft) -> None:
    """A corpus for commercial use is for a commercial model, so fine-tuning looks at its licences too."""
    corpus, sft = draft.values.get("corpus"), draft.values.get("sft")
    if isinstance(corpus, dict) and isinstance(sft, dict) and corpus.get("commercial"):
        draft.values["sft"] = {"commercial": corpus["commercial"], **sft}


def _section_types(section: str) -> list[type[Config]]:
    from herdbook.config import config_types

    return config_types(Recipe.model_fields[section].annotation)


def read_draft(path: Path) -> Draft:
    """The raw values of a recipe file, of a run's folder, or of a recipe that ships with herdbook."""
    if path.is_dir():
        if not (path / RECIPE_FILE).is_file():
            raise UserError("this folder is no run: it has no recipe.yaml", where=path, todo="give a recipe or a run's folder")
        draft = read_yaml(path / RECIPE_FILE)
        draft.values |= {"name": path.resolve().name, "out": str(path.parent)}
        return draft
    if not path.exists() and path.suffix not in (".yaml", ".yml") and path.parent == Path():  # opt-1.3b has a dot
        shipped = shipped_recipe(path.name)
        if shipped is not None:
            return read_yaml(shipped)
    return read_yaml(path)


def recipes_folder() -> Path:
    """Where the recipes that ship with herdbook lie: in the package, or beside `src/` in a checkout."""
    packaged = Path(str(resources.files("herdbook"))) / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "recipes"


def shipped_recipe(name: str) -> Path | None:
    """The file of a recipe that ships with herdbook, or None."""
    path = recipes_folder() / f"{name}.yaml"
    return path if path.is_file() else None


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default filled in, so that the run stands by itself."""
    head = "# The resolved recipe of this run: defaults, the recipe it was started from and key=value words, in one.\n"
    values = recipe.model_dump(mode="json")
    for section in SECTIONS:
        # A section that follows the run's seed goes on following it when that is set anew.
        if values[section] is not None and values[section].get("seed") == recipe.seed:
            del values[section]["seed"]
    return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
