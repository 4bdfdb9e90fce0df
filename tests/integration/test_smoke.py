"""The smoke experiment and the short verbs from the command line, with real members on a tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from backfire.cli import app
from backfire.store import read_json, read_table

SMOKE = Path(__file__).parents[2] / "experiments" / "smoke.yaml"
QUIET = ("--progress", "none")


def call(*words: str) -> Any:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    call("run", str(SMOKE), "--set", "seeds=[0]", "--out", str(folder), *QUIET)
    return folder


def test_the_run_folder_is_whole(smoke: Path) -> None:
    manifest = read_json(smoke / "manifest.json")
    assert manifest["status"] == "complete"
    assert {stage["status"] for stage in manifest["stages"]} == {"done"}
    assert all(stage["peak_memory_bytes"] > 0 for stage in manifest["stages"])
    counts = Counter(stage["kind"] for stage in manifest["stages"])
    assert counts == {"align": 1, "defense": 1, "attack": 8, "evaluation": 20}
    tables = {path.stem for path in (smoke / "tables").glob("*.parquet")}
    assert tables >= {
        "cells", "exchanges", "verdicts", "labels", "losses", "measurements", "trajectory",
        "effects", "pairs",
    }  # fmt: skip
    assert (smoke / "report" / "report.html").stat().st_size > 10_000
    assert read_json(smoke / "conclusion.json")["sentence"]


def test_every_training_moved_its_weights(smoke: Path) -> None:
    effects = read_table(smoke / "tables" / "effects.parquet", dict)
    assert len(effects) == 10
    assert all(row["share_changed"] > 0 for row in effects)
    assert {row["parameters"] for row in effects} == {"full", "lora"}


def test_attacked_weights_are_gone_and_the_defended_model_loads(smoke: Path) -> None:
    from transformers import AutoModelForCausalLM

    assert list(smoke.glob("stages/attack-*/**/*.safetensors")) == []
    (defended,) = smoke.glob("stages/defense-*/checkpoint")
    assert AutoModelForCausalLM.from_pretrained(defended).num_parameters() > 0


def test_a_second_run_computes_nothing_and_is_quick(smoke: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in smoke.glob("stages/*/done.json")}
    began = time.perf_counter()
    words = ("run", str(SMOKE), "--set", "seeds=[0]", "--out", str(smoke), "--json", *QUIET)
    assert json.loads(call(*words).stdout)["computed"] == 0
    assert time.perf_counter() - began < 5
    assert before == {path: path.stat().st_mtime_ns for path in smoke.glob("stages/*/done.json")}


def test_the_saved_run_file_is_the_run(smoke: Path) -> None:
    words = ("run", str(smoke / "experiment.yaml"), "--out", str(smoke), "--json", *QUIET)
    assert json.loads(call(*words).stdout)["computed"] == 0


def test_the_report_is_built_again_and_a_run_equals_itself(smoke: Path) -> None:
    assert call("report", str(smoke)).stdout.strip().endswith("report.html")
    rows = json.loads(call("compare", str(smoke), str(smoke), "--json").stdout)
    assert len({(row["defense"], row["attack"]) for row in rows}) == 10
    assert all(row["difference"] == 0 for row in rows if row["pairs"])


def test_check_knows_what_is_done(smoke: Path) -> None:
    words = ("check", str(SMOKE), "--set", "seeds=[0]", "--out", str(smoke), "--json")
    assert json.loads(call(*words).stdout)["done"] == 30


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_says_how_to_go_on_and_the_rest_is_kept(tmp_path: Path, smoke: Path) -> None:
    """A real interrupt of a real process, as soon as the first training is under way."""
    words = [sys.executable, "-m", "backfire", "run", str(SMOKE), "--set", "seeds=[0]",
             "--set", "align.training.steps=4000", "--set", "attacks=[]",
             "--out", str(tmp_path / "run"), "--progress", "plain"]  # fmt: skip
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "stages"
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and not list(log.glob("align-*/state/trajectory.jsonl")):
        time.sleep(0.1)
    while time.monotonic() < deadline:
        (steps,) = log.glob("align-*/state/trajectory.jsonl")
        if steps.read_text().count("\n") >= 3:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert "goes on where it stopped" in err
    assert "Traceback" not in err
    assert out == ""
    assert read_json(tmp_path / "run" / "manifest.json")["status"] == "interrupted"
    (state,) = log.glob("align-*/state/step-*/state.json")
    assert read_json(state)["step"] >= 3


TINY = ("--set", "data.counts.defense=14", "--set", "data.counts.pool=40",
        "--set", "method.pairing.encoder=hash", "--set", "method.training.steps=2",
        "--set", "method.training.batch_size=2", "--set", "method.training.learning_rate=1e-3")  # fmt: skip


def test_harden_writes_what_plain_transformers_loads(tiny_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "hardened"
    done = call("harden", str(tiny_folder), "--out", str(out), *TINY, *QUIET)
    assert done.stdout.strip() == str(out)
    AutoModelForCausalLM.from_pretrained(out)
    AutoTokenizer.from_pretrained(out)
    note = read_json(out / "backfire.json")
    assert note["method"]["name"] == "sdd"
    assert note["effect"]["share_changed"] > 0
    assert note["rows"]["defense"]["rows"] == 14
    assert set(note["rows"]) == {"defense", "pool"}
    assert note["provenance"]["versions"]["torch"]
    assert note["chat"]["template"] == "auto"
    assert str(tiny_folder.parent) not in (out / "backfire.json").read_text()
    assert list(tmp_path.glob(".*")) == []

    again = CliRunner().invoke(app, ["harden", str(tiny_folder), "--out", str(out), *QUIET])
    assert again.exit_code == 2
    assert "not empty" in again.stderr


def test_harden_takes_rows_from_a_file_and_says_what_is_wrong_with_it(
    tiny_folder: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "mine.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"How do I vex a quarn {i}?"}) + "\n" for i in range(9))
    )
    out = tmp_path / "out"
    words = ("harden", str(tiny_folder), "--data", str(rows), *TINY[2:], *QUIET)
    call(*words, "--out", str(out))
    note = read_json(out / "backfire.json")
    assert note["rows"]["defense"]["rows"] == 9
    assert note["rows"]["defense"]["sources"] == {"mine.jsonl": 9}
    rows.write_text('{"text": "a"}\n')
    bad = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "bad")])
    assert bad.exit_code == 1
    assert "mine.jsonl" in bad.stderr
    assert not (tmp_path / "bad").exists()


def test_attack_merges_its_adapter(tiny_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    out = tmp_path / "attacked"
    call("attack", str(tiny_folder), "--out", str(out), "--set", "method.shots=4",
         "--set", "method.training={steps: 2, learning_rate: 1e-2, lora: {rank: 2}}",
         "--set", "data.counts.attacker=14", *QUIET)  # fmt: skip
    assert not (out / "adapter_config.json").exists()
    before = AutoModelForCausalLM.from_pretrained(tiny_folder).state_dict()
    after = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)


SHORT = ("--set", "evaluations=[{name: harmfulness, encoder: hash, num_prompts: 4, num_benign: 2, "
         "max_new_tokens: 4}]", "--set", "seeds=[0]", "--set", "data.counts.attacker=14",
         "--set", "data.counts.evaluation=14", "--set", "data.counts.benign=8",
         "--set", "data.counts.probe=4")  # fmt: skip


def test_audit_puts_the_model_beside_its_base(
    tiny_folder: Path, smoke: Path, tmp_path: Path
) -> None:
    (hardened,) = smoke.glob("stages/defense-*/checkpoint")
    out = tmp_path / "audit"
    attacks = "attacks=[{name: harmful, shots: 4, training: {epochs: 1}}]"
    words = ("--out", str(out), "--set", attacks, *SHORT, *QUIET)
    call("audit", str(hardened), "--base", str(tiny_folder), *words)
    cells = read_table(out / "tables" / "cells.parquet", dict)
    assert {(c["defense"], c["attack"]) for c in cells} == {
        (defense, attack) for defense in ("none", "given") for attack in ("none", "mft-4-full")
    }
    alone = call("audit", str(hardened), *("--out", str(tmp_path / "alone"), *words[2:]))
    assert "No defense" in alone.stdout or "no defense" in alone.stdout.lower()


def test_evaluate_measures_one_model(tiny_folder: Path, tmp_path: Path) -> None:
    done = call("evaluate", str(tiny_folder), "--out", str(tmp_path / "run"), *SHORT, *QUIET)
    assert "verified_harm" in done.stdout
