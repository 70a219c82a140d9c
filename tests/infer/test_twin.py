"""The modules a backend runs: the model's own numbers, from weights that lie as the device wants them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from herdbook.infer import twin as twins
from herdbook.infer.backend import Span
from herdbook.infer.gpu import have_triton
from herdbook.infer.torch_backend import TorchBackend
from herdbook.infer.twin import Packed, copied_bytes, read_bytes, twin
from herdbook.model.decoder import Linear
from herdbook.model.quantized import Form, put
from herdbook.quantize.grid import quantized

from .conftest import KINDS, make_decoder


@pytest.mark.parametrize("rows", [0, 1, 2, 33])
@pytest.mark.parametrize("biased", [False, True])
def test_a_packed_float32_layer_is_the_layer(rows: int, biased: bool) -> None:
    layer = Linear(48, 80, bias=biased)
    nn.init.normal_(layer.weight)
    packed = Packed(layer.weight, layer.bias, torch.float32)
    x = torch.randn(1, rows, 48)
    torch.testing.assert_close(packed(x), layer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_packed_float32_models_compute_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, text = make_decoder(kind), list(range(30))
    monkeypatch.setattr(twins, "WORTH_PACKING", 0)
    backend = TorchBackend(model, blocks=2)
    parts = [type(part) for part in backend._model.modules()]
    assert Packed in parts and Linear not in parts
    with torch.inference_mode():
        full = model(torch.tensor([text]))[0]
    got = [backend.run([Span(text[:20], 0, range(2), range(20))])]
    got += [backend.run([Span([text[at]], at, range(2), [0])]) for at in range(20, 30)]
    torch.testing.assert_close(torch.cat(got), full, atol=1e-4, rtol=1e-3)


def test_small_matrices_and_other_types_stay() -> None:
    model = make_decoder("gqa")
    assert not any(isinstance(part, Packed) for part in twin(model, gpu=False, kernels=False).modules())
    model.compute_dtype = torch.float16
    assert not any(isinstance(part, Packed) for part in twin(model, gpu=False, kernels=False).modules())


@pytest.mark.parametrize("kind", ["gqa", "mqa", "learned"])  # with a tied head, without, with biases
def test_in_bfloat16_the_head_is_packed_too_tied_or_not(kind: str) -> None:
    model = make_decoder(kind)
    model.compute_dtype = torch.bfloat16
    made = twin(model, gpu=False, kernels=False)
    assert isinstance(made.unembed, Packed)
    assert (model.unembed is None) == model.cfg.tied
    x = torch.randn(3, 32).bfloat16()
    with torch.inference_mode():
        torch.testing.assert_close(made.head(x), model.head(x), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("kind", ["gqa", "mqa", "learned", "post"])
def test_a_gpu_gets_each_weight_cast_once_and_what_it_takes_is_told(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins, "_packs", lambda model: False)
    model = make_decoder(kind)
    model.compute_dtype = torch.bfloat16
    made = twin(model, gpu=True, kernels=False)
    before = made.project_in.weight.numel() if made.project_in else 0  # reads the embedding, which is float32
    matrices = [part.weight for part in made.modules() if isinstance(part, Linear) and part is not made.project_in]
    assert {matrix.dtype for matrix in matrices} == {torch.bfloat16} and made.unembed is not None
    assert copied_bytes(model) == read_bytes(made) - 4 * before == 2 * sum(matrix.numel() for matrix in matrices)
    x = torch.randint(320, (2, 9))
    with torch.inference_mode():
        torch.testing.assert_close(made(x), model(x), atol=0, rtol=0)
    assert copied_bytes(model.bfloat16()) == 0
    same = twin(model, gpu=True, kernels=False)
    assert [part.data_ptr() for part in same.parameters()] == [part.data_ptr() for part in model.parameters()]


@pytest.mark.skipif(not have_triton(), reason="no Triton here")
def test_matrices_in_few_bits_are_counted_as_they_lie() -> None:
    model = make_decoder("mqa")
    for name in [name for name, part in model.named_modules() if isinstance(part, Linear)]:
        put(model, name, quantized(model.get_parameter(f"{name}.weight").detach(), Form(4, 32, True)))
    made = twin(model, gpu=True, kernels=True)
    assert read_bytes(made) == read_bytes(twin(model, gpu=False, kernels=False)) == copied_bytes(model)
