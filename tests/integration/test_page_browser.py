"""The page in a real browser, beside a real worker: what it shows, and what it must not do."""

from __future__ import annotations

import http.client
import http.server
import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import models
import numpy as np
import orjson
import pytest
from browser import Watched, chromium
from stream import Worker, produce, read_all, unique, wait_for, write_config

from worker.kafka.broker import EmbeddedBroker
from worker.telemetry.access import Access

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))

from page_support import ABOUT, WORKER, Told

from worker.telemetry import page
from worker.telemetry.http import HttpServer
from worker.telemetry.last_seen import LastLetters
from worker.telemetry.recorder import Recorder

IMAGES = Path(__file__).parent.parent.parent / "docs" / "images"
HEIGHT, WIDTH, SIZE = 480, 640, 32
FINDER = """
import numpy as np

def boxes(outputs):
    (plane,) = outputs.values()
    rows, columns = np.nonzero(plane[0] > 0.5)
    if not len(rows):
        return {"boxes": []}
    corners = [columns.min() * 20, rows.min() * 15, (columns.max() + 1) * 20, (rows.max() + 1) * 15]
    return {"boxes": [{"label": "square", "class_id": 0, "score": 0.97, "xyxy": [float(each) for each in corners]}]}
"""
FOUND = """([place, below]) => {
  const canvas = document.querySelector(`li[data-place="${place}"] canvas`);
  const { width, height } = canvas, data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  const box = { stroke: [1e9, 1e9, -1, -1], bright: [1e9, 1e9, -1, -1] };
  for (let y = 0; y < height; y += 1) for (let x = 0; x < width; x += 1) {
    const [r, g, b] = data.slice(4 * (y * width + x), 4 * (y * width + x) + 3);
    const kind = r > 225 && g < 100 && b < 130 ? "stroke" : r > 200 && g > 200 && b > 200 ? "bright" : null;
    if (!kind || (kind === "stroke" && (y * 480) / height < below)) continue;
    const found = box[kind];
    found[0] = Math.min(found[0], x); found[1] = Math.min(found[1], y); found[2] = Math.max(found[2], x); found[3] = Math.max(found[3], y);
  }
  const scale = [640 / width, 480 / height, 640 / width, 480 / height];
  return Object.fromEntries(Object.entries(box).map(([name, each]) => [name, each.map((value, index) => value * scale[index])]));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def square(left: int, top: int, right: int, bottom: int) -> bytes:
    pixels = np.full((HEIGHT, WIDTH, 3), 30, np.uint8)
    pixels[top:bottom, left:right] = 255
    return cv2.imencode(".jpg", pixels)[1].tobytes()


class Stage:
    """A worker that finds bright squares in pictures, with a page on a port of its own."""

    def __init__(self, broker: EmbeddedBroker, folder: Path) -> None:
        self.bootstrap = broker.bootstrap
        plain = "SCREENSHOTS" in os.environ  # names that look well in the documentation
        self.topics = {name: name if plain else unique(name) for name in ("in", "out", "dead", "metrics")}
        for name, topic in self.topics.items():
            broker.create_topic(topic, 1 if name == "metrics" else 2)
        models.write(folder, models.identity(np.float32, ("N", 3, SIZE, SIZE)))
        (folder / "finder.py").write_text(FINDER)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.config = write_config(
            folder,
            {
                "name": "squares",
                "input": {"topics": [self.topics["in"]], "format": "image"},
                "preprocess": {"image": {"size": [SIZE, SIZE], "scale": 1 / 255}},
                "model": {"path": "model.onnx", "name": "finder", "threads": 1},
                "postprocess": "finder:boxes",
                "output": {"topic": self.topics["out"]},
                "dead_letter": {"topic": self.topics["dead"], "stop_after": "off"},
                "metrics": {
                    "topic": self.topics["metrics"],
                    "interval_s": 0.5,
                    "http": f"127.0.0.1:{self.port}",
                },
                "page": {"samples": 12},
                "kafka": {
                    "bootstrap.servers": self.bootstrap,
                    "group.id": "squares" if plain else unique("group"),
                },
            },
        )
        self.worker = Worker.start(self.config)
        self.worker.wait_ready()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def send(self, values: list[bytes]) -> None:
        produce(self.bootstrap, self.topics["in"], [{"value": value} for value in values])

    def counted(self) -> Counter[str]:
        """The sum of what the metrics topic says so far."""
        total: Counter[str] = Counter()
        for message in read_all(self.bootstrap, self.topics["metrics"]):
            for pipeline in orjson.loads(message.value())["pipelines"].values():
                total.update(pipeline["records"])
        return total


@pytest.mark.timeout(110)
def test_a_browser_shows_what_the_worker_does(
    browser: Any, embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    """From the first record to the end of the worker: counts as on the metrics topic, boxes on the objects, no request to
    elsewhere, no complaint of the browser, and no page wider than its window, in both themes.
    """
    stage = Stage(embedded_broker, tmp_path)
    try:
        shown = Watched(browser, stage.url)
        shown.wait("!document.getElementById('empty').hidden")
        assert f"streaminfer produce SOURCE --topic {stage.topics['in']}" in shown.text("#empty-command")
        places = [(60 * n + 20, 45, 60 * n + 100, 225) for n in range(8)]
        stage.send([*(square(*place) for place in places), b"no picture", b"nor this"])
        counted = wait_for(
            lambda: (c := stage.counted())["out"] + c["dead_letter"] == 10 and c, "ten records"
        )
        assert (counted["out"], counted["dead_letter"]) == (8, 2)
        shown.wait("document.querySelector('#tiles').innerText.includes('8 since start')")
        shown.wait("document.querySelector('#tiles').innerText.includes('2 since start')")
        assert "Records answered" in shown.text("#tiles")
        shown.wait("document.querySelectorAll('.letters li').length === 2")
        assert "not a JPEG, PNG or WebP image" in shown.text(".letters")
        check_boxes(stage, shown, places)
        check_charts(shown)
        shown.wait("document.body.innerText.includes('(this one)')")
        assert {each.split("/events")[0] for each in shown.requests if "/events" in each} == {stage.url[:-1]}
        assert all(each.startswith((stage.url, "data:")) for each in shown.requests), shown.requests
        assert shown.complaints == []
        shown.close()
        check_widths(browser, stage, lambda: stage.send([square(*place) for place in places]))
        check_the_end(browser, stage)
    finally:
        stage.worker.kill()


def check_boxes(stage: Stage, shown: Watched, places: list[tuple[int, int, int, int]]) -> None:
    """The box that the page draws into a sample is around what is bright in it, where the record has its object."""
    shown.wait("document.querySelectorAll('.samples canvas[data-painted]').length > 0")
    state = orjson.loads(get(stage.port, "/state"))
    sample = next(each for each in state["samples"] if each["picture"])
    place = f"{sample['topic']}/{sample['partition']}/{sample['offset']}"
    shown.wait(f"document.querySelector('li[data-place=\"{place}\"] canvas[data-painted]')")
    expected = sample["result"]["prediction"]["boxes"][0]["xyxy"]
    assert any(np.abs(np.array(each) - expected).max() <= 20 for each in places), "the model found the square"
    # the label has the same colour and stands on the upper edge, so the other edges are looked for below it
    found = shown.page.evaluate(FOUND, [place, expected[1] + 40])
    left, _, right, bottom = found["stroke"]
    assert np.abs(np.array([left, right, bottom]) - np.array(expected)[[0, 2, 3]]).max() < 8
    upper = shown.page.evaluate(FOUND, [place, 0])["stroke"][1]
    assert -8 < expected[1] - upper < 40
    bright = found["bright"]
    assert expected[0] - 8 <= bright[0] <= bright[2] <= expected[2] + 8
    assert expected[1] - 8 <= bright[1] <= bright[3] <= expected[3] + 8


def check_charts(shown: Watched) -> None:
    """A chart has lines, answers to the arrow keys, and is there as a table."""
    chart = shown.page.locator(".chart svg").first
    assert chart.locator("path.line").nth(1).get_attribute("d")
    chart.focus()
    shown.page.keyboard.press("ArrowLeft")
    assert "answered" in shown.text(".tip:not([hidden])")
    shown.page.keyboard.press("Escape")
    assert shown.page.locator(".tip:not([hidden])").count() == 0
    shown.page.locator("summary").first.click()
    assert "MINUTE" in shown.text("details[open] table").upper()


def check_widths(browser: Any, stage: Stage, send: Callable[[], None]) -> None:
    """Nothing is wider than the window, from 360 pixels to 4k, in light and dark; both themes differ."""
    backgrounds = set()
    for width, height, theme in (
        (360, 740, "dark"),
        (1440, 1000, "light"),
        (1440, 1000, "dark"),
        (3840, 2160, "light"),
    ):
        shown = Watched(browser, stage.url, width, height, theme)
        shown.wait("!document.getElementById('content').hidden")
        if "SCREENSHOTS" in os.environ and width < 3000:
            warm_up(shown, send)
            IMAGES.mkdir(exist_ok=True)
            shown.page.screenshot(path=IMAGES / f"page-{width}-{theme}.png", type="png")
        assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
        backgrounds.add((theme, shown.page.evaluate("getComputedStyle(document.body).backgroundColor")))
        assert shown.complaints == []
        shown.close()
    assert len({colour for _, colour in backgrounds}) == len(backgrounds) == 2


def warm_up(shown: Watched, send: Callable[[], None]) -> None:
    """Traffic for a while, so that a picture for the documentation shows something."""
    for _ in range(100):
        send()
        shown.page.wait_for_timeout(250)


def check_the_end(browser: Any, stage: Stage) -> None:
    """A worker that ends leaves its last numbers on the page, marked as old, with a sentence."""
    shown = Watched(browser, stage.url)
    shown.wait("!document.getElementById('content').hidden")
    code, _ = stage.worker.stop()
    assert code == 0
    shown.wait("document.body.classList.contains('stale')")
    assert "Connection lost" in shown.text("#banners")
    assert "since start" in shown.text("#tiles")
    shown.close()


class Alone:
    """The page of a worker that is only told what it has done: no broker, no model."""

    def __init__(self, token: str | None = None) -> None:
        self.told = Told()
        self.recorder = Recorder(ABOUT, self.told, LastLetters())
        paths = {**page.routes(), **self.recorder.routes()}
        self.server = HttpServer("127.0.0.1:0", self.told, WORKER, access=Access(token=token), pages=paths)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}/"

    def second(self, records: int = 5) -> None:
        self.told.now_s += 1
        self.told.answers(records)
        self.recorder.second()

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *_error: object) -> None:
        self.recorder.close()
        self.server.close()


def test_a_browser_asks_for_the_token_and_remembers_it_in_its_tab(browser: Any) -> None:
    """Without the token no number is shown; a wrong one is named as such; the right one shows the page, also after a reload."""
    with Alone("right") as alone:
        alone.second(123)
        shown = Watched(browser, alone.url)
        shown.wait("!document.getElementById('login').hidden")
        assert "123" not in shown.page.content()
        for given in ("wrong", "right"):
            shown.page.fill("#token", given)
            shown.page.keyboard.press("Enter")
            if given == "wrong":
                shown.wait("document.getElementById('login-error').textContent.includes('not this worker')")
        shown.wait("document.getElementById('tiles').innerText.includes('123 since start')")
        shown.page.reload()
        shown.wait("document.getElementById('tiles').innerText.includes('123 since start')")


def test_a_browser_says_what_is_wrong(browser: Any) -> None:
    """Warming up, draining, a stuck loop, a stalled partition and missing brokers each have a sentence at the top of the page."""
    from worker.telemetry.routes import Health

    wrong = {
        "Warming up": Health(True, False, True, {"reason": "warming up"}),
        "Draining": Health(True, False, True, {"reason": "draining", "draining": True}),
        "Stuck": Health(False, False, False, {"reason": "the loop does not turn", "turned_s_ago": 70.0}),
        "No progress": Health(True, True, False, waits="in/3 has stood at 4 for 61 s"),
        "Not ready": Health(True, False, True, {"reason": "the group is not joined"}),
    }
    with Alone() as alone:
        alone.second()
        shown = Watched(browser, alone.url)
        for title, health in wrong.items():
            alone.told.now = health
            alone.second()
            shown.wait(f"document.querySelector('#banners strong')?.textContent === '{title}'")
        alone.told.now = Health(True, True, True)
        alone.second()
        shown.wait("document.querySelector('#banners strong') === null")
        assert shown.text("#health") == "ready"


def test_the_page_works_behind_a_path_prefix(browser: Any) -> None:
    """Behind a proxy that takes /tools/worker off every path the page shows the same, with and without a slash at its end."""
    with Alone() as alone, prefixed(alone.server.port, "/tools/worker") as port:
        alone.second(77)
        for ending in ("", "/"):
            shown = Watched(browser, f"http://127.0.0.1:{port}/tools/worker{ending}")
            shown.wait("document.getElementById('tiles').innerText.includes('77 since start')")
            assert shown.page.locator("#as-state").get_attribute("href") == "/tools/worker/state"
            assert shown.complaints == []
            shown.close()


def test_names_and_messages_are_text(browser: Any) -> None:
    """A dead letter whose message is markup is shown as it is, and nothing of it runs."""
    from worker.batch import Partition
    from worker.errors import Rejection

    with Alone() as alone:
        markup = "<img src=x onerror=document.title='taken'><script>1</script>"
        alone.recorder._letters.add(
            "digits", "m@1", Partition("in", 3), 1, Rejection("invalid", "decode", markup)
        )
        alone.second()
        shown = Watched(browser, alone.url)
        shown.wait("document.querySelector('.letters li')")
        assert markup in shown.text(".letters li")
        assert "taken" not in shown.page.title()
        assert shown.complaints == []


def test_drift_is_shown_where_there_is_a_profile(browser: Any) -> None:
    """Without a profile nothing is said of drift; with one, the features stand there, the worst first, and what is too much."""
    with Alone() as alone:
        alone.told.answers(3)
        alone.second()
        shown = Watched(browser, alone.url)
        panel = 'section[aria-labelledby="p-unlike-the-profile"]'
        shown.wait("!document.getElementById('content').hidden")
        assert shown.page.evaluate(f"document.querySelector('{panel}').hidden")
        alone.told.meters.drift("digits", {"picture.size": 0.0, "picture.brightness": 0.731}, 400)
        alone.second()
        shown.wait(f"!document.querySelector('{panel}').hidden")
        rows = shown.text(f"{panel} tbody").split()
        assert rows == ["digits", "picture.brightness", "0.731", "digits", "picture.size", "0.000"]
        assert "1 of 2 features above 0.2" in shown.text(panel)
        assert shown.complaints == []


def growth(browser: Any, seconds: int) -> tuple[list[float], list[float]]:
    """Elements, and bytes of the script's heap after a collection, at a third and at the end of so many events.

    Events come as fast as the browser takes them, each with new numbers, a new dead letter and ten minutes of history.
    """
    from worker.batch import Partition
    from worker.errors import Rejection

    nodes, heap = [], []
    with Alone() as alone:
        for _ in range(600):
            alone.second()
        shown = Watched(browser, alone.url)
        tools = shown.page.context.new_cdp_session(shown.page)
        shown.wait("!document.getElementById('content').hidden")
        for part in (seconds // 3, seconds - seconds // 3):
            for number in range(part):
                why = Rejection("invalid", "decode", f"message {number}")
                alone.recorder._letters.add("digits", "m@1", Partition("in", 3), number, why)
                alone.second(number % 50)
                if number % 20 == 0:
                    sequence = int(1000 * alone.told.now_s)
                    shown.wait(f"document.body.dataset.timeMs === '{sequence}'")
            tools.send("HeapProfiler.collectGarbage")
            nodes.append(shown.page.evaluate("document.querySelectorAll('*').length"))
            heap.append(shown.page.evaluate("performance.memory.usedJSHeapSize"))
        assert shown.complaints == []
    return nodes, heap


def test_a_page_that_stays_open_does_not_grow(browser: Any) -> None:
    """Between the 30th and the 90th update the number of elements stays the same; the script keeps no update's history."""
    nodes, heap = growth(browser, 90)
    assert nodes[1] <= nodes[0] * 1.05 + 20
    # What the browser compiles meanwhile counts as memory, too: up to 1.6 MB were seen. Half an hour is measured below.
    assert heap[1] <= heap[0] + 4_000_000


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_half_an_hour_of_updates_does_not_grow(browser: Any) -> None:
    """1,800 updates, as many as half an hour has: elements and memory at the end are those after a third of them."""
    nodes, heap = growth(browser, 1800)
    assert nodes[1] <= nodes[0] * 1.05 + 20
    assert heap[1] <= heap[0] * 1.2 + 1_000_000


def get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


@contextmanager
def prefixed(behind: int, prefix: str) -> Iterator[int]:
    """A proxy that takes a prefix off every path and passes bytes on as they come."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.removeprefix(prefix) or "/"
            with socket.create_connection(("127.0.0.1", behind), timeout=30) as other:
                other.sendall(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
                while data := other.recv(65536):
                    self.wfile.write(data)

        def log_message(self, *_args: Any) -> None: ...

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_request: Any) -> None: ...

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
