"""What the tests of pages share: hostile names, an outline of HTML that is checked, results, a source of images."""

import shutil
from html.parser import HTMLParser

import numpy as np

from vitrail.data.sources.source import Example
from vitrail.evaluate.results import MultiLabel, SingleLabel

VOID = {"meta", "img", "br"}
ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "header", "main", "section", "h1", "h2", "h3", "p", "b", "bdi",
    "pre", "code", "details", "summary", "dl", "div", "dt", "dd", "table", "thead", "tbody", "tr", "th", "td", "img",
    "figure", "figcaption", "script", "span", "svg", "rect", "path", "circle", "text", "br",
}  # fmt: skip
HOSTILE = (
    "<script>alert(1)</script>", '"><img src=x onerror=y>', "' onload='x", "{{ 7 * 7 }}{% raw %}", "a" * 300, "貓" * 60,
    "قطة", "photo\u202egnp.exe", "\0\x1b[31m\udcff", "&lt;&#8238;",
)  # fmt: skip


class Outline(HTMLParser):
    """Tags, attributes and text of a page. Fails where tags do not nest, or one is not of those that pages have."""

    def __init__(self, html):
        super().__init__()
        self.html = html
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(html)
        self.close()
        self.text = " ".join(" ".join(self.texts).split())
        assert self.open == []
        assert set(self.tags) <= ALLOWED
        assert not [name for name, _ in self.attributes if name.startswith("on")]

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        self.open += [tag] if tag not in VOID else []

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts += [data] if self.open[-1:] not in (["style"], ["script"]) else []


class Images:
    """A source of images of many shapes, of which every seventh can no longer be read."""

    targets = "class"

    def __init__(self, class_names=("cat", "dog")):
        self.class_names = class_names

    def __len__(self):
        return 10_000

    def __getitem__(self, index):
        if index % 7 == 6:
            raise ValueError(f"{self.name(index)} does not exist")
        height, width = [(20, 30), (300, 400), (5, 300), (200, 3)][index % 4]
        return Example(np.full((height, width, 3), index % 256, np.uint8), self.target(index), self.name(index))

    def target(self, index):
        return index % len(self.class_names)

    def name(self, index):
        return f"{HOSTILE[index % len(HOSTILE)]}/{index}.jpg"


def labelled(targets, predicted, names=("cat", "dog", "bird"), confidence=0.9, **more):
    """A result of images of one class each. confidence: of all or of each."""
    count, sure = len(targets), np.zeros(len(targets)) + confidence
    given = {"losses": 1 - sure, "problems": (), "targets": np.array(targets), "predicted": np.array(predicted)}
    return SingleLabel(names, np.arange(count), **given | {"confidence": sure, "truth": sure} | more)


def single(names=("cat", "dog"), count=200, problems=()):
    """A result in which about three tenths are wrong."""
    generator, classes = np.random.default_rng(0), len(names)
    targets = generator.integers(0, classes, count)
    missed = (generator.random(count) < 0.3) & (classes > 1)
    confidence = generator.uniform(1 / classes, 1, count)
    truth = np.where(missed, (1 - confidence) / 2, confidence)
    more = {"losses": -np.log(truth), "truth": truth, "top5": np.ones(count, bool) if classes > 5 else None}
    return labelled(targets, (targets + missed) % classes, names, confidence, problems=problems, **more)


def several(names=("cat", "dog", "bird"), count=50):
    """A result of images with any number of classes, of which the last class has none."""
    generator = np.random.default_rng(0)
    targets = generator.random((count, len(names))) < 0.4
    targets[:, -1] = False
    logits = generator.normal(size=targets.shape) + targets
    return MultiLabel(names, np.arange(count), np.abs(logits).sum(1), (), targets, logits)


def browser():
    """The path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
