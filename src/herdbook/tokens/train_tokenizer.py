"""Training of the three kinds of tokenizer, from texts to a `tokenizers.Tokenizer`.

    bpe      byte-level BPE, as GPT-2: merges of bytes
    llama    SentencePiece's BPE as LLaMA has it: merges of characters; what has no piece becomes bytes
    unigram  SentencePiece's Unigram with the same pieces for bytes: the likeliest way to cut a text counts, and nothing merges

Byte-level BPE (Radford et al. 2019, GPT-2, section 2.2) starts from the 256 bytes. Text is cut before merging: every digit
stands alone, as in LLaMA (Touvron et al. 2023, section 2.1), then words, punctuation and spaces are parted as in GPT-2. Cutting
digits first and words second is also what llama.cpp calls `smollm`, so that a GGUF made from this tokenizer gives the same ids.

The other two are written as `interop.sentencepiece` reads LLaMA's own `tokenizer.model`: `▁` for a space, one put before each
text, and 256 tokens `<0x00>` to `<0xFF>`. Merging puts together whatever makes the piece that was learned first.

In every kind ids 0 to 3 are the special tokens; in the latter two 4 is `<unk>`, which no text gets, and 5 to 260 are the bytes.
The same texts give the same tokenizer, for any number of threads.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from herdbook.errors import UserError
from herdbook.interop.sentencepiece import SPACE, Kind, Piece, SentencePieceModel, definition_of
from herdbook.tokens.config import BYTES, END_OF_TEXT, IM_END, IM_START, PAD, SPECIAL_TOKENS, UNKNOWN, TokenizerConfig
from herdbook.tokens.pieces import MAX_PIECE_CHARACTERS, Cutter, alphabet_of, count_words, normalized
from herdbook.tokens.unigram import train_unigram

_ENDLESS = r"\S{256}|\s{256}"
Texts = Callable[[], Iterator[str]]  # gives the same texts from the start, each time


def fit(cfg: TokenizerConfig, texts: Texts) -> Tokenizer:
    """Train a tokenizer of `cfg.kind`; `cfg.path` and what chooses the sample do not count.

    Raises UserError when the characters of the texts alone fill the vocabulary.
    """
    if cfg.kind == "bpe":
        encoder = _byte_level(cfg, texts)
        # Every training document begins with the end-of-text token, so a prompt that starts a text has to begin with it too.
        encoder.post_processor = processors.TemplateProcessing(
            single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, encoder.token_to_id(END_OF_TEXT))]
        )
        return encoder
    room = cfg.vocab_size - len(SPECIAL_TOKENS) - 1 - len(BYTES)
    learned = (_merged if cfg.kind == "llama" else _likely)(cfg, texts, room)
    pieces = [Piece(text, 0.0, Kind.CONTROL) for text in SPECIAL_TOKENS]
    pieces += [Piece(UNKNOWN, 0.0, Kind.UNKNOWN), *(Piece(text, 0.0, Kind.BYTE) for text in BYTES)]
    pieces += [Piece(text, score, Kind.NORMAL) for text, score in learned]
    model = SentencePieceModel(
        cfg.kind == "unigram", dict(enumerate(pieces)), byte_fallback=True, charsmap=b"", prefix=cfg.prefixed, squeeze=False,
        names={"unk_token": UNKNOWN},
    )  # fmt: skip
    definition = definition_of(model, END_OF_TEXT)
    if cfg.normalization == "nfkc":
        definition["normalizer"]["normalizers"].insert(0, {"type": "NFKC"})
    return Tokenizer.from_str(json.dumps(definition, ensure_ascii=False))


def settings_of(cfg: TokenizerConfig) -> dict[str, Any]:
    """tokenizer_config.json as transformers reads it: version 5 takes `extra_special_tokens`, version 4 the older name."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": PAD,
        **({} if cfg.kind == "bpe" else {"unk_token": UNKNOWN}),
        "add_bos_token": True,
        "extra_special_tokens": [IM_START, IM_END],
        "additional_special_tokens": [IM_START, IM_END],
        "clean_up_tokenization_spaces": False,
    }


def _byte_level(cfg: TokenizerConfig, texts: Texts) -> Tokenizer:
    encoder = Tokenizer(models.BPE())
    if cfg.normalization == "nfkc":
        encoder.normalizer = normalizers.NFKC()
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    # A merge goes through every word it is in from end to end, which takes hours for a megabyte without spaces.
    encoder.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_ENDLESS), "isolated"), *steps])
    encoder.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=cfg.vocab_size,
        min_frequency=cfg.min_frequency,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    encoder.train_from_iterator(texts(), trainer)
    encoder.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return encoder


def _merged(cfg: TokenizerConfig, texts: Texts, room: int) -> list[tuple[str, float]]:
    """Pieces that BPE makes, in the order it makes them, then single characters; the scores say the order."""
    characters: Counter[str] = Counter()
    for text in normalized(texts(), cfg.normalization):
        characters.update(text)
    alphabet = _alphabet(cfg, characters, room)
    cutter = Cutter(alphabet)
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = cutter.steps
    trainer = trainers.BpeTrainer(
        vocab_size=room,
        min_frequency=cfg.min_frequency,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        max_token_length=MAX_PIECE_CHARACTERS,
    )
    before = " " if cfg.prefixed else ""
    learner.train_from_iterator((cutter.clean(before + text) for text in normalized(texts(), cfg.normalization)), trainer)
    ids = learner.get_vocab()
    longer = sorted((text for text in ids if len(text) > 1), key=ids.__getitem__)
    return [(text.replace(" ", SPACE), -float(rank)) for rank, text in enumerate([*longer, *alphabet])]


def _likely(cfg: TokenizerConfig, texts: Texts, room: int) -> list[tuple[str, float]]:
    """Pieces with their log probabilities."""
    words = count_words(normalized(texts(), cfg.normalization), prefix=cfg.prefixed)
    characters: Counter[str] = Counter()
    for word, count in words.items():
        for char in word:
            characters[char] += count
    alphabet = _alphabet(cfg, characters, room)
    counts = Cutter(alphabet).count(words)
    return train_unigram(counts, room, [char.replace(" ", SPACE) for char in alphabet], min_frequency=cfg.min_frequency)


def _alphabet(cfg: TokenizerConfig, counts: Counter[str], room: int) -> list[str]:
    alphabet = alphabet_of(counts, cfg.coverage)
    if len(alphabet) > room:
        raise UserError(
            f"{cfg.coverage:.3%} of the sample is made of {len(alphabet):,} characters, and a vocabulary of {cfg.vocab_size:,} "
            f"has room for {room:,}", where="tokenizer.vocab_size",
            todo="choose a larger one, or a smaller tokenizer.character_coverage: what is rarer becomes bytes",
        )  # fmt: skip
    return alphabet
