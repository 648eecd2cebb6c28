"""Pages that open offline: one plain look, plots as vector graphics, no outside resource."""

from lora_cot.pages.render import Line, image_uri, line_picture, line_plot, render

__all__ = ["Line", "image_uri", "line_picture", "line_plot", "render"]
