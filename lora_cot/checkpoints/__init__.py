"""Folders that a run leaves behind, and opening a model from any of them."""
