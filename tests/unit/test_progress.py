"""What is shown and kept while work goes on."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from backfire.progress import Plain, Progress, Rich, Silent, duration, make


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_plain_lines_name_unit_and_time_left() -> None:
    stream = io.StringIO()
    progress = Plain(every_seconds=0, stream=stream)
    with progress.task("train", total=4, unit="steps") as task:
        task.advance(note="loss 1.5")
    assert stream.getvalue().startswith("train: 1/4 steps, about 0 s left loss 1.5")


def test_units_of_unequal_length_promise_no_time() -> None:
    stream = io.StringIO()
    with Plain(0, stream).task("stages", 4, "stages", steady=False) as task:
        task.advance()
        assert task.seconds_left is None
    assert "left" not in stream.getvalue()


def test_resumed_work_does_not_count_as_speed() -> None:
    with Silent().task("train", total=10) as task:
        task.skip(9)
        assert task.seconds_left is None
        task.advance()
        assert task.seconds_left == 0


@pytest.mark.parametrize("progress", [Silent(), Plain(stream=io.StringIO())])
def test_every_event_is_kept_and_a_failure_is_one(tmp_path: Path, progress: Progress) -> None:
    progress.record_to(tmp_path / "events.jsonl")
    assert progress.log == tmp_path / "events.jsonl"
    with progress.task("good", unit="rows"):
        progress.say("news")
    with pytest.raises(ValueError, match="bad"), progress.task("bad"):
        raise ValueError("bad")
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds == ["started", "said", "finished", "started", "failed"]
    assert events[-1]["error"] == "ValueError"


def test_brackets_in_labels_and_notes_are_only_text() -> None:
    progress = Rich()
    try:
        with progress.task("attack [/] with [bold]", total=1) as task:
            task.started -= 5  # long enough to be announced at its end
            task.advance(note="[/red]")
    finally:
        progress.close()


def test_a_pipe_gets_plain_lines() -> None:
    assert isinstance(make("plain"), Plain)
    assert isinstance(make("none"), Silent)
