"""What a model is trained for: each task turns a batch into a loss. The kinds that ship are named here."""

from vitrail.tasks.classify import Classify, ClassifyConfig
from vitrail.tasks.task import Task, TaskConfig

__all__ = ["Classify", "ClassifyConfig", "Task", "TaskConfig"]
