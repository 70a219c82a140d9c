"""The verbs that use a model: generate, chat, bench, serve, convert, quantize."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from herdbook.cli.options import (
    AllowPickle,
    AsJson,
    CommercialModel,
    Force,
    LicenseId,
    ModelPath,
    Quiet,
    TokenizerPath,
    open_terminal,
)

app = typer.Typer()


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
    talk.chat(model, system, settings, open_terminal(), allow_pickle=allow_pickle)


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

    verb.bench(model, open_terminal(quiet, as_json), prompt=prompt, written=tokens, dtype=dtype, backend=backend,
               with_peers=peers, allow_pickle=allow_pickle)  # fmt: skip


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
        models, open_terminal(quiet), host=host, port=port, keys=api_key or (), open_to_the_network=open_to_the_network,
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
        commercial=commercial, allow_pickle=allow_pickle, force=force, terminal=open_terminal(quiet, as_json),
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
    terminal = open_terminal(quiet, as_json)
    if table:
        verb.show_table(model, text, given, tokens=tokens, out=out, **paths, terminal=terminal)
        return
    verb.quantize(model, out, given, **paths, license_id=license_id, commercial=commercial, force=force, terminal=terminal)
