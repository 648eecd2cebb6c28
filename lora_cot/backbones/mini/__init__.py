"""Tiny bases that really see: built from configuration and taught in minutes, on one machine, without a hub.

`corpus` says what they are taught, `build` makes and caches them, `llava` (and each later family) gives the
architecture. A recipe names one as `model.base: mini/llava`.
"""
