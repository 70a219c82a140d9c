"""A decoder over many processes: matrices cut first (`tensor`), then every weight spread (FSDP2), then the weights drawn.

    layout = cfg.layout(world.size)
    model = empty_decoder(shape)                              # shapes, no memory
    spread = parallelize(model, cfg, layout, world, dtype)
    materialize(model, world.device, seed)                    # what one process would have drawn, each process its slice

A model that has its weights already (a base model to fine-tune, read by every process) is spread as it is. Gradients are
sums over all processes, as the loop wants them: it divides by the tokens of the whole step itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.model.start import Start, draw
from herdbook.train.parallel.config import Layout, ParallelConfig
from herdbook.train.parallel.tensor import apply_tensor_parallel, sharded_loss
from herdbook.train.parallel.world import World


@dataclass(frozen=True)
class Spread:
    """What the loop needs to know of how a model lies over the processes; the default is one process.

    Attributes:
        layout: how many processes there are of each kind.
        rank: number of this process.
        sequence_parallel: whether the stream is cut along time.
        loss_parallel: whether logits stay cut by vocabulary within `step`.
    """

    layout: Layout = field(default_factory=Layout)
    rank: int = 0
    sequence_parallel: bool = False
    loss_parallel: bool = False

    @property
    def counts(self) -> bool:
        """Whether the losses of this process are counted: the parts of a matrix all have those of the same sequences."""
        return self.layout.tensor_rank(self.rank) == 0

    @property
    def dropout_rank(self) -> int:
        """What the seed of dropout depends on besides the step: processes with other values draw other numbers, and those
        that hold the same stream draw the same."""
        return self.rank if self.sequence_parallel else self.layout.data_rank(self.rank)

    def step(self) -> AbstractContextManager[None]:
        """Around forward and backward of a step."""
        return sharded_loss() if self.loss_parallel else nullcontext()


def empty_decoder(shape: ModelConfig) -> Decoder:
    """A decoder without memory for its weights, to be spread and then filled."""
    with torch.device("meta"):
        return Decoder(shape)


def parallelize(model: Decoder, cfg: ParallelConfig, layout: Layout, world: World, dtype: torch.dtype) -> Spread:
    """Spread `model` over the processes of `world`, in place.

    Args:
        model: without memory (`empty_decoder`), or with the same weights on every process.
        layout: `cfg.layout(world.size)`; `cfg.require_fit` has been asked.
        dtype: of activations and products; weights and sums of gradients are float32, and what is sent to collect a layer
            has this type.
    """
    if world.size == 1:
        return Spread()
    meshes = _meshes(layout, world.device)
    if "tensor" in meshes:
        apply_tensor_parallel(model, meshes["tensor"], cfg)
    if "data" in meshes:
        _spread_weights(model, meshes["data"], dtype, reshard=cfg.reshard_after_forward)
    cut = layout.tensor > 1
    return Spread(layout, world.rank, cut and cfg.sequence_parallel, cut and cfg.loss_parallel)


def _meshes(layout: Layout, device: str) -> dict[str, DeviceMesh]:
    """The processes as rows, columns and depths: the dimensions that have more than one place."""
    sizes = {"replicate": layout.replicate, "shard": layout.shard, "tensor": layout.tensor}
    if layout.replicate > 1 or layout.shard > 1:
        names = [name for name, size in sizes.items() if size > 1 or name == "shard"]
    else:
        names = ["tensor"]
    mesh = init_device_mesh(device, tuple(sizes[name] for name in names), mesh_dim_names=tuple(names))
    data = tuple(name for name in names if name != "tensor")
    meshes = {"data": mesh[data]} if data else {}
    return meshes | ({"tensor": mesh["tensor"]} if "tensor" in names else {})


def _spread_weights(model: Decoder, mesh: DeviceMesh, dtype: torch.dtype, *, reshard: bool) -> None:
    """FSDP2: a group a block, and one for embedding, head and what is around the blocks."""
    # Inputs are not cast: the rotary angles among them need float32. The decoder casts its stream itself.
    narrow = None if dtype == torch.float32 else dtype
    policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    # Embedding and head are one matrix, or the first and the last to be used: they stay collected from `hidden` on until the
    # backward is done, so `head` finds them, and their gradients are added up once.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # a sum, not a mean over processes
            module.set_force_sum_reduction_for_comms(True)  # gloo multiplies nothing


def materialize(model: Decoder, device: str, seed: int, start: Start = "normal") -> None:
    """Give an empty decoder its memory and the weights that `init_weights` draws on one process from the same seed.

    Every process draws every parameter, one after the other, on the CPU, and keeps its slice: nothing is sent, and never is
    more than one whole parameter in memory.
    """
    model.to_empty(device=device)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        whole = torch.empty(weight.shape, device="cpu")
        draw(whole, name, model.cfg, generator, start)
        keep_slice(weight, whole)


@torch.no_grad()
def keep_slice(weight: Tensor, whole: Tensor) -> None:
    """Copy into `weight` what it holds of `whole`."""
    if not isinstance(weight, DTensor):
        weight.copy_(whole)
        return
    whole = whole.to(weight.to_local().device)
    weight.to_local().copy_(distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None).to_local())


def held(value: Tensor) -> Tensor:
    """What this process holds of a value, as a plain tensor: all of it unless it is spread."""
    return value.to_local() if isinstance(value, DTensor) else value


def reshard(model: nn.Module) -> None:
    """Drop what a forward without a backward has left collected: parameters are slices again."""
    if isinstance(model, FSDPModule):
        model.reshard()


def whole_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by name, whole and on the CPU, one after the other; all processes have to go through it together."""
    reshard(model)
    for name, weight in model.named_parameters():
        value = weight.detach()
        yield name, (value.full_tensor() if isinstance(value, DTensor) else value).cpu()


def collect_decoder(model: Decoder, world: World, dtype: torch.dtype | None = None) -> Decoder | None:
    """The trained model whole, on the CPU of the main process, as one that was never spread; None on the others.

    Takes the memory of the whole model there, and on devices that of its largest parameter.
    """
    if world.size == 1:
        return model
    alone = empty_decoder(model.cfg)
    alone.compute_dtype = model.compute_dtype
    for name, value in whole_parameters(model):
        if world.is_main:
            kept = value.to(dtype) if dtype is not None else value
            module, _, leaf = name.rpartition(".")
            alone.get_submodule(module).register_parameter(leaf, nn.Parameter(kept.clone() if kept is value else kept))
    return alone.train(model.training) if world.is_main else None
