"""The theory's page in Node and in Chromium, against the Python values."""

from __future__ import annotations

import contextlib
import fcntl
import html
import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backfire.seeding import rng
from backfire.theory.features import Features
from backfire.theory.figures import needed
from backfire.theory.limit import limit_accuracy
from backfire.theory.page import build_page
from backfire.theory.region import invariant_needed
from backfire.theory.theorems import Interpolation, theorem1, theorem2

NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LAB = Path(__file__).parents[2] / "src/backfire/theory/web/feature_lab.js"


def expected(s: dict[str, Any]) -> dict[str, Any]:
    shared = Features(s["ov"], s["os"])
    optimal = Features(s["mv"], s["ms"])
    case = Interpolation(Features(s["nv"], s["ns"]), optimal, shared, s["weight"])
    second = theorem2(case, s["p"], s["classes"])
    return {
        "before": float(second.aligned),
        "after": float(second.attacked),
        "premises": bool(second.premises),
        "falls": bool(second.conclusion),
        "moreSpuriousHurts": bool(theorem1(case, s["p"], s["classes"]).conclusion),
        "needed": float(invariant_needed(s["ns"], optimal, s["p"], s["weight"], shared)),
    }


def random_states(count: int) -> list[dict[str, Any]]:
    random = rng(0, "page")
    states = []
    for _ in range(count):
        ov, os_ = int(random.integers(0, 5)), int(random.integers(0, 20))
        states.append(
            {
                "p": round(float(random.uniform(0.05, 1)), 2),
                "classes": int(random.integers(2, 51)),
                "weight": round(float(random.uniform(0, 0.95)), 2),
                "nv": ov + int(random.integers(0, 40)),
                "ns": os_ + int(random.integers(1, 200)),
                "mv": ov + int(random.integers(0, 40)),
                "ms": os_ + int(random.integers(1, 300)),
                "ov": ov,
                "os": os_,
            }
        )
    return states


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_script_computes_what_python_computes() -> None:
    states = random_states(300)
    code = (
        "require(process.argv[1]);"
        "const s = JSON.parse(require('fs').readFileSync(0, 'utf8'));"
        "const xs = s.points.map(([x, p, k]) => featureLab.accuracyAt(x, p, k));"
        "console.log(JSON.stringify({told: s.states.map(featureLab.evaluate), xs}))"
    )
    points = [
        (x, p, k)
        for x, p, k in itertools.product((-1.5, 0.0, 0.4, 3.0), (0.0, 0.01, 0.6, 1.0), (2, 3, 50))
    ]
    done = subprocess.run(
        [NODE or "", "-e", code, str(LAB)],
        input=json.dumps({"states": states, "points": points}),
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    x, p, k = (np.array(column) for column in zip(*points, strict=True))
    assert answer["xs"] == pytest.approx(limit_accuracy(x, p, k).tolist(), abs=1e-8)
    for state, told in zip(states, answer["told"], strict=True):
        wanted = expected(state)
        for name in ("before", "after"):
            assert told[name] == pytest.approx(wanted[name], abs=1e-8), (name, state)
        for name in ("premises", "falls", "moreSpuriousHurts"):
            assert told[name] == wanted[name], (name, state)
        reported = np.inf if told["needed"] is None else told["needed"]  # JSON has no infinity
        assert reported == pytest.approx(wanted["needed"], rel=1e-9)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(build_page([needed()]), encoding="utf-8")
    return path


def test_the_page_loads_nothing(page: Path) -> None:
    text = html.unescape(page.read_text(encoding="utf-8"))
    assert "default-src 'none'" in text
    assert "unsafe" not in text
    assert not re.search(r"<link|@import|\bsrc=|url\((?!#)|\bstyle=|\bon\w+=", text)


class Browser:
    """Chromium over a pair of pipes, one page."""

    def __init__(self, send: int, receive: int) -> None:
        self._send = os.fdopen(send, "wb", buffering=0)
        self._receive = os.fdopen(receive, "rb", buffering=0)
        self._ids = itertools.count(1)
        self._rest = b""
        self.events: list[dict[str, Any]] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        message: dict[str, Any] = {"id": next(self._ids), "method": method, "params": params}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        self._send.write(json.dumps(message).encode() + b"\0")
        while True:
            reply = self._next()
            if reply.get("id") == message["id"]:
                assert "error" not in reply, reply
                return reply["result"]  # type: ignore[no-any-return]
            self.events.append(reply)

    def wait(self, event: str) -> None:
        while not any(e.get("method") == event for e in self.events):
            self.events.append(self._next())

    def run(self, script: str) -> Any:
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = self._receive.read(65536)
            assert part, "the browser went away"
            self._rest += part
        line, self._rest = self._rest.split(b"\0", 1)
        return json.loads(line)  # type: ignore[no-any-return]


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    command_in, command_out = os.pipe()
    reply_in, reply_out = os.pipe()

    def on_three_and_four() -> None:
        # Through high numbers, so that neither pipe is closed by the other's move.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 64) for fd in (command_in, reply_out)]
        for fd, target in zip(high, (3, 4), strict=True):
            os.dup2(fd, target)

    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--remote-debugging-pipe",
    ]
    process = subprocess.Popen(
        [CHROMIUM or "", *flags, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(3, 4), preexec_fn=on_three_and_four,  # noqa: PLW1509 - no threads here
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(command_in)
    os.close(reply_out)
    try:
        yield Browser(command_out, reply_in)
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_sliders_recompute_to_the_python_values(page: Path, tmp_path: Path) -> None:
    read = (
        "Object.fromEntries(['before','after','conclusion','premises','needed','verdict']"
        ".map(i => [i, document.getElementById(i).textContent]))"
    )
    with chromium(tmp_path / "profile") as browser:
        browser.call("Log.enable")
        browser.call("Runtime.enable")
        browser.call("Page.enable")
        browser.call("Page.navigate", url=page.as_uri())
        browser.wait("Page.loadEventFired")
        assert browser.run("document.getElementById('verdict').className") == "counter"
        for state in random_states(8):
            browser.run(
                f"for (const [key, value] of Object.entries({json.dumps(state)})) {{"
                "const input = document.querySelector(`[data-key=${key}]`);"
                "input.value = value; input.dispatchEvent(new Event('input'));}"
            )
            shown, wanted = browser.run(read), expected(state)
            assert shown["before"] == f"{100 * wanted['before']:.2f} %"
            assert shown["after"] == f"{100 * wanted['after']:.2f} %"
            assert shown["premises"] == ("hold" if wanted["premises"] else "do not hold")
            assert (
                shown["conclusion"] == f"accuracy {'falls' if wanted['falls'] else 'does not fall'}"
            )
            assert f"{wanted['needed']:.2f}" in shown["needed"]
        address = browser.run("location.hash")
        assert f"nv={state['nv']}" in address  # the case can be shared as a link
        browser.run("document.getElementById('reset').click()")
        assert "28.63" in browser.run(read)["needed"]
        faults = [
            e for e in browser.events
            if e.get("method") == "Runtime.exceptionThrown"
            or e.get("params", {}).get("entry", {}).get("level") == "error"
        ]  # fmt: skip
        assert faults == []
