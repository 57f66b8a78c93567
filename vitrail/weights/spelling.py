"""Other spellings of timm's names for the tensors of a ViT, and how its projections may be cut: one table, both ways.

Authors who started from timm's code changed some names. Each file's own are mapped to one spelling:

    DINOv2, DINOv3    register_tokens, storage_tokens, blocks.0.7.* (blocks in chunks), mlp.w12, mlp.w1/w2/w3
    BEiT, EVA, DeiT   gamma_1, q_bias and v_bias, q_proj/k_proj/v_proj, fc1_g/fc1_x, ffn_ln, inner_attn_ln

    names = spelled(file's names)                # our spelling -> the file's
    cut = Cut.of(names)                          # what is in pieces there
    cut.timm_name("blocks.0.ls1.gamma")          # how timm's class for such a model says it
"""

import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass

from vitrail.models import vit
from vitrail.weights.mapping import Entry, rows, same

SPELLINGS = (
    (r"^blocks\.\d+\.(?=\d+\.)", "blocks."),
    (r"\.gamma_([12])$", r".ls\1.gamma"),
    (r"^(register|storage)_tokens$", "reg_token"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.ffn_ln\.", ".mlp.norm."),
    (r"\.attn\.inner_attn_ln\.", ".attn.norm."),
    (r"^head_drop\.", "head."),
)


def spelled(names: Iterable[str], table: Iterable[tuple[str, str]] = SPELLINGS) -> dict[str, str]:
    """Our spelling -> the name in the file. ValueError where two names of the file become one."""
    found: dict[str, str] = {}
    for name in names:
        ours = name
        for pattern, new in table:
            ours = re.sub(pattern, new, ours)
        if ours in found:
            raise ValueError(f"{name} and {found[ours]} are two spellings of one tensor; which is right is not known.")
        found[ours] = name
    return found


@dataclass(frozen=True)
class Cut:
    """What is in pieces: q, k and v by themselves (`apart`), the gate of a SwiGLU and what it opens (`gate`).

    short: whether gamma_1 is timm's own name here.
    """

    apart: bool = False
    gate: bool = False
    short: bool = False

    @classmethod
    def of(cls, names: Container[str]) -> "Cut":
        """That of a file, by its names in our spelling."""
        return cls("blocks.0.attn.q_proj.weight" in names, "blocks.0.mlp.fc1_g.weight" in names)

    @classmethod
    def timm(cls, config: vit.Config) -> "Cut":
        """That of timm's class for a model of this kind: VisionTransformer, Beit or Eva."""
        plain = config.key_bias and not (config.rotary or config.mlp_norm or config.attention_norm)
        if plain and config.relative == "none":
            return cls()
        gate = config.activation == "swiglu" and (config.mlp_norm or config.registers > 0)
        return cls(config.mlp_norm, gate, short=True)

    def entries(self, name: str) -> Iterator[Entry]:
        """One of our tensors, and what it is made of in our spelling."""
        stem, _, leaf = name.rpartition(".")
        if leaf in ("q_bias", "v_bias") and self.apart:
            yield same(f"{stem}.{leaf[0]}_proj.bias", name)
        elif stem.endswith(".attn.qkv") and self.apart:
            yield rows(tuple(f"{stem.removesuffix('qkv')}{part}_proj.{leaf}" for part in "qkv"), name)
        elif stem.endswith(".mlp.fc1") and self.gate and stem.startswith("blocks."):
            yield rows((f"{stem}_g.{leaf}", f"{stem}_x.{leaf}"), name)
        else:
            yield same(name, name)

    def timm_name(self, name: str) -> str:
        """A name in our spelling as timm's class has it."""
        return re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name) if self.short else name


WHOLE = Cut()
