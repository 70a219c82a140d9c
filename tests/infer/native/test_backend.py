"""Whole models on the kernels give the decoder's logits: every kind, every path, however the tokens are cut into steps."""

from __future__ import annotations

import os
import random
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from herdbook.errors import UserError
from herdbook.infer.backend import BLOCK, Span
from herdbook.infer.native.backend import NativeBackend
from herdbook.infer.native.binding import VARIABLE, Kernels
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder

from ...model.conftest import CONTEXT, KINDS, VOCABULARY, make_decoder
from .conftest import quantize_all

PATHS = ["avx512bf16", "avx512", "avx2", "plain"]
MODELS = {kind: make_decoder(kind) for kind in KINDS}
# A shape that groups of 32 divide.
ROUND: dict[str, Any] = {"d_model": 64, "d_ff": 160, "n_heads": 4, "n_kv_heads": 2}


def ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def logits(model: Decoder, tokens: list[int]) -> Tensor:
    with torch.inference_mode():
        return model(torch.tensor([tokens]))[0]


def tables(lengths: list[int], blocks: int, seed: int) -> list[list[int]]:
    """Blocks for sequences of these lengths, in no order."""
    free = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed)).tolist()
    return [[free.pop() for _ in range(-(-length // BLOCK))] for length in lengths]


def whole(backend: NativeBackend, tokens: list[int]) -> Tensor:
    return backend.run([Span(tokens, 0, range(-(-len(tokens) // BLOCK)), range(len(tokens)))])


def error(got: Tensor, want: Tensor) -> float:
    """Spread of the error over the spread of the logits."""
    return float((got - want).std() / want.std())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_exact_logits_are_the_decoders(native: Kernels, kind: str, path: str) -> None:
    if path not in native.paths:
        pytest.skip(f"this processor has no {path}")
    model, tokens = MODELS[kind], ids(CONTEXT)
    backend = NativeBackend(model, blocks=3, path=path, threads=2)
    prompt = backend.run([Span(tokens[:21], 0, [2, 0, 1], range(21))])
    single = [backend.run([Span(tokens[at : at + 1], at, [2, 0, 1], [0])]) for at in range(21, 30)]
    checked = backend.run([Span(tokens[30:], 30, [2, 0, 1], range(CONTEXT - 30))])
    torch.testing.assert_close(torch.cat([prompt, *single, checked]), logits(model, tokens), atol=1e-4, rtol=1e-4)


@settings(max_examples=40)
@given(
    kind=st.sampled_from(sorted(KINDS)), lengths=st.lists(st.integers(1, CONTEXT), min_size=1, max_size=5),
    seed=st.integers(0, 99), threads=st.integers(1, 3),
)  # fmt: skip
def test_any_mix_of_steps_gives_the_decoders_logits(
    native: Kernels, kind: str, lengths: list[int], seed: int, threads: int
) -> None:
    draw = random.Random(seed)
    model, texts = MODELS[kind], [ids(length, seed + number) for number, length in enumerate(lengths)]
    backend, blocks = NativeBackend(model, blocks=16, threads=threads), tables(lengths, 16, seed)
    done, parts = [0] * len(texts), [[torch.empty(0, VOCABULARY)] for _ in texts]
    while any(at < length for at, length in zip(done, lengths, strict=True)):
        spans, owners = [], []
        for number, text in enumerate(texts):
            count = draw.randint(0, len(text) - done[number])
            if count:
                owners.append((number, count))
                spans.append(Span(text[done[number] :][:count], done[number], blocks[number], range(count)))
                done[number] += count
        if spans:
            for (number, _), rows in zip(owners, backend.run(spans).split([count for _, count in owners]), strict=True):
                parts[number].append(rows)
    for text, part in zip(texts, parts, strict=True):
        torch.testing.assert_close(torch.cat(part), logits(model, text), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("bits", "affine", "most"), [(16, False, 0.03), (8, False, 0.04), (8, True, 0.05), (4, False, 0.05), (4, True, 0.05)]
)
def test_fast_logits_are_near_the_decoders(native: Kernels, path: str, bits: int, affine: bool, most: float) -> None:
    """Activations in bfloat16 or int8, against the same matrices with activations in float32; logits of wide spread."""
    if path not in native.paths:
        pytest.skip(f"this processor has no {path}")
    model, tokens = make_decoder("mha", **ROUND), ids(CONTEXT)
    if bits != 16:
        quantize_all(model, 8 if bits == 8 else 4, affine)
    want = logits(model, tokens)
    assert error(whole(NativeBackend(model, blocks=3, path=path, threads=2, exact=False), tokens), want) < most
    small = NativeBackend(model, blocks=3, path=path, threads=2, exact=False, kv="int8")
    assert error(whole(small, tokens), want) < most + 0.02
    assert error(whole(NativeBackend(model, blocks=3, path=path, threads=2, exact=True), tokens), want) < 0.002


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_serves_every_kind(native: Kernels, kind: str) -> None:
    """As near to float32 as torch's own bfloat16 is, up to a factor."""
    model, tokens = make_decoder(kind, init_std=0.05), ids(CONTEXT)
    want = logits(model, tokens)
    model.compute_dtype = torch.bfloat16
    rough, got = logits(model, tokens), whole(NativeBackend(model, blocks=3, threads=2), tokens)
    assert 0 < error(got, want) < 1.5 * error(rough, want) + 1e-3


@pytest.mark.parametrize("kv", ["auto", "int8"])
@pytest.mark.parametrize("heads", [(9, 3), (20, 1), (4, 4)])
def test_long_sequences_and_large_groups(native: Kernels, heads: tuple[int, int], kv: Any) -> None:
    """More keys than a chunk, groups of heads that fill a tile or more than one, odd widths of heads."""
    shape = {"n_heads": heads[0], "n_kv_heads": heads[1], "head_dim": 10, "d_model": 40, "context": 400}
    model, tokens = make_decoder("gqa", **shape, init_std=0.1), ids(400)
    for exact in (True, False):
        backend = NativeBackend(model, blocks=25, threads=2, kv=kv, exact=exact)
        first = backend.run([Span(tokens[:390], 0, range(25), range(390))])
        rest = [backend.run([Span(tokens[at : at + 1], at, range(25), [0])]) for at in range(390, 400)]
        most = 1e-5 if exact and kv == "auto" else 0.02
        assert error(torch.cat([first, *rest]), logits(model, tokens)) < most


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("positions", ["rope", "alibi"])
@pytest.mark.parametrize("window", [1, 100, 129, 300])
def test_windows_of_any_size(native: Kernels, window: int, positions: str, path: str) -> None:
    """Less than a chunk of keys, one more than that, and several; prompts, pieces and single tokens; all types of keys."""
    if path not in native.paths:
        pytest.skip(f"this processor has no {path}")
    shape = {"n_heads": 9, "n_kv_heads": 3, "head_dim": 10, "d_model": 40, "context": 400, "positions": positions}
    model, tokens = make_decoder("gqa", **shape, init_std=0.1, window=window), ids(400)
    want, cuts = logits(model, tokens), [0, 150, 151, 152, 153, 287, 395, 396, 397, 398, 399, 400]
    for exact, kv, most in ((True, "auto", 1e-5), (False, "auto", 0.02), (True, "int8", 0.02)):
        backend = NativeBackend(model, blocks=25, threads=2, kv=kv, exact=exact, path=path)  # type: ignore[arg-type]
        parts = [backend.run([Span(tokens[a:b], a, range(25), range(b - a))]) for a, b in pairwise(cuts)]
        assert error(torch.cat(parts), want) < most


def test_keys_before_the_window_are_never_read(native: Kernels) -> None:
    """Their blocks may belong to somebody else by then: whole chunks are passed over, and the rest is masked."""
    model, tokens = make_decoder("gqa", context=400, window=100), ids(400)
    backend = NativeBackend(model, blocks=26, threads=2)
    backend.run([Span(tokens[:399], 0, range(25))])
    one, two = (backend.run([Span(tokens[399:], 399, blocks, [0])]) for blocks in (range(25), [25] * 16 + list(range(16, 25))))
    assert torch.equal(one, two)
    torch.testing.assert_close(one[0], logits(model, tokens)[-1], atol=1e-4, rtol=1e-4)


def test_a_windows_row_does_not_depend_on_its_company(native: Kernels) -> None:
    """A prompt's tokens go along together, and each begins to look elsewhere."""
    model, tokens = make_decoder("gqa", context=400, window=120), ids(400)
    whole, parts = (NativeBackend(model, blocks=25, threads=2, exact=False) for _ in range(2))
    together = whole.run([Span(tokens, 0, range(25), range(400))])
    parts.run([Span(tokens[:200], 0, range(25))])
    alone = [parts.run([Span(tokens[at : at + 1], at, range(25), [0])]) for at in range(200, 300)]
    assert torch.equal(torch.cat(alone), together[200:300])


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_what_a_row_gets_does_not_depend_on_its_company_or_the_threads(native: Kernels, bits: int) -> None:
    model = make_decoder("mha", **ROUND)
    if bits != 16:
        quantize_all(model, 8 if bits == 8 else 4, True)
    texts = [ids(20 + number, number) for number in range(9)]
    spans = [Span(text, 0, [2 * number, 2 * number + 1], [len(text) - 1]) for number, text in enumerate(texts)]
    together = NativeBackend(model, blocks=18, threads=2, exact=False).run(spans)
    alone = NativeBackend(model, blocks=18, threads=1, exact=False)
    assert torch.equal(torch.cat([alone.run([span]) for span in spans]), together)


def test_copied_blocks_hold_the_same(native: Kernels) -> None:
    for kv in ("auto", "int8"):
        backend = NativeBackend(MODELS["gqa"], blocks=6, kv=kv, threads=2)
        tokens = ids(20)
        backend.run([Span(tokens[:19], 0, [4, 1])])
        backend.copy([(4, 0), (1, 5)])
        backend.copy([])
        first, second = (backend.run([Span(tokens[19:], 19, table, [0])]) for table in ([4, 1], [0, 5]))
        assert torch.equal(first, second)
        assert first.abs().max() > 0


def test_only_wanted_rows_have_logits(native: Kernels) -> None:
    backend, tokens = NativeBackend(MODELS["mha"], blocks=4, threads=2), ids(30)
    assert backend.run([Span(tokens, 0, [0, 1])]).shape == (0, VOCABULARY)
    some = backend.run([Span(tokens, 0, [0, 1], [3, 17]), Span(tokens[:5], 0, [2], [4])])
    every = logits(MODELS["mha"], tokens)
    torch.testing.assert_close(some, every[[3, 17, 4]], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "span",
    [
        Span([VOCABULARY], 0, [0]), Span([-1], 0, [0]), Span([], 0, [0]), Span([1] * 17, 0, [0]), Span([1], 16, [0]),
        Span([1], 0, [4]), Span([1], 0, [-1]), Span([1], 0, [0], [1]), Span([1, 2], 0, [0], [1, 0]),
        Span([1], CONTEXT, [0, 1, 2, 3]),
    ],
)  # fmt: skip
def test_what_would_leave_memory_is_refused(native: Kernels, span: Span) -> None:
    with pytest.raises(ValueError, match=r"ids must|tokens|blocks are"):
        NativeBackend(MODELS["learned"], blocks=4, threads=1).run([span])


def test_the_type_of_the_model_decides_what_is_exact(native: Kernels) -> None:
    model = make_decoder("mha", **ROUND)
    exact = NativeBackend(model, blocks=1)
    assert NativeBackend.block_bytes(model) == 2 * 2 * 2 * BLOCK * 16 * 4
    quantize_all(model, 8, False)
    packed = NativeBackend(model, blocks=1)
    assert packed.read_bytes * 32 == (exact.read_bytes // 4) * 34
    assert NativeBackend.block_bytes(model) == 2 * 2 * 2 * BLOCK * 16 * 2
    assert NativeBackend.block_bytes(model, "int8") == 2 * 2 * 2 * BLOCK * (16 + 4)


def test_paths_and_switches(native: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no kernels called 'sse'"):
        NativeBackend(MODELS["mha"], blocks=1, path="sse")
    monkeypatch.setenv(VARIABLE, "plain")
    assert NativeBackend(MODELS["mha"], blocks=1).path == "plain"
    monkeypatch.setenv(VARIABLE, "none")
    with pytest.raises(UserError, match="switched off"):
        NativeBackend(MODELS["mha"], blocks=1)
    wide = ModelConfig(vocab_size=8, d_model=2048, n_heads=1).resolved()
    assert "heads wider" in str(NativeBackend.fits(wide))
    assert NativeBackend.fits(MODELS["mha"].cfg) is None


def test_a_forked_process_has_threads_of_its_own(native: Kernels) -> None:
    backend, tokens = NativeBackend(MODELS["gqa"], blocks=2, threads=2), ids(20)
    want = whole(backend, tokens)
    child = os.fork()
    if not child:
        got = whole(backend, tokens)
        os._exit(0 if torch.equal(got, want) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
