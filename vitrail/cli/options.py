"""A command's own options, and one for every field of a Run.

command, given = parse(Train, "vitrail train", ["small", "--data", "photos", "--optim.lr", "3e-4"])
run = override(run, given)                          # given is {"optim.lr": ["3e-4"]}
show(run, "vitrail train small", "A small ViT ...") # help: every option, its value and what it does
"""

import inspect
import json as jsonlib
import shutil
import textwrap
import typing
from abc import ABC, abstractmethod
from collections.abc import Container, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from difflib import SequenceMatcher
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from tyro.conf import Positional, arg

from vitrail.cli.reading import names, option, read
from vitrail.progress import SILENT

if TYPE_CHECKING:
    from vitrail.data.sources.open import Data

T = TypeVar("T")
CommandT = TypeVar("CommandT", bound="Command")
Given = dict[str, list[str]]
Flag = Annotated[bool, arg(help_behavior_hint="")]  # without "(default: False)"
Model = Positional[Annotated[str, arg(metavar="MODEL")]]
DataPlace = Positional[Annotated[str, arg(metavar="DATA", help="The images, of any kind that vitrail train reads.")]]
Out = Annotated[str, arg(metavar="FOLDER", help_behavior_hint="")]
PART = "One of N parts, I from 0 to N - 1; env: of a Slurm array; env/N: of that, or of an indexed job of Kubernetes."
Part = Annotated[str, arg(metavar="I/N", help_behavior_hint="", help=PART)]

# One option for several fields, of those that there are.
TOGETHER = {
    "image_size": ("model.image_size", "preprocessing.image_size"),
    "model.channels": ("model.channels", "model.stem.channels"),
    "channels": ("channels", "stem.channels"),
}
COLUMNS = ("data.image_column", "data.label_column")  # what is said of a table to every command
# Ours (the first that the command has), and what timm, transformers, Ultralytics, torchvision and Lightning call it.
OTHERS_SAY = """
    duration: epochs num_epochs max_epochs num_train_epochs steps max_steps iterations total_steps; batch: batch_size
    bs train_batch_size per_device_train_batch_size; micro_batch: accumulate accumulate_grad_batches grad_accum
    grad_accum_steps gradient_accumulation_steps; optim.lr: lr lr0 learning_rate base_lr blr; optim.weight_decay:
    weight_decay wd decay; optim.name: opt optimizer optimiser; optim.momentum: momentum; optim.clip: clip_grad
    clip_grad_norm max_grad_norm grad_clip gradient_clip_val; optim.layer_decay: layer_decay llrd;
    optim.schedule.kind: sched scheduler lr_scheduler lr_scheduler_type cos_lr schedule decay_type;
    optim.schedule.warmup: warmup warmup_epochs warmup_steps warmup_ratio lr_warmup_epochs; optim.schedule.end: lrf
    min_lr; optim.rules: freeze freeze_layers freeze_backbone frozen; image_size: imgsz img_size input_size
    resolution crop_size imagesize; model.classes classes: num_classes nb_classes nc num_labels; model.drop_path:
    drop_path stochastic_depth; model.dropout: drop dropout drop_rate; augment.mixup: mixup mixup_alpha;
    augment.cutmix: cutmix cutmix_alpha; augment.randaugment: aa auto_augment autoaugment randaug; augment.erase:
    reprob random_erase random_erasing erasing; augment.flip: hflip fliplr; augment.colour: color color_jitter;
    preprocessing.crop_fraction: crop_pct; task.smoothing: smoothing label_smoothing label_smoothing_factor;
    task.loss: bce_loss loss; task.class_weights: class_weight; ema: model_ema model_ema_decay ema_decay;
    precision: amp fp16 bf16 half mixed_precision dtype; checkpointing: grad_checkpointing gradient_checkpointing
    activation_checkpointing; compile: torchcompile torch_compile; workers: num_workers j dataloader_num_workers;
    device: gpu gpus cuda accelerator; seed: random_seed manual_seed; out: output output_dir save_dir outdir
    project name exp_name experiment run_name log_dir; data: path data_dir data_path dataset root train_dir folder;
    data.val val: val_dir valid_dir validation_dir; data.val_fraction: hold_back val_split test_size
    validation_split; data.balance: balanced weighted_sampler; log_every: log_interval logging_steps print_freq
    log_every_n_steps; evaluate_every: eval_interval eval_steps val_interval eval_freq val_period;
    checkpoint_every: save_steps save_freq save_period checkpoint_interval; keep: checkpoint_hist save_total_limit;
    tensorboard: wandb log_wandb report_to logger tb; weights start model: model weights pretrained finetune
    checkpoint initial_checkpoint init_from ckpt load_from; images: source input img; anyway: force; top: topk
    top_k; label: class target; to: format"""
KNOWN_AS = {
    word: ours.split()
    for ours, _, words in (part.partition(":") for part in OTHERS_SAY.split(";"))
    for word in words.split()
}
# What a run does otherwise.
INSTEAD = {
    "resume": "vitrail resume RUN goes on with a run",
    "patience": "no run ends early by itself: the best checkpoint is kept, and --duration says how long it takes",
    "freeze": "--optim.rules ^blocks:freeze freezes parameters, by their names",
    "model": "the recipe decides the model, and vitrail train --help lists them; --start takes weights",
}
INSTEAD |= {"early_stopping": INSTEAD["patience"], "arch": INSTEAD["model"]}


@dataclass(kw_only=True)
class Command(ABC):
    """A command: its fields are its options, its docstring the help.

    extends: whether the fields of a Run or Config are options, too.
    """

    extends: ClassVar[bool] = False
    json: Flag = False
    """Print the result as one JSON document on standard output."""
    code: Annotated[tuple[str, ...], arg(metavar="FILE.py...", help_behavior_hint="")] = ()
    """Files with your own code (a task, an evaluator, data) that is needed; they are run first."""

    @abstractmethod
    def run(self, given: Given) -> None:
        """Does the work. given: options that are not the command's own. ValueError where it cannot be done."""

    def answer(self, document: Any, text: str) -> None:
        """Prints the result for programs or for people."""
        if not SILENT:
            print(jsonlib.dumps(document, indent=2) if self.json else text)

    @classmethod
    def help(cls, prog: str, words: Sequence[str]) -> None:
        """Prints the help and exits."""
        show(cls, prog, inspect.getdoc(cls) or "")


def parse(kind: type[CommandT], prog: str, words: Sequence[str]) -> tuple[CommandT, Given]:
    """A command, and the options that are not its own. ValueError, in one sentence, for what cannot be read."""
    own = {field.name.rstrip("_"): field.default for field in fields(kind)}  # --with is a word of Python's
    hints = {name.rstrip("_"): hint for name, hint in typing.get_type_hints(kind, include_extras=True).items()}
    placed = [name for name in own if Positional in typing.get_args(hints[name])]
    mine, given = split(words, own)
    for name in (_name(word.partition("=")[0]) for word in mine if word.startswith("--")):
        if name in placed:
            raise ValueError(f"{name.upper()} is given without {option(name)}: {prog} {' '.join(placed).upper()}")
    if given and not kind.extends:
        raise ValueError(unknown(next(iter(given)), list(own), prog, placed))
    command, left = read(kind, mine)
    if left:
        raise ValueError(f"{prog} has no place for {left[0]}; see {prog} --help.")
    if command is None:
        for word, after in pairwise([*mine, "--"]):
            if word.startswith("--") and after.startswith("--") and own.get(_name(word), False) is not False:
                raise ValueError(f"{option(_name(word))} needs a value; see {prog} --help.")
        needed = [name for name in own if own[name] is MISSING]
        for name in given:
            if nearest(name, needed):
                raise ValueError(unknown(name, needed, prog, placed))
        needs = " and ".join(name.upper() if name in placed else option(name) for name in needed)
        raise ValueError(f"{prog} needs {needs}{', before other options' if given else ''}; see {prog} --help.")
    return command, given


def split(words: Sequence[str], own: Container[str]) -> tuple[list[str], Given]:
    """The words of own options and those before any option; the words of other options by their names.

    ValueError for an option that is given twice.
    """
    mine, given, seen = list[str](), Given(), set[str]()
    here = mine
    for place, word in enumerate(words):
        if word == "--":
            return [*mine, *words[place:]], given
        if not word.startswith("--"):
            here.append(word)
            continue
        flag, _, value = word.partition("=")
        name = _name(flag)
        if name in seen:
            raise ValueError(f"{option(name)} is given twice; leave one.")
        seen.add(name)
        if name in own:
            here = mine
            mine.append(word)
        else:
            here = given[name] = [value] if value else []
    return mine, given


def override(value: T, given: Mapping[str, Sequence[str]], command: Command | None = None, prefix: str = "") -> T:
    """A dataclass with the named fields replaced, all at once; names are in full (with the prefix).

    command: whose options may have been meant. ValueError for an unknown name, for words that are not of the field's
    type, and where a dataclass refuses its fields.
    """
    known, words = names(value, prefix), list[str]()
    for name, said in given.items():
        meant = [full for full in TOGETHER.get(name, (name,)) if full in known]
        if not meant:
            own = [field.name for field in fields(command)] if command else []
            raise ValueError(unknown(name, [*own, *TOGETHER, *known], "vitrail train RECIPE"))
        for full in meant:
            flag = option(full.removeprefix(prefix))
            words += [f"{flag}={said[0]}", *said[1:]] if said else [flag]  # after "=" a value may look like an option
    changed, left = read(value, words, prefix=prefix)
    if left or changed is None:
        raise ValueError(f"{(left or words)[0]!r} cannot be read; see vitrail train RECIPE --help.")
    return changed


def described(path: str, given: Given, command: Command, prog: str, data: "Data | None" = None) -> "Data":
    """How a command that does not train reads a place: as the options that name a table's columns say, else as `data`.
    ValueError for other options."""
    from vitrail.data.sources.open import Data

    if other := next((name for name in given if name not in COLUMNS), None):
        raise ValueError(unknown(other, [*(field.name for field in fields(command)), *COLUMNS], prog))
    return override(replace(data, path=path) if data else Data(path), given, command, "data.")


def unknown(name: str, known: Sequence[str], prog: str, placed: Container[str] = ()) -> str:
    """The sentence for an option that does not exist, with what may have been meant. placed: what is given without."""
    near, last = nearest(name, known), name.rpartition(".")[2]
    hint = f"see {prog} --help."
    if near:
        hint = f"{near.upper()} is given without one." if near in placed else f"did you mean {option(near)}?"
    if last in INSTEAD and "duration" in known and (near is None or last == "freeze" or near == "start"):
        hint = f"{INSTEAD[last]}."
    return f"there is no {option(name)}; {hint}"


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The name that was meant, by its whole, its last part or what others call it; None where none is near."""
    before, _, last = name.rpartition(".")
    if meant := KNOWN_AS.get(last):
        return next((found for full in meant for found in (full, full.rpartition(".")[2]) if found in known), None)
    if last in INSTEAD:
        return None

    def like(full: str) -> float:
        place, _, end = full.rpartition(".")
        fits = _alike(last, end) if not before or place == before else last == end
        return SequenceMatcher(None, last, end).ratio() * fits

    return best if known and like(best := max(known, key=like)) else None


def _alike(name: str, other: str) -> bool:
    """Whether there is a slip of a letter, or two in a long word, between the names."""
    same = sum(block.size for block in SequenceMatcher(None, name, other).get_matching_blocks())
    return max(len(name), len(other)) - same <= max(1, len(name) // 6) and name[:1] == other[:1]


def show(what: Any, prog: str, about: str) -> None:
    """Prints the help for a command or a Run and exits. about: paragraphs, of which an indented one keeps its lines."""
    parts = about.replace("\nExpected:", "\n\nExpected:").split("\n\n")
    wrap = partial(textwrap.fill, width=shutil.get_terminal_size().columns, break_on_hyphens=False)
    print("\n\n".join(part if part[:1] in (" ", "") else wrap(" ".join(part.split())) for part in parts), end="\n\n")
    read(what, ["--help"], prog)


def columns(rows: Mapping[str, str]) -> str:
    """Names and the first lines of their texts, side by side."""
    wide = max(map(len, rows)) + 4
    wrap = partial(textwrap.fill, width=shutil.get_terminal_size().columns, subsequent_indent=" " * wide)
    return "\n".join(wrap(f"  {name}".ljust(wide) + text.splitlines()[0]) for name, text in rows.items())


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")
