"""Fewer bits a weight: grids, methods that look at text, and what they cost in perplexity."""
