"""`herdbook corpus …`: what became of documents, and models that judge them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from herdbook.cli.options import AsJson, Quiet, open_terminal

app = typer.Typer(
    name="corpus", help="Look into a corpus, and make models that judge documents.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("why")
def why(
    name: Annotated[
        str, typer.Argument(metavar="URL|ID|FILE@OFFSET", help="address or id of a document, or where its record lies")
    ],
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="a corpus, or a run's folder")] = Path("corpus"),
    again: Annotated[
        bool, typer.Option("--again", help="read its record once more and show what each step makes of it")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what became of a document: the rule, what was measured, the limit, and where a copy stands."""
    from herdbook.verbs import verdicts

    verdicts.why(name, corpus, open_terminal(as_json=as_json), again=again)


@app.command("diff")
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="a corpus, or a run's folder")],
    b: Annotated[Path, typer.Argument(metavar="B", help="another one of the same pages")],
    as_json: AsJson = False,
) -> None:
    """Show what two corpora decided differently of the same documents, and which settings differ."""
    from herdbook.verbs import verdicts

    verdicts.diff(a, b, open_terminal(as_json=as_json))


Texts = Annotated[list[str], typer.Option(metavar="PATH", help="a corpus, folder, file or glob; repeatable")]


@app.command("classifier")
def classifier(
    positive: Texts,
    negative: Texts,
    out: Annotated[Path, typer.Option(help="the folder to write to")] = Path("classifier"),
    calibrate: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="texts of which the suggested threshold keeps `--keep`; repeatable")
    ] = None,
    documents: Annotated[int | None, typer.Option(min=1, help="texts of each side at most; 200,000 if not given")] = None,
    heldout: Annotated[float | None, typer.Option(help="share that measures and does not train; 0.1 if not given")] = None,
    keep: Annotated[float | None, typer.Option(help="share that the threshold keeps; 0.1 if not given")] = None,
    word_ngrams: Annotated[int | None, typer.Option(min=1, max=5, help="longest n-grams of words; 2 if not given")] = None,
    dim: Annotated[int | None, typer.Option(min=1, help="of the vectors; 16 if not given")] = None,
    min_count: Annotated[int | None, typer.Option(min=1, help="rarer words have no vector; 1 if not given")] = None,
    buckets: Annotated[int | None, typer.Option(min=1, help="rows that n-grams share; by the texts if not given")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="times that every text is seen; 5 if not given")] = None,
    lr: Annotated[float | None, typer.Option(help="learning rate at the start; 0.1 if not given")] = None,
    text_key: Annotated[str | None, typer.Option(help="jsonl and parquet: the field that holds the text")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="another seed gives another model; 0 if not given")] = None,
    license_id: Annotated[str | None, typer.Option("--license", help="SPDX id of texts that state none")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a quality classifier (fastText) that tells your good texts from ordinary ones."""
    from herdbook.verbs import classifier

    settings = {"documents": documents, "heldout": heldout, "keep": keep, "word_ngrams": word_ngrams, "dim": dim, "lr": lr,
                "min_count": min_count, "buckets": buckets, "epochs": epochs, "text_key": text_key, "seed": seed}  # fmt: skip
    classifier.train(
        positive,
        negative,
        out,
        open_terminal(quiet, as_json),
        calibrate=calibrate or (),
        license_id=license_id,
        settings=settings,
    )


@app.command("ngram")
def ngram(
    texts: Annotated[list[str], typer.Argument(metavar="TEXTS...", help="jsonl, parquet, text, corpora; or one ARPA file")],
    out: Annotated[Path, typer.Option(help="the model's folder")],
    order: Annotated[int, typer.Option(help="the length of the longest n-grams")] = 5,
    tokenizer: Annotated[Path | None, typer.Option(help="count tokens of this tokenizer, not words")] = None,
    calibrate: Annotated[str | None, typer.Option(metavar="CORPUS", help="documents to take the cut-offs from")] = None,
    arpa: Annotated[Path | None, typer.Option(help="write ARPA text too (.gz packs it)")] = None,
    prune: Annotated[str, typer.Option(help="leave out n-grams that occur at most so often, as '0 0 1 1 1'")] = "0",
    vocabulary: Annotated[str | None, typer.Option(help="know so many of the most frequent words")] = None,
    min_count: Annotated[int, typer.Option(min=1, help="rarer words are unknown")] = 1,
    max_words: Annotated[str, typer.Option(help="read so much text")] = "50M",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make an n-gram model of clean text, to sort documents by perplexity with."""
    from herdbook.verbs.ngram import ngram

    ngram(
        texts, out, open_terminal(quiet, as_json), order=order, tokenizer=tokenizer, calibrate=calibrate, arpa=arpa,
        prune=prune, vocabulary=vocabulary, min_count=min_count, max_words=max_words,
    )  # fmt: skip
