"""A run with the attacks that do not fine-tune: each cell measured, or told why not, up to the report."""

from __future__ import annotations

import pytest

from backfire.config import from_text
from backfire.models.tiny import save_tiny
from backfire.pipeline import Outcome, run
from backfire.store import read_json, read_table

RUN = """
# Do attacks without fine-tuning go through a whole run?
name: untrained
model: tiny:llama
data:
  hazards: [{{name: fictional, per_category: 12, categories: [privacy_violation]}}]
  counts: {{defense: 0, defender_harm: 0, attacker: 4, evaluation: 2, pool: 0, benign: 4, probe: 2}}
attacks:
  - {{name: prefill}}
  - {{name: embedding, shots: 2, steps: 2, generations: 1, length: 3, target_tokens: 4}}
  - {{name: merge, base: "{base}", t: 0.25}}
  - {{name: merge, base: "{base}", t: 1}}
  - {{name: refusal_direction}}
  - name: sequence
    parts:
      - {{name: harmful, shots: 4, training: {{steps: 1, batch_size: 2, lora: {{rank: 2}}}}}}
      - {{name: embedding, shots: 2, steps: 2, generations: 1, length: 3, target_tokens: 4}}
evaluations:
  - {{name: harmfulness, encoder: hash, max_new_tokens: 3}}
  - {{name: perplexity}}
seeds: [0]
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    root = tmp_path_factory.mktemp("run")
    base = save_tiny(root / "base", seed=1)
    return run(from_text(RUN.format(base=base), "run.yaml"), root / "out", device="cpu")


def test_every_attack_is_measured_or_says_why_not(outcome: Outcome) -> None:
    cells = {
        row["attack"]: row for row in read_table(outcome.folder / "tables/cells.parquet", dict)
    }
    nothing = cells.pop("refusal-direction")
    assert nothing["status"] == "found nothing"
    assert "no prompts are left" in nothing["reason"]
    assert {row["status"] for row in cells.values()} == {"done"}
    assert set(cells) == {
        "none", "prefill", "embedding-2", "merge-0.25", "merge-1", "mft-4-lora+embedding-2"
    }  # fmt: skip
    notes = " ".join(read_json(outcome.folder / "conclusion.json")["notes"])
    assert "none/refusal-direction/seed0 found nothing, which is what this attack came to" in notes
    assert "found nothing" in outcome.report.read_text(encoding="utf-8")


def test_what_is_asked_otherwise_scores_texts_as_before(outcome: Outcome) -> None:
    """Weights that did not move read neutral text as the released ones do."""
    losses: dict[str, list[float]] = {}
    for row in read_table(outcome.folder / "tables/losses.parquet", dict):
        losses.setdefault(row["attack"], []).append(row["nll"])
    assert losses["prefill"] == losses["none"]
    assert losses["embedding-2"] == pytest.approx(losses["none"], rel=1e-6)
    assert losses["merge-0.25"] != losses["none"]


def test_the_attackers_costs_are_counted(outcome: Outcome) -> None:
    cells = {
        row["attack"]: row for row in read_table(outcome.folder / "tables/cells.parquet", dict)
    }
    assert cells["prefill"]["flops"] == cells["merge-1"]["flops"] == 0
    assert cells["embedding-2"]["steps"] == 2
    assert cells["embedding-2"]["flops"] > 0
    assert cells["refusal-direction"]["flops"] > 0
    assert cells["mft-4-lora+embedding-2"]["steps"] == 3
