"""The server answers as predict does, refuses what is too much, and loses nothing when it ends."""

import asyncio
import base64
import json
import re
import struct
import threading
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from command_line import printed
from PIL import Image

from vitrail import Pipeline
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models import vit
from vitrail.serve.app import application
from vitrail.serve.limits import Limits
from vitrail.serve.served import Settings
from vitrail.tasks import Classify

CLASSES = ("ash", "beech", "elm")
ROOT = Path(__file__).parents[1]


def pipeline(seed=0):
    torch.manual_seed(seed)
    model = vit.Config((32, 32), (8, 8), 3, 16, 1, 2, 16, 3).build().eval()
    torch.nn.init.normal_(model.head.weight)
    return Pipeline(Classify(model, Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3), class_names=CLASSES))


def image(kind="PNG", size=(40, 30), seed=0):
    stream = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def png(width, height):
    """A header that claims so many pixels, and nothing else of weight."""
    part = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = b"IDAT" + zlib.compress(b"")
    parts = (struct.pack(">I", len(p) - 4) + p + struct.pack(">I", zlib.crc32(p)) for p in (part, end, b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def asked(app, *requests):
    """The answers to requests (method, path, options), all at once, of an application that begins and ends."""

    async def run():
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await asyncio.gather(*(client.request(m, path, **how) for m, path, how in requests))

    return asyncio.run(run())


def one(app, method, path, **how):
    return asked(app, (method, path, how))[0]


@pytest.fixture(scope="module")
def app():
    return application({"pets": pipeline(), "trees": pipeline(1)}, Settings())


def test_its_answers_are_those_of_predict(app, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline().save("pets")
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        (tmp_path / "a").write_bytes(image(kind))
        (wanted,), _ = printed(capsys, "predict", "pets", "a")
        (found,) = one(app, "POST", "/predict", content=image(kind)).json()
        for mine, theirs in zip(found["predictions"], wanted["predictions"], strict=True):
            assert (mine["label"], mine["index"]) == (theirs["label"], theirs["index"])
            assert mine["probability"] == pytest.approx(theirs["probability"], abs=1e-5)


def test_images_of_several_requests_are_computed_together(app):
    files = [("files", (f"{n}.png", image(seed=n), "image/png")) for n in range(5)] + [
        ("files", ("bad.png", b"\x89PNG"))
    ]
    requests = [("POST", "/predict?top=1", {"content": image(seed=n)}) for n in range(5)]
    *single, several = asked(app, *requests, ("POST", "/predict?top=1", {"files": files}))
    assert [one.status_code for one in (*single, several)] == [200] * 6
    *found, bad = several.json()
    assert [one["file"] for one in found] == [f"{n}.png" for n in range(5)]
    assert (bad["file"], "error" in bad) == ("bad.png", True)
    for alone, together in zip(single, found, strict=True):
        (mine,), (theirs,) = alone.json()[0]["predictions"], together["predictions"]
        assert mine["label"] == theirs["label"]
        assert mine["probability"] == pytest.approx(theirs["probability"], abs=1e-5)
    text = one(app, "GET", "/metrics").text
    sizes = re.search(r"vitrail_batch_images_sum (\d+)\nvitrail_batch_images_count (\d+)", text)
    assert int(sizes[1]) > int(sizes[2])  # some were computed together


def test_several_models_go_by_their_names(app):
    found = [one(app, "POST", f"/predict?model={name}", content=image()).json() for name in ("pets", "trees")]
    assert found[0] != found[1]
    assert one(app, "POST", "/predict", content=image()).json() == found[0]
    answer = one(app, "POST", "/predict?model=birds", content=image())
    assert answer.status_code == 404
    assert "'birds'" in answer.json()["error"]


def test_the_open_inference_protocol(app):
    assert one(app, "GET", "/v2").json()["name"] == "vitrail"
    assert one(app, "GET", "/v2/models/pets").json()["classes"] == list(CLASSES)
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/pets/ready", "/health/live", "/health/ready"):
        assert one(app, "GET", path).status_code == 200
    assert one(app, "GET", "/v2/models/none/ready").status_code == 404
    pixels = np.array(Image.open(BytesIO(image())))
    wanted = one(app, "POST", "/predict", content=image()).json()[0]["predictions"]
    bytes_ = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(image()).decode()]}
    numbers = {"name": "image", "datatype": "UINT8", "shape": [*pixels.shape], "data": pixels.flatten().tolist()}
    for tensor in (bytes_, numbers):
        answer = one(app, "POST", "/v2/models/pets/infer", json={"id": "7", "inputs": [tensor]}).json()
        outputs = {output["name"]: output for output in answer["outputs"]}
        assert (answer["id"], answer["model_name"]) == ("7", "pets")
        assert outputs["labels"]["data"] == [prediction["label"] for prediction in wanted]
        assert outputs["probabilities"]["data"] == pytest.approx([p["probability"] for p in wanted], abs=1e-5)
        assert outputs["probabilities"]["shape"] == [1, 3]


HOSTILE = {
    "empty": (b"", 400),
    "text": (b"<?php", 415),
    "gif": (b"GIF89a" + bytes(20), 415),
    "cut": (image("JPEG")[:200], 400),
    "half": (image("PNG")[:60], 400),
    "bomb": (png(60_000, 60_000), 413),
    "wide": (png(2**31 - 1, 1), 413),
    "webp": (b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0", 413),
    "no webp": (b"RIFF\x04\0\0\0WEBP", 400),
    "bmp": (b"BM" + bytes(30), 400),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_an_image_has_its_status_and_a_sentence(app, name):
    content, status = HOSTILE[name]
    answer = one(app, "POST", "/predict", content=content)
    (found,) = answer.json()
    assert answer.status_code == status
    assert re.fullmatch(r"the image [^\n]{3,200}\.", found["error"])
    assert "/" not in found["error"].replace(" / ", "")


def test_random_bodies_never_fail_the_server(app):
    """Mutations of images, forms and requests of the protocol: an answer to each, never 500."""
    draw = np.random.default_rng(0)
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(image()).decode()]}
    forms = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n' + image() + b"\r\n--x--\r\n"
    starts = [(image(kind), "/predict", {}) for kind in ("PNG", "JPEG", "WEBP", "BMP")]
    starts.append((forms, "/predict", {"content-type": "multipart/form-data; boundary=x"}))
    starts.append((json.dumps({"inputs": [tensor]}).encode(), "/v2/models/pets/infer", {}))
    requests = []
    for number in range(600):
        content, path, headers = starts[number % len(starts)]
        changed = bytearray(content)
        for place in draw.integers(0, min(len(changed), 200), draw.integers(1, 9)):
            changed[place] = draw.integers(0, 256)
        content = bytes(changed[: draw.integers(1, len(changed) + 1)])
        requests.append(("POST", path, {"content": content, "headers": headers}))
    found = [answer for start in range(0, 600, 100) for answer in asked(app, *requests[start : start + 100])]
    assert {answer.status_code for answer in found} <= {200, 400, 413, 415}
    assert all("Traceback" not in answer.text for answer in found)


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        ("/predict?top=0", image(), 400),
        ("/predict?top=x", image(), 400),
        ("/predict?explain=gradient", image(), 501),
        ("/nowhere", b"", 404),
        ("/metrics", b"", 405),
        ("/v2/models/pets/infer", b"{}", 400),
        ("/v2/models/pets/infer", b"[" * 100_000, 400),
        ("/v2/models/pets/infer", b'{"inputs": [{"data": [], "datatype": "BYTES", "shape": [0]}]}', 413),
        ("/v2/models/pets/infer", b'{"inputs": [{"data": [1, 2], "datatype": "UINT8", "shape": [9, 9, 3]}]}', 400),
        ("/v2/models/pets/infer", b'{"inputs": [{"data": [300], "datatype": "UINT8", "shape": [1, 1, 1]}]}', 400),
    ],
)
def test_other_requests_are_refused(app, path, content, status):
    answer = one(app, "POST", path, content=content)
    assert answer.status_code == status
    assert answer.json()["error"]


def test_limits_hold_while_a_request_arrives():
    limits = Limits(bytes=5_000, pixels=2_000, images=3, held=8_000, reading=0.3)
    app = application({"pets": pipeline()}, Settings(limits))
    assert one(app, "POST", "/predict", content=image(size=(30, 30))).status_code == 200
    assert one(app, "POST", "/predict", content=image(size=(60, 40))).status_code == 413
    assert one(app, "POST", "/predict", content=bytes(5_001)).status_code == 413
    files = [("f", ("a.png", image(size=(8, 8)))) for _ in range(4)]
    assert one(app, "POST", "/predict", files=files).status_code == 413

    async def endless(chunk, pause):
        for _ in range(1000):
            yield chunk
            await asyncio.sleep(pause)

    assert one(app, "POST", "/predict", content=endless(bytes(1_000), 0)).status_code == 413
    assert one(app, "POST", "/predict", content=endless(b"a", 0.05)).status_code == 408
    slow = [("POST", "/predict", {"content": endless(bytes(1_000), 0.05)}) for _ in range(4)]
    assert 503 in {answer.status_code for answer in asked(app, *slow)}
    assert app.state.served.held == 0


def test_a_model_that_computes_every_pixel_takes_fewer():
    native = Pipeline(
        Classify(pipeline().task.model, replace(pipeline().preprocessing, resize="native"), None, CLASSES)
    )
    app = application({"pets": native}, Settings(Limits(native=1_500)))
    assert one(app, "POST", "/predict", content=image(size=(40, 30))).status_code == 200
    assert one(app, "POST", "/predict", content=image(size=(40, 50))).status_code == 413


def test_a_full_queue_and_a_late_answer(monkeypatch):
    app = application({"pets": pipeline()}, Settings(Limits(waiting=2, seconds=0.5)))
    slow = threading.Event()
    answer = Pipeline.answer
    monkeypatch.setattr(Pipeline, "answer", lambda *args: (slow.wait(1.0), answer(*args))[1])
    found = asked(app, *[("POST", "/predict", {"content": image(seed=n)}) for n in range(6)])
    assert sorted(one.status_code for one in found) == [503] * 4 + [504] * 2
    assert next(one for one in found if one.status_code == 503).headers["retry-after"] == "1"
    assert all(queue.under_way == 0 for queue in app.state.served.queues.values())


def test_a_token_is_asked_for_and_headers_are_safe():
    app = application({"pets": pipeline()}, Settings(token="secret"))
    assert one(app, "GET", "/health/ready").status_code == 200
    for headers in ({}, {"authorization": "Bearer other"}, {"authorization": "secret"}):
        answer = one(app, "POST", "/predict", content=image(), headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    answer = one(app, "POST", "/predict", content=image(), headers={"authorization": "Bearer secret"})
    assert (answer.status_code, answer.headers["x-content-type-options"]) == (200, "nosniff")


def test_what_fails_inside_is_told_to_the_log_alone(monkeypatch, caplog):
    app = application({"pets": pipeline()}, Settings())

    def broken(*_):
        raise RuntimeError("at /home/me/secret.py")

    monkeypatch.setattr(Pipeline, "answer", broken)
    answer = one(app, "POST", "/predict", content=image())
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "secret" in caplog.text
    monkeypatch.undo()
    assert one(app, "POST", "/predict", content=image()).status_code == 200


def test_metrics_are_counted_by_path_and_status():
    app = application({"pets": pipeline()}, Settings())
    paths = ("/health/live", "/health/live", "/v2/models/pets", "/../etc/passwd", '/"x', "/metrics")
    text = asked(app, *[("GET", path, {}) for path in paths])[-1].text
    assert 'vitrail_requests_total{path="/health/live",status="200"} 2' in text
    assert 'vitrail_requests_total{path="/v2/models/{name}",status="200"} 1' in text
    assert 'vitrail_requests_total{path="other",status="404"} 2' in text
    assert "passwd" not in text
