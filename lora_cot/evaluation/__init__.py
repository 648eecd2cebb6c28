"""Evaluation: benchmarks, and what a strategy is worth on them."""
