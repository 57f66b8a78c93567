"""A Pipeline: weights, preprocessing and class names in one, from pixels to named answers (law 3).

predict = Pipeline.load(Path("runs/demo/model"))
predict([image])        # [[Prediction(label="Sneaker", index=7, probability=0.98), ...]]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vitrail.data.transforms import Preprocessing, normalise
from vitrail.models.vit import ViT
from vitrail.weights import folder as model_folder


@dataclass(frozen=True)
class Prediction:
    """One class and how probable the model finds it, in [0, 1]."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Pipeline:
    """Call it with uint8 images (H, W, C) of any sizes; they are read at their own size."""

    model: ViT
    preprocessing: Preprocessing
    class_names: tuple[str, ...]

    @classmethod
    def load(cls, path: Path | str) -> "Pipeline":
        """From a model folder, or a run folder with one in it. ValueError where neither is there."""
        path = Path(path)
        if (path / "run.json").is_file() and not (path / "model").is_dir():
            raise ValueError(f"{path} has no model yet: the run has not ended; go on with `vitrail resume {path}`.")
        return cls(*model_folder.load(path / "model" if (path / "model").is_dir() else path))

    def save(self, path: Path) -> None:
        """Writes the model folder."""
        model_folder.save(path, self.model, self.preprocessing, self.class_names)

    @torch.inference_mode()
    def __call__(self, images: Sequence[NDArray[np.uint8]], top: int = 5) -> list[list[Prediction]]:
        """The `top` most probable classes of each image, best first; without dropout, whatever mode the model is in.

        ValueError for an image of another kind.
        """
        if top < 1:
            raise ValueError(f"top is {top}; it must be 1 or more.")
        training = self.model.training
        self.model.eval()
        try:
            return [self._one(image, min(top, len(self.class_names))) for image in images]
        finally:
            self.model.train(training)

    def _one(self, image: NDArray[np.uint8], top: int) -> list[Prediction]:
        channels = len(self.preprocessing.mean)
        if image.ndim != 3 or image.dtype != np.uint8 or image.shape[2] != channels or not image.size:
            raise ValueError(f"an image is {image.dtype} {image.shape}; it must be uint8 (height, width, {channels}).")
        weight = next(self.model.parameters())
        # A copy: torch cannot read every stride, and warns of arrays that are read-only.
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].to(weight.device)
        logits = self.model(normalise(pixels, self.preprocessing, weight.dtype))[0]
        best = logits.float().softmax(-1).topk(top)
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [Prediction(self.class_names[index], index, probability) for probability, index in pairs]
