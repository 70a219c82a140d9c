from __future__ import annotations

import pytest

from herdbook.errors import UserError
from herdbook.facts.devices import find_device
from herdbook.facts.models import find_model
from herdbook.model.config import ModelConfig
from herdbook.plan.memory import STATE_BYTES, activation_bytes, training_memory
from herdbook.plan.serving import BITS, Served, largest_served, served, serving_memory


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


def test_mpt_30b_is_the_size_for_one_gpu() -> None:
    """Its card: sized for one A100-80GB in 16 bits or one A100-40GB in 8. The largest shape of the dial like it, with its own
    8,192 tokens, is 31.3B, 4.5 % more."""
    mpt, device = find_model("mpt-30b").config, find_device("a100-80gb")

    def judge(model: ModelConfig) -> Served:
        return served(model, device, "bf16", context=8192)

    best, stopped = largest_served(judge, like=mpt, speed=20)
    assert stopped == "memory"
    assert best.model.parameters() == pytest.approx(mpt.parameters(), rel=0.05)
    own = judge(mpt)
    assert own.fits
    assert own.need.total > 0.9 * own.room
    assert own.speed > 20
    assert served(mpt, find_device("a100-40gb"), "int8", context=2048).fits
    assert not served(mpt, find_device("a100-40gb"), "bf16", context=2048).fits


def test_a_speed_that_is_asked_for_makes_it_smaller() -> None:
    like, device = find_model("llama2-7b").config, find_device("rtx4090")

    def judge(model: ModelConfig) -> Served:
        return served(model, device, "int4", context=4096)

    free, slow = largest_served(judge, like=like)
    fast, why = largest_served(judge, like=like, speed=200)
    assert (slow, why) == ("memory", "speed")
    assert fast.speed >= 200 > free.speed
    assert fast.model.parameters() < free.model.parameters()
    with pytest.raises(UserError, match="not even one layer"):
        largest_served(judge, like=like, speed=1e6)


def test_a_window_is_kept_whole_and_read_in_part() -> None:
    model, device = find_model("llama2-7b").config, find_device("a100-80gb")
    narrow = model.model_copy(update={"window": 1024})
    plain, windowed = (served(one, device, context=4096) for one in (model, narrow))
    assert plain.need == windowed.need
    read = plain.need.weights + plain.need.cache / 4
    assert windowed.speed == pytest.approx(device.bandwidth / read)
    assert served(narrow, device, context=512).speed == served(model, device, context=512).speed


def test_many_sequences_are_bound_by_products() -> None:
    model, device = find_model("falcon-7b").config, find_device("a100-80gb")
    assert served(model, device, context=512).bound == "bandwidth"
    many = served(model, device, context=512, sequences=2000)
    assert many.bound == "products"
    assert many.speed == 312e12 / (model.flops_per_token(512, training=False) * 2000)
    half = served(model, device, context=512, bandwidth_share=0.5)
    assert half.speed == pytest.approx(served(model, device, context=512).speed / 2)
