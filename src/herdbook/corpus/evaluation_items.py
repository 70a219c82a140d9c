"""The items of evaluation sets that a corpus is compared with: files that are named, or sets by name in a folder of them.

Of a set by name, the split that is scored is taken; what is meant for training or for examples in a prompt is not.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from herdbook.corpus.config_dedup import ContaminationConfig
from herdbook.corpus.contamination import Item
from herdbook.errors import UserError
from herdbook.facts.evaluation_rows import read_rows
from herdbook.facts.evaluation_sets import evaluation_sets, files_of


def evaluation_files(cfg: ContaminationConfig) -> list[tuple[str, Path]]:
    """The name and path of each file to compare with, in the order they are named.

    Raises UserError for what is neither a file nor the name of a set, and for a set that `cfg.folder` does not have.
    """
    found: list[tuple[str, Path]] = []
    for name in cfg.sets:
        path, known = Path(name).expanduser(), evaluation_sets().get(name)
        if path.is_file():
            found.append((path.name.split(".")[0], path))
        elif known is None:
            close = difflib.get_close_matches(name, evaluation_sets(), n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise UserError(
                f"there is no such evaluation set, neither a file nor known by the name {name!r}",
                where="dedup.contamination.sets",
                todo=f"{hint}Name a jsonl or parquet file, or one of {', '.join(evaluation_sets())}",
            )
        elif cfg.folder is None:
            raise UserError(
                f"{name} is a set by name, and no folder is said in which its files lie",
                where="dedup.contamination.folder",
                todo="set it to the folder of your evaluation sets",
            )
        else:
            splits = files_of(known, cfg.folder.expanduser())
            if known.split not in splits:
                raise UserError(
                    f"of {name} there is {', '.join(splits)}, and what is scored is {known.split}",
                    where=cfg.folder,
                    todo=f"put its {known.split} split there, or name the file",
                )
            found += [(name, file) for file in splits[known.split]]
    return found


def read_items(path: Path, task: str | None = None, text_key: str | None = None) -> Iterator[Item]:
    """The items of an evaluation set: jsonl, plain or compressed, or parquet.

    Args:
        task: what reports call it; the file's name without endings by default.
        text_key: the field to look for; all strings of an item by default, those in lists and mappings too.

    An item's `id` field is its name, else its line or row. Raises UserError for a file that is neither, and for an item that
    lacks the field.
    """
    name = task or path.name.split(".")[0]
    for number, row in read_rows(path):
        if text_key is not None and text_key not in row:
            raise UserError(f"there is no field {text_key!r}", where=f"{path}:{number}", todo=f"fields here: {', '.join(row)}")
        yield Item(name, str(row.get("id", number)), list(_strings(row if text_key is None else row[text_key])))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
