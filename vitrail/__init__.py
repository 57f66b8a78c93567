"""Vitrail: the Vision Transformer, from a folder of photographs on a laptop to pre-training on a cluster.

    import vitrail
    model = vitrail.create("ViT-B/16", classes=10)
    logits = model(images)                              # (B, 3, H, W) float -> (B, 10)

Names are imported when they are first used, so that `import vitrail` and `vitrail --help` do not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitrail.batch import Batch
    from vitrail.data.sources.open import Splits
    from vitrail.data.sources.source import Example
    from vitrail.evaluate import Evaluator
    from vitrail.models.zoo import configure, create
    from vitrail.pipeline import Pipeline
    from vitrail.run import Run
    from vitrail.tasks import Task, TaskConfig
    from vitrail.train import Trainer
    from vitrail.weights.hub import push_to_hub
    from vitrail.weights.load import load

__version__ = "0.1.0"
__all__ = [
    "Batch",
    "Evaluator",
    "Example",
    "Pipeline",
    "Run",
    "Splits",
    "Task",
    "TaskConfig",
    "Trainer",
    "__version__",
    "configure",
    "create",
    "load",
    "push_to_hub",
]

_HOME = {
    "Batch": "vitrail.batch",
    "Evaluator": "vitrail.evaluate",
    "Example": "vitrail.data.sources.source",
    "Pipeline": "vitrail.pipeline",
    "Run": "vitrail.run",
    "Splits": "vitrail.data.sources.open",
    "Task": "vitrail.tasks",
    "TaskConfig": "vitrail.tasks",
    "Trainer": "vitrail.train",
    "configure": "vitrail.models.zoo",
    "create": "vitrail.models.zoo",
    "load": "vitrail.weights.load",
    "push_to_hub": "vitrail.weights.hub",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'vitrail' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
