r"""(regex, value) rules -> parameter groups: learning rates, weight decay, freezing and layer decay are one thing.

A rule names parameters by a regular expression and says what multiplies their learning rate, their weight
decay, or both. Rules are read from the top, and for each parameter and each of the two values the first rule
that matches and speaks wins, as in Google's big_vision (`lr_mults` and `wd_mults` in its optax.py):

    groups(task, [Rule("head", lr=10.0), Rule("pos_embed", decay=1.0)])      a faster head, decayed positions
    groups(task, [Rule("head", lr=1.0), freeze(".*")])                       a linear probe
    groups(task, [freeze("patch_embed"), *layer_decay(task, 0.75)])          BEiT's fine-tuning, stem frozen
    groups(task, [Rule.parse("head:lr=10"), Rule.parse("^patch_embed:freeze")])       as the command line writes them

A parameter that no rule speaks of has learning rate 1, and weight decay 1 for kernels and 0 for the rest: the
paper's mask (`is_kernel`).
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

# What stands before the first block, in timm's names: depth 0 of layer decay.
EMBEDDING = "cls_token|reg_token|pos_embed|mask_token|patch_embed"


@dataclass(frozen=True)
class Rule:
    r"""Multipliers for every parameter whose name the pattern matches; None leaves the value to later rules.

    The pattern covers whole parts between the dots, anywhere in the name, so that it holds under any prefix:
    "head" is model.head.weight but not headline.weight, r"blocks\.1" is not blocks.10. A leading ^ binds it
    to the beginning and a closing $ to the end.

    Raises ValueError for a pattern that does not compile, a rule that says nothing, a multiplier below 0.
    """

    pattern: str
    lr: float | None = None
    """Multiplies the learning rate; 0 freezes."""
    decay: float | None = None
    """Multiplies the weight decay; 0 is none. 1 decays a parameter that is not a kernel, too."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)  # by itself first: "a)|(b" would be one only between our brackets
            re.compile(self._whole_parts)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"rule {self.pattern!r} is not a regular expression: {error}") from error
        if self.lr is None and self.decay is None:
            raise ValueError(f"rule {self.pattern!r} says nothing: give it lr, decay or both")
        for what, value in (("lr", self.lr), ("decay", self.decay)):
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"rule {self.pattern!r} has {what} = {value}: a multiplier is 0 or more, and finite")

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """A rule from text: "head:lr=10", "pos_embed:lr=0.1,decay=1" or "^patch_embed:freeze".

        The last colon ends the pattern, so that it may hold others. Raises ValueError for what cannot be read.
        """
        pattern, _, says = text.rpartition(":")
        if not pattern.strip():
            raise ValueError(f"rule {text!r} is not a pattern, a colon and what holds for it, such as 'head:lr=10'")
        found: dict[str, float] = {}
        for word in says.split(","):
            what, _, number = ("lr=0" if word.strip() == "freeze" else word).partition("=")
            what = what.strip()
            try:
                value = float(number) if what in ("lr", "decay") else None
            except ValueError:
                value = None
            if value is None:
                stand = "after the last colon stand lr=NUMBER, decay=NUMBER or freeze, with a comma between"
                raise ValueError(f"rule {text!r} says {word!r} of {pattern!r}: {stand}")
            if what in found:
                raise ValueError(f"rule {text!r} says {what} twice: leave one, and freeze is lr=0")
            found[what] = value
        return cls(pattern.strip(), **found)

    @property
    def _whole_parts(self) -> str:
        return rf"(?:^|\.)(?:{self.pattern})(?:\.|$)"

    def matches(self, name: str) -> bool:
        return re.search(self._whole_parts, name) is not None


def freeze(pattern: str) -> Rule:
    """Keeps what the pattern matches as it is: no gradient, no update, no decay."""
    return Rule(pattern, lr=0.0)


def layer_decay(module: nn.Module, rate: float) -> tuple[Rule, ...]:
    """Learning rates that fall by `rate` with every layer away from the head (BEiT, MAE).

    With L blocks, the embeddings are depth 0, block i is depth i + 1, and all that follows (norm, pooling,
    head) is depth L + 1; the multiplier is rate ** (L + 1 - depth), so that it is 1 at the head. The rules
    are bound to where each patch_embed stands in the module: a decoder's blocks, or those inside a hybrid's
    stem, are not taken for the encoder's.

    Raises ValueError for a rate outside (0, 1], and for a module without patch_embed and blocks.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"layer decay {rate} must lie in (0, 1]: 0.65 to 0.85 is usual, 1 is none")
    names = [name for name, _ in module.named_parameters()]
    roots = dict.fromkeys(match[1] for name in names if (match := re.match(r"(|.*?\.)patch_embed\.", name)))
    rules = []
    for root in map(re.escape, roots):
        blocks = {int(match[1]) for name in names if (match := re.match(rf"{root}blocks\.(\d+)\.", name))}
        depth = 1 + max(blocks, default=-1)
        rules.append(Rule(f"^{root}(?:{EMBEDDING})", lr=rate ** (depth + 1)))
        rules += [Rule(rf"^{root}blocks\.{block}", lr=rate ** (depth - block)) for block in sorted(blocks)]
    if len(rules) == len(roots):
        raise ValueError(
            f"layer decay needs patch_embed and blocks.0, blocks.1, ... side by side, but {type(module).__name__} "
            f"has {', '.join(names[:3]) or 'no parameters'}, ...: write rules for its layers instead"
        )
    return tuple(rules)


def is_kernel(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies by default: a matrix or convolution that a layer multiplies by.

    True for names that end in "weight" with two dimensions or more. False for biases, norms (one dimension)
    and LayerScale, and for what is a token or a table rather than a kernel: cls_token, reg_token, pos_embed,
    attn_pool.latent. An nn.Embedding counts as a kernel by this test; give it a rule with decay = 0.
    """
    return name.endswith("weight") and parameter.ndim >= 2


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether it is a kernel with two dimensions inside a Transformer's blocks: what Muon is for.

    Those are the matrices of attention and MLP, a decoder's among them; not the patch embedding, the head, a pooling
    head, nor the convolutions in the blocks of a hybrid's stem.
    """
    return is_kernel(name, parameter) and parameter.ndim == 2 and re.search(r"(^|\.)blocks\.\d+\.", name) is not None


def groups(module: nn.Module, rules: Sequence[Rule] = ()) -> list[dict[str, Any]]:
    """Parameter groups for torch.optim: every trainable parameter in exactly one, in order of appearance.

    A group has "params", "names", "lr_scale" and "weight_decay_scale"; parameters with equal scales share
    one. What a rule freezes gets requires_grad = False and is in none, nor is what was frozen before: no
    rule thaws it.

    Raises ValueError for a rule that matches no parameter (with the nearest names), and if none is left to train.
    """
    parameters = dict(module.named_parameters())
    for rule in rules:
        if not any(map(rule.matches, parameters)):
            near = ", ".join(_nearest(rule.pattern, parameters)) or "none at all"
            raise ValueError(
                f"rule {rule.pattern!r} matches none of the {len(parameters)} parameters; the nearest are: {near}"
            )
    found: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        speaking = [rule for rule in rules if rule.matches(name)]
        lr = next((rule.lr for rule in speaking if rule.lr is not None), 1.0)
        decay = next((rule.decay for rule in speaking if rule.decay is not None), float(is_kernel(name, parameter)))
        if lr == 0:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            empty = {"params": [], "names": [], "lr_scale": lr, "weight_decay_scale": decay}
            group = found.setdefault((lr, decay), empty)
            group["params"].append(parameter)
            group["names"].append(name)
    if not found:
        raise ValueError(f"all {len(parameters)} parameters are frozen: leave at least one to train")
    return list(found.values())


def _nearest(pattern: str, names: Iterable[str]) -> list[str]:
    """The three names with a run of parts most like the pattern."""
    wanted = pattern.replace("\\", "")
    size = wanted.count(".") + 1

    def likeness(name: str) -> float:
        parts = name.split(".")
        runs = [".".join(parts[start : start + size]) for start in range(max(1, len(parts) - size + 1))]
        return max(difflib.SequenceMatcher(None, wanted, run).ratio() for run in runs)

    return sorted(names, key=likeness, reverse=True)[:3]
