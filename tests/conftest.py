"""Shapes and types of vitrail's signatures are checked while the tests run (jaxtyping and beartype)."""

import inspect
import os
import sys
from dataclasses import replace

import pytest
from jaxtyping import install_import_hook

if "PYTEST_XDIST_WORKER" in os.environ:  # pytest -n 2: a core each, before torch counts them
    os.environ.setdefault("OMP_NUM_THREADS", "1")
install_import_hook("vitrail", "beartype.beartype")


@pytest.fixture
def unchecked(monkeypatch):
    """Takes those checks off again for one test: torch.compile cannot trace them."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "vitrail":
            continue
        classes = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == name]
        for owner in (module, *classes):
            for attribute, value in list(vars(owner).items()):
                function = value.__func__ if isinstance(value, staticmethod) else value
                # torch gives an autograd.Function some functions of no module.
                ours = inspect.isfunction(function) and (function.__module__ or "").startswith("vitrail.")
                # What torch.no_grad or contextmanager made is none of the checks', and stays.
                if ours and "jaxtyping" in function.__code__.co_filename:
                    plain = inspect.unwrap(function)
                    monkeypatch.setattr(owner, attribute, staticmethod(plain) if function is not value else plain)


@pytest.fixture
def here(tmp_path):
    """Photographs and a recipe, for runs on many processes."""
    from processes import place

    return place(tmp_path)


@pytest.fixture
def quick(monkeypatch):
    """Evaluation on the first 100 images: what is evaluated is not what is tested here."""
    from vitrail import train
    from vitrail.data.sources.source import Subset

    def shortened(data, needs, opened=train.open_splits):
        splits = opened(data, needs)
        return replace(splits, val=Subset(splits.val, range(100)))

    monkeypatch.setattr(train, "open_splits", shortened)
