"""Doors to other ecosystems: Hugging Face folders, by hand and without importing transformers."""
