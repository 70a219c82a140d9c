"""`herdbook models`: the catalogue of families and sizes."""

from __future__ import annotations

from herdbook.console import Terminal, emit
from herdbook.facts.models import Preset, find_model, list_models
from herdbook.units import human_bytes, human_count


def ls(terminal: Terminal) -> None:
    """All sizes, one a row."""
    presets = list_models()
    if terminal.as_json:
        emit([preset.as_dict() for preset in presets])
        return
    rows = [
        [
            preset.name,
            human_count(preset.config.parameters()),
            f"{preset.config.context:,}",
            human_count(preset.tokens) if preset.tokens else "",
            preset.license.id if preset.license else "" if preset.tiny else "no published weights",
            ("yes" if preset.license.commercial else "no") if preset.license else "",
        ]
        for preset in presets
    ]
    terminal.table(["name", "parameters", "context", "tokens", "licence of the weights", "commercial use"], rows)


def show(name: str, terminal: Terminal) -> None:
    """One size in full."""
    preset = find_model(name)
    if terminal.as_json:
        emit(preset.as_dict())
        return
    config, count = preset.config, preset.config.parameters()
    terminal.step(preset.name, f"{preset.title}, {preset.by}, {preset.released}")
    kind = "MHA" if config.kv_heads == config.n_heads else "MQA" if config.kv_heads == 1 else "GQA"
    rows = [
        ["architecture", f"{config.n_layers} layers, width {config.d_model:,}, {config.n_heads} heads × {config.head_width}, "
                         f"{config.kv_heads} key/value heads ({kind})"],
        ["", f"{config.positions}, {config.norm} (eps {config.norm_eps:g}), {config.activation} {config.ff_width:,}, "
             f"{'biases' if config.bias else 'no biases'}, {'tied' if config.tied else 'own'} head"],
        ["vocabulary, context", f"{config.vocabulary:,}, {config.context:,} tokens"],
        ["parameters", f"{count:,} ({config.parameters_non_embedding():,} without embeddings)"],
        ["compute", f"{config.flops_per_token(training=True):.3g} FLOPs a token to train, "
                    f"{config.flops_per_token(training=False):.3g} to read"],
        ["to serve", f"{human_bytes(count * 2)} in bf16, {human_bytes(count)} in 8 bits, {human_bytes(count / 2)} in 4 bits; "
                     f"cache {human_bytes(config.kv_bytes_per_token())} a token"],
        ["to train", f"{human_bytes(count * 16)} for weights, gradients and AdamW's moments in float32, activations apart"],
        ["trained on", f"{human_count(preset.tokens)} tokens" if preset.tokens else "not trained"],
        ["licence", _license(preset)],
        ["in plain words", preset.terms.strip() or "random weights: yours"],
        ["source", preset.source],
    ]  # fmt: skip
    rows += [["note", note.strip()] for note in preset.notes]
    if preset.from_memory:
        rows.append(["not checked again", ", ".join(preset.from_memory)])
    terminal.table(["", ""], rows)


def _license(preset: Preset) -> str:
    return preset.license.in_words() if preset.license else "none: no weights were published" if not preset.tiny else ""
