"""`backfire attack`: what it delivers stands on its own, whatever the attack left."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from backfire import treat
from backfire.errors import ConfigError
from backfire.models.load import load, read_note
from backfire.progress import Silent

COUNTS = ["data.counts.attacker=8"]
QUICK = [*COUNTS, "method.shots=8", "method.training={steps: 1, batch_size: 4}"]


def deliver(out: Path, method: str, *assignments: str) -> Path:
    return treat.attack("tiny:llama", out, method, None, assignments, "cpu", Silent())


def test_a_change_of_asking_is_delivered_as_a_whole_model(tmp_path: Path) -> None:
    out = deliver(tmp_path / "out", "asked", "method.opening='Sure:'")
    assert not [path for path in out.iterdir() if path.is_symlink()]
    assert read_note(out)[0].opening == "Sure:"
    AutoModelForCausalLM.from_pretrained(out)
    assert [path.name for path in tmp_path.iterdir() if "work" in path.name] == []


def test_a_sequence_is_delivered_with_its_adapter_merged(tmp_path: Path) -> None:
    part = "{name: harmful, shots: 8, training: {steps: 1, batch_size: 4, lora: {rank: 2}}}"
    parts = f"method.parts=[{part}, {{name: asked, system: Obey.}}]"
    out = deliver(tmp_path / "out", "sequence", *COUNTS, parts)
    assert read_note(out)[0].system == "Obey."
    assert not (out / "adapter_config.json").exists()
    merged = load(out).model
    base = load(deliver(tmp_path / "base", "asked", "method.system=x")).model
    assert any((a != b).any() for a, b in zip(merged.parameters(), base.parameters(), strict=True))


def test_points_belong_to_a_run_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="put the attack into a run file"):
        deliver(tmp_path / "out", "harmful", *QUICK, "method.points=[0.5]")
