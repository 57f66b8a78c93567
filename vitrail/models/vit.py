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
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitrail.models import resnet
from vitrail.models.config import Fields, symbolic
from vitrail.models.init import initialise
from vitrail.models.layers import Activation, Dropout, DropPath, LayerScale, activate
from vitrail.models.positions import resample, sincos
from vitrail.models.relative import Relative, RelativePositions, relative_bias, relative_count
from vitrail.models.rotary import Turn, turn, turning

# True where a token (row) attends to another (column).
Mask = Bool[Tensor, "#B #heads #N N"]


class Places(NamedTuple):
    """Where the tokens of an image are, for attention that knows it. turn: of rotary positions. bias: (1, heads, N, N),
    what all blocks add to the scores."""

    grid: tuple[int, int]
    turn: Turn | None
    bias: Tensor | None


@dataclass(frozen=True)
class Config(Fields):
    """Everything that shapes a ViT."""

    kind: ClassVar[str] = "vit"

    def build(self, device: torch.device | str | None = None) -> "ViT":
        """The model, with its initial values (none on the meta device)."""
        return ViT(self, None if device is None else torch.device(device))


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
        if symbolic(bottom, right) or bottom or right:  # negative where the rest is cropped
            images = F.pad(images, (0, right, 0, bottom))
        if isinstance(self.backbone, resnet.ResNet):
            images = self.backbone.features(images)
        return self.proj(images)


class Attention(nn.Module):
    """MSA, appendix A: [q, k, v] = z U_qkv; softmax(q k^T / sqrt(D_h)) v for each head; the heads through U_msa."""

    def __init__(self, config: Config, device: torch.device | None) -> None:
        super().__init__()
        D, self.heads = config.width, config.heads
        self.qkv = nn.Linear(D, 3 * D, bias=config.qkv_bias and config.key_bias, device=device)
        keyless = config.qkv_bias and not config.key_bias
        self.q_bias = nn.Parameter(torch.empty(D, device=device)) if keyless else None
        self.v_bias = nn.Parameter(torch.empty(D, device=device)) if keyless else None
        normed, size = config.qk_norm, D // self.heads
        self.q_norm = nn.LayerNorm(size, config.norm_eps, device=device) if normed else nn.Identity()
        self.k_norm = nn.LayerNorm(size, config.norm_eps, device=device) if normed else nn.Identity()
        self.own: tuple[int, int] = config.grid(config.image_size)
        self.relative: Relative = config.relative
        own_table = self.relative != "none" and not config.relative_shared
        table = torch.empty(relative_count(self.own), self.heads, device=device) if own_table else None
        self.relative_position_bias_table = None if table is None else nn.Parameter(table)
        self.attn_drop = Dropout(config.attention_dropout)
        self.norm = nn.LayerNorm(D, config.norm_eps, device=device) if config.attention_norm else nn.Identity()
        self.proj = nn.Linear(D, D, device=device)
        self.drop = Dropout(config.dropout)

    def forward(
        self, z: Float[Tensor, "B N D"], mask: Mask | None = None, places: Places | None = None
    ) -> Float[Tensor, "B N D"]:
        q, k, v = self.project(z)
        if places is not None and places.turn is not None:
            q, k = turn(q, places.turn), turn(k, places.turn)
        bias = self.bias(places, mask)
        if self.training and self.attn_drop.rate:  # fused attention would draw from torch's stream
            scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
            if bias is not None:
                scores = scores.masked_fill(~bias, -math.inf) if bias.dtype == torch.bool else scores + bias
            z = self.attn_drop(scores.softmax(-1)) @ v
        else:
            z = F.scaled_dot_product_attention(q, k, v, bias)
        return self.drop(self.proj(self.norm(z.transpose(1, 2).flatten(2))))

    def project(self, z: Float[Tensor, "B N D"]) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, each (B, heads, N, D_h)."""
        # Cut before the heads are parted: the gradients of q, k and v then meet in one copy, not two.
        q, k, v = self.qkv(z).chunk(3, dim=-1)
        if self.q_bias is not None:
            q, v = q + self.q_bias, v + self.v_bias
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return self.q_norm(q), self.k_norm(k), v

    def bias(self, places: Places | None, mask: Mask | None) -> Tensor | None:
        """What is added to the scores: those of relative positions, -inf where the mask is False; or the mask itself
        where there are none."""
        bias = None if places is None else places.bias
        if self.relative_position_bias_table is not None:
            assert places is not None, "relative positions need the grid of the patches"
            bias = relative_bias(self.relative_position_bias_table, self.own, places.grid, self.relative)
        if bias is None or mask is None:
            return bias if mask is None else mask
        return bias.masked_fill(~mask, -math.inf)


class MLP(nn.Module):
    """Two dense layers with a GELU between; for swiglu, silu(a) * b of a first layer twice as wide."""

    def __init__(self, config: Config, device: torch.device | None) -> None:
        super().__init__()
        self.activation: Activation = config.activation
        hidden = 2 * config.mlp_dim if config.activation == "swiglu" else config.mlp_dim
        self.fc1 = nn.Linear(config.width, hidden, device=device)
        self.fc2 = nn.Linear(config.mlp_dim, config.width, device=device)
        normed = config.mlp_norm
        self.norm = nn.LayerNorm(config.mlp_dim, config.norm_eps, device=device) if normed else nn.Identity()
        self.drop, self.out_drop = Dropout(config.dropout), Dropout(config.dropout)

    def forward(self, z: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self.out_drop(self.fc2(self.norm(self.drop(activate(self.fc1(z), self.activation)))))


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

    def forward(
        self, z: Float[Tensor, "B N D"], mask: Mask | None = None, places: Places | None = None
    ) -> Float[Tensor, "B N D"]:
        z = z + self.drop_path1(self.ls1(self.attn(self.norm1(z), mask, places)))
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

        shared = config.relative != "none" and config.relative_shared
        self.rel_pos_bias = RelativePositions(config.grid(config.image_size), config.heads, device) if shared else None
        self.norm_pre = norm(config.pre_norm)
        self.blocks = nn.Sequential(*(Block(config, config.drop_path * i / max(1, L - 1), device) for i in range(L)))
        self.norm = norm(config.norm_first)
        self.attn_pool = AttentionPool(config, device) if config.pool == "map" else None
        self.fc_norm = norm(not config.norm_first)
        features, self.pre_logits = config.features, nn.Identity()
        if config.representation:
            dense = nn.Linear(features, config.representation, device=device)
            features, self.pre_logits = config.representation, nn.Sequential(OrderedDict(fc=dense, act=nn.Tanh()))
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
        return self.sequence(self.patch_embed(images))

    def sequence(self, x: Float[Tensor, "B D rows columns"]) -> Float[Tensor, "B N D"]:
        """z_0 from the patches' embeddings."""
        prefix = [t.expand(x.shape[0], -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        z = torch.cat([*prefix, x.flatten(2).transpose(1, 2)], dim=1)
        positions = self.position_table((x.shape[-2], x.shape[-1]))
        z = z if positions is None else z + positions
        return self.norm_pre(self.pos_drop(z))

    def places(self, images: Float[Tensor, "B C H W"]) -> Places | None:
        """Where the tokens of these images are, which every block is told; None where attention need not know."""
        config, shared = self.config, self.rel_pos_bias
        if config.rotary is None and config.relative == "none":
            return None
        grid, dtype = config.grid((images.shape[-2], images.shape[-1])), self.patch_embed.proj.weight.dtype
        turned = config.rotary and turning(config.rotary, grid, config.width // config.heads, images.device, dtype)
        return Places(grid, turned, None if shared is None else shared(grid, config.relative))

    def tokens(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """(B, C, H, W) -> (B, prefix + rows * columns, D) after the final norm (before it, where it is `fc_norm`)."""
        return self.encode(self.embed(images), self.places(images))

    def encode(self, z: Float[Tensor, "B N D"], places: Places | None = None) -> Float[Tensor, "B N D"]:
        """z_0, of all tokens or of some, through the blocks and the final norm."""
        for block in self.blocks:  # not self.blocks(z): this frame would keep z_0 alive through all of them
            z = block(z) if places is None else block(z, None, places)
        return self.norm(z)

    def pool(self, z: Float[Tensor, "B N D"]) -> Float[Tensor, "B E"]:
        """The image representation y (eq. 4): [class], the mean of the patches, both beside each other, [class] beside
        the distillation token (the first register), or the MAP head's answer."""
        if self.attn_pool is not None:
            return self.fc_norm(self.attn_pool(z))
        if self.config.pool == "token":
            return self.fc_norm(z[:, 0])
        if self.config.pool == "distilled":
            return self.fc_norm(z[:, :2]).flatten(1)
        mean = z[:, self.config.prefix :].mean(dim=1)
        return self.fc_norm(mean) if self.config.pool == "avg" else torch.cat([z[:, 0], mean], dim=1)

    def represent(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E"]:
        """(B, C, H, W) -> what the head reads: the pooled tokens, through the pre-logits layer where there is one."""
        return self.pre_logits(self.pool(self.tokens(images)))

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """(B, C, H, W) -> logits (B, K); the representation itself where classes is 0.

        ValueError where the number of channels or, with remainder="refuse", the size is not the model's.
        """
        return self.head(self.represent(images))
