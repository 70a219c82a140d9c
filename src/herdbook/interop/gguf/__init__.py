"""GGUF, the file format of llama.cpp: the container, and the tokenizer inside it."""
