"""A recipe's Run, made to fit the data: how many classes there are, and whether an image may have several.

run = for_data(vit_b16_imagenet("photos"), source)      # 37 classes: a head of 37
"""

import math
from dataclasses import replace

from vitrail.data.sources.source import Source
from vitrail.run import Run


def for_data(run: Run, source: Source) -> Run:
    """The head gets the data's classes. Where images have several labels each class is judged by itself, and labels are
    not smoothed, for their shares do not sum to 1; Mixup and CutMix stay.

    A sigmoid's head begins at -ln K: where softmax had no such bias, and where a recipe's was for another K.
    """
    classes, task = len(source.class_names), run.task
    biased = task.loss == "sigmoid" and task.head_bias and classes != run.model.classes
    if source.multi_label:
        biased = biased or (task.loss == "softmax" and not task.head_bias)
        task = replace(task, loss="sigmoid", smoothing=0.0)
    if biased:
        task = replace(task, head_bias=-math.log(classes))
    return replace(run, model=replace(run.model, classes=classes), task=task)
