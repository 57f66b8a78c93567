"""The classes of data and of a model, which go by their names."""

from vitrail.data.sources.source import Renumbered, Source
from vitrail.progress import few, say


def matched(source: Source, names: tuple[str, ...], where: str) -> Source:
    """The source under the class numbers that a model has for `names`.

    Classes without names are matched by position. ValueError where the data has no labels, and where the model lacks a
    class of the data, has two of that name, or has none at all.
    """
    theirs, numbers = source.class_names, tuple(map(str, range(len(names))))
    if not names:
        raise ValueError("the model has no head, so there is nothing to evaluate; fine-tune it first.")
    if source.targets == "none":
        raise ValueError(f"{where} has images without labels, so there is nothing to evaluate on them.")
    if theirs == names:
        return source
    if missing := [name for name in theirs if name not in names]:
        if len(theirs) == len(names) and numbers in (theirs, names):
            say(f"{'the model' if names == numbers else where} has classes without names: they are taken in order.")
            return source
        raise ValueError(f"{where}: the model does not have the classes {few(missing)}; it has {few(names)}.")
    if twice := [name for name in theirs if names.count(name) > 1]:
        raise ValueError(f"{where}: the model has several classes called {few(twice)}; give the data other names.")
    if len(theirs) < len(names):
        say(f"{where} has {len(theirs)} of the model's {len(names)} classes.")
    return Renumbered(source, names)
