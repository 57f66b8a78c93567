"""`vitrail serve`: models behind HTTP."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

from tyro.conf import Positional, arg

from vitrail.cli.opening import Using
from vitrail.cli.options import Command, Flag, Given
from vitrail.progress import say

if TYPE_CHECKING:
    from vitrail.explain.explanation import Method
    from vitrail.pipeline import Pipeline

TOKEN = "VITRAIL_TOKEN"


@dataclass(kw_only=True)
class Serve(Using, Command):
    """Answer requests over HTTP: POST an image to /predict, or open the address in a browser.

    Images that come together are computed together. With a token in the environment variable VITRAIL_TOKEN, requests
    need it. Ctrl-C and SIGTERM end it once it has answered what it has begun. docs/serve.md has more.
    """

    models: Positional[Annotated[tuple[str, ...], arg(metavar="MODEL...", help_behavior_hint="(one or more)")]]
    """Run folders, model folders, weights, or files that vitrail export wrote. Each is called by its folder's or file's
    name, or by NAME in NAME=MODEL; the first answers where none is named."""
    host: Annotated[str, arg(metavar="ADDRESS")] = "127.0.0.1"
    """Who may connect: 127.0.0.1 is this machine alone, 0.0.0.0 everyone who reaches it."""
    port: Annotated[int, arg(metavar="N")] = 8000
    """0 is any that is free."""
    batch: Annotated[int, arg(metavar="N")] = 16
    """Images that are computed together at most."""
    wait: Annotated[float, arg(metavar="SECONDS")] = 0.002
    """How long an image waits for others, where there is nothing else to do."""
    max_bytes: Annotated[int, arg(metavar="N")] = 20_000_000
    """Of a request; a larger one is refused while it arrives."""
    max_pixels: Annotated[int, arg(metavar="N")] = 50_000_000
    """Of an image; a larger one is refused by its header."""
    max_waiting: Annotated[int, arg(metavar="N")] = 256
    """Images of a model that are on their way; more are refused for a while (503)."""
    timeout: Annotated[float, arg(metavar="SECONDS")] = 30.0
    """For an answer."""
    drain: Annotated[float, arg(metavar="SECONDS")] = 2.0
    """After SIGTERM: how long it still answers, while /health/ready says no."""
    int8: Flag = False
    """As in vitrail predict; an exported file has its own precision."""

    def run(self, given: Given) -> None:
        try:
            from vitrail.serve.app import application
            from vitrail.serve.served import Settings
            from vitrail.serve.server import run
        except ImportError as error:
            raise ValueError(f"vitrail serve needs {error.name}: pip install 'vitrail[serve]'") from None
        from vitrail.serve.limits import Limits

        if not self.models:
            raise ValueError("vitrail serve needs a model, such as runs/demo.")
        if self.batch < 1 or self.wait < 0 or self.drain < 0 or not 0 <= self.port < 65536:
            raise ValueError("--batch is 1 or more, --wait and --drain are 0 or more, --port is below 65,536.")
        limits = Limits(self.max_bytes, self.max_pixels, waiting=self.max_waiting, seconds=self.timeout)
        pipelines = {}
        for word in self.models:
            name, path = _named(word)
            if name in pipelines:
                raise ValueError(f"two models are called {name!r}; give one another name: NAME={path}")
            pipelines[name] = self.pipeline(path, self.int8)
            if not pipelines[name].class_names:
                raise ValueError(f"{path} has no classes to answer with; fine-tune it first.")
        token = os.environ.get(TOKEN, "")
        settings = Settings(limits, self.batch, self.wait, token, _page(pipelines, bool(token)), _looks)
        if self.host not in ("127.0.0.1", "localhost", "::1"):
            how = ", with the token" if token else f"; {TOKEN} sets a token"
            say(f"everyone who reaches {self.host} may use it{how}")
        run(application(pipelines, settings), self.host, self.port, self.drain, self.timeout, say)


def _looks(pipeline: "Pipeline", content: bytes, name: str, method: str) -> list[dict[str, Any]]:
    """Where the model looks for its three best classes, over the image in grey. ValueError where it cannot be told."""
    from vitrail.explain.explanation import Method, explain
    from vitrail.report.html import heated

    if method not in get_args(Method):
        raise ValueError(f"explain is {method[:20]!r}; choose one of {', '.join(get_args(Method))}.")
    found = explain(pipeline, content, method=cast("Method", method), top=3, name=name)
    several = zip(found.maps, found.labels, found.probabilities, strict=False)
    return [
        {"label": label, "probability": chance, "image": heated(found.photo, one.float().numpy(), found.box, 320).src}
        for one, label, chance in several
    ]


def _page(pipelines: "dict[str, Pipeline]", token: bool) -> str:
    from vitrail.explain.explanation import Method
    from vitrail.models import vit
    from vitrail.report.html import render
    from vitrail.tasks.exported import Exported

    models = [
        {
            "name": name,
            "classes": list(one.class_names),
            "explains": isinstance(one.task.model, vit.ViT) and not isinstance(one.task, Exported),
        }
        for name, one in pipelines.items()
    ]
    first = models[0]
    return render(
        "serve.html",
        {"models": models, "methods": list(get_args(Method)), "token": token},
        code="serve.js",
        allow="; connect-src 'self'",
        title=first["name"],
        subtitle=f"{len(first['classes']):,} classes; images stay between this page and its server",
        models=models,
        methods=get_args(Method),
        token=token,
    )


def _named(word: str) -> tuple[str, str]:
    """(name, model): pets of runs/pets and of runs/pets/model, cat of cat=runs/pets."""
    name, equals, path = word.partition("=")
    if equals and name and not Path(word).exists():
        return name, path
    path = Path(word)
    folder = path.parent if path.name == "model" and path.is_dir() else path
    return (folder.resolve().name if path.is_dir() else path.stem) or "model", word
