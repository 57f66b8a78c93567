"""What `python -m benchmarks` runs: each topic's benchmark with short settings, and how many rounds fit into the time.

    from benchmarks.topics import TOPICS, share

The seconds are for two cores at REFERENCE with nobody else on them; a slower machine, or a busy one, takes longer by
its pace and so gets fewer rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks import inference, loader, startup, throughput, training

REFERENCE = 174.0  # GFLOP/s
PEERS = ("timm", "transformers", "torchvision")
BESIDE = f"beside {', '.join(PEERS)}"
INFERENCE = ",".join((*PEERS, "vitrail:plain", "vitrail:int8"))
TRAINING = ",".join(("vitrail:cores", *PEERS))
EAGER = ("--libraries", TRAINING, "--device", "cpu", "--modes", "eager", "--passes", "train")


@dataclass(frozen=True)
class Topic:
    """A benchmark with its short settings, its seconds without any round and in each, and how many rounds are enough.

    No seconds in a round: what it measures is not repeated.
    """

    about: str
    main: Callable[[Sequence[str]], int]
    arguments: tuple[str, ...]
    once: float
    each: float = 0.0
    most: int = 5
    reads_photographs: bool = False

    @property
    def rounds(self) -> range:
        """The numbers of rounds that make sense."""
        return range(1, self.most + 1) if self.each else range(1)

    def seconds(self, rounds: int) -> float:
        """How long it should take."""
        return self.once + self.each * rounds


TOPICS = {
    "startup": Topic(
        about="fresh processes until the help, a model's size, an answer, a first step of training; beside timm",
        main=startup.main,
        arguments=("--only", "help,info,predict,step"),
        once=35,
        each=28,
    ),
    "inference": Topic(
        about=f"forward passes of S/16 at 224, batches of 1 and 16: plain and int8 {BESIDE}",
        main=inference.main,
        arguments=("--cases", "S/16@224", "--repeats", "1", "--libraries", INFERENCE),
        once=80,
        each=11,
        most=7,
    ),
    "step": Topic(
        about=f"forward and backward passes of S/16 at 224 and Ti/4 at 32, {BESIDE}",
        main=throughput.main,
        arguments=("--no-memory", "--cases", "S/16@224,Ti/4@32", *EAGER),
        once=105,
        each=18,
        most=7,
    ),
    "memory": Topic(
        about=f"peak memory of such a step of S/16, {BESIDE}",
        main=throughput.main,
        arguments=("--no-speed", "--cases", "S/16@224", *EAGER),
        once=60,
    ),
    "loader": Topic(
        about="random crops of JPEGs, from files and packed, beside timm's loader and ImageFolder",
        main=loader.main,
        arguments=(),
        once=20,
        each=45,
        reads_photographs=True,
    ),
    "epoch": Topic(
        about="training of S/16 at 224 on a folder of JPEGs: the Trainer beside timm's script, or a DataLoader's loop",
        main=training.main,
        arguments=("--cases", "S/16@224", "--steps", "8", "--workers", "2"),
        once=10,
        each=58,
        reads_photographs=True,
    ),
}


def share(topics: Sequence[Topic], seconds: float, pace: float) -> list[int]:
    """The rounds of each: the fewest that make sense, then each in turn one more, as long as they fit."""
    rounds = [topic.rounds[0] for topic in topics]
    left = seconds - pace * sum(topic.seconds(number) for topic, number in zip(topics, rounds, strict=True))
    growing = True
    while growing:
        growing = False
        for place, topic in enumerate(topics):
            if rounds[place] < topic.rounds[-1] and pace * topic.each <= left:
                rounds[place] += 1
                left -= pace * topic.each
                growing = True
    return rounds
