"""The command line: verbs parse, call and print; nothing here does the work, and nothing heavy is imported at the top.

Exit codes: 0 done, 1 failed (a defect of ours, with its traceback), 2 the user's input, 130/143 interrupted and saved. What a
person reads goes to stderr, what a program reads (`--json`, generated text) to stdout.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from herdbook.console import Terminal

app = typer.Typer(
    name="herdbook",
    help="Raise your own open base language model, from raw web pages to a model that answers, and know its pedigree.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with `herdbook quickstart`, or write a recipe for your own pages with `herdbook init`.",
)

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="a recipe (YAML) or a run's folder")]
Words = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings, as in train.tokens=2M")]
AsJson = Annotated[bool, typer.Option("--json", help="print facts as JSON on stdout")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print what would happen, and do nothing")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="only warnings and errors")]
Commercial = Annotated[bool, typer.Option("--commercial", help="refuse sources whose licence forbids commercial use")]
Workers = Annotated[int | None, typer.Option(min=1, help="processes to use; the number of cores if not given")]
Out = Annotated[Path | None, typer.Option(help="the folder to write to")]
LicenseId = Annotated[str | None, typer.Option("--license", help="SPDX id, where the source does not state its licence")]
TokenizerPath = Annotated[Path | None, typer.Option("--tokenizer", help="where the tokenizer lies, if not with the model")]
CommercialModel = Annotated[bool, typer.Option("--commercial", help="refuse a model that may not be used commercially")]
Force = Annotated[bool, typer.Option("--force", help="replace a file that is there")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="read .bin and .pth weights too; of these pickles only tensors are accepted")
]
ModelPath = Annotated[str, typer.Argument(metavar="MODEL", help="a model folder, a .gguf file, or a run's folder")]


def _terminal(quiet: bool = False, as_json: bool = False) -> Terminal:
    from herdbook.console import Terminal

    return Terminal(quiet=quiet, as_json=as_json)


def _version(value: bool) -> None:
    if value:
        from herdbook import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")] = False,
) -> None:
    pass


# --- the whole road -------------------------------------------------------------------------------------------------------


@app.command()
def run(
    recipe: Recipe,
    words: Words = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="STATION", help="make this station and all after it anew")
    ] = None,
    dry_run: DryRun = False,
    commercial: Commercial = False,
    workers: Workers = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe whole: curate, tokenize, pre-train, fine-tune, evaluate, report. Goes on where it was cut off."""
    from herdbook import road
    from herdbook.console import emit
    from herdbook.recipe import load_recipe
    from herdbook.verbs import dry

    terminal = _terminal(quiet, as_json)
    chosen = load_recipe(recipe, _words(words, commercial))
    if dry_run:
        _show(dry.describe(chosen), as_json, lambda facts: dry.show(facts, terminal))
        return
    folder = road.run(chosen, start_from=start, workers=workers, terminal=terminal)
    if as_json:
        emit({"run": str(folder), "report": str(folder / "report.html")})


@app.command()
def quickstart(
    words: Words = None, dry_run: DryRun = False, workers: Workers = None, as_json: AsJson = False, quiet: Quiet = False
) -> None:
    """Raise a small model from the text that is on every machine: about five minutes on two cores."""
    from herdbook import road
    from herdbook.console import emit
    from herdbook.recipe import load_recipe
    from herdbook.verbs import dry, samples

    terminal = _terminal(quiet, as_json)
    chosen = load_recipe("quickstart", words or ())
    if dry_run:
        _show(dry.describe(chosen), as_json, lambda facts: dry.show(facts, terminal))
        return
    folder = road.run(chosen, workers=workers, terminal=terminal)
    shown = samples.read(folder)
    if as_json:
        emit({"run": str(folder), "report": str(folder / "report.html"), "samples": shown})
    else:
        samples.show(shown, folder, terminal)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="the recipe to write")] = Path("recipe.yaml"),
    source: Annotated[
        list[str] | None, typer.Option("--source", "-s", help="a WARC, HTML folder, jsonl or parquet; repeatable")
    ] = None,
    license_id: Annotated[str | None, typer.Option("--license", help="SPDX id of the sources' licence")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace a recipe that is there")] = False,
) -> None:
    """Write a commented recipe for your own pages."""
    from herdbook.verbs.init import write_recipe

    write_recipe(path, source or [], license_id, force=force, terminal=_terminal())


@app.command(epilog="Numbers may be human: 7B, 2T, 1e22, 7d, 12h, 45%. Every number is printed with the formula it comes from.")
def plan(
    targets: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE|serve|devices|chinchilla] [KEY=VALUE]...", help="what to plan from")
    ] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="the one dial: so many layers, and a whole recipe follows")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="write the recipe of a depth to this file")] = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say what a run takes before it starts: from any of size, tokens, FLOPs, time, devices and money to all others.

    \b
    herdbook plan params=7B                              tokens and FLOPs by the scaling laws
    herdbook plan flops=1e22 law=approach1               the best size for a budget of compute
    herdbook plan gpus=8 device=a100-80gb time=7d        what eight GPUs train in a week
    herdbook plan budget=10000 device=h100-80gb          what money buys
    herdbook plan params=7B tokens=2T serve-tokens=1T    training and serving together
    herdbook plan model=llama2-7b device=a100-80gb gpus=8   memory of each GPU, and the layout that fits
    herdbook plan --depth 12 -o recipe.yaml              one dial, a whole recipe
    herdbook plan recipe.yaml device=here                the training of a recipe on this machine
    herdbook plan serve device=rtx4090 speed=20          the largest model one device serves
    herdbook plan devices                                what is known of devices
    herdbook plan chinchilla                             the laws beside Chinchilla's own tables

    \b
    Keys: params tokens flops gpu-hours gpus time budget depth model device
          like law (epoch approach1 approach2 approach3) multiple serve-tokens
          context precision (mixed zero fp32 bf16) micro-batch usable
          mfu serve-mfu price watts pue co2
    serve: device speed precision (bf16 fp16 fp32 int8 int4) context
          sequences like usable bandwidth-share
    """
    from herdbook.verbs import plan as verb

    verb.plan(targets or [], depth, out, _terminal(quiet, as_json), force=force)


# --- one station at a time ------------------------------------------------------------------------------------------------


@app.command()
def curate(
    targets: Annotated[
        list[str], typer.Argument(metavar="RECIPE|FILES... [KEY=VALUE]...", help="a recipe, a run's folder, or files to read")
    ],
    out: Out = None,
    dry_run: DryRun = False,
    commercial: Commercial = False,
    workers: Workers = None,
    slurm: Annotated[
        int | None, typer.Option(min=1, metavar="PARTS", help="plan the run and write a script that has Slurm do it in parts")
    ] = None,
    part: Annotated[
        str | None, typer.Option(metavar="I/N", help="do one of N parts of a planned run, counted from 0, and stop")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Read, extract, identify, filter and deduplicate documents; goes on where it was cut off."""
    from herdbook.verbs import station

    station.curate(
        targets, out, _terminal(quiet, as_json), dry_run=dry_run, commercial=commercial, workers=workers, part=part, slurm=slurm
    )


@app.command()
def tokenizer(
    target: Annotated[str, typer.Argument(metavar="RECIPE|CORPUS", help="a recipe, a run's folder, or a folder of documents")],
    words: Words = None,
    out: Out = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train the tokenizer, and report its bytes per token."""
    from herdbook.verbs import station

    station.work("tokenizer", target, words, out, _terminal(quiet, as_json), dry_run=dry_run)


@app.command()
def tokens(
    target: Annotated[str, typer.Argument(metavar="RECIPE|CORPUS", help="a recipe, a run's folder, or a folder of documents")],
    words: Words = None,
    tokenizer_path: Annotated[Path | None, typer.Option("--tokenizer", help="the tokenizer's folder")] = None,
    out: Out = None,
    dry_run: DryRun = False,
    workers: Workers = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write the corpus as memory-mapped token shards."""
    from herdbook.verbs import station

    paths = {"tokenizer": tokenizer_path}
    station.work("tokens", target, words, out, _terminal(quiet, as_json), paths, dry_run=dry_run, workers=workers)


@app.command()
def pretrain(
    target: Annotated[
        str, typer.Argument(metavar="RECIPE|TOKENS", help="a recipe, a run's folder, or a folder of token shards")
    ],
    words: Words = None,
    tokenizer_path: Annotated[Path | None, typer.Option("--tokenizer", help="the tokenizer's folder")] = None,
    corpus: Annotated[Path | None, typer.Option(help="the corpus, for held-out bits per byte")] = None,
    out: Out = None,
    launch: Annotated[
        str | None, typer.Option(metavar="torchrun|slurm", help="only write a script that starts this on several devices")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="with --launch: machines")] = 1,
    gpus: Annotated[int, typer.Option("--gpus-per-node", min=1, help="with --launch: devices of each machine")] = 1,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Pre-train a model, on one device or, started by torchrun, on many; run again to go on after an interruption."""
    from herdbook.verbs import station

    if launch is not None:
        station.launch(launch, target, words, out, _terminal(quiet, as_json), nodes=nodes, gpus=gpus)
        return
    paths = {"tokenizer": tokenizer_path, "corpus": corpus}
    station.work("pretrain", target, words, out, _terminal(quiet, as_json), paths, dry_run=dry_run)


@app.command()
def sft(
    target: Annotated[str, typer.Argument(metavar="RECIPE|MODEL", help="a recipe, a run's folder, or a base model's folder")],
    words: Words = None,
    corpus: Annotated[Path | None, typer.Option(help="the corpus, for conversations made from it")] = None,
    out: Out = None,
    dry_run: DryRun = False,
    commercial: Annotated[
        bool, typer.Option("--commercial", help="refuse a base model or data that may not be used commercially")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a model on conversations."""
    from herdbook.verbs import station

    words = [*(words or []), *(["sft.commercial=true"] if commercial else [])]
    station.work("sft", target, words, out, _terminal(quiet, as_json), {"corpus": corpus}, dry_run=dry_run)


@app.command(name="eval")
def evaluate(
    target: Annotated[str, typer.Argument(metavar="RECIPE|MODEL", help="a recipe, a run's folder, or a model folder")],
    words: Words = None,
    corpus: Annotated[Path | None, typer.Option(help="the corpus whose held-out documents are scored")] = None,
    out: Out = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure bits per byte and multiple-choice accuracy on held-out documents."""
    from herdbook.verbs import station

    station.work("eval", target, words, out, _terminal(quiet, as_json), {"corpus": corpus}, dry_run=dry_run)


# --- using a model --------------------------------------------------------------------------------------------------------


@app.command()
def generate(
    model: ModelPath,
    prompt: Annotated[str, typer.Argument(help="the text to go on from; `-` reads it from stdin")] = "-",
    max_tokens: Annotated[int, typer.Option(min=1, help="tokens to write at most")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="sample from the K likeliest; 0 from all")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="sample from the likeliest that make up P")] = 1.0,
    min_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="drop tokens below P of the likeliest's probability")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="the same seed gives the same text")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="end before this text; repeatable")] = None,
    n: Annotated[int, typer.Option("-n", "--count", min=1, help="how many continuations")] = 1,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """Continue a text."""
    from herdbook.verbs import talk

    text = sys.stdin.buffer.read().decode("utf-8", errors="replace") if prompt == "-" else prompt
    settings = {"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
                "seed": seed, "stop": tuple(stop or ())}  # fmt: skip
    talk.generate(model, text, settings, n, allow_pickle=allow_pickle, as_json=as_json)


@app.command()
def chat(
    model: ModelPath,
    system: Annotated[str | None, typer.Option(help="a system message to begin with")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="tokens a reply has at most")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="sample from the likeliest that make up P")] = 0.95,
    seed: Annotated[int | None, typer.Option(help="the same seed gives the same replies")] = None,
    allow_pickle: AllowPickle = False,
) -> None:
    """Talk with a model in the terminal."""
    from herdbook.verbs import talk

    settings = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    talk.chat(model, system, settings, _terminal(), allow_pickle=allow_pickle)


@app.command()
def bench(
    model: ModelPath,
    prompt: Annotated[int, typer.Option(min=1, help="tokens of each prompt")] = 512,
    tokens: Annotated[int, typer.Option(min=2, help="tokens of each text")] = 64,
    dtype: Annotated[str | None, typer.Option(metavar="float32|bfloat16", help="of what is dense; default: the faster")] = None,
    backend: Annotated[str, typer.Option(metavar="auto|torch|native", help="what computes")] = "auto",
    peers: Annotated[bool, typer.Option(help="also measure transformers and llama.cpp where they are installed")] = True,
    allow_pickle: AllowPickle = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure how fast a model reads and writes on this machine."""
    from herdbook.verbs import bench as verb

    verb.bench(model, _terminal(quiet, as_json), prompt=prompt, written=tokens, dtype=dtype, backend=backend, with_peers=peers,
               allow_pickle=allow_pickle)  # fmt: skip


@app.command(epilog="The endpoints, limits and metrics are described in docs/serving.md.")
def serve(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL|NAME=MODEL... [KEY=VALUE]...", help="models to serve, and settings")
    ],
    host: Annotated[
        str, typer.Option(help="the address to listen at; a wider one than this machine wants a key")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="the port; 0 takes a free one")] = 8000,
    api_key: Annotated[
        list[str] | None, typer.Option(help="a key that clients must name, else HERDBOOK_API_KEY's; repeatable")
    ] = None,
    open_to_the_network: Annotated[
        bool, typer.Option("--open-to-the-network", help="answer everybody who reaches the address, without a key")
    ] = False,
    engine: Annotated[str, typer.Option(metavar="herdbook|vllm", help="vllm hands the same folder to vLLM")] = "herdbook",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; auto: a GPU where there is one")] = "auto",
    dtype: Annotated[
        str | None, typer.Option(metavar="TYPE", help="float32, bfloat16 or float16; default: what runs fastest")
    ] = None,
    commercial: CommercialModel = False,
    allow_pickle: AllowPickle = False,
    quiet: Quiet = False,
) -> None:
    """Serve models over HTTP, as OpenAI's API has it: completions, chat, log-probabilities, streams.

    \b
    herdbook serve runs/quickstart/sft                   one model, at http://127.0.0.1:8000/v1
    herdbook serve base=runs/a/pretrain chat=runs/a/sft  two, by name
    herdbook serve model.gguf limits.max_tokens=512      a limit for every text
    herdbook serve my-model engine.kv=int8 engine.rows=32

    \b
    limits.  body head prompt max_tokens choices top_logprobs form concurrency
             connections seconds arrival stall drain
    engine.  backend kv kv_memory context rows step_tokens queue prefix_cache
             speculate draft_tokens kept_share
    """
    from herdbook.verbs import serve as verb

    verb.serve(
        models, _terminal(quiet), host=host, port=port, keys=api_key or (), open_to_the_network=open_to_the_network,
        engine=engine, device=device, dtype=dtype, commercial=commercial, allow_pickle=allow_pickle,
    )  # fmt: skip


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="MODEL", help="a model folder, a .gguf file, Meta's folder, or a llama2.c .bin file")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="a folder, or a name that ends in .gguf or .bin")],
    to: Annotated[str | None, typer.Option(help="hf, gguf, meta or llama2c; by the name of OUT if not given")] = None,
    kind: Annotated[
        str | None,
        typer.Option("--type", help="F32, F16 or BF16, in GGUF also Q8_0, Q5_1, Q5_0, Q4_1, Q4_0; as it is if not given"),
    ] = None,
    license_id: LicenseId = None,
    tokenizer_path: TokenizerPath = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="longest sequence, where the source does not tell it (Meta's layout)")
    ] = None,
    force: Force = False,
    commercial: CommercialModel = False,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Bring a model from one layout to another: Hugging Face, GGUF, Meta's LLaMA, llama2.c."""
    from herdbook.verbs import convert as verb

    verb.convert(
        source, out, to=to, kind=kind, license_id=license_id, tokenizer=tokenizer_path, context=context,
        commercial=commercial, allow_pickle=allow_pickle, force=force, terminal=_terminal(quiet, as_json),
    )  # fmt: skip


@app.command()
def quantize(
    model: ModelPath,
    out: Annotated[Path | None, typer.Option(help="a folder, or a name that ends in .gguf")] = None,
    bits: Annotated[int | None, typer.Option(help="8 or 4; 4 if not given")] = None,
    group: Annotated[int | None, typer.Option(help="columns that share a scale; 32 if not given")] = None,
    affine: Annotated[
        bool | None, typer.Option("--affine/--symmetric", help="a least value beside the scale; at 4 bits if not given")
    ] = None,
    method: Annotated[str | None, typer.Option(help="rtn, awq or gptq; rtn, which needs no text, if not given")] = None,
    head_bits: Annotated[int | None, typer.Option(help="of embedding and head: 16, 8 or 4; 8 if not given")] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="PATH", help="text for awq and gptq: corpus, jsonl, plain; the run's if not given")
    ] = None,
    sample: Annotated[str | None, typer.Option(metavar="TOKENS", help="how much of it; 32768 if not given")] = None,
    act_order: Annotated[bool | None, typer.Option("--act-order", help="gptq: columns with the largest inputs first")] = None,
    damping: Annotated[float | None, typer.Option(help="gptq: share of the mean diagonal added; 0.01 if not given")] = None,
    table: Annotated[bool, typer.Option("--table", help="write nothing; print perplexity against bits for all forms")] = False,
    text: Annotated[
        Path | None, typer.Option(metavar="PATH", help="with --table: what to measure on; the run's corpus if not given")
    ] = None,
    tokens: Annotated[str, typer.Option(help="with --table: tokens to measure on")] = "32768",
    tokenizer_path: TokenizerPath = None,
    license_id: LicenseId = None,
    force: Force = False,
    commercial: CommercialModel = False,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Put a model into 8 or 4 bits a weight, or measure what that costs.

    \b
    herdbook quantize runs/quickstart --out small                    4 bits, no text needed
    herdbook quantize runs/quickstart --method gptq --out small      looks at the run's held-out documents
    herdbook quantize MODEL --bits 8 --out model.gguf                for llama.cpp, bit for bit
    herdbook quantize MODEL --table --text FILE.txt                  perplexity against bits
    """
    from herdbook.verbs import quantize as verb

    given = {"bits": bits, "group": group, "affine": affine, "method": method, "head_bits": head_bits, "tokens": sample,
             "act_order": act_order, "damping": damping}  # fmt: skip
    paths: dict[str, Any] = {"calibration": calibration, "tokenizer": tokenizer_path, "allow_pickle": allow_pickle}
    terminal = _terminal(quiet, as_json)
    if table:
        verb.show_table(model, text, given, tokens=tokens, out=out, **paths, terminal=terminal)
        return
    verb.quantize(model, out, given, **paths, license_id=license_id, commercial=commercial, force=force, terminal=terminal)


# --- looking --------------------------------------------------------------------------------------------------------------


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder")], as_json: AsJson = False) -> None:
    """Write a run's report (HTML and Markdown) anew."""
    from herdbook.console import emit
    from herdbook.report.report import write_report

    terminal = _terminal(as_json=as_json)
    path = write_report(folder, terminal)
    if as_json:
        emit({"report": str(path)})
    else:
        terminal.say(f"report: {path}")


@app.command()
def pedigree(
    path: Annotated[Path | None, typer.Argument(help="a run's folder, a station's folder or a model folder")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="hash every file again")] = False,
    batch: Annotated[str | None, typer.Option(metavar="RUN@STEP", help="the documents that a step was trained on")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what something was made from, back to the crawl; check that it still is what it was."""
    if batch is not None:
        from herdbook.verbs import batch as trace

        trace.show(batch, _terminal(as_json=as_json))
    else:
        from herdbook.verbs import lineage

        lineage.show(path or Path(), _terminal(as_json=as_json), verify=verify)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has, what is missing, and the command that installs it."""
    from herdbook.verbs import doctor as verb

    verb.show(_terminal(as_json=as_json))


models = typer.Typer(invoke_without_command=True, help="The catalogue of model families and sizes.")
app.add_typer(models, name="models")

Family = Annotated[str | None, typer.Option(metavar="NAME", help="only this family, as in llama2")]
Fits = Annotated[str | None, typer.Option(metavar="SIZE", help="only what this much memory serves, as in 24GB")]
Precision = Annotated[str, typer.Option(help="of the weights when served: fp32, bf16, fp16, int8 or int4")]
MayEarn = Annotated[bool, typer.Option("--commercial", help="only published weights that may be used commercially")]
OneModel = Annotated[str, typer.Argument(metavar="NAME|FOLDER", help="as in llama2-7b, or a model folder")]


@models.callback()
def _models(
    context: typer.Context,
    family: Family = None,
    fits: Fits = None,
    precision: Precision = "bf16",
    commercial: MayEarn = False,
    as_json: AsJson = False,
) -> None:
    from herdbook.errors import UserError

    if context.invoked_subcommand is None:
        models_ls(family, fits, precision, commercial, as_json)
    elif family or fits or precision != "bf16" or commercial or as_json:
        raise UserError("options go behind the verb", todo=f"`herdbook models {context.invoked_subcommand} … --json`")


@models.command("ls")
def models_ls(
    family: Family = None,
    fits: Fits = None,
    precision: Precision = "bf16",
    commercial: MayEarn = False,
    as_json: AsJson = False,
) -> None:
    """List the sizes in the catalogue."""
    from herdbook.verbs import catalogue

    catalogue.ls(_terminal(as_json=as_json), family=family, fits=fits, precision=precision, commercial=commercial)


@models.command("show")
def models_show(name: OneModel, as_json: AsJson = False) -> None:
    """Show a size, or a model folder: architecture, memory, training, sources, licence in plain words."""
    from herdbook.verbs import catalogue

    catalogue.show(name, _terminal(as_json=as_json))


@models.command("compare")
def models_compare(
    names: Annotated[list[str], typer.Argument(metavar="NAME|FOLDER...", help="two or more")], as_json: AsJson = False
) -> None:
    """Compare sizes or model folders: facts side by side, and published results."""
    from herdbook.verbs.compare import compare

    compare(names, _terminal(as_json=as_json))


corpus_app = typer.Typer(
    name="corpus", help="Look into a corpus, and make models that judge documents.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(corpus_app)


@corpus_app.command("why")
def corpus_why(
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

    verdicts.why(name, corpus, _terminal(as_json=as_json), again=again)


@corpus_app.command("diff")
def corpus_diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="a corpus, or a run's folder")],
    b: Annotated[Path, typer.Argument(metavar="B", help="another one of the same pages")],
    as_json: AsJson = False,
) -> None:
    """Show what two corpora decided differently of the same documents, and which settings differ."""
    from herdbook.verbs import verdicts

    verdicts.diff(a, b, _terminal(as_json=as_json))


Texts = Annotated[list[str], typer.Option(metavar="PATH", help="a corpus, folder, file or glob; repeatable")]


@corpus_app.command("classifier")
def corpus_classifier(
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
        positive, negative, out, _terminal(quiet, as_json), calibrate=calibrate or (), license_id=license_id, settings=settings
    )


@corpus_app.command("ngram")
def corpus_ngram(
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
        texts, out, _terminal(quiet, as_json), order=order, tokenizer=tokenizer, calibrate=calibrate, arpa=arpa, prune=prune,
        vocabulary=vocabulary, min_count=min_count, max_words=max_words,
    )  # fmt: skip


def _words(words: list[str] | None, commercial: bool = False) -> list[str]:
    return [*(words or []), *(["corpus.commercial=true"] if commercial else [])]


def _show(facts: Any, as_json: bool, show: Any) -> None:
    from herdbook.console import emit

    if as_json:
        emit(facts)
    else:
        show(facts)


def main() -> None:
    """The entry point: turns exceptions into exit codes."""
    from herdbook.threads import wait_politely

    wait_politely()
    try:
        app(standalone_mode=True)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted: run the same command again to go on from the last finished part\n")
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has seen enough; end quietly, as other tools do.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        sys.exit(_explain(error))


def _explain(error: Exception) -> int:
    """Print what a person needs to read about an exception, and return the exit code for it."""
    from herdbook.errors import Interrupted, UserError, explain_os_error

    if isinstance(error, Interrupted):
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    explained = explain_os_error(error) if isinstance(error, OSError) else error
    if isinstance(explained, UserError):
        sys.stderr.write(f"error: {explained}\n")
        return 2
    import traceback

    traceback.print_exception(error)
    sys.stderr.write("\nThis is a defect of herdbook. Please report it with the lines above and the command you typed.\n")
    return 1


if __name__ == "__main__":
    main()
