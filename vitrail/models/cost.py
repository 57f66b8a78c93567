"""What a model costs: parameters, tokens and floating-point operations, without allocating it.

    parameters(config)             # 86567656 for ViT-B/16
    flops(config, (384, 384))      # 110.97e9: a multiply and an add count as two
    TRAINING * flops(...)          # of an image that is trained on

Counted: matrix products, convolutions and attention, as torch.utils.flop_counter does; norms, activations and sums
are not, nor is the standardising of a ResNet's weights, which does not grow with the batch.
"""

import math

from vitrail.models import Config, resnet, vit
from vitrail.models.config import ResNetFields

# Forward passes that a training step costs: for each product the backward pass has two, one for the gradient of the
# weights and one for that of the input. So counted, the paper's Table 6 has 224 exaFLOPs for ViT-B/16, 783 for ViT-L/16
# and 4,262 for ViT-H/14, on JFT's 303 million images at 224 px, 7, 7 and 14 times.
TRAINING = 3


def parameters(config: Config) -> int:
    """The number of parameters, counted on a model that is built without memory."""
    return sum(p.numel() for p in config.build("meta").parameters())


def tokens(config: vit.Config, image_size: tuple[int, int]) -> int:
    """The length of the sequence for an image of (height, width): [class], registers and patches."""
    rows, columns = config.grid(image_size)
    return config.prefix + rows * columns


def flops(config: Config, image_size: tuple[int, int]) -> int:
    """Floating-point operations of one forward pass of one image of (height, width)."""
    return 2 * (_resnet(config, image_size) if isinstance(config, resnet.Config) else _vit(config, image_size))


def activations(config: Config, width: int = 4, again: bool = False, stream: int | None = None) -> int:
    """Bytes that one image keeps alive until the backward pass. width: bytes of a number. again: with checkpointing.
    stream: bytes of a number in what the blocks add to, which autocast leaves at 4."""
    stream = stream or max(width, 4)
    pixels = config.channels * config.image_size[0] * config.image_size[1] * (1 + 2 * width)
    if isinstance(config, resnet.Config):
        return pixels + _convolutions(config, config.image_size, width)
    count, dim, gated = tokens(config, config.image_size), config.width, config.activation == "swiglu"
    # The inputs of the block, its two norms' outputs, q, k, v, the heads' output, the sum between attention and MLP;
    # the MLP before and after its activation.
    inner = 6 * dim + (4 if gated else 2) * config.mlp_dim
    inner += 2 * dim * ((config.layer_scale is not None) + config.qk_norm + (config.rotary is not None))
    inner += dim * config.attention_norm + config.mlp_dim * config.mlp_norm
    block = count * (inner * width + 2 * dim * stream)
    if config.dropout:  # a byte for each element, thrice a block, says which were kept
        block += count * (2 * dim + config.mlp_dim)
    if config.attention_dropout:  # the probabilities, before and after, and the same bytes
        block += config.heads * count**2 * (2 * width + 1)
    kept = config.depth * count * dim * stream + block if again else config.depth * block
    stem = _convolutions(config.stem, config.image_size, width) if config.stem else 0
    return pixels + kept + 2 * count * dim * width + stem


def _convolutions(config: ResNetFields, image_size: tuple[int, int], width: int) -> int:
    """Of a ResNet. Of its root: the inputs of the norm and of the pool, what ReLU returns; where each largest was, and
    what is pooled. Of a block: the inputs of its norms, what each ReLU returns, and the 3x3 convolution's padded input;
    of a stage's first also the projection, and what comes before its stride."""
    area = image_size[0] * image_size[1] // 16
    total = config.root * area * (3 * 4 + 3)
    for stage, depth in enumerate(config.blocks):
        total += (area >> 2 * stage) * (config.root << stage) * (13 * depth + (13 if stage else 4))
    return total * width


def _vit(config: vit.Config, image_size: tuple[int, int]) -> int:
    rows, columns = config.grid(image_size)
    N, T, D = rows * columns, tokens(config, image_size), config.width
    patch = config.patch_size[0] * config.patch_size[1]
    total = N * patch * (config.stem.features if config.stem else config.channels) * D
    if config.stem:
        # The image as the stem sees it: padded or cropped to whole patches.
        total += _resnet(config.stem, (rows * config.stride[0], columns * config.stride[1]))
    mlp = D * config.mlp_dim * (3 if config.activation == "swiglu" else 2)
    total += config.depth * (T * (4 * D * D + mlp) + 2 * T * T * D)
    if config.pool == "map":  # q once for all images: the probe is the same
        total += D * D + 2 * T * D * D + 2 * T * D + D * D + mlp
    features = config.representation or config.features
    return total + (config.features * features if config.representation else 0) + features * config.classes


def _resnet(config: ResNetFields, image_size: tuple[int, int]) -> int:
    def area(stride: int) -> int:
        return math.prod(math.ceil(side / stride) for side in image_size)

    inputs = config.root
    total = area(2) * 49 * config.channels * inputs
    for s, depth in enumerate(config.blocks):
        outputs, cells = 4 * config.root * 2**s, area(4 * 2**s)
        middle = outputs // 4
        for block in range(depth):
            before = area(2 * 2**s) if s > 0 and block == 0 else cells
            total += before * inputs * middle + cells * middle * (9 * middle + outputs)
            total += cells * inputs * outputs if block == 0 else 0
            inputs = outputs
    return total + inputs * config.classes
