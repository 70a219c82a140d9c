from __future__ import annotations

import pytest

from herdbook.errors import UserError
from herdbook.facts.models import find_model
from herdbook.plan.plan import STATE_BYTES, activation_bytes, training_memory
from herdbook.plan.serving import BITS, serving_memory


@pytest.mark.parametrize(
    ("name", "megabytes"), [("llama-7b", 1073.7), ("falcon-7b", 16.8), ("llama-65b", 5368.7), ("falcon-40b", 251.7)]
)
def test_caches_of_2048_tokens(name: str, megabytes: float) -> None:
    """In bf16; the Falcon blog rounds them to 1,100, 20, 5,400 and 240 MB."""
    need = serving_memory(find_model(name).config, "bf16", context=2048)
    assert need.cache / 1e6 == pytest.approx(megabytes, abs=0.05)
    assert need.weights == 2 * find_model(name).config.parameters()


def test_precisions_and_sequences() -> None:
    config = find_model("llama2-7b").config
    total = {precision: serving_memory(config, precision).total for precision in BITS}
    assert total["fp32"] == 2 * total["bf16"]
    assert total["bf16"] == total["fp16"] > total["int8"] > total["int4"]
    tables = 2 * 32_000 * 4096
    assert serving_memory(config, "int4").weights == ((config.parameters() - tables) * 4.5 + tables * 8.5) // 8
    assert serving_memory(config, sequences=3).cache == 3 * serving_memory(config).cache
    assert serving_memory(config).context == 4096
    assert serving_memory(config).as_dict()["total"] == total["bf16"]


def test_a_precision_that_is_none() -> None:
    with pytest.raises(UserError, match="int3"):
        serving_memory(find_model("llama-tiny").config, "int3")


def test_training_memory() -> None:
    config = find_model("llama-tiny").config
    memory = training_memory(config, 256)
    assert memory["activations"] == activation_bytes(config, 256)
    assert sum(memory.values()) - memory["activations"] == sum(STATE_BYTES.values()) * config.parameters()
