"""What a model on disk may be used for."""

from __future__ import annotations

from pathlib import Path

import pytest

from herdbook import pedigree
from herdbook.errors import UserError
from herdbook.facts.licenses import find_license
from herdbook.interop.gguf.container import write_gguf
from herdbook.interop.gguf.model import save_gguf
from herdbook.interop.licenses import license_of, named, require_commercial

from .shapes import LLAMA, make_decoder


def carded(folder: Path, front: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text(f"---\n{front}\n---\n# A model\n")
    return folder


@pytest.mark.parametrize(
    ("front", "name", "commercial"),
    [
        ("license: apache-2.0", "Apache-2.0", True),
        ("license: llama2", "LicenseRef-llama-2", True),
        ("license: other\nlicense_name: my terms/x", "LicenseRef-my-terms-x", False),
        ("license: apache-2.0\nbase_model: huggyllama/llama-7b", "LicenseRef-llama-1 AND Apache-2.0", False),
        ("license: mit\nbase_model:\n- somebody/llama-2-13b-chat-gguf", "LicenseRef-llama-2 AND MIT", True),
        ("license: mit\nbase_model: somebody/unheard-of", "MIT", True),
        ("license: mit\nbase_model: mosaicml/mpt-7b-chat", "CC-BY-NC-SA-4.0 AND MIT", False),
        ("license: mit\nbase_model: https://hub.example/huggyllama/llama-7b/tree/main", "LicenseRef-llama-1 AND MIT", False),
        ("license: mit\nbase_model: x/llama-7b-bnb-4bit@main", "LicenseRef-llama-1 AND MIT", False),
        ("license: other\nlicense_name: psf-2.0-and-cc-by-sa-4.0", "PSF-2.0 AND CC-BY-SA-4.0", True),
        ("base_model: facebook/opt-1.3b", "LicenseRef-OPT-175B AND LicenseRef-unknown", False),
        ("license: [mit]", "LicenseRef-unknown", False),
        ("license: {", "LicenseRef-unknown", False),
    ],
)
def test_a_card_and_the_model_it_was_made_of(front: str, name: str, commercial: bool, tmp_path: Path) -> None:
    found = license_of(carded(tmp_path / "m", front))
    assert set(found.id.split(" AND ")) == set(name.split(" AND "))
    assert found.commercial == commercial


@pytest.mark.parametrize(("made", "card"), [("LicenseRef-llama-1", "mit"), ("MIT", "CC-BY-NC-4.0")])
def test_pedigree_and_card_both_count(made: str, card: str, tmp_path: Path) -> None:
    """A folder may have been written over by another tool since: what either forbids is forbidden."""
    folder = carded(tmp_path / "m", f"license: {card}")
    with pedigree.record(folder, "sft", {}) as record:
        record.add_license(made)
    assert not license_of(folder).commercial


def test_a_gguf_says_it_in_its_header(tmp_path: Path) -> None:
    save_gguf(make_decoder(LLAMA), tmp_path / "m.gguf", license_id="LicenseRef-llama-1 AND MIT")
    assert license_of(tmp_path / "m.gguf") == named("LicenseRef-llama-1 AND MIT")
    base = {"general.base_model.count": 1, "general.base_model.0.repo_url": "https://hub.example/huggyllama/llama-65b"}
    write_gguf(tmp_path / "b.gguf", {"general.architecture": "llama", "general.license": "mit", **base}, [])
    assert license_of(tmp_path / "b.gguf").id == "LicenseRef-llama-1 AND MIT"
    assert license_of(tmp_path / "absent.bin").id == "LicenseRef-unknown"


def test_commercial_use_is_refused_where_it_is_forbidden_or_nobody_allowed_it(tmp_path: Path) -> None:
    require_commercial(find_license("Apache-2.0"), tmp_path)
    for name in ("LicenseRef-llama-1", None):
        with pytest.raises(UserError, match="no commercial use"):
            require_commercial(find_license(name), tmp_path)
