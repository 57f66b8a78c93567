"""What the tests of pages share: an outline of HTML, checked on the way; examinations; a source of pictures."""

from dataclasses import dataclass
from html.parser import HTMLParser

import numpy as np

from vitrail.evaluate.results import MultiLabel, SingleLabel

VOID = {"meta", "img", "br"}
ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "header", "main", "section", "h1", "h2", "h3", "p", "b", "bdi",
    "pre", "code", "details", "summary", "dl", "div", "dt", "dd", "table", "thead", "tbody", "tr", "th", "td", "img",
    "figure", "figcaption", "span", "svg", "rect", "path", "circle", "text",
}  # fmt: skip
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=y>',
    "a" * 300,
    "貓" * 60,
    "قطة",
    "\0\x1b[31m\udcff",
    "&lt;",
)


class Outline(HTMLParser):
    """Tags, attributes and text of a page. Fails where tags do not nest, or one is not of those that pages have."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []
        assert set(self.tags) <= ALLOWED

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@dataclass
class Pictures:
    """A source of pictures of many shapes, of which every seventh has gone."""

    class_names: tuple = ("cat", "dog")
    multi_label: bool = False

    def __len__(self):
        return 10_000

    def __getitem__(self, index):
        if index % 7 == 6:
            raise ValueError(f"{self.name(index)} does not exist")
        height, width = [(20, 30), (300, 400), (5, 300), (200, 3)][index % 4]
        return np.full((height, width, 3), index % 256, np.uint8), self.target(index), self.name(index)

    def target(self, index):
        return index % len(self.class_names)

    def name(self, index):
        return f"{HOSTILE[index % len(HOSTILE)]}/{index}.jpg"


def single(names=("cat", "dog"), count=200, wrong=0.3, problems=()):
    """An examination in which about that share is wrong."""
    generator, classes = np.random.default_rng(0), len(names)
    targets = generator.integers(0, classes, count)
    missed = (generator.random(count) < wrong) & (classes > 1)
    predicted = np.where(missed, (targets + 1) % classes, targets)
    confidence = generator.uniform(1 / classes, 1, count)
    truth = np.where(missed, (1 - confidence) / 2, confidence)
    top5 = np.ones(count, bool) if classes > 5 else None
    return SingleLabel(names, np.arange(count), -np.log(truth), problems, targets, predicted, confidence, truth, top5)


def several(names=("cat", "dog", "bird"), count=50):
    """An examination of images with any number of classes, of which the last class has none."""
    generator = np.random.default_rng(0)
    targets = generator.random((count, len(names))) < 0.4
    targets[:, -1] = False
    logits = generator.normal(size=targets.shape) + targets
    return MultiLabel(names, np.arange(count), np.abs(logits).sum(1), (), targets, logits)
