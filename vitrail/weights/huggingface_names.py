"""Hugging Face's names for the tensors of a ViT: each family's, on disk and in memory, in one spelling.

transformers renames its modules from time to time; files keep the names of their day. In our spelling a block is
`layer.0`, its parts are norm1, attention.{query,key,value,out}, ls1, norm2, mlp.{fc1,fc2} (mlp.{gate,up,fc2}), ls2.

    names = spelled(file's names, SPELLINGS)        # "layer.0.attention.query.weight" -> "encoder.layer.0.attention..."
    entries(config, names)
    disk("dinov2", "layer.0.mlp.fc1.weight")        # as transformers writes it today
"""

import re
from collections.abc import Container, Iterator

from vitrail.models import vit
from vitrail.weights.mapping import Entry, added, heads_of_two, layers, part, rows, same

SPELLINGS = (
    (r"^(model\.|encoder\.)?layers?\.(?=\d)", "layer."),
    (r"\.(attention\.attention|attention|self_attn)\.(query|key|value)\.", r".attention.\2."),
    (r"\.(attention|self_attn)\.([qkv])_proj\.", r".attention.\2_proj."),
    (r"\.attention\.q_proj\.", ".attention.query."),
    (r"\.attention\.k_proj\.", ".attention.key."),
    (r"\.attention\.v_proj\.", ".attention.value."),
    (r"\.(attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.", ".attention.out."),
    (r"\.mlp\.(weights_in|intermediate)\.", ".mlp.fc1."),
    (r"\.mlp\.(weights_out|down_proj)\.", ".mlp.fc2."),
    (r"\.mlp\.(gate|up)_proj\.", r".mlp.\1."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(layer\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.(layernorm_before|layer_norm1)\.", ".norm1."),
    (r"\.(layernorm_after|layer_norm2)\.", ".norm2."),
    (r"\.(?:lambda_|layer_scale)([12])(?:\.lambda1)?$", r".ls\1"),
    (r"\.(attention\.attention\.)?relative_position_bias\.relative_position_bias_table$", ".bias_table"),
    (r"^(encoder\.relative_position_bias|shared_position_bias)\.relative_position_bias_table$", "bias_table"),
    (r"^encoder\.bias_table$", "bias_table"),
    (r"^embeddings\.(patch_embeddings\.projection|patch_embeddings|patch_embedding)\.", "patch."),
    (r"^embeddings\.(cls_token|class_embedding)$", "cls"),
    (r"^embeddings\.(position_embeddings|position_embedding\.weight)$", "pos"),
    (r"^embeddings\.register_tokens$", "reg"),
    (r"^embeddings\.distillation_token$", "dist"),
    (r"^embeddings\.(mask_token|position_ids)$", r"\1"),
    (r"^(layernorm|post_layernorm)\.", "norm."),
    (r"^pooler\.layernorm\.", "fc_norm."),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^head\.", "pool."),
    (r"^(cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)
# What is beside a vision tower.
BESIDE = re.compile(r"^(text_model|text_projection|visual_projection|logit_scale|logit_bias)\b")


def entries(config: vit.Config, names: Container[str]) -> Iterator[Entry]:
    """Every tensor, with our spelling of Hugging Face's name for it. names: those of the file."""
    if config.class_token:
        yield same("cls", "cls_token")
    if config.positions == "learned" and "dist" in names:  # the table has a row for the distillation token, too
        yield from added("dist", "pos", 1)
    elif config.positions == "learned":
        yield same("pos", "pos_embed")
    if config.registers and "dist" not in names:
        yield same("reg", "reg_token")
    yield same("patch.weight", "patch_embed.proj.weight")
    if config.patch_bias:
        yield same("patch.bias", "patch_embed.proj.bias")
    if config.relative_shared:
        yield same("bias_table", "rel_pos_bias.relative_position_bias_table")
    found = {"norm": "norm"} if config.norm_first else {"fc_norm": "fc_norm"}
    found |= {"norm_pre": "norm_pre"} if config.pre_norm else {}
    found |= {"pooler.dense": "pre_logits.fc"} if config.representation else {}
    found |= {"pool.layernorm": "attn_pool.norm"} if config.pool == "map" else {}
    for i in range(config.depth):
        yield from _block(f"layer.{i}", f"blocks.{i}", config, names)
    if config.pool == "map":
        yield from _attention_pool()
    if config.classes and config.pool == "distilled":
        yield from heads_of_two({"head": "head_dist"})
    elif config.classes:
        found |= {"head": "head"}
    yield from layers(found)


def _block(theirs: str, ours: str, config: vit.Config, names: Container[str]) -> Iterator[Entry]:
    parts = {"norm1": "norm1", "norm2": "norm2", "attention.out": "attn.proj", "mlp.fc2": "mlp.fc2"}
    gate = f"{theirs}.mlp.gate.weight" in names
    for leaf in ("weight", "bias") if gate else ():
        yield rows((f"{theirs}.mlp.gate.{leaf}", f"{theirs}.mlp.up.{leaf}"), f"{ours}.mlp.fc1.{leaf}")
    fc1 = "mlp.up" if f"{theirs}.mlp.up.weight" in names else "mlp.fc1"
    parts |= {} if gate else {fc1: "mlp.fc1"}
    yield from layers({f"{theirs}.{t}": f"{ours}.{o}" for t, o in parts.items()})
    query, key, value = (f"{theirs}.attention.{part}" for part in ("query", "key", "value"))
    yield rows((f"{query}.weight", f"{key}.weight", f"{value}.weight"), f"{ours}.attn.qkv.weight")
    if config.qkv_bias and config.key_bias:
        yield rows((f"{query}.bias", f"{key}.bias", f"{value}.bias"), f"{ours}.attn.qkv.bias")
    elif config.qkv_bias:
        yield same(f"{query}.bias", f"{ours}.attn.q_bias")
        yield same(f"{value}.bias", f"{ours}.attn.v_bias")
    if config.layer_scale is not None:
        yield same(f"{theirs}.ls1", f"{ours}.ls1.gamma")
        yield same(f"{theirs}.ls2", f"{ours}.ls2.gamma")
    if config.relative != "none" and not config.relative_shared:
        yield same(f"{theirs}.bias_table", f"{ours}.attn.relative_position_bias_table")


def _attention_pool() -> Iterator[Entry]:
    """SigLIP's head: torch's MultiheadAttention, whose query, key and value are one tensor."""
    yield same("pool.probe", "attn_pool.latent")
    for leaf in ("weight", "bias"):
        yield part(f"pool.attention.in_proj_{leaf}", f"attn_pool.q.{leaf}", 0, 1)
        yield part(f"pool.attention.in_proj_{leaf}", f"attn_pool.kv.{leaf}", 1, 3)
    yield from layers({"pool.attention.out_proj": "attn_pool.proj"})
    yield from layers({f"pool.mlp.fc{i}": f"attn_pool.mlp.fc{i}" for i in (1, 2)})


def disk(kind: str, name: str, gated: bool) -> str:
    """A name in our spelling as transformers writes it, without the root. kind: vit, or one of DINOv2's."""
    dino = kind.startswith("dinov2")
    hidden = ("mlp.weights_in", "mlp.weights_out") if gated else ("mlp.fc1", "mlp.fc2")
    blocks = dict(zip(("mlp.fc1", "mlp.fc2"), hidden if dino else ("intermediate.dense", "output.dense"), strict=True))
    blocks |= {} if dino else {"norm1": "layernorm_before", "norm2": "layernorm_after"}
    blocks |= {"attention.out": "attention.output.dense", "ls1": "layer_scale1.lambda1", "ls2": "layer_scale2.lambda1"}
    blocks |= {f"attention.{part}": f"attention.attention.{part}" for part in ("query", "key", "value")}
    top = {"cls": "embeddings.cls_token", "pos": "embeddings.position_embeddings", "reg": "embeddings.register_tokens"}
    top |= {"patch": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
    if found := re.fullmatch(r"layer\.(\d+)\.(.+?)(\.weight|\.bias)?", name):
        return f"encoder.layer.{found[1]}.{blocks.get(found[2], found[2])}{found[3] or ''}"
    stem, dot, leaf = name.partition(".")
    return f"{top.get(stem, stem)}{dot}{leaf}"
