"""The options of every command that opens weights: what their file does not tell, or what is known better."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from vitrail.progress import say

if TYPE_CHECKING:
    from vitrail.pipeline import Pipeline
    from vitrail.weights.format import Weights

Numbers = Annotated[tuple[float, ...] | None, arg(metavar="X [Y Z]", help_behavior_hint="")]
Word = Annotated[str, arg(metavar="NAME", help_behavior_hint="")]


@dataclass(kw_only=True)
class Opening:
    """Mixed into a command."""

    image_size: Annotated[tuple[int, int] | None, arg(metavar="H [W]", help_behavior_hint="")] = None
    """Height and width in pixels that images are brought to; one number for squares. The default is the model's."""
    mean: Numbers = None
    """Of each channel of pixels in [0, 1], instead of what the weights say; one number for all channels."""
    std: Numbers = None
    """Likewise."""
    resize: Annotated[Literal["squash", "crop", "pad", "native"] | None, arg(help_behavior_hint="")] = None
    """How images are brought to the image size, instead of what the weights say."""
    interpolation: Annotated[Literal["bilinear", "bicubic"] | None, arg(help_behavior_hint="")] = None
    """Likewise."""
    heads: Annotated[int, arg(metavar="N", help_behavior_hint="")] = 0
    """The number of attention heads, where the weights do not tell it."""
    architecture: Word = ""
    """A name from docs/zoo.md whose numerics hold, where the weights do not tell them."""
    section: Word = ""
    """Which of several state dicts in a file."""
    ignore: Annotated[tuple[str, ...], arg(metavar="PATTERN...", help_behavior_hint="")] = ()
    """Tensors, or fields of config.json, to leave out that have no place in the model."""

    def options(self) -> dict[str, Any]:
        """What `Pipeline.load` and `weights` take of it."""
        return {field.name: getattr(self, field.name) or None for field in fields(Opening)}

    def weights(self, model: str, brought: bool = True) -> "Weights":
        """The weights of a model, adjusted; what was chosen or guessed is said. brought: as in `opened_weights`."""
        from vitrail.pipeline import opened_weights

        weights = opened_weights(Path(model), brought=brought, **self.options())
        for note in weights.notes:
            say(f"{model}: {note}")
        return weights


@dataclass(kw_only=True)
class Using(Opening):
    """Mixed into a command that answers with a model."""

    classes: Annotated[str, arg(metavar="FILE", help_behavior_hint="")] = ""
    """The names of the model's classes, a line each in the head's order, a WordNet id in front where they have one, or
    imagenet_class_index.json; or "numbers", where they are called 0, 1, ..."""
    device: Annotated[str, arg(metavar="NAME", help_behavior_hint="")] = "auto"
    """cpu, cuda or cuda:N; auto is the GPU where there is one, and the CPU for int8."""

    def pipeline(self, model: str, int8: bool = False, cpu: bool = False) -> "Pipeline":
        """The pipeline of a model; what was chosen or guessed is said. cpu: what auto means, as with int8."""
        from vitrail.pipeline import Pipeline

        device = "cpu" if (int8 or cpu) and self.device == "auto" else self.device
        classes = self.classes or None
        return Pipeline.load(model, int8=int8, classes=classes, device=device, say=say, **self.options())
