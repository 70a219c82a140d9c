"""What there is to say of a model: rows for people (`rows_of`, `architecture`), plain JSON for programs (`facts_of`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from herdbook.facts.models import TRAINING
from herdbook.facts.results import tables_with
from herdbook.model.config import ModelConfig
from herdbook.plan.memory import training_memory
from herdbook.plan.serving import BITS, serving_memory
from herdbook.units import human_bytes, human_count
from herdbook.verbs.subject import Subject

SHOWN_PRECISIONS = ("fp32", "bf16", "int8", "int4")  # fp16 takes what bf16 takes
STATE = (
    "weights, gradients and AdamW's two moments in float32, 16 bytes a parameter; with weights and gradients in 16 bits and a "
    "float32 copy of the weights it is as much"
)
_ACTIVATIONS = {"swiglu": "SwiGLU", "gelu": "GELU", "gelu_tanh": "GELU (tanh)", "relu": "ReLU"}
_NORMS = {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm", "layernorm_low_precision": "LayerNorm in low precision"}
_BLOCKS = {
    "sequential": "attention, then feed-forward",
    "parallel_one_norm": "attention and feed-forward side by side, behind one norm",
    "parallel_two_norms": "attention and feed-forward side by side, behind a norm each",
}


@dataclass(frozen=True)
class Row:
    """One fact for people. `from_memory`: it was not read again in its source."""

    what: str
    text: str
    from_memory: bool = False

    def marked(self) -> str:
        """The text, with a mark where it is from memory."""
        return f"{self.text} (from memory)" if self.from_memory else self.text


def rows_of(subject: Subject) -> list[Row]:
    """All that has a place in a comparison: origin, shape, costs, training, licence."""
    preset, config = subject.preset, subject.config
    remembered = set(preset.from_memory) if preset else set()
    rows = [Row("by", origin(subject), "released" in remembered)]
    rows += [Row(what, text) for what, text in architecture(config)]
    rows += _costs(subject)
    if subject.tokens:
        rows.append(Row("trained on", f"{human_count(subject.tokens)} tokens", "tokens" in remembered))
        rows.append(Row("compute in all", f"{config.flops_per_token() * subject.tokens:.2g} FLOPs", "tokens" in remembered))
    for figure, what in TRAINING.items():
        value = preset.training.get(figure) if preset else None
        if value is not None:
            rows.append(Row(what, value if isinstance(value, str) else f"{value:,}", figure in remembered))
    rows.append(Row("licence", subject.license.in_words() if subject.license else "none"))
    rows.append(Row("may I use it commercially?", answer(subject)))
    return rows


def origin(subject: Subject) -> str:
    """Who made it, and when."""
    preset = subject.preset
    if preset is None:
        return f"a {'file' if subject.folder and subject.folder.is_file() else 'folder'}, {subject.folder}"
    return f"a small sibling of {preset.title}" if preset.tiny else f"{preset.by}, {preset.released}"


def architecture(config: ModelConfig) -> list[tuple[str, str]]:
    """The shape in words: (part, what it is)."""
    return [
        ("layers", f"{config.n_layers} of width {config.d_model:,}"),
        ("attention", _attention(config)),
        ("positions", _positions(config)),
        ("feed-forward", f"{_ACTIVATIONS[config.activation]}, {config.ff_width:,} wide"),
        ("norms", _norms(config)),
        ("block", _BLOCKS[config.block]),
        ("biases", _biases(config)),
        ("vocabulary", _vocabulary(config)),
        ("context", f"{config.context:,} tokens"),
    ]  # fmt: skip


def _attention(config: ModelConfig) -> str:
    heads = f"{config.n_heads} heads of {config.head_width}"
    if config.kv_heads == config.n_heads:
        kind = f"{heads}, each with keys and values of its own (MHA)"
    elif config.kv_heads == 1:
        kind = f"{heads} that share one key/value head (MQA)"
    else:
        kind = f"{heads} that share {config.kv_heads} key/value heads (GQA)"
    if config.window is not None:
        kind += f", through a window of {config.window:,} tokens"
    clipped = "" if config.clip_qkv is None else f", clipped to ±{config.clip_qkv:g}"
    return kind + clipped + (", queries and keys normalised" if config.qk_norm else "")


def _positions(config: ModelConfig) -> str:
    if config.positions == "learned":
        before = f", {config.position_offset} rows before the first" if config.position_offset else ""
        return f"a learned vector each{before}"
    if config.positions == "alibi":
        kind = f"a bias by distance (ALiBi), slopes down to 2^-{config.alibi_max:g}"
        return kind + (", scaled with the scores" if config.alibi_falcon else "")
    share = f" of {config.rope_fraction:.0%} of each head" if config.rope_fraction < 1 else ""
    kind = f"rotation{share} (RoPE), base {config.rope_theta:,.0f}"
    kind += ", neighbours turned" if config.rope_interleaved else ""
    return kind + (f", stretched {config.rope_factor:g}× ({config.rope_scaling})" if config.rope_scaling != "none" else "")


def _norms(config: ModelConfig) -> str:
    place = "before each part" if config.norm_place == "pre" else "after each part has been added"
    after = ", one after the embedding" if config.embed_norm else ""
    return f"{_NORMS[config.norm]} (eps {config.norm_eps:g}) {place}{after}"


def _biases(config: ModelConfig) -> str:
    parts = {"attention": config.has_attn_bias, "feed-forward": config.has_ff_bias, "norms": config.has_norm_bias}
    have = [part for part, biased in parts.items() if biased]
    everywhere = len(have) == len(parts)
    return ", ".join(["everywhere"] if everywhere else have or ["none"]) + (", and the head" if config.head_bias else "")


def _vocabulary(config: ModelConfig) -> str:
    width = f", {config.embed_width:,} wide" if config.embed_width != config.d_model else ""
    return f"{config.vocabulary:,}{width}, " + ("head tied to the embedding" if config.tied else "a head of its own")


def _costs(subject: Subject) -> Iterator[Row]:
    config, count = subject.config, subject.config.parameters()
    yield Row("parameters", f"{count:,} ({config.parameters_non_embedding():,} without embeddings)")
    if subject.preset and subject.preset.published:
        text = human_count(subject.preset.published)
        yield Row("its authors say", text, "published" in subject.preset.from_memory)
    yield Row("compute to train", f"{config.flops_per_token():.3g} FLOPs a token")
    yield Row("compute to read", f"{config.flops_per_token(training=False):.3g} FLOPs a token")
    yield Row("cache", f"{human_bytes(config.kv_bytes_per_token())} a token in 16 bits")
    for precision in SHOWN_PRECISIONS:
        need = serving_memory(config, precision)
        parts = f"{human_bytes(need.weights)} + {human_bytes(need.cache)} cache of {need.context:,} tokens"
        yield Row(f"to serve in {precision}", f"{human_bytes(need.total)} ({parts})")
    memory = training_memory(config, config.context)
    state = sum(memory.values()) - memory["activations"]
    parts = f"{human_bytes(state)} + {human_bytes(memory['activations'])} activations of one sequence"
    yield Row("to train", f"{human_bytes(state + memory['activations'])} ({parts})")


def answer(subject: Subject) -> str:
    """Yes or no to "may I use it commercially?", and why."""
    if subject.license is None:
        return "there are no weights to use" if subject.preset and not subject.preset.tiny else "yes: random weights, yours"
    if not subject.license.commercial:
        return "no"
    return "yes, within its conditions" if subject.license.conditions else "yes"


def facts_of(subject: Subject) -> dict[str, Any]:
    """All facts as plain JSON: a preset's, or a folder's with its ancestors; memory, licence, published results."""
    config = subject.config
    if subject.preset:
        facts = subject.preset.as_dict()
    else:
        license_ = None if subject.license is None else subject.license.as_dict()
        stated = None if subject.stated is None else subject.stated.as_dict()
        facts = {
            "name": subject.name, "folder": str(subject.folder), "license": license_, "stated_license": stated,
            "ancestors": [ancestor.as_dict() for ancestor in subject.ancestors], "counts": subject.counts,
            "tokens": subject.tokens, "parameters": config.parameters(),
            "parameters_non_embedding": config.parameters_non_embedding(), "flops_per_token": config.flops_per_token(),
            "kv_bytes_per_token": config.kv_bytes_per_token(), "config": config.model_dump(mode="json"),
        }  # fmt: skip
    return {
        **facts,
        "flops_per_token_reading": config.flops_per_token(training=False),
        "serving": {precision: serving_memory(config, precision).as_dict() for precision in BITS},
        "training_memory": training_memory(config, config.context),
        "commercial": subject.commercial(),
        "may_i_use_it_commercially": answer(subject),
        "results": {table.name: table.of([subject.name]) for table in tables_with([subject.name])},
    }
