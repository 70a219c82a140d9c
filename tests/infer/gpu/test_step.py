"""The step over fixed buffers, run eagerly, against the ordinary path: any mix of texts, any blocks, any kind of decoder."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from herdbook.infer.backend import Span
from herdbook.infer.blocks import blocks_for
from herdbook.infer.config import EngineConfig, Sampling
from herdbook.infer.gpu import have_triton, step
from herdbook.infer.memory import KVKind
from herdbook.infer.request import Request
from herdbook.infer.scheduler import Scheduler
from herdbook.infer.torch_backend import TorchBackend
from herdbook.model.decoder import Decoder
from herdbook.model.quantized import Form, matrices, put
from herdbook.quantize.grid import quantized

from ..conftest import KINDS, make_decoder
from .conftest import DEVICE

Kind = Literal["plain", "kernels"]
STEPS: list[Any] = ["plain", pytest.param("kernels", marks=pytest.mark.skipif(not have_triton(), reason="no Triton here"))]
MODELS = {kind: make_decoder(kind, context=300).to(DEVICE) for kind in KINDS}
BLOCKS = 40


@settings(max_examples=60)
@given(kind=st.sampled_from(sorted(KINDS)), kv=st.sampled_from(["auto", "int8"]), data=st.data())
def test_any_mix_of_single_tokens_and_pieces_equals_the_ordinary_path(
    kind: str, kv: Literal["auto", "int8"], data: st.DataObject
) -> None:
    ours, usual = (TorchBackend(MODELS[kind], blocks=BLOCKS, kv=kv, step=name) for name in ("plain", "none"))
    lengths = data.draw(st.lists(st.integers(1, 80), min_size=1, max_size=5))
    free = data.draw(st.permutations(range(BLOCKS)))
    texts = [data.draw(st.lists(st.integers(0, 319), min_size=size, max_size=size)) for size in lengths]
    tables = [[free.pop() for _ in range(blocks_for(size))] for size in lengths]
    done = [0] * len(texts)
    for _ in range(6):
        spans = []
        for row, text in enumerate(texts):
            if done[row] < len(text) and data.draw(st.booleans()):
                new = text[done[row] : done[row] + data.draw(st.sampled_from([1, 1, 1, 20, 70]))]
                wanted = sorted(data.draw(st.sets(st.integers(0, len(new) - 1))))
                spans.append(Span(new, done[row], tables[row], wanted))
                done[row] += len(new)
        if spans:
            torch.testing.assert_close(ours.run(spans), usual.run(spans), atol=1e-4, rtol=1e-3)


def written(model: Decoder, kind: str, *, tokens: int = 9, **cfg: Any) -> list[list[int]]:
    """Greedy texts of several prompts that begin one after the other, by a scheduler on a backend."""
    settings = EngineConfig.model_validate({"rows": 5, "step_tokens": 24, **cfg})
    backend = TorchBackend(model, blocks=30, kv=settings.kv, step=kind)  # type: ignore[arg-type]
    scheduler = Scheduler(backend, settings)
    sampling = Sampling(temperature=0, max_tokens=tokens, ignore_end=True)
    found: dict[int, list[int]] = {}
    for turn in range(60):
        if turn % 2 == 0 and turn < 12:
            prompt = [(7 * turn + 3 * place) % 320 for place in range(1 + 3 * turn % 29)]
            scheduler.submit(Request(prompt, sampling, sampling.max_tokens))
        for event in scheduler.step():
            assert event.error is None, event.error
            found.setdefault(event.request, []).extend(token.id for token in event.tokens)
    assert scheduler.idle and len(found) == 6
    return [found[number] for number in sorted(found)]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_greedy_texts_are_those_of_the_ordinary_path(kind: str) -> None:
    assert written(MODELS[kind], "plain") == written(MODELS[kind], "none")


@pytest.mark.skipif(not have_triton(), reason="no Triton here")
@pytest.mark.parametrize(("kind", "kv"), [("mqa", "auto"), ("gqa", "int8"), ("alibi-falcon", "auto"), ("alibi-window", "int8")])
def test_greedy_texts_by_the_kernels_too(kind: str, kv: str) -> None:
    assert written(MODELS[kind], "kernels", tokens=6, kv=kv, rows=2) == written(MODELS[kind], "none", tokens=6, kv=kv)


@pytest.mark.parametrize("name", STEPS)
def test_sixteen_bits_stay_near_the_ordinary_path(name: Kind) -> None:
    model = make_decoder("gqa", context=64).to(DEVICE)
    model.compute_dtype = torch.bfloat16
    logits = []
    for kind in (name, "none"):
        backend = TorchBackend(model, blocks=4, step=kind)
        backend.run([Span(range(30), 0, [2, 0, 3])])
        logits.append(torch.cat([backend.run([Span([at], at, [2, 0, 3], [0])]) for at in range(30, 36)]))
    assert float((logits[0] - logits[1]).std() / logits[1].std()) < 0.02


@pytest.mark.parametrize("name", STEPS)
def test_matrices_in_few_bits_give_the_texts_of_the_layers_they_stand_for(name: Kind) -> None:
    model = make_decoder("gqa").to(DEVICE)
    layers = [layer for layer, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
    for place, layer in enumerate([*layers, "embed"]):
        form = Form(4 if place % 2 else 8, 32, place % 4 < 2)
        put(model, layer, quantized(model.get_parameter(f"{layer}.weight").detach(), form))
    assert len(matrices(model)) == 15
    assert written(model, name, tokens=4) == written(model, "none", tokens=4)


def test_tables_grow_with_texts_longer_than_the_models_context() -> None:
    model = make_decoder("alibi", context=20)
    ours, usual = (TorchBackend(model, blocks=12, step=name) for name in ("plain", "none"))
    text = [(3 * place) % 320 for place in range(170)]
    for backend in (ours, usual):
        backend.run([Span(text[:15], 0, range(11))])
    for at in range(15, 170):
        spans = [Span(text[at : at + 1], at, range(11), [0])]
        torch.testing.assert_close(ours.run(spans), usual.run(spans), atol=1e-4, rtol=1e-3)


def test_more_sequences_than_a_step_takes_go_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herdbook.infer.torch_backend.MOST", 4)
    ours, usual = (TorchBackend(MODELS["gqa"], blocks=24, step=name) for name in ("plain", "none"))
    spans = [Span([row], 1, [row], [0]) for row in range(11)] + [Span([1, 2, 3], 0, [20], [1, 2]), Span([4], 1, [21])]
    torch.testing.assert_close(ours.run(spans), usual.run(spans), atol=1e-4, rtol=1e-3)


def test_each_padded_size_is_made_once_and_padding_leaves_the_blocks_alone() -> None:
    backend = TorchBackend(MODELS["mha"], blocks=20, step="plain")
    assert backend._step is not None
    for count in (1, 3, 4, 2, 7, 5, 3):
        backend.run([Span([row], 1, [row], [0]) for row in range(count)])
    assert sorted(backend._step._batches) == [1, 2, 4, 8]
    kept = [memory.keys[:, :20].clone() for memory in backend._memories]
    backend.run([Span([row], 1, [row], [0]) for row in range(3)])
    for memory, before in zip(backend._memories, kept, strict=True):
        torch.testing.assert_close(memory.keys[:, :20], before)


class Refusing(TorchDispatchMode):
    """Raises at what a capture would: a tensor made of Python's numbers, a number fetched, a size that depends on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.name() not in ("aten::lift_fresh", "aten::_local_scalar_dense", "aten::item", "aten::nonzero"), func.name()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("kv", ["auto", "int8"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_step_can_be_captured(kind: str, kv: KVKind, name: Kind) -> None:
    backend = TorchBackend(MODELS[kind], blocks=4, kv=kv, step=name)
    assert backend._step is not None
    backend.run([Span([1], 3, [2], [0])])
    with torch.inference_mode(), Refusing():
        backend._step._batches[1]._forward()


@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 2), (3, 4), (33, 64), (64, 64), (65, 128)])
def test_batches_are_padded_to_powers_of_two(count: int, size: int) -> None:
    assert step.padded(count) == size
