"""`vitrail serve` as a process: signals, clients that stall, its page in a browser."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from command_line import refused
from test_serve import CLASSES, image, pipeline

ROOT = Path(__file__).parents[1]


@pytest.fixture
def server(tmp_path):
    """The command, on a free port: (its process, its address)."""
    pipeline().save(tmp_path / "pets")
    words = [sys.executable, "-m", "vitrail", "serve", "pets", "--port", "0", "--drain", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stderr:
            if found := re.search(r"http://\S+", line):
                break
        yield process, found[0]
        process.kill()


def post(address, content):
    with urllib.request.urlopen(urllib.request.Request(f"{address}/predict", content), timeout=30) as answer:
        return json.load(answer)


def test_sigterm_under_load_loses_nothing(server):
    """Clients that keep their connections, as load balancers do, until an answer closes them."""
    process, address = server
    ending, lost, told = threading.Event(), [], []

    def load(number):
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
        try:
            while True:
                connection.request("POST", "/predict", image(seed=number))
                answer = connection.getresponse()
                assert json.load(answer)[0]["predictions"]
                if answer.getheader("connection") == "close":
                    told.append(ending.is_set())
                    return
        except Exception as error:
            lost.append(error)
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as threads:
        for number in range(8):
            threads.submit(load, number)
        time.sleep(1)
        ending.set()
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{address}/health/ready", timeout=30)
        assert post(address, image())[0]["predictions"]  # who has not noticed yet is answered
        assert process.wait(timeout=30) == 0
    assert not lost
    assert told == [True] * 8
    assert "Traceback" not in process.stderr.read()


def browser():
    """Chromium, where Playwright or the system has one."""
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as start:
        for path in (None, "/usr/bin/chromium"):
            try:
                return start.chromium.launch(executable_path=path, args=["--no-sandbox"]).close() or path or ""
            except Error:
                continue
    return None


@pytest.mark.slow
def test_the_page_answers_in_a_browser(server, tmp_path):
    """By the keyboard alone, with where the model looks; nothing is refused by the page's own policy."""
    from playwright.sync_api import sync_playwright

    if (where := browser()) is None:
        pytest.skip("there is no Chromium here")
    _, address = server
    (tmp_path / "cat.png").write_bytes(image())
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    with sync_playwright() as start, start.chromium.launch(executable_path=where or None, args=["--no-sandbox"]) as one:
        page, said = one.new_page(viewport={"width": 390, "height": 800}), []
        page.on("console", lambda message: said.append(message.text))
        page.goto(address)
        page.keyboard.press("Tab")
        page.keyboard.type("gradient")
        with page.expect_file_chooser() as chosen:
            page.keyboard.press("Tab")
            page.keyboard.press("Enter")
        chosen.value.set_files([str(tmp_path / "cat.png"), str(tmp_path / "bad.png")])
        page.locator(".maps img").nth(2).wait_for()
        page.locator(".notice").wait_for()
        assert page.locator("li").count() == len(CLASSES)
        wanted = post(address, image())[0]["predictions"][0]
        assert page.locator("li").first.inner_text().split("\n")[0] == wanted["label"]
        assert "damaged" in page.locator(".notice").inner_text()
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        assert [text for text in said if "400" not in text] == []  # the browser's own line of the damaged one


def test_clients_that_stall_or_leave_hold_up_nobody(server):
    process, address = server
    host, port = address.removeprefix("http://").split(":")
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    with ExitStack() as stack:
        stalled = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(20)]
        for number, client in enumerate(stalled):
            client.sendall(head + b"x" * number)
            if number % 2:
                client.close()
        began = time.monotonic()
        assert post(address, image())[0]["predictions"]
        assert time.monotonic() - began < 5
        process.send_signal(signal.SIGINT)
        process.wait(timeout=40)  # 15 s for a request to arrive
    assert "Traceback" not in process.stderr.read()


def test_what_cannot_be_served_is_a_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline().save("pets")
    assert "'pets'" in refused(capsys, "serve", "pets", "pets=pets")
    assert "none" in refused(capsys, "serve", "none")
    assert "MODEL" in refused(capsys, "serve").upper()
    assert "--port" in refused(capsys, "serve", "pets", "--port", "70000")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "in use" in refused(capsys, "serve", "pets", "--port", port)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "vitrail.serve.server", raising=False)
    assert "vitrail[serve]" in refused(capsys, "serve", "pets")
