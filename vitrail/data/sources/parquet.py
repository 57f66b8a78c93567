"""Parquet tables, the Hugging Face Hub's among them: images as bytes, as paths, or as structs of both.

    group = parquet.group([Path("train-00000-of-00002.parquet"), ...], folder, None, None)      # see table.py

Parquet packs values into blocks, and reads no single one: of a file with 1,000 images to a block, each image drawn at
random would cost all 1,000. So a column of bytes is laid out once, as an Arrow stream in the cache folder (cache.py);
it takes as much room as the images do, and one reading of the file. A column of paths is read into memory.
"""

import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vitrail.data.sources.arrow import Embedded, add_labels, columns_of, features_of, parts, reading
from vitrail.data.sources.cache import kept, space, unpacking
from vitrail.data.sources.records import Column, Group, Images, Paths, mark, split_columns

ROWS = 64  # images in a batch


def group(files: Sequence[Path], base: Path, image_column: str | None, label_column: str | None) -> Group:
    """The rows of Parquet files of one split. ValueError, naming the file, where one is damaged or unlike the first."""
    with reading(files[0], "Parquet"):
        schema, place = _open(files[0]).schema_arrow, str(files[0])
        image, label, classes = columns_of(schema, features_of(schema.metadata), place, image_column, label_column)
        names = [label, *split_columns(schema.names)]
    column, marks = Column(classes=classes), array("b")
    for file in files:
        done = 0
        for labels, *splits in _batches(file, names):
            add_labels(column, labels, file, done)
            for row, word in enumerate(splits[0].to_pylist() if splits else [], done):
                try:
                    marks.append(mark(word))
                except ValueError as error:
                    raise ValueError(f"{file}[{row}]: {error}.") from None
            done += len(labels)
    images = _images(files, base, image, schema)
    return Group(images, column, np.frombuffer(marks, np.int8) if marks else np.full(len(column), -1, np.int8))


def _images(files: Sequence[Path], base: Path, image: str, schema: Any) -> Images:
    """Paths in memory, or bytes laid out in the cache, by the type of the column."""
    import pyarrow as pa

    kind = schema.field(image).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if parts(pa.array([], kind), f"{files[0]}: the column {image}")[0] is not None:
        return Embedded([(_laid_out(file, image), str(file)) for file in files], image, files[0].parent)
    paths = Paths(base, files[0].name)
    for file in files:
        done, below = 0, os.path.relpath(file.parent, base)
        for (values,) in _batches(file, [image]):
            for row, path in enumerate(values.to_pylist(), done):
                try:
                    paths.append(path["path"] if isinstance(path, dict) else path, below)
                except ValueError as error:
                    raise ValueError(f"{file}[{row}]: {error}.") from None
            done += len(values)
    return paths


def _laid_out(file: Path, image: str) -> Path:
    """The column of images as an Arrow stream in the cache."""
    import pyarrow as pa

    def write(target: BinaryIO) -> None:
        with reading(file, "Parquet"):
            table = _open(file)
            groups = [table.metadata.row_group(number) for number in range(table.num_row_groups)]
            chunks = [chunk for group in groups for chunk in map(group.column, range(group.num_columns))]
            sizes = [chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == image]
        space(file, sum(sizes))
        unpacking(file, copied(target), sum(sizes))

    def copied(target: BinaryIO) -> Iterator[int]:
        done = 0
        writer = None
        for (values,) in _batches(file, [image], ROWS):
            space(file, values.nbytes)
            batch = pa.record_batch([values], [image])
            writer = writer or pa.ipc.new_stream(target, batch.schema)
            writer.write_batch(batch)
            done += values.nbytes
            yield done
        (writer or pa.ipc.new_stream(target, pa.schema([(image, pa.binary())]))).close()

    return kept(file, f"{image}.arrow", write)


def _open(file: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(file, memory_map=True)


def _batches(file: Path, columns: Sequence[str], rows: int = 2**16) -> Iterator[list[Any]]:
    """The arrays of these columns, `rows` of a file after the other. ValueError where it is damaged or lacks one."""
    import pyarrow as pa

    with reading(file, "Parquet"):
        table = _open(file)
        if missing := [name for name in columns if table.schema_arrow.names.count(name) != 1]:
            raise ValueError(f"{file} should have one column {missing[0]!r}, as the files beside it have.")
        for batch in table.iter_batches(rows, columns=list(columns), use_threads=False):
            batch.validate(full=True)
            arrays = [batch.column(name) for name in columns]
            yield [a.dictionary_decode() if pa.types.is_dictionary(a.type) else a for a in arrays]
