"""The zoo: docs/zoo.md holds every name with its exact cost, and every name that timm has is timm's model."""

import re
from pathlib import Path

import pytest
import timm
import torch
from reference import perturb

from vitrail.models import cost, resnet
from vitrail.models.zoo import configure, create, zoo
from vitrail.weights.spelling import Cut
from vitrail.weights.timm import entries, state_dict

TABLE = Path(__file__).parents[1] / "docs" / "zoo.md"
TIMM = sorted(set(zoo()) & set(timm.list_models()))


def row(name):
    """The line of docs/zoo.md that is right for a name."""
    config = zoo()[name]
    size = config.image_size
    tokens = "-" if isinstance(config, resnet.Config) else f"{cost.tokens(config, size):,}"
    figures = f"{cost.parameters(config):,} | {tokens} | {cost.flops(config, size) / 1e9:,.2f}"
    return f"| {name} | {figures} | {size[0]} x {size[1]} | {config.classes or '-'} |"


def documented():
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return {line.split("|")[1].strip(): line for line in lines if not re.match(r"\|( name |[ :-]+\|)", line)}


def test_the_table_tells_every_name_and_its_exact_cost():
    assert len(TIMM) >= 90  # most of them are compared with timm below
    assert documented() == {name: row(name) for name in zoo()}


def timms(name, **settings):
    return timm.create_model(name, num_classes=zoo()[name].classes, **settings)


# SiLU is of GluMlp and of its packed form.
ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "swiglu"}


@pytest.mark.parametrize("name", TIMM)
def test_a_name_that_timm_has_is_timms_model(name):
    config = configure(name)
    with torch.device("meta"):
        theirs = timms(name)
    shapes = {key: tuple(p.shape) for key, p in theirs.state_dict().items()}
    ours, cut, found = config.build("meta").state_dict(), Cut.timm(config), {}
    for entry in entries(config, cut):
        parts = entry.back(ours[entry.ours])
        found |= {cut.timm_name(n): tuple(t.shape) for n, t in zip(entry.theirs, parts, strict=True)}
    assert found == shapes
    block = theirs.blocks[0]
    assert ACTIVATIONS[type(block.mlp.act).__name__] == config.activation
    norms = [m for m in theirs.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert {m.eps for m in norms} == {config.norm_eps}
    assert tuple(theirs.patch_embed.grid_size) == config.grid(config.image_size)
    pool = "token" if config.pool == "distilled" else config.pool
    assert (theirs.global_pool, block.attn.num_heads) == (pool, config.heads)
    if config.positions == "learned" and config.class_token:
        assert bool(theirs.no_embed_class) != config.class_position
    assert theirs.num_prefix_tokens == config.prefix


PARITY = [  # cheap ones, cut to two blocks; and another image size
    ("vit_tiny_patch16_224", (160, 288)), ("vit_medium_patch16_gap_240", (96, 176)),
    ("vit_base_patch16_gap_224", (96, 64)), ("deit3_small_patch16_224", (96, 240)),
    ("vit_small_patch14_reg4_dinov2", (98, 154)), ("vit_giant_patch14_dinov2", (56, 42)),
    ("vit_base_patch32_siglip_256", (96, 160)), ("vit_base_patch32_clip_quickgelu_224", (96, 160)),
    ("vit_small_r26_s32_224", (96, 160)), ("vit_tiny_r_s16_p8_224", (96, 160)),
    ("deit_tiny_distilled_patch16_224", (96, 160)), ("beit_base_patch16_224", (96, 160)),
    ("eva02_tiny_patch14_224", (98, 154)), ("eva02_base_patch16_clip_224", (96, 160)),
    ("vit_small_plus_patch16_dinov3_qkvb", (96, 160)), ("vit_small_patch16_dinov3", (96, 160)),
    ("vit_small_patch16_rope_ape_224", (96, 160)), ("vit_mediumd_patch16_rope_reg1_gap_256", (96, 160)),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:torch.searchsorted", "ignore:Using a non-tuple")  # of timm's resizing
@pytest.mark.parametrize("own", [True, False], ids=["own size", "other size"])
@pytest.mark.parametrize(("name", "size"), PARITY)
def test_logits_are_timms_also_where_height_and_width_differ(name, size, own, monkeypatch):
    # timm's stems add 1e-8 to a kernel's variance and have group norms of eps 1e-5; Google's add 1e-5 to its standard
    # deviation and have 1e-6. For this test timm's are made Google's.
    monkeypatch.setattr(timm.layers.StdConv2dSame, "forward", google_convolution)
    image_size = (112, 112) if zoo()[name].image_size == (518, 518) else zoo()[name].image_size
    dynamic = {} if "beit" in name else {"dynamic_img_size": not own}
    theirs = timms(name, depth=2, img_size=image_size, **dynamic).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.eps = 1e-6
    model = perturb(create(name, depth=2, image_size=image_size), dtype=torch.float32)
    state = model.state_dict()
    theirs.load_state_dict(state_dict(model.config, state))
    shape = image_size if own else size
    if "beit" in name and not own:
        theirs.set_input_size(size)
    images = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, logits = theirs(images), model(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)


def google_convolution(self, x):
    std, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
    x = timm.layers.pad_same(x, self.kernel_size, self.stride, self.dilation)
    return torch.nn.functional.conv2d(x, (self.weight - mean) / (std + 1e-5), None, self.stride)


@pytest.mark.parametrize(("paper", "name"), [
    ("ViT-Ti/16", "vit_tiny_patch16_224"), ("ViT-S/32", "vit_small_patch32_224"),
    ("ViT-B/16", "vit_base_patch16_224"), ("ViT-L/32", "vit_large_patch32_224"),
    ("ViT-H/14", "vit_huge_patch14_224"), ("ViT-g/14", "vit_giant_patch14_224"),
    ("ViT-G/14", "vit_gigantic_patch14_224"), ("R+ViT-Ti/16", "vit_tiny_r_s16_p8_224"),
    ("R26+ViT-S/32", "vit_small_r26_s32_224"), ("R50+ViT-B/16", "vit_base_r50_s16_224"),
    ("R50+L/32", "vit_large_r50_s32_224"),
])  # fmt: skip
def test_the_papers_name_and_timms_are_the_same_model(paper, name):
    assert configure(paper) == configure(name)


def test_a_bit_resnet_has_as_many_parameters_as_the_resnet_it_stands_for():
    # Group norms have what batch norms have: torchvision's count for ResNet-50, and He et al.'s for the others.
    counts = {name: cost.parameters(configure(name)) for name in ("R50x1", "R101x1", "R152x1")}
    assert counts == {"R50x1": 25_557_032, "R101x1": 44_549_160, "R152x1": 60_192_808}


@pytest.mark.parametrize(("name", "fields", "message"), [
    ("vit-b/16", {}, r"'vit-b/16'.* ViT-B/16"),
    ("vit_base_patch16_225", {}, "'vit_base_patch16_225'.* vit_base_patch16_224"),
    ("qqq", {}, r"'qqq'.*docs/zoo\.md"), ("ViT-B/16", {"drop_out": 0.1}, r"ViT-B/16 .*'drop_out'.* dropout"),
    ("BiT-R50x1", {"zzz": 1}, r"BiT-R50x1 .*'zzz'.* blocks, width_factor"),
])  # fmt: skip
def test_an_unknown_name_or_field_is_answered_with_the_nearest(name, fields, message):
    with pytest.raises(ValueError, match=message):
        configure(name, **fields)


def test_overrides_reach_the_model_and_leave_the_zoo_alone():
    model = create("R+ViT-Ti/16", image_size=64, channels=1, classes=2, depth=1)
    assert (model(torch.zeros(1, 1, 64, 64)).shape, model.config.image_size) == ((1, 2), (64, 64))
    assert configure("R+ViT-Ti/16").channels == 3
    assert configure("ViT-B/16", patch_size=(8, 16)).patch_size == (8, 16)
