from __future__ import annotations

from pathlib import Path

from herdbook.console import Terminal
from herdbook.documents import DocumentWriter
from herdbook.files import read_json
from herdbook.report.blocks import Table
from herdbook.report.data import tokenizer_section
from herdbook.tokens.config import TokenizerConfig
from herdbook.tokens.tokenizer import train_tokenizer


def test_others_stand_beside_it(tmp_path: Path) -> None:
    with DocumentWriter(tmp_path / "corpus", "documents") as writer:
        for n in range(30):
            text = f"The shepherd counted {n} sheep. "
            writer.write({"id": str(n), "text": text, "url": "", "source": "tales", "license": "CC0-1.0", "language": "en"})
    quiet = Terminal(quiet=True)
    train_tokenizer(TokenizerConfig(vocab_size=270), tmp_path / "corpus", tmp_path / "first", quiet)
    cfg = TokenizerConfig(kind="llama", vocab_size=300, compare=[tmp_path / "first"])
    train_tokenizer(cfg, tmp_path / "corpus", tmp_path / "second", quiet)
    alone, beside = (tokenizer_section(read_json(tmp_path / name / "report.json")) for name in ("first", "second"))
    assert len(beside.blocks) == len(alone.blocks) + 1
    table = beside.blocks[-1]
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == ["this one", str(tmp_path / "first")]
    assert [row[1] for row in table.rows] == ["300", "270"]
