"""Evaluation: how well a model predicts text it never saw, and which of several answers it finds likeliest."""
