"""Tokens: a tokenizer trained on the corpus, memory-mapped shards, and a loader whose order is a pure function."""
