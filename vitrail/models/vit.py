"""The Vision Transformer (Dosovitskiy et al., 2021, arXiv 2010.11929), in the paper's order and letters.

An image (H, W, C) becomes N = H W / P^2 patches, each projected to width D; a [class] token goes in front, position
embeddings are added, and L blocks of attention (MSA) and MLP, each behind a LayerNorm (LN), read the sequence:

    z_0  = [x_class; x_1 E; ...; x_N E] + E_pos         (eq. 1)    PatchEmbed, ViT.embed
    z'_l = MSA(LN(z_{l-1})) + z_{l-1}                   (eq. 2)    Attention, Block
    z_l  = MLP(LN(z'_l)) + z'_l                         (eq. 3)    MLP, Block
    y    = LN(z_L^0)                                    (eq. 4)    ViT.tokens, ViT.pool

Parameter names are timm's. Any image size works at call time.

    model = ViT(Config(classes=10))
    logits = model(images)           # (B, 3, H, W) float -> (B, 10)
    tokens = model.tokens(images)    # (B, 1 + N, D) after the final norm
"""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitrail.models import resnet
from vitrail.models.init import initialise
from vitrail.models.layers import Activation, Dropout, DropPath, LayerScale, activate
from vitrail.models.positions import Resample, resample, sincos

Pool = Literal["token", "avg", "map"]
Positions = Literal["learned", "sincos", "sincos_mae", "none"]
Remainder = Literal["pad", "refuse", "crop"]
# True where a token (row) attends to another (column).
Mask = Bool[Tensor, "#B #heads #N N"]


@dataclass(frozen=True)
class Config:
    """Everything that shapes a ViT. The defaults are ViT-B/16.

    image_size, patch_size: (height, width) in pixels; image_size is what the learned positions are made for.
    remainder: an image size that patch_size does not divide is padded with 0 (grey, once normalised) at the bottom
        and right, refused, or cropped there as the VALID convolution of the authors' code does.
    representation: size of the pre-logits layer (Dense + tanh before the head, while pre-training), or None.
    class_position: whether the table of learned positions has a row for [class]; registers have no position.
    norm_first: the final norm stands before the pooling, as in the paper; False puts it after (timm's `fc_norm`).
    pre_norm, patch_bias: CLIP's towers have a norm before the blocks, and no bias on the patches.
    layer_scale: initial value of LayerScale, or None. mlp_dim: hidden width (after the gate, for swiglu).
    dropout: after every dense layer except qkv, and after the positions (appendix B.1); drop_path: stochastic depth,
        rising linearly from 0 at the first block to this at the last.
    stem: a ResNet whose feature map the patches are cut from (the hybrid); classes: 0 leaves the head off.
    """

    kind: ClassVar[str] = "vit"
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
    class_position: bool = True
    resample: Resample = "bicubic_antialias"
    remainder: Remainder = "pad"
    activation: Activation = "gelu"
    norm_eps: float = 1e-6
    norm_first: bool = True
    pre_norm: bool = False
    patch_bias: bool = True
    qkv_bias: bool = True
    qk_norm: bool = False
    layer_scale: float | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    stem: resnet.Config | None = None

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
        for field, kind in {**choices, "activation": Activation}.items():
            if getattr(self, field) not in get_args(kind):
                raise ValueError(f"{field} is {getattr(self, field)!r}; choose one of {', '.join(get_args(kind))}.")
        if self.width % self.heads:
            fewer = max(h for h in range(1, self.heads + 1) if self.width % h == 0)
            raise ValueError(f"{self.heads} heads do not divide the width {self.width}; {fewer} would.")
        if self.pool == "token" and not self.class_token:
            raise ValueError("pool='token' reads the [class] token, but class_token is False; use 'avg' or 'map'.")
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
    def prefix(self) -> int:
        """Tokens before the patches: [class] and registers."""
        return int(self.class_token) + self.registers

    @property
    def prefix_rows(self) -> int:
        """Rows of the table of learned positions before those of the patches: 1 where [class] has one."""
        return int(self.class_token and self.class_position)

    def build(self, device: torch.device | str | None = None) -> "ViT":
        """The model, with its initial values (none on the meta device)."""
        return ViT(self, None if device is None else torch.device(device))

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
        return math.ceil(height / sh), math.ceil(width / sw)


class PatchEmbed(nn.Module):
    """x_p E of eq. 1: patches of the image, or of the stem's feature map, through one linear projection."""

    def __init__(self, config: Config, device: torch.device | None) -> None:
        super().__init__()
        self.config = config
        self.backbone = resnet.ResNet(config.stem, device) if config.stem else nn.Identity()
        inputs = config.stem.features if config.stem else config.channels
        # A convolution whose stride is its kernel is the same linear map of each patch, without the copy.
        self.proj = nn.Conv2d(
            inputs, config.width, config.patch_size, config.patch_size, bias=config.patch_bias, device=device
        )

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D rows columns"]:
        height, width = images.shape[-2:]
        if images.shape[1] != self.config.channels:
            raise ValueError(f"the images have {images.shape[1]} channels, the model reads {self.config.channels}.")
        rows, columns = self.config.grid((height, width))
        bottom, right = rows * self.config.stride[0] - height, columns * self.config.stride[1] - width
        if bottom or right:  # negative where the rest is cropped
            images = F.pad(images, (0, right, 0, bottom))
        if isinstance(self.backbone, resnet.ResNet):
            images = self.backbone.features(images)
        return self.proj(images)


class Attention(nn.Module):
    """MSA, appendix A: [q, k, v] = z U_qkv; softmax(q k^T / sqrt(D_h)) v for each head; the heads through U_msa."""

    def __init__(self, config: Config, device: torch.device | None) -> None:
        super().__init__()
        D, self.heads = config.width, config.heads
        self.qkv = nn.Linear(D, 3 * D, bias=config.qkv_bias, device=device)
        normed, size = config.qk_norm, D // self.heads
        self.q_norm = nn.LayerNorm(size, config.norm_eps, device=device) if normed else nn.Identity()
        self.k_norm = nn.LayerNorm(size, config.norm_eps, device=device) if normed else nn.Identity()
        self.attn_drop = Dropout(config.attention_dropout)
        self.proj = nn.Linear(D, D, device=device)
        self.drop = Dropout(config.dropout)

    def forward(self, z: Float[Tensor, "B N D"], mask: Mask | None = None) -> Float[Tensor, "B N D"]:
        # Cut before the heads are parted: the gradients of q, k and v then meet in one copy, not two.
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(z).chunk(3, dim=-1))
        q, k = self.q_norm(q), self.k_norm(k)
        if self.training and self.attn_drop.rate:  # fused attention would draw from torch's stream
            scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
            scores = scores if mask is None else scores.masked_fill(~mask, -math.inf)
            z = self.attn_drop(scores.softmax(-1)) @ v
        else:
            z = F.scaled_dot_product_attention(q, k, v, mask)
        return self.drop(self.proj(z.transpose(1, 2).flatten(2)))


class MLP(nn.Module):
    """Two dense layers with a GELU between; for swiglu, silu(a) * b of a first layer twice as wide."""

    def __init__(self, config: Config, device: torch.device | None) -> None:
        super().__init__()
        self.activation: Activation = config.activation
        hidden = 2 * config.mlp_dim if config.activation == "swiglu" else config.mlp_dim
        self.fc1 = nn.Linear(config.width, hidden, device=device)
        self.fc2 = nn.Linear(config.mlp_dim, config.width, device=device)
        self.drop, self.out_drop = Dropout(config.dropout), Dropout(config.dropout)

    def forward(self, z: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self.out_drop(self.fc2(self.drop(activate(self.fc1(z), self.activation))))


class Block(nn.Module):
    """Equations 2 and 3: MSA and MLP, each behind a norm and around a residual."""

    def __init__(self, config: Config, drop_path: float, device: torch.device | None) -> None:
        super().__init__()
        D, scaled = config.width, config.layer_scale is not None
        self.norm1 = nn.LayerNorm(D, config.norm_eps, device=device)
        self.attn = Attention(config, device)
        self.ls1 = LayerScale(D, device) if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(D, config.norm_eps, device=device)
        self.mlp = MLP(config, device)
        self.ls2 = LayerScale(D, device) if scaled else nn.Identity()
        self.drop_path1, self.drop_path2 = DropPath(drop_path), DropPath(drop_path)

    def forward(self, z: Float[Tensor, "B N D"], mask: Mask | None = None) -> Float[Tensor, "B N D"]:
        z = z + self.drop_path1(self.ls1(self.attn(self.norm1(z), mask)))
        return z + self.drop_path2(self.ls2(self.mlp(self.norm2(z))))


class AttentionPool(nn.Module):
    """MAP head (Zhai et al., 2022, "Scaling Vision Transformers"): a learned probe attends to the tokens."""

    def __init__(self, config: Config, device: torch.device | None) -> None:
        super().__init__()
        D, self.heads = config.width, config.heads
        self.latent = nn.Parameter(torch.empty(1, 1, D, device=device))
        self.q = nn.Linear(D, D, device=device)
        self.kv = nn.Linear(D, 2 * D, device=device)
        self.proj = nn.Linear(D, D, device=device)
        self.norm = nn.LayerNorm(D, config.norm_eps, device=device)
        self.mlp = MLP(config, device)

    def forward(self, z: Float[Tensor, "B N D"]) -> Float[Tensor, "B D"]:
        q, k, v = self.q(self.latent).expand(z.shape[0], -1, -1), *self.kv(z).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        y = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return (y + self.mlp(self.norm(y)))[:, 0]


class ViT(nn.Module):
    """Images -> tokens -> logits. Built with `device="meta"` it allocates nothing: `to_empty`, then `init_weights`."""

    def __init__(self, config: Config, device: torch.device | None = None) -> None:
        super().__init__()
        self.config = config
        D, L = config.width, config.depth
        self.patch_embed = PatchEmbed(config, device)
        self.cls_token = nn.Parameter(torch.empty(1, 1, D, device=device)) if config.class_token else None
        self.reg_token = nn.Parameter(torch.empty(1, config.registers, D, device=device)) if config.registers else None
        length, learned = config.prefix_rows + math.prod(config.grid(config.image_size)), config.positions == "learned"
        self.pos_embed = nn.Parameter(torch.empty(1, length, D, device=device)) if learned else None
        self.pos_drop = Dropout(config.dropout)

        def norm(present: bool) -> nn.Module:
            return nn.LayerNorm(D, config.norm_eps, device=device) if present else nn.Identity()

        self.norm_pre = norm(config.pre_norm)
        self.blocks = nn.Sequential(*(Block(config, config.drop_path * i / max(1, L - 1), device) for i in range(L)))
        self.norm = norm(config.norm_first)
        self.attn_pool = AttentionPool(config, device) if config.pool == "map" else None
        self.fc_norm = norm(not config.norm_first)
        features, self.pre_logits = D, nn.Identity()
        if config.representation:
            features = config.representation
            self.pre_logits = nn.Sequential(OrderedDict(fc=nn.Linear(D, features, device=device), act=nn.Tanh()))
        self.head = nn.Linear(features, config.classes, device=device) if config.classes else nn.Identity()
        if self.patch_embed.proj.weight.device.type != "meta":
            self.init_weights()

    def init_weights(self, seed: int | None = None, only: set[str] | None = None) -> None:
        """Give every parameter, or those named in `only`, its initial value (models/init.py)."""
        initialise(self, self.config.layer_scale, self.config.activation == "swiglu", seed, only)

    def position_table(self, grid: tuple[int, int]) -> Float[Tensor, "1 N D"] | None:
        """E_pos for a grid (rows, columns), 0 for the prefix tokens that have no position; None without positions.

        A resampled table is computed in each pass, and kept nowhere: threads may share the model, and no table is ever
        that of other weights.
        """
        config, learned = self.config, self.pos_embed
        if config.positions == "none":
            return None
        own = config.grid(config.image_size)
        if learned is not None and grid == own and config.prefix == config.prefix_rows:
            return learned
        if learned is None:
            like = self.patch_embed.proj.weight
            patches = sincos(grid, config.width, config.positions == "sincos_mae", like.device).to(like.dtype)
            return F.pad(patches, (0, 0, config.prefix, 0))[None]
        first, patches = learned[0].tensor_split([config.prefix_rows])
        patches = resample(patches, own, grid, config.resample)
        return torch.cat([F.pad(first, (0, 0, 0, config.prefix - config.prefix_rows)), patches])[None]

    def embed(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """z_0 of eq. 1: [class], registers, then the patches row by row, with their positions."""
        x = self.patch_embed(images)
        prefix = [t.expand(x.shape[0], -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        z = torch.cat([*prefix, x.flatten(2).transpose(1, 2)], dim=1)
        positions = self.position_table((x.shape[-2], x.shape[-1]))
        z = z if positions is None else z + positions
        return self.norm_pre(self.pos_drop(z))

    def tokens(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """(B, C, H, W) -> (B, prefix + rows * columns, D) after the final norm (before it, where it is `fc_norm`)."""
        z = self.embed(images)
        for block in self.blocks:  # not self.blocks(z): this frame would keep z_0 alive through all of them
            z = block(z)
        return self.norm(z)

    def pool(self, z: Float[Tensor, "B N D"]) -> Float[Tensor, "B D"]:
        """The image representation y (eq. 4): [class], the mean of the patches, or the MAP head's answer."""
        if self.attn_pool is not None:
            return self.fc_norm(self.attn_pool(z))
        return self.fc_norm(z[:, 0] if self.config.pool == "token" else z[:, self.config.prefix :].mean(dim=1))

    def represent(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """(B, C, H, W) -> what the head reads: the pooled tokens, through the pre-logits layer where there is one."""
        return self.pre_logits(self.pool(self.tokens(images)))

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """(B, C, H, W) -> logits (B, K); the representation itself where classes is 0.

        ValueError where the number of channels or, with remainder="refuse", the size is not the model's.
        """
        return self.head(self.represent(images))
