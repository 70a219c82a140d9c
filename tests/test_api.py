"""The Python face, on real folders made by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as Trained
from tokenizers import decoders, models, pre_tokenizers, trainers

import herdbook as hb
from herdbook import pedigree
from herdbook.interop.hf import save_folder
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.tokenizer import Tokenizer

SPECIALS = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant{{ '\n' }}"


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    trained = Trained(models.BPE())
    trained.pre_tokenizer, trained.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        [], trainers.BpeTrainer(special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False)
    )
    return Tokenizer(trained.to_str(), {"bos_token": SPECIALS[0], "eos_token": SPECIALS[0], "pad_token": SPECIALS[1]})


@pytest.fixture
def folder(tmp_path: Path, words: Tokenizer) -> Path:
    torch.manual_seed(0)
    model = Decoder(ModelConfig(d_model=32, n_heads=2, n_layers=2, context=64, init_std=0.2).resolved(words.vocab_size))
    save_folder(model, tmp_path / "model", tokenizer=words, chat_template=CHAT, license_id="CC-BY-SA-4.0")
    return tmp_path / "model"


def test_a_folder_is_loaded_whole(folder: Path) -> None:
    lm = hb.load(folder)
    assert lm.config.vocab_size == 320
    assert lm.parameters == sum(weight.numel() for weight in lm.model.parameters())
    assert lm.license is not None
    assert lm.license.id == "CC-BY-SA-4.0"
    assert "CC-BY-SA-4.0" in repr(lm)
    assert lm.tokenizer is not None
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [0, 3]


def test_logits(folder: Path) -> None:
    lm = hb.load(folder)
    logits = lm.logits([[5, 6, 7], [8, 9, 10]])
    assert logits.shape == (2, 3, 320)
    assert logits.dtype == torch.float32
    assert not logits.requires_grad
    assert torch.equal(logits, lm.logits(torch.tensor([[5, 6, 7], [8, 9, 10]])))


@pytest.mark.parametrize("ids", [[[1, 2], [3]], [1, 2], [[]], [[320]], [[-1]], [[1] * 65], [["a"]]])
def test_wrong_ids(folder: Path, ids: list[list[int]]) -> None:
    with pytest.raises(hb.UserError):
        hb.load(folder).logits(ids)


def test_generate_one_many_and_streamed(folder: Path) -> None:
    lm = hb.load(folder)
    one = lm.generate("hello", max_tokens=12, seed=3)
    assert one == lm.generate("hello", max_tokens=12, seed=3)
    assert one != lm.generate("hello", max_tokens=12, seed=4)
    assert lm.generate(["hello", "x"], max_tokens=12, seed=3)[0] == one
    assert "".join(lm.stream("hello", max_tokens=12, seed=3)) == one
    assert lm.generate([]) == []


def test_chat_goes_through_the_template(folder: Path) -> None:
    lm = hb.load(folder)
    messages = [{"role": "user", "content": "hi"}]
    reply = lm.chat(messages, max_tokens=8, temperature=0)
    prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert lm.tokenizer is not None
    assert reply == lm.engine.generate([lm.tokenizer.encode(prompt)], hb_sampling(max_tokens=8, temperature=0))[0].text
    assert "".join(lm.stream_chat(messages, max_tokens=8, temperature=0)) == reply


def hb_sampling(**settings: object) -> object:
    from herdbook.infer.sampling import Sampling

    return Sampling.model_validate(settings)


def test_chat_without_template_or_tokenizer(tmp_path: Path, words: Tokenizer) -> None:
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(hb.UserError, match="no tokenizer"):
        hb.load("llama2-tiny").chat(messages)
    words.save(tmp_path)
    with pytest.raises(hb.UserError, match="no chat template"):
        hb.load("llama2-tiny", tokenizer=tmp_path).chat(messages)


@pytest.mark.parametrize("settings", [{"temperature": -1}, {"top_p": 2.0}, {"max_tokens": "many"}, {"topk": 3}])
def test_wrong_settings_are_named(folder: Path, settings: dict[str, object]) -> None:
    with pytest.raises(hb.UserError, match=next(iter(settings))):
        hb.load(folder).generate("x", **settings)  # type: ignore[call-overload]


def test_presets_have_seeded_random_weights(tmp_path: Path) -> None:
    lm = hb.load("gpt2-tiny", seed=1)
    assert lm.license is None
    assert lm.tokenizer is None
    assert torch.equal(lm.model.embed.weight, hb.load("gpt2-tiny", seed=1).model.embed.weight)
    assert not torch.equal(lm.model.embed.weight, hb.load("gpt2-tiny", seed=2).model.embed.weight)
    lm.save(tmp_path / "copy")
    assert torch.equal(hb.load(tmp_path / "copy").logits([[1, 2]]), lm.logits([[1, 2]]))
    with pytest.raises(hb.UserError, match="no tokenizer"):
        lm.generate("x")


def test_save_and_load_keep_everything(folder: Path, tmp_path: Path) -> None:
    lm = hb.load(folder)
    lm.save(tmp_path / "again")
    again = hb.load(tmp_path / "again")
    assert torch.equal(lm.logits([[5, 6]]), again.logits([[5, 6]]))
    assert again.license == lm.license
    messages = [{"role": "user", "content": "x"}]
    assert again.chat(messages, seed=1, max_tokens=5) == lm.chat(messages, seed=1, max_tokens=5)
    half = lm.save(tmp_path / "half", dtype="bfloat16")
    assert (half / "model.safetensors").stat().st_size < 0.6 * (folder / "model.safetensors").stat().st_size
    assert hb.load(half, dtype="bfloat16").generate("x", max_tokens=3, ignore_end=True) is not None


def test_pedigree_goes_before_the_card(folder: Path) -> None:
    with pedigree.record(folder, "pretrain", {}) as record:
        record.add_license("Apache-2.0")
        record.add_license("CC-BY-NC-4.0")
    license_ = hb.load(folder).license
    assert license_ is not None
    assert not license_.commercial


@pytest.mark.parametrize(
    ("card", "name"),
    [
        ("---\nlicense: mit\n---\nhello", "MIT"),
        ("---\nlicense: other\nlicense_name: LicenseRef-llama-2\n---\n", "LicenseRef-llama-2"),
        ("---\nlicense: my-own\n---\n", "LicenseRef-my-own"),
        ("---\nlicense: [\n---\n", "LicenseRef-unknown"),
        ("no front matter", "LicenseRef-unknown"),
        (None, "LicenseRef-unknown"),
    ],
)
def test_licence_of_a_card(folder: Path, card: str | None, name: str) -> None:
    (folder / "README.md").unlink()
    if card is not None:
        (folder / "README.md").write_text(card)
    license_ = hb.load(folder).license
    assert license_ is not None
    assert license_.id == name


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(hb.UserError, match="no such model folder"):
        hb.load("llama2-tinny")
    with pytest.raises(hb.UserError, match="of memory for its"):
        hb.load("gpt3-175b")
    with pytest.raises(hb.UserError, match="no model config here"):
        hb.load(tmp_path)
    with pytest.raises(hb.UserError, match="'f32' is not known"):
        hb.load("gpt2-tiny", dtype="f32")  # type: ignore[arg-type]
    with pytest.raises(hb.UserError, match="is no device"):
        hb.load("gpt2-tiny", device="tpu9")
    hb.load("gpt2-tiny").save(tmp_path / "m")
    with pytest.raises(hb.UserError, match="loaded from"):
        hb.load(tmp_path / "m").save(tmp_path / "m")
    with pytest.raises(hb.UserError, match="format 'onnx'"):
        hb.load("gpt2-tiny").save(tmp_path, format="onnx")  # type: ignore[arg-type]


def test_transformers_generates_the_same(folder: Path, words: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    model = Decoder(ModelConfig(d_model=32, n_heads=2, n_layers=2, context=64, init_std=0.2, vocab_size=words.vocab_size))
    save_folder(model, folder, tokenizer=words)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    their_words = transformers.AutoTokenizer.from_pretrained(folder)
    batch = their_words("hello there", return_tensors="pt")
    done = theirs.generate(**batch, do_sample=False, max_new_tokens=10)
    text = their_words.decode(done[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    assert hb.load(folder).generate("hello there", temperature=0, max_tokens=10) == text


def test_auto_is_float32_for_what_is_tiny_and_else_what_runs_fastest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hb.load("llama2-tiny").save(tmp_path / "tiny")
    monkeypatch.setattr("herdbook.api.training_dtype", lambda device: "bfloat16")
    assert hb.load(tmp_path / "tiny", dtype="auto").model.compute_dtype == torch.float32
    monkeypatch.setattr("herdbook.api.SMALL", 1000)
    assert hb.load(tmp_path / "tiny", dtype="auto").model.compute_dtype == torch.bfloat16
    assert hb.load("llama2-tiny", dtype="auto").model.compute_dtype == torch.bfloat16
