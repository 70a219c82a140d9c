"""Torch's backend against full passes: any pieces, any blocks, any company."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from herdbook.infer.backend import BLOCK, Span
from herdbook.infer.blocks import blocks_for
from herdbook.infer.memory import KVKind
from herdbook.infer.torch_backend import TorchBackend

from .conftest import KINDS, make_decoder

MODELS = {kind: make_decoder(kind, context=300) for kind in KINDS}
BLOCKS = 40


@settings(deadline=None, max_examples=40)
@given(kind=st.sampled_from(sorted(KINDS)), data=st.data())
def test_any_pieces_in_any_blocks_equal_one_pass(kind: str, data: st.DataObject) -> None:
    model = MODELS[kind]
    backend = TorchBackend(model, blocks=BLOCKS)
    lengths = data.draw(st.lists(st.integers(1, 80), min_size=1, max_size=5))
    free = data.draw(st.permutations(range(BLOCKS)))
    texts = [data.draw(st.lists(st.integers(0, 319), min_size=size, max_size=size)) for size in lengths]
    tables = [[free.pop() for _ in range(blocks_for(size))] for size in lengths]
    with torch.inference_mode():
        full = [model(torch.tensor([text]))[0] for text in texts]
    done = [0] * len(texts)
    while any(at < len(text) for at, text in zip(done, texts, strict=True)):
        spans, wanted = [], []
        for row, text in enumerate(texts):
            if done[row] == len(text) or data.draw(st.booleans()):
                continue
            size = data.draw(st.sampled_from([1, 1, 3, 20, 80]))
            new = text[done[row] : done[row] + size]
            places = sorted(data.draw(st.sets(st.integers(0, len(new) - 1))))
            spans.append(Span(new, done[row], tables[row], places))
            wanted += [full[row][done[row] + place] for place in places]
            done[row] += len(new)
        logits = backend.run(spans)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, torch.stack(wanted) if wanted else logits[:0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["gqa", "alibi", "learned"])
@pytest.mark.parametrize("kv", ["auto", "int8"])
def test_copied_blocks_go_on_as_the_first(kind: str, kv: str) -> None:
    backend, text = TorchBackend(MODELS[kind], blocks=6, kv=kv), list(range(20))
    backend.run([Span(text[:19], 0, [4, 1])])
    backend.copy([(4, 0), (1, 3)])
    one, two = (backend.run([Span(text[19:], 19, table, [0])]) for table in ([4, 1], [0, 3]))
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_eight_bits_are_near(kind: str) -> None:
    text, scores = list(range(100)), {}
    for kv in ("auto", "int8"):
        backend = TorchBackend(MODELS[kind], blocks=7, kv=kv)
        backend.run([Span(text[:60], 0, range(7))])
        scores[kv] = backend.run([Span(text[60:], 60, range(7), range(40))]).log_softmax(-1)
    spread = (scores["auto"].exp() * (scores["auto"] - scores["int8"])).sum(-1)
    assert 0 < float(spread.mean()) < 0.01
    small, large = (TorchBackend.block_bytes(MODELS[kind], kv) for kv in ("int8", "auto"))
    assert small < 0.6 * large


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_sixteen_bits_are_as_exact_as_the_model_itself(kind: str) -> None:
    model, text = make_decoder(kind, context=128), list(range(100))
    with torch.inference_mode():
        exact = model(torch.tensor([text]))[0, 60:]
        model.compute_dtype = torch.bfloat16
        plain = model(torch.tensor([text]))[0, 60:]
    backend = TorchBackend(model, blocks=7)
    backend.run([Span(text[:60], 0, range(7))])
    ours = backend.run([Span(text[60:], 60, range(7), range(40))])
    assert float((ours - exact).square().mean()) < 1.5 * float((plain - exact).square().mean())


@pytest.mark.parametrize("begin", [60, 79])
def test_blocks_before_the_window_are_never_read(begin: int) -> None:
    model, text = make_decoder("window-20", context=80), list(range(80))
    backend, passed = TorchBackend(model, blocks=6), (begin - 19) // BLOCK
    backend.run([Span(text[:begin], 0, range(5))])
    tables = [range(5), [5] * passed + list(range(passed, 5))]
    one, two = (backend.run([Span(text[begin:], begin, blocks, range(80 - begin))]) for blocks in tables)
    assert passed > 1
    assert torch.equal(one, two)


def test_blocks_cost_what_is_said() -> None:
    model = MODELS["gqa"]
    for kv in ("auto", "int8"):
        backend = TorchBackend(model, blocks=BLOCKS, kv=kv)
        held = sum(one.nbytes for memory in backend._memories for part in memory.parts for one in part if one is not None)
        assert held == (BLOCKS + 1) * TorchBackend.block_bytes(model, kv)
    assert TorchBackend(model, blocks=1).read_bytes == 4 * sum(
        weight.numel() for name, weight in model.named_parameters() if weight.dim() == 2
    )
    assert TorchBackend.block_bytes(model) == BLOCK * model.cfg.kv_bytes_per_token(4)


class Counting(TorchDispatchMode):
    """Counts what would make the host wait for a GPU, or send it a tensor made of Python's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.waits += func.name() in ("aten::_local_scalar_dense", "aten::item", "aten::lift_fresh", "aten::nonzero")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kv", ["auto", "int8"])
@pytest.mark.parametrize("step", ["none", "plain"])
@pytest.mark.parametrize("kind", ["gqa", "alibi-falcon", "window-5", "learned"])
def test_no_layer_waits_for_the_device(kind: str, kv: KVKind, step: Literal["none", "plain"]) -> None:
    waits = []
    for layers in (1, 4):
        backend = TorchBackend(make_decoder(kind, n_layers=layers), blocks=8, kv=kv, step=step)
        with Counting() as counting:
            backend.run([Span(range(20), 0, [0, 1], [19]), Span([5, 6], 0, [2], [0, 1])])
            backend.run([Span([7], 20, [0, 1], [0]), Span([8, 9, 10], 2, [2], [2]), Span([3], 1, [4], [0])])
            backend.copy([(0, 5), (1, 6)])
        waits.append(counting.waits)
    assert waits[0] == waits[1] > 0
