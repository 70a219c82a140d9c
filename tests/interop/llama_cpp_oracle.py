"""llama.cpp in a process of its own, because it aborts on what it does not like.

python llama_cpp_oracle.py MODEL.gguf OUT.npy "1 2 3"      logits of every position, (T, V) float32
python llama_cpp_oracle.py MODEL.gguf OUT.npy -            ids of the text on stdin
"""

from __future__ import annotations

import ctypes
import sys

import llama_cpp.llama_cpp as lib
import numpy as np


def load(path: str) -> ctypes.c_void_p:
    lib.llama_backend_init()
    settings = lib.llama_model_default_params()
    settings.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(path.encode(), settings)
    if not model:
        sys.exit("llama.cpp does not load this file")
    return model


def logits(model: ctypes.c_void_p, ids: list[int]) -> np.ndarray:
    settings = lib.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = max(64, len(ids)), len(ids), len(ids)
    settings.n_threads = settings.n_threads_batch = 2
    settings.type_k = settings.type_v = 0  # float32
    settings.flash_attn_type = 0
    context = lib.llama_init_from_model(model, settings)
    batch = lib.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for place, token in enumerate(ids):
        batch.token[place], batch.pos[place], batch.n_seq_id[place] = token, place, 1
        batch.seq_id[place][0], batch.logits[place] = 0, 1
    if lib.llama_decode(context, batch):
        sys.exit("llama.cpp does not run this model")
    size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    rows = [np.ctypeslib.as_array(lib.llama_get_logits_ith(context, place), (size,)).copy() for place in range(len(ids))]
    return np.stack(rows)


def tokenize(model: ctypes.c_void_p, text: bytes) -> np.ndarray:
    vocabulary, room = lib.llama_model_get_vocab(model), len(text) + 16
    out = (lib.llama_token * room)()
    count = lib.llama_tokenize(vocabulary, text, len(text), out, room, False, True)
    return np.array(out[:count])


if __name__ == "__main__":
    loaded = load(sys.argv[1])
    given = sys.argv[3]
    result = (
        tokenize(loaded, sys.stdin.buffer.read()) if given == "-" else logits(loaded, [int(word) for word in given.split()])
    )
    np.save(sys.argv[2], result)
