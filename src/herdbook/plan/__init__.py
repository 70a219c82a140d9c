"""Plan: what a training run will take, before it starts, and what the machine can give."""
