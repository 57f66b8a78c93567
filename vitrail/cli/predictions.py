"""`vitrail predict --out FILE`: predictions of very many images, made in parts (data/parts.py) and put together.

    predictions.parts/000000.jsonl, ...     a document a line: {file, predictions} or {file, error}
    predictions.parquet                     all of them, in the order of the images; or .csv, or .jsonl

Where all cores or a GPU serve one process, several are slower on the same machine; parts are for other ones.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.config import dump
from vitrail.progress import say

if TYPE_CHECKING:
    from vitrail.cli.weights import Predict
    from vitrail.data.parts import Steps, Work, Write

# Of a table: label, index and probability of the best class; predictions are all answers, as JSON.
COLUMNS: tuple[str, ...] = ("file", "label", "index", "probability", "predictions", "error")


def write(command: "Predict", files: Sequence[Path]) -> tuple[int, int]:
    """Does the command's part of the work, and puts all together where it was the last; (failed, all) of its images.
    ValueError for a file of another kind or of other work, and as `Work.run`."""
    from vitrail.data.parts import part

    out = Path(command.out)
    if out.suffix not in (".parquet", ".csv", ".jsonl") or command.shard < 1:
        raise ValueError(f"--out is {out} and --shard {command.shard}; give .parquet, .csv or .jsonl, and 1 or more.")
    if out.suffix == ".parquet" and not find_spec("pyarrow"):
        raise ValueError(f"{out} needs pyarrow; pip install 'vitrail[data]', or name a .csv or .jsonl file.")
    work = _work(command, files, out.with_suffix(".parts"))
    if out.exists() and not work.folder.exists():
        raise ValueError(f"{out} exists already; name another file, or delete it.")
    work.run(numbers := part(command.part, len(work.names)), what="predicting")
    problems = [problem for record in work.records(numbers) for problem in record["skipped"]]
    for problem in problems:
        say(f"vitrail: {problem}")
    count, missing = sum(work.counts[numbers.start : numbers.stop]), len(work.missing())
    text = f"{count:,} images are done; {missing:,} of {len(work.names):,} files in {work.folder} are of other parts"
    if not missing:
        _put_together(work, out)
        text = f"{out} has the predictions of {len(files):,} images; {work.folder} may be deleted"
    command.answer({"file": str(out), "images": count, "failed": len(problems), "missing": missing}, f"{text}.")
    return len(problems), count


def _work(command: "Predict", files: Sequence[Path], folder: Path) -> "Work":
    from vitrail.data.parts import Work, digest
    from vitrail.weights.hub import resolve

    place, each = resolve(command.model), command.shard
    if not place.exists():
        raise ValueError(f"{place} does not exist; check its name.")
    weights = sorted(file for file in place.iterdir() if file.is_file()) if place.is_dir() else [place]
    names = hashlib.sha256("\0".join(map(str, files)).encode("utf-8", "surrogateescape")).hexdigest()
    about = {"images": names, "model": [digest(file) for file in weights], **command.options()}
    about |= {name: getattr(command, name) for name in ("classes", "top", "int8", "shard")}
    pieces = [files[start : start + each] for start in range(0, len(files), each)]
    model = cache(partial(command.pipeline, command.model, command.int8))  # opened only where something is to be done
    make = partial(_answers, pieces, lambda chosen: model().stream(chosen, top=command.top))
    return Work(folder, [f"{k:06}.jsonl" for k in range(len(pieces))], [*map(len, pieces)], make, about)


def _answers(
    pieces: Sequence[Sequence[Path]], answers: Callable[..., Iterator[Any]], number: int, write: "Write"
) -> "Steps":
    """Writes the answers for the files of a piece; what is recorded of them."""
    skipped = list[str]()
    for file, result in zip(pieces[number], answers(pieces[number]), strict=True):
        yield
        said = {"error": str(result)} if isinstance(result, ValueError) else {"predictions": dump(result)}
        skipped += [said["error"]] if "error" in said else []
        write(json.dumps({"file": str(file), **said}).encode() + b"\n")
    return {"images": len(pieces[number]) - len(skipped), "skipped": skipped}


def _put_together(work: "Work", out: Path) -> None:
    """Writes all answers to a file, in the order of the images. ValueError where a part is damaged."""
    records = zip(work.names, work.records(reading=True), strict=True)
    contents = ((work.folder / name).read_bytes() for name, _ in records)
    with work.written(out) as file:
        if out.suffix == ".jsonl":
            file.writelines(contents)
        elif out.suffix == ".csv":
            text = io.TextIOWrapper(file, "utf-8", newline="")
            table = csv.DictWriter(text, COLUMNS)
            table.writeheader()
            table.writerows(row for content in contents for row in _rows(content))
            text.detach()
        else:
            import pyarrow as pa
            from pyarrow import parquet

            kinds = {"index": pa.int64(), "probability": pa.float64()}
            schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
            with parquet.ParquetWriter(file, schema) as table:
                for content in contents:
                    table.write_table(pa.Table.from_pylist(_rows(content), schema))


def _rows(content: bytes) -> list[dict[str, Any]]:
    """The rows of a table. Bytes of a name that are no UTF-8 are escaped."""
    rows = list[dict[str, Any]]()
    for document in map(json.loads, content.splitlines()):
        answers = document.get("predictions")
        best = answers[0] if isinstance(answers, list) and answers and isinstance(answers[0], dict) else {}
        row = {**best, **document, "predictions": None if answers is None else json.dumps(answers)}
        for name in document.keys() - {"predictions"}:
            row[name] = document[name].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        rows.append({name: row.get(name) for name in COLUMNS})
    return rows
