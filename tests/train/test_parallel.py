"""Several processes give what one gives. The processes run once a module (`spread.py`); the tests look at what they found."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.train.config import TrainConfig
from herdbook.train.parallel.config import Layout, ParallelConfig
from herdbook.train.parallel.shard import Spread, empty_decoder, materialize
from herdbook.train.parallel.world import World, joined
from herdbook.train.pretrain import Pretraining
from herdbook.train.schedule import plan_batches

Found = Callable[[str, int], dict[str, Any]]
JOBS = {2: "agreement,curves,precision,optimizers,looks,pass_on", 4: "agreement,curves,precision,looks,pass_on"}


@pytest.fixture(scope="module")
def folder(spread: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process, then two, then four left, each going on from the checkpoints of those before."""
    out = tmp_path_factory.mktemp("spread")
    for name, optimizer in spread.PASSED_ON.items():
        run = spread.alone(name, optimizer)
        run.steps(2)
        run.save(out / name)
    for size, jobs in JOBS.items():
        done = spread.torchrun(size, jobs, out)
        assert done.returncode == 0, done.stderr[-4000:]
        assert "Warning" not in done.stderr
    return out


@pytest.fixture(scope="module")
def found(folder: Path) -> Found:
    return lambda job, size: json.loads((folder / f"{job}-{size}.json").read_text())


def close(some: list[list[float]], others: list[tuple[float, float]], rel: float) -> None:
    assert len(some) == len(others) > 0
    for (loss, norm), (other_loss, other_norm) in zip(some, others, strict=True):
        assert loss == pytest.approx(other_loss, rel=rel)
        assert norm == pytest.approx(other_norm, rel=10 * rel)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_losses_and_norms_are_those_of_one_process(spread: ModuleType, found: Found, size: int) -> None:
    alone = {name: spread.alone(name).steps(spread.STEPS) for name in spread.SHAPES}
    cells = found("curves", size)
    assert {cell.split(", ", 1)[1] for cell in cells} == set(spread.LAYOUTS[size])
    for cell, result in cells.items():
        assert result["start"] == 0.0, f"{cell}: other weights at the start"
        close(result["steps"], alone[cell.split(",")[0]], 1e-6)
    # The check can fail: the shapes learn different things.
    assert len({round(steps[-1][0], 4) for steps in alone.values()}) == len(alone)


@pytest.mark.slow
def test_other_optimizers_too(spread: ModuleType, found: Found) -> None:
    for cell, steps in found("optimizers", 2).items():
        close(steps, spread.alone("llama2-70b", cell.split(",")[0]).steps(spread.STEPS), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_in_bfloat16_to_its_rounding(spread: ModuleType, found: Found, size: int) -> None:
    alone = spread.alone("llama2-70b")
    alone.model.compute_dtype = torch.bfloat16
    steps = alone.steps(spread.STEPS)
    for narrow in found("precision", size).values():
        close(narrow, steps, 5e-4)


@pytest.mark.slow
def test_checkpoints_go_from_one_process_to_two_to_four_and_back(spread: ModuleType, found: Found, folder: Path) -> None:
    for name, optimizer in spread.PASSED_ON.items():
        whole = spread.alone(name, optimizer).steps(12)
        # Muon's orthogonal steps, computed in bfloat16, make much of little: other micro-batches do as much to one process.
        step, rel = 2, 1e-6 if optimizer == "adamw" else 5e-5
        for size in (2, 4):
            cells = {cell: row for cell, row in found("pass_on", size).items() if cell.startswith(name)}
            assert len(cells) == 2
            for row in cells.values():
                assert row["from"] == step
                close(row["steps"], whole[step : step + 2], rel)
                step += 2
        run = spread.alone(name, optimizer)
        run.load(folder / name)
        assert run.step == step == 10
        close([list(pair) for pair in run.steps(2)], whole[10:], rel)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_looks_at_held_out_text_and_the_whole_model_at_the_end(spread: ModuleType, found: Found, size: int) -> None:
    alone = spread.alone("bloom")
    alone.steps(1)
    model = alone.model.eval()
    looked = [spread.sum_loss(model, *spread.held_out(width), documents_BT=spread.documents(width))[0] for width in (5, 16)]
    model.train()
    after = alone.steps(1)
    whole = spread.sum_loss(model, *spread.held_out(11))[0]
    for result in found("looks", size).values():
        assert result["looked"] == pytest.approx(looked, rel=1e-6)
        close(result["after"], after, 1e-6)
        loss, off = result["whole"]
        assert loss == pytest.approx(whole, rel=1e-6)
        assert off < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_processes_agree(found: Found, folder: Path, size: int) -> None:
    result = found("agreement", size)
    assert result["total"] == [sum(range(2, size + 1)), 0.5 * (size - 1)]
    assert result["most"] == [size - 1, 0]
    assert result["from main"] == ["said by 0"] * size
    assert result["told"] == ["here: it does not fit\n  → mend it"] * size
    assert result["met"] == [f"{folder}: my disk is full"] * size


# ---- what needs no second process ----


def test_one_process_needs_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with joined("cpu") as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        assert world.total(1.5, 2) == [1.5, 2]
        assert world.most(3) == [3]
        assert world.gather("x") == ["x"]
        assert world.from_main(lambda: 7) == 7
        world.barrier()
        world.require_all(None)
        with pytest.raises(UserError, match="broken"):
            world.require_all(UserError("broken"))
        assert not torch.distributed.is_initialized()


def test_others_than_the_main_process_are_quiet() -> None:
    loud = Terminal()
    assert World().quiet(loud) is loud
    assert World(rank=1, size=2).quiet(loud).quiet


def test_what_auto_comes_to() -> None:
    assert ParallelConfig().layout(1) == Layout(1, 1, 1)
    assert ParallelConfig().layout(8) == Layout(1, 8, 1)
    assert ParallelConfig(replicate=2, tensor=2).layout(16) == Layout(2, 4, 2)
    assert ParallelConfig(shard="none", replicate=4).layout(4) == Layout(4, 1, 1)
    assert ParallelConfig(shard="4").layout(4) == Layout(1, 4, 1)


@pytest.mark.parametrize(
    ("settings", "size", "says"),
    [
        ({"tensor": 3}, 4, "4 processes cannot be shared out"),
        ({"tensor": 8}, 4, "start a multiple of 8 processes"),
        ({"shard": 2}, 8, "replicate 1 × shard 2 × tensor 1 are 2"),
        ({"shard": "none"}, 2, "start 1 processes, or set shard: auto"),
    ],
)
def test_layouts_that_do_not_come_out_even(settings: dict[str, Any], size: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        ParallelConfig(**settings).layout(size)


LLAMA2_70B = {"d_model": 8192, "n_layers": 80, "n_heads": 64, "n_kv_heads": 8, "d_ff": 28672, "vocab_size": 32000,
              "context": 4096}  # fmt: skip
FALCON_7B = {"d_model": 4544, "n_layers": 32, "n_heads": 71, "n_kv_heads": 1, "vocab_size": 65024, "context": 2048}


@pytest.mark.parametrize(
    ("shape", "tensor", "sequences", "says"),
    [
        (LLAMA2_70B, 3, 8, r"query heads \(64\) cannot be cut into 3"),
        (FALCON_7B, 2, 8, r"query heads \(71\)"),
        ({**LLAMA2_70B, "d_ff": 28673}, 2, 8, r"feed-forward part \(28,673\)"),
        ({**LLAMA2_70B, "vocab_size": 32001}, 2, 8, r"vocabulary \(32,001\)"),
        ({**LLAMA2_70B, "n_heads": 12, "n_kv_heads": 6, "head_dim": 64}, 4, 8, "6 key/value heads can neither be dealt"),
        ({**LLAMA2_70B, "context": 4095}, 2, 8, "sequences of 4095 tokens"),
        (LLAMA2_70B, 2, 7, "a step of 7 sequences"),
    ],
)
def test_models_that_cannot_be_cut(shape: dict[str, Any], tensor: int, sequences: int, says: str) -> None:
    cfg = ParallelConfig(tensor=tensor)
    with pytest.raises(UserError, match=says):
        cfg.require_fit(cfg.layout(2 * tensor), ModelConfig(**shape), sequences=sequences)


@pytest.mark.parametrize("tensor", [1, 2, 4, 8, 16, 32])
def test_key_heads_are_dealt_or_copied(tensor: int) -> None:
    cfg = ParallelConfig(tensor=tensor)
    cfg.require_fit(cfg.layout(tensor), ModelConfig(**LLAMA2_70B), sequences=1)


def test_a_step_is_shared_out_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = TrainConfig(tokens=10 * 12 * 16, tokens_per_step=12 * 16, context=16)
    monkeypatch.setattr(Pretraining, "__init__", lambda self: None)  # which sequences there are needs no tokens
    task = Pretraining()  # type: ignore[call-arg]
    task.batches, task.left_out = plan_batches(cfg, 16), []
    for layout in (Layout(2, 3, 2), Layout(1, 4, 1), Layout(3, 1, 4), Layout()):
        shares = []
        for rank in range(layout.size):
            task.share = (layout.data_rank(rank), layout.data_ranks)
            shares.append(list(task.own_sequences(3)))
        kept = [shares[rank] for rank in range(layout.size) if Spread(layout, rank).counts]
        assert [sequence for share in kept for sequence in share] == list(task.sequences(3)) == list(range(36, 48))
        assert all(shares[rank] == kept[rank // layout.tensor] for rank in range(layout.size))


def test_parts_of_a_matrix_draw_the_same_dropout_unless_they_hold_other_values() -> None:
    layout = Layout(1, 2, 2)
    assert [Spread(layout, rank).dropout_rank for rank in range(4)] == [0, 0, 1, 1]
    assert [Spread(layout, rank, sequence_parallel=True).dropout_rank for rank in range(4)] == [0, 1, 2, 3]


def test_an_empty_decoder_is_filled_with_what_one_process_draws() -> None:
    shape = ModelConfig(vocab_size=96, d_model=32, n_layers=3, n_heads=2, context=16, bias=True, norm="layernorm", tied=False)
    empty, whole = empty_decoder(shape), Decoder(shape)
    assert {weight.device.type for weight in empty.parameters()} == {"meta"}
    materialize(empty, "cpu", seed=11)
    whole.init_weights(torch.Generator().manual_seed(11))
    for (name, one), (_, other) in zip(empty.named_parameters(), whole.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_configs_load_without_torch() -> None:
    code = "import herdbook.train.parallel.config, herdbook.train.launch, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
