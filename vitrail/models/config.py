"""Everything that shapes a Vision Transformer or a ResNet, and what follows from it; vit.py, resnet.py: the models."""

from dataclasses import dataclass
from typing import Literal, get_args

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu"]
Resample = Literal[
    "bicubic_antialias", "bicubic", "bicubic_corners", "bilinear_antialias", "bilinear", "bilinear_corners"
]
Relative = Literal["none", "geometric", "bilinear"]
Pool = Literal["token", "avg", "map", "token_avg", "distilled"]
Positions = Literal["learned", "sincos", "sincos_mae", "none"]
Remainder = Literal["pad", "refuse", "crop"]


def symbolic(*sizes: int) -> bool:
    """Whether one of them is a symbol, in a graph for sizes that torch.export leaves open: what depends on its value
    cannot be decided while tracing, or the graph is wrong, in silence, for the other values."""
    return not all(isinstance(size, int) for size in sizes)


@dataclass(frozen=True)
class ResNetFields:
    """The fields of `resnet.Config`: a BiT ResNet.

    blocks: bottlenecks in each stage; stage s is 2^s times narrower and 256 * 2^s * width_factor channels wide.
    width_factor: the "x2" of R50x2; a fraction where int(64 * width_factor) channels make 32 groups.
    channels: of the image. classes: 0 leaves the head off. image_size: what it is meant for, (height, width).
    numerics: where the small numbers stand that keep divisions finite: Google's code has 1e-5 outside the root of a
        kernel's variance and 1e-6 in the norms, timm 1e-8 inside it and 1e-5.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width_factor: int | float = 1
    channels: int = 3
    classes: int = 1000
    image_size: tuple[int, int] = (224, 224)
    numerics: Literal["google", "timm"] = "google"

    def __post_init__(self) -> None:
        if self.root % 32 or not self.root:  # groups of GroupNormReLU
            raise ValueError(f"width_factor is {self.width_factor}; int(64 * width_factor) must be a multiple of 32.")
        for field, least in {"channels": 1, "classes": 0}.items():
            if getattr(self, field) < least:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be {least} or more.")
        if any(n < 1 for n in self.blocks):
            raise ValueError(f"blocks is {self.blocks}; every stage needs 1 or more.")

    @property
    def stride(self) -> int:
        """Pixels of the image per cell of the feature map: 4 after the root, halved again by each later stage."""
        return 4 * 2 ** max(0, len(self.blocks) - 1)

    @property
    def root(self) -> int:
        """Channels of the first convolution, as Google's code computes them."""
        return int(64 * self.width_factor)

    @property
    def features(self) -> int:
        """Channels of the feature map."""
        return self.root * (4 * 2 ** (len(self.blocks) - 1) if self.blocks else 1)


@dataclass(frozen=True)
class Rotary:
    """How patches are turned: by place / base^(i / n) for the n = D_h / 4 pairs of each axis, rows first.

    base: 100 in DINOv3, 10,000 in EVA-02.
    centred: a patch's place is its centre, from -1 to 1 along each axis, times 2 pi (DINOv3); otherwise its row and
        column plus `offset`, as if the image had the grid `reference` where there is one (EVA-02).
    rows_first: whether the first half of the pairs is the row's, or the column's (RoPE-ViT).
    halves: whether the two numbers of a pair are half a head apart (DINOv3), or neighbours (EVA-02).
    rounded: whether the periods base^(i / n) are rounded to bfloat16, as in DINOv3's own files.
    """

    base: float = 100.0
    centred: bool = True
    reference: tuple[int, int] | None = None
    offset: float = 0.0
    rows_first: bool = True
    halves: bool = True
    rounded: bool = False


@dataclass(frozen=True)
class Fields:
    """The fields of `vit.Config`. The defaults are ViT-B/16.

    image_size, patch_size: (height, width) in pixels; image_size is what the learned positions are made for.
    remainder: an image size that patch_size does not divide is padded with 0 (grey, once normalised) at the bottom
        and right, refused, or cropped there as the VALID convolution of the authors' code does.
    representation: size of the pre-logits layer (Dense + tanh before the head, while pre-training), or None.
    pool: what the head reads: [class], the mean of the patches, the answer of attention pooling, [class] beside that
        mean (DINOv2's classifiers), or [class] beside the distillation token, the first register (DeiT's two heads).
    rotary: positions by which queries and keys are turned (DINOv3, EVA-02), beside those of `positions` or alone.
    relative: a bias of the scores for each pair of places (BEiT), and how its table is resampled; relative_shared: one
        table for all blocks.
    key_bias: whether keys have a bias where queries and values have one (not in BEiT, EVA-02, DINOv3).
    attention_norm, mlp_norm: a norm before the last projection of attention and MLP (EVA-02).
    class_position: whether the table of learned positions has a row for [class]; registers have no position.
    norm_first: the final norm stands before the pooling, as in the paper; False puts it after (timm's `fc_norm`).
    pre_norm, patch_bias: CLIP's towers have a norm before the blocks, and no bias on the patches.
    layer_scale: initial value of LayerScale, or None. mlp_dim: hidden width (after the gate, for swiglu).
    dropout: after every dense layer except qkv, and after the positions (appendix B.1); drop_path: stochastic depth,
        rising linearly from 0 at the first block to this at the last.
    stem: a ResNet whose feature map the patches are cut from (the hybrid); classes: 0 leaves the head off.
    """

    image_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (16, 16)
    channels: int = 3
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_dim: int = 3072
    classes: int = 1000
    pool: Pool = "token"
    representation: int | None = None
    class_token: bool = True
    registers: int = 0
    positions: Positions = "learned"
    rotary: Rotary | None = None
    relative: Relative = "none"
    relative_shared: bool = False
    class_position: bool = True
    resample: Resample = "bicubic_antialias"
    remainder: Remainder = "pad"
    activation: Activation = "gelu"
    norm_eps: float = 1e-6
    norm_first: bool = True
    pre_norm: bool = False
    patch_bias: bool = True
    qkv_bias: bool = True
    key_bias: bool = True
    qk_norm: bool = False
    attention_norm: bool = False
    mlp_norm: bool = False
    layer_scale: float | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    stem: ResNetFields | None = None

    def __post_init__(self) -> None:
        for field, size in (("image_size", self.image_size), ("patch_size", self.patch_size)):
            if len(size) != 2 or min(size) < 1:
                raise ValueError(f"{field} is {size}; it must be (height, width), each 1 pixel or more.")
        counts = {"channels": 1, "width": 1, "depth": 1, "heads": 1, "mlp_dim": 1, "classes": 0, "registers": 0}
        for field, least in {**counts, "representation": 1, "norm_eps": 0.0}.items():
            if getattr(self, field) is not None and getattr(self, field) < least:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be {least} or more.")
        for field in ("dropout", "attention_dropout", "drop_path"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; a rate must be in [0, 1).")
        choices = {"pool": Pool, "positions": Positions, "resample": Resample, "remainder": Remainder}
        for field, kind in {**choices, "activation": Activation, "relative": Relative}.items():
            if getattr(self, field) not in get_args(kind):
                raise ValueError(f"{field} is {getattr(self, field)!r}; choose one of {', '.join(get_args(kind))}.")
        if self.width % self.heads:
            most = min(self.heads, self.width, 4096)  # a damaged file may say 10^30
            fewer = max(h for h in range(1, most + 1) if self.width % h == 0)
            raise ValueError(f"{self.heads} heads do not divide the width {self.width}; {fewer} would.")
        if self.pool in ("token", "token_avg", "distilled") and not self.class_token:
            reads = f"pool={self.pool!r} reads the [class] token"
            raise ValueError(f"{reads}, but class_token is False; use 'avg' or 'map'.")
        if self.pool == "distilled" and not self.registers:
            raise ValueError("pool='distilled' reads the first register, but registers is 0.")
        if self.pool == "token_avg" and not self.norm_first:
            raise ValueError("pool='token_avg' reads normed tokens, but norm_first is False.")
        if self.relative != "none" and (self.registers or not self.class_token):
            raise ValueError("relative positions are those of [class] and the patches: no more tokens, and no fewer.")
        if self.rotary and self.width // self.heads % 4:
            raise ValueError(f"rotary positions turn pairs along two axes: {self.width} / {self.heads} must be 4 n.")
        if self.positions.startswith("sincos") and self.width % 4:
            raise ValueError(f"2-D sin-cos positions need a width divisible by 4, not {self.width}.")
        if self.stem and (self.stem.classes or self.stem.channels != self.channels):
            has = f"{self.stem.channels} channels and {self.stem.classes} classes"
            raise ValueError(f"the stem has {has}; it must have the image's {self.channels} channels and no classes.")
        self.grid(self.image_size)

    @property
    def stride(self) -> tuple[int, int]:
        """Pixels of the image per token, (height, width): the patch times the stem's own stride."""
        stem = self.stem.stride if self.stem else 1
        return self.patch_size[0] * stem, self.patch_size[1] * stem

    @property
    def features(self) -> int:
        """The width of the image representation."""
        return self.width * (2 if self.pool in ("token_avg", "distilled") else 1)

    @property
    def prefix(self) -> int:
        """Tokens before the patches: [class] and registers."""
        return int(self.class_token) + self.registers

    @property
    def prefix_rows(self) -> int:
        """Rows of the table of learned positions before those of the patches: 1 where [class] has one."""
        return int(self.class_token and self.class_position)

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches for an image of (height, width). ValueError where `remainder` refuses it."""
        (height, width), (sh, sw) = image_size, self.stride
        if self.remainder == "refuse" and (height % sh or width % sw):
            fits = f"{max(1, round(height / sh)) * sh} x {max(1, round(width / sw)) * sw}"
            raise ValueError(
                f"an image of {height} x {width} is not divisible by the patch {sh} x {sw}; "
                f"resize it to {fits}, or choose remainder='pad'."
            )
        if self.remainder == "crop":
            if height < sh or width < sw:
                raise ValueError(f"an image of {height} x {width} is smaller than one patch of {sh} x {sw}.")
            return height // sh, width // sw
        # Not -(-height // sh): a graph in ONNX divides towards 0.
        return (height + sh - 1) // sh, (width + sw - 1) // sw
