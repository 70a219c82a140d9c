"""One trainer in a process of its own, for `train.py`: it trains a turn of steps, says how long that took, and waits.

    python benchmarks/train_worker.py '{"trainer": "ours", ...}'     a JSON line on stdout a turn; a line on stdin: go on

Every trainer runs its own loop: ours `train()`, litgpt's its `fit()`, Hugging Face's `Trainer.train()`. All see the same rows
of tokens in the same order. Only our own trainer needs anything of Herdbook, so that the peers' environment can run this.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

STDOUT = sys.stdout


class Gate:
    """Called once a step; lets `turn` steps through at a time."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.turn, self.device, self.started = case["turn"], case["device"], case["started"]
        self.first_s: float | None = None
        self.losses: list[float] = []
        self.steps = 0
        self._begin()

    def _begin(self) -> None:
        self.began, self.cpu = time.perf_counter(), time.process_time()
        self.faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    def __call__(self) -> None:
        """A step is done."""
        if self.first_s is None:
            self.first_s = time.time() - self.started
        self.steps += 1
        if self.steps % self.turn:
            return
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        now, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        said = {"s": (now - self.began) / self.turn, "cpu_s": (time.process_time() - self.cpu) / self.turn,
                "faults": (used.ru_minflt - self.faults) / self.turn, "rss_mb": used.ru_maxrss / 1024,
                "first_s": self.first_s, "losses": self.losses}  # fmt: skip
        print(json.dumps(said), file=STDOUT, flush=True)
        if not sys.stdin.readline():
            sys.exit(0)
        self._begin()


def ours(case: dict[str, Any], gate: Gate) -> None:
    """Our loop with our loader; each turn ends when a step's loss is known."""
    from herdbook.threads import wait_politely

    wait_politely()
    import torch

    from herdbook.console import Terminal
    from herdbook.model.config import ModelConfig
    from herdbook.model.decoder import Decoder
    from herdbook.tokens.loader import Mixture
    from herdbook.train.config import TrainConfig
    from herdbook.train.loop import train
    from herdbook.train.losses import HeadLoss
    from herdbook.train.machine import decide
    from herdbook.train.pretrain import Pretraining
    from herdbook.train.schedule import plan_batches
    from herdbook.train.task import Setting

    class Gated(Pretraining):
        def report(self, sums: dict[str, torch.Tensor]) -> dict[str, Any]:
            gate.losses.append(sums["loss"].item() / self.tokens_per_step)
            gate()
            return super().report(sums)

    shape, context = ModelConfig(**case["shape"]), case["shape"]["context"]
    cfg = TrainConfig(
        tokens=case["steps"] * case["tokens"], tokens_per_step=case["tokens"], context=context, lr=case["lr"],
        schedule="constant", checkpoint_every=case["checkpoint"], checkpoint_every_s=None, eval_sequences=0,
        device=case["device"], precision=case["precision"], threads=case["threads"], compile=case["compile"],
    )  # fmt: skip
    mixture = Mixture(Path(case["data"]) / "tokens", context=context, seed=0)
    task = Gated(mixture, plan_batches(cfg, context), case["micro"], document_mask=False, head_loss=HeadLoss())
    machine = decide(cfg, flops=0)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as out:
        setting = Setting({}, shape.flops_per_token(context))
        train(Decoder(shape), task, cfg, setting, machine, Path(out), Terminal(quiet=True))


def rows(case: dict[str, Any]) -> Any:
    """The rows of tokens, (sequences, context + 1)."""
    import numpy as np

    return np.load(case["rows"], mmap_mode="r")


def tuned(case: dict[str, Any]) -> None:
    """Threads, and what Herdbook sets for itself: memory that is freed stays, and float32 products by oneDNN."""
    import torch

    torch.set_num_threads(case["threads"])
    if case["tuned"] and sys.platform == "linux":
        libc = ctypes.CDLL(None)
        for option, value in ((-1, 2**31 - 1), (-2, 64 << 20), (-4, 0)):
            libc.mallopt(option, value)


def litgpt(case: dict[str, Any], gate: Gate) -> None:
    """litgpt's model in its own `fit`, as its `pretrain` sets it up: bf16-mixed, always compiled."""
    import lightning
    import torch
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.pretrain import fit, initialize_weights
    from litgpt.utils import instantiate_torch_optimizer

    tuned(case)
    shape, batch = case["shape"], case["tokens"] // case["shape"]["context"]
    config = Config(
        name="equal", block_size=shape["context"], vocab_size=shape["vocab_size"], padded_vocab_size=shape["vocab_size"],
        n_layer=shape["n_layers"], n_head=shape["n_heads"], n_query_groups=shape.get("n_kv_heads") or shape["n_heads"],
        n_embd=shape["d_model"], intermediate_size=shape["d_ff"], rotary_percentage=1.0, parallel_residual=False, bias=False,
        norm_class_name="RMSNorm", norm_eps=1e-5, mlp_class_name="LLaMAMLP",
    )  # fmt: skip
    fabric = lightning.Fabric(accelerator=case["device"], devices=1, precision=case["precision"])
    fabric.launch()
    fabric.seed_everything(0)
    with fabric.init_module(empty_init=False):
        model = GPT(config)
    initialize_weights(fabric, model, n_layer=config.n_layer, n_embd=config.n_embd)
    if shape["tied"]:
        model.lm_head.weight = model.transformer.wte.weight
    model.max_seq_length = shape["context"]
    model = fabric.setup(torch.compile(model) if case["compile"] else model)
    settings = {"class_path": "torch.optim.AdamW", "init_args": {"lr": case["lr"], "weight_decay": 0.1, "betas": (0.9, 0.95)}}
    optimizer = fabric.setup_optimizers(
        instantiate_torch_optimizer(settings, model.parameters(), fused=fabric.device.type == "cuda")
    )
    fabric.log_dict = lambda metrics, step=None: gate.losses.append(float(metrics["loss"]))
    table = rows(case)

    class Feed:
        def __iter__(self) -> Iterator[torch.Tensor]:
            for number, start in enumerate(range(0, len(table) - case["micro"] + 1, case["micro"])):
                if number and number * case["micro"] % batch == 0:
                    gate()
                yield torch.from_numpy(table[start : start + case["micro"]].astype("int64")).to(fabric.device)

        def __len__(self) -> int:
            return len(table) // case["micro"]

    looked = [torch.from_numpy(table[: case["micro"]].astype("int64")).to(fabric.device)] * 2
    settings_train = TrainArgs(
        global_batch_size=batch, micro_batch_size=case["micro"], max_tokens=case["steps"] * case["tokens"], max_norm=1.0,
        min_lr=case["lr"], lr_warmup_steps=1, log_interval=1, save_interval=None, epochs=None, max_seq_length=None,
    )  # fmt: skip
    state = {"model": model, "optimizer": optimizer, "iter_num": 0, "step_count": 0}
    checks = EvalArgs(interval=10**9, max_iters=2, initial_validation=False, final_validation=False)
    fit(fabric, 1, state, Feed(), looked, Path(tempfile.mkdtemp()), None, settings_train, checks)


def trainer(case: dict[str, Any], gate: Gate) -> None:
    """Hugging Face's `LlamaForCausalLM` and `Trainer`; what the case does not say is as it comes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments, set_seed

    tuned(case)
    shape, table = case["shape"], rows(case)
    set_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape["vocab_size"], hidden_size=shape["d_model"], intermediate_size=shape["d_ff"],
            num_hidden_layers=shape["n_layers"], num_attention_heads=shape["n_heads"],
            num_key_value_heads=shape.get("n_kv_heads") or shape["n_heads"], max_position_embeddings=shape["context"],
            tie_word_embeddings=shape["tied"], use_cache=False, bos_token_id=None, eos_token_id=None, pad_token_id=None,
        )
    )  # fmt: skip

    class Rows(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            for row in table:
                tokens = torch.from_numpy(row[:-1].astype("int64"))
                yield {"input_ids": tokens, "labels": tokens}

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            gate()

        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            if logs and "loss" in logs:
                gate.losses.append(float(logs["loss"]))

    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            out, max_steps=case["steps"], per_device_train_batch_size=case["micro"], save_strategy="no", report_to="none",
            gradient_accumulation_steps=case["tokens"] // shape["context"] // case["micro"], learning_rate=case["lr"],
            lr_scheduler_type="constant", disable_tqdm=True, use_cpu=case["device"] == "cpu", logging_steps=1,
            bf16=case["precision"] == "bf16", torch_compile=case["compile"],
        )  # fmt: skip
        Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[Steps()]).train()


def main() -> None:
    case = json.loads(sys.argv[1])
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with redirect_stdout(sys.stderr):
        {"ours": ours, "litgpt": litgpt, "trainer": trainer}[case["trainer"]](case, Gate(case))


if __name__ == "__main__":
    main()
