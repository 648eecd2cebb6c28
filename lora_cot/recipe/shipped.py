"""Files that come with the package by the names the documents have for them: recipes, DeepSpeed configurations."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
PLACES = (PACKAGE / "shipped", PACKAGE.parent)
"""Of an installed package (pyproject.toml puts them there), and of a checkout."""
FOLDERS = ("recipes", "ds_configs")


def shipped(path: Path) -> Path:
    """The path; where nothing is there and it begins with `recipes/` or `ds_configs/`, the package's own file of that name."""
    if path.exists() or path.parts[0] not in FOLDERS:
        return path
    return next((place / path for place in PLACES if (place / path).is_file()), path)
