"""The cache: rows of different length, dropping and branching rows, growing."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.infer.cache import Cache

from .conftest import KINDS, make_decoder

MODELS = {kind: make_decoder(kind, context=300) for kind in KINDS}


@settings(deadline=None, max_examples=30)
@given(kind=st.sampled_from(sorted(KINDS)), data=st.data())
def test_any_sequence_of_reads_equals_one_pass(kind: str, data: st.DataObject) -> None:
    model = MODELS[kind]
    rows = data.draw(st.integers(1, 4))
    texts: list[list[int]] = [[] for _ in range(rows)]
    cache = Cache(model.cfg, rows, dtype=torch.float32, device=torch.device("cpu"), slots=1)
    with torch.inference_mode():
        for _ in range(data.draw(st.integers(1, 4))):
            if texts[0] and data.draw(st.booleans()):
                keep = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=5))
                texts, cache = [list(texts[row]) for row in keep], cache.select(keep)
            longest = data.draw(st.sampled_from([1, 1, 3, 40]))
            new = [data.draw(st.lists(st.integers(0, 319), min_size=1, max_size=longest)) for _ in texts]
            width = max(map(len, new))
            padded = torch.tensor([row + [0] * (width - len(row)) for row in new])
            hidden = model.hidden(padded, cache=cache)
            cache.advance([len(row) for row in new])
            for number, row in enumerate(new):
                texts[number] += row
                alone = model.hidden(torch.tensor([texts[number]]))[0, -len(row) :]
                torch.testing.assert_close(hidden[number, : len(row)], alone, atol=1e-4, rtol=1e-3)
    assert cache.lengths == [len(text) for text in texts]
