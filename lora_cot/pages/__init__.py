"""Pages that open offline: one plain look, plots as vector graphics, no outside resource."""

from lora_cot.pages.render import Dots, Line, check_writable, dot_plot, image_uri, line_picture, line_plot, render

__all__ = ["Dots", "Line", "check_writable", "dot_plot", "image_uri", "line_picture", "line_plot", "render"]
