"""What a model is trained for: each task turns a batch into a loss. The kinds that ship are named here."""

from vitrail.tasks.classify import Classify, ClassifyConfig
from vitrail.tasks.distill import DistillConfig
from vitrail.tasks.mae import MaeConfig
from vitrail.tasks.patches import PatchesConfig
from vitrail.tasks.task import Task, TaskConfig
from vitrail.tasks.views import ViewsConfig

__all__ = [
    "Classify",
    "ClassifyConfig",
    "DistillConfig",
    "MaeConfig",
    "PatchesConfig",
    "Task",
    "TaskConfig",
    "ViewsConfig",
]
