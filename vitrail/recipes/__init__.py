"""Recipes: functions that return a Run; a docstring states command, cost and expected score.

    RECIPES["vit_b16_imagenet"]("imagenet")     # what `vitrail train vit_b16_imagenet --data imagenet` runs
    listed()["vit_b16_imagenet"]                # its docstring, without importing torch

Neither this file nor rows.py imports torch, so that `vitrail train --help` answers at once.
"""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.recipes import rows

if TYPE_CHECKING:
    from vitrail.run import Run

    RECIPES: dict[str, Callable[..., Run]]

WRITTEN = ("demo", "fast", "small")  # modules whose functions are recipes that need nothing but data


def listed() -> dict[str, str]:
    """The docstrings of the recipes that need nothing but data, by name. Functions are read from their files, because
    importing those would import torch."""
    found = {}
    for module in WRITTEN:
        for node in ast.parse(Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.returns and ast.unparse(node.returns) == "Run":
                found[node.name] = ast.get_docstring(node) or ""
    return found | {row.name: row.text for row in rows.ROWS}


def __getattr__(name: str) -> "dict[str, Callable[..., Run]]":
    """RECIPES, imported when it is first used."""
    if name != "RECIPES":
        raise AttributeError(f"module 'vitrail.recipes' has no attribute {name!r}")
    from vitrail.recipes.demo import demo
    from vitrail.recipes.fast import fast
    from vitrail.recipes.finetune import finetune, finetune_small
    from vitrail.recipes.pretrain import PRETRAIN
    from vitrail.recipes.small import cifar10, fashion_mnist, small

    written = (demo, fast, small, fashion_mnist, cifar10, finetune_small, finetune)
    found = globals()["RECIPES"] = {recipe.__name__: recipe for recipe in (*written, *PRETRAIN)}
    return found
