"""`vitrail explain`: where a Vision Transformer looks, as figures and arrays, and how faithful the maps are."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from vitrail.cli.opening import Using
from vitrail.cli.options import Command, Flag, Given, Model, Out
from vitrail.progress import say, track

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vitrail.explain.explanation import Explanation
    from vitrail.models import vit
    from vitrail.pipeline import Pipeline


@dataclass(kw_only=True)
class Explain(Using, Command):
    """Show where a model looks for the classes of images, and how faithful that is.

    Writes into the folder --out, for each image, NAME.png (the photograph and the map of each class), NAME-heads.png
    (attention per head and block) and NAME.npz (arrays); and model.png (patch filters, positions, attention distances).
    Exit status: 0 where all could be read, 1 where some could not, 2 where none could.
    """

    model: Model
    """A run folder such as runs/demo, a model folder, or a file with weights, of a ViT or a hybrid."""
    images: Positional[Annotated[tuple[str, ...], arg(metavar="IMAGE...", help_behavior_hint="(one or more)")]]
    """Image files of any kind that Pillow reads, and folders, which are searched for them."""
    out: Out
    """The folder for figures and arrays, which must be new or empty."""
    method: Literal["gradient", "legrad", "rollout", "attention"] = "gradient"
    """gradient (gradient-weighted attention) and legrad explain a class; rollout and the last block's attention are the
    same for every class, and the only ones without a head."""
    label: Annotated[tuple[str, ...], arg(metavar="CLASS...", help_behavior_hint="")] = ()
    """The classes to explain, by name; by default the most probable."""
    top: Annotated[int, arg(metavar="N")] = 3
    """How many of the most probable classes to explain."""
    smooth: Flag = False
    """Draw maps bilinearly interpolated, not one colour a patch."""
    faithfulness: Flag = False
    """Measure it for the first class: remove patches in order of the map and in random orders, and give half of the
    blocks other weights. Takes about a hundred forward passes for each image."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Of the random orders and weights."""

    def run(self, given: Given) -> None:
        from vitrail.data.sources.walk import find
        from vitrail.explain.explanation import check
        from vitrail.explain.figures import blank

        out = Path(self.out)
        if not self.images or self.top < 1:
            raise ValueError("vitrail explain needs an image after the model, and --top 1 or more; see --help.")
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise ValueError(f"{out} exists and is not an empty folder; name another one with --out, or delete it.")
        blank(1.0, 1.0)  # says at once where matplotlib is missing
        files = [file for name in self.images for file in find(Path(name), say)]
        pipeline = self.pipeline(self.model)
        model = check(pipeline.task, self.method, self.label, self.faithfulness)
        self._write(pipeline, model, files, out)

    def _write(self, pipeline: "Pipeline", model: "vit.ViT", files: list[Path], out: Path) -> None:
        """Explains the images one by one, says and writes what was found, and exits if any could not be read."""
        import torch

        from vitrail.explain.faithful import summary
        from vitrail.explain.figures import inside

        documents, removals, distances = list[dict[str, Any]](), [], []
        results = zip(_names(files), self._explanations(pipeline, files), strict=True)
        for file, (name, found) in zip(files, track(results, len(files), "explaining"), strict=True):
            if isinstance(found, ValueError):
                say(f"vitrail: {found}")
                documents.append({"file": str(file), "error": str(found)})
                continue
            documents.append({"file": str(file), **self._saved(found, out / name)})
            distances.append(found.distances)
            removals += [found.removal] if found.removal else []
        lines = []
        if distances:
            _save(inside(model, torch.stack(distances).mean(0)), out / "model.png")
            lines.append(f"{out} has the figures and arrays of {len(distances)} of {len(files)} images.")
        whole = summary(removals) if len(removals) > 1 else None
        if whole:
            lines.insert(0, "all images: random - most {gain:+.3f} ({low:+.3f} to {high:+.3f})".format(**whole))
        if self.json or lines:
            self.answer({"images": documents, "removal": whole}, "\n".join(lines))
        if len(distances) < len(files):
            sys.exit(1 if distances else 2)

    def _explanations(self, pipeline: "Pipeline", files: list[Path]) -> "Iterator[Explanation | ValueError]":
        from vitrail.explain.explanation import explain

        how: dict[str, Any] = {"method": self.method, "labels": self.label, "top": self.top, "seed": self.seed}
        for file in files:
            try:
                yield explain(pipeline, file, faithfulness=self.faithfulness, **how)
            except ValueError as error:
                yield error

    def _saved(self, found: "Explanation", place: Path) -> dict[str, Any]:
        """Writes the files of an image, and says it in a line; the part of the document."""
        import numpy as np

        from vitrail.explain.faithful import summary
        from vitrail.explain.figures import overlay, sheet

        place.parent.mkdir(parents=True, exist_ok=True)
        paths = {"figure": f"{place}.png", "heads": f"{place}-heads.png", "arrays": f"{place}.npz"}
        _save(overlay([found], smooth=self.smooth), paths["figure"])
        _save(sheet(found), paths["heads"])
        np.savez_compressed(paths["arrays"], **found.arrays())
        classes = [{"label": n, "probability": p} for n, p in zip(found.labels, found.probabilities, strict=True)]
        if not self.json:
            text = ", ".join("{label} {probability:.1%}".format(**each) for each in classes) or "no classes"
            print("; ".join(filter(None, [f"{found.name}: {text}", found.faithfulness])), flush=True)
        removal = None if found.removal is None else summary([found.removal])
        return {"classes": classes, "removal": removal, "correlation": found.correlation, **paths}


def _save(figure: "Figure", path: Path | str) -> None:
    from vitrail.data.quiet import quiet

    with quiet():  # of characters that the font does not have
        figure.savefig(path, dpi=150, bbox_inches="tight")


def _names(files: list[Path]) -> list[str]:
    """What the files of each image are called: its name without the suffix, with a number where that is taken."""
    names, taken = list[str](), {"model"}
    for file in files:
        free = (f"{file.stem}{number}" for number in ("", *(f"-{n}" for n in range(2, len(taken) + 3))))
        names.append(next(name for name in free if not {name, f"{name}-heads"} & taken))
        taken |= {names[-1], f"{names[-1]}-heads"}
    return names
