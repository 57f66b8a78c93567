"""The Open Inference Protocol, version 2 (KServe's and Triton's): a model's description, and answers to tensors.

protocol = Protocol(served)
Route("/v2/models/{name}/infer", protocol.infer, methods=["POST"])
"""

import asyncio
import base64
import binascii
import json
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vitrail.config import dump
from vitrail.pipeline import Item, Pipeline
from vitrail.serve.limits import Limits, Refused, whole
from vitrail.serve.served import Served


class Protocol:
    """Its two paths with a model's name."""

    def __init__(self, served: Served) -> None:
        self.served = served

    async def infer(self, request: Request) -> Response:
        """POST /v2/models/NAME/infer: images as bytes in base64 or as pixels; labels and probabilities, best first."""
        queue = self.served.queue(request.path_params["name"])
        async with self.served.body(request) as content, asyncio.timeout(self.served.limits.seconds):
            loop, threads = asyncio.get_running_loop(), self.served.threads
            identity, images, top = await loop.run_in_executor(threads, _asked, content, self.served.limits)
            with queue.room(len(images)):
                ready = [loop.run_in_executor(threads, self._prepared, queue.pipeline, *image) for image in images]
                items = await asyncio.gather(*ready)
                found = await queue.answers(items, {"top": top})
        for one in found:
            if isinstance(one, ValueError):
                raise Refused(400, str(one))
        rows = [[dump(prediction) for prediction in one] for one in found]
        shape = [len(rows), len(rows[0])]
        values = [cell for row in rows for cell in row]
        outputs = [
            {"name": "labels", "datatype": "BYTES", "shape": shape, "data": [cell["label"] for cell in values]},
            {"name": "indices", "datatype": "INT64", "shape": shape, "data": [cell["index"] for cell in values]},
            {
                "name": "probabilities",
                "datatype": "FP32",
                "shape": shape,
                "data": [cell["probability"] for cell in values],
            },
        ]
        self.served.metrics.count("images", len(rows), model=request.path_params["name"])
        return JSONResponse({"model_name": request.path_params["name"], **identity, "outputs": outputs})

    def _prepared(self, pipeline: Pipeline, name: str, content: Any) -> Item:
        """In a thread. content: a file's bytes, or pixels."""
        if isinstance(content, bytes):
            return self.served.decoded(pipeline, name, content)
        return pipeline.prepare((name, content))

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        pipeline = self.served.queue(name).pipeline
        channels = len(pipeline.preprocessing.mean)
        inputs = [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
        inputs.append({"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, channels]})
        outputs = [
            {"name": n, "datatype": kind, "shape": [-1, -1]}
            for n, kind in (("labels", "BYTES"), ("indices", "INT64"), ("probabilities", "FP32"))
        ]
        card = {"name": name, "versions": [], "platform": "vitrail", "inputs": inputs, "outputs": outputs}
        card |= {"classes": list(pipeline.class_names), "preprocessing": dump(pipeline.preprocessing)}
        return JSONResponse(card)


def _asked(content: bytes, limits: Limits) -> tuple[dict[str, str], list[tuple[str, Any]], int]:
    """(the request's id, (name, bytes or pixels) of each image, top) of a request to infer."""
    try:
        document = json.loads(content)
        (tensor,) = document["inputs"]
        data, kind, shape = tensor["data"], tensor["datatype"], tensor["shape"]
        top = whole(str(document.get("parameters", {}).get("top", 5)))
        identity = {"id": str(document["id"])[:200]} if "id" in document else {}
        if kind == "BYTES":
            images = [base64.b64decode(one, validate=True) for one in data]
        elif kind == "UINT8":
            pixels = np.array(data, dtype=np.int64)
            if pixels.size and not 0 <= pixels.min() <= pixels.max() <= 255:
                raise ValueError("pixels are not from 0 to 255")
            pixels = pixels.astype(np.uint8).reshape(shape)
            images = list(pixels) if pixels.ndim == 4 else [pixels]
        else:
            raise ValueError(f"the datatype is {str(kind)[:20]!r}, neither BYTES nor UINT8")
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, binascii.Error) as error:
        known = isinstance(error, ValueError) and not isinstance(error, UnicodeError | json.JSONDecodeError)
        why = str(error)[:120] if known else type(error).__name__
        raise Refused(400, f"the request is not one of the Open Inference Protocol ({why}).") from None
    if not 0 < len(images) <= limits.images:
        raise Refused(413, f"the request has {len(images)} images; it may have 1 to {limits.images}.")
    return identity, [(f"image {place}", one) for place, one in enumerate(images)], top
