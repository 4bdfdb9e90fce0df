"""Every shipped run file is read, says its question first, and has a price."""

from __future__ import annotations

from pathlib import Path

import pytest

import backfire
from backfire.check import check_page, check_record
from backfire.config import Experiment, from_text, load, resolved_yaml

ROOT = Path(__file__).parents[2]
FILES = sorted(
    [*(ROOT / "experiments").glob("*.yaml"), *Path(backfire.__file__).parent.glob("*.yaml")]
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_run_file_is_read_priced_and_resolved(path: Path) -> None:
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    assert first.startswith("# ")
    assert "?" in first
    experiment = load(path)
    assert experiment.question == first.removeprefix("# ")
    assert experiment.name == path.stem
    record = check_record(experiment)
    assert record["prices"]
    assert all(price["flops"] > 0 for price in record["prices"])
    assert record["disk_bytes"] > 0
    page = check_page(record)
    assert experiment.digest in page
    again = from_text(resolved_yaml(experiment), "resolved")
    assert again == experiment
    assert again.digest == experiment.digest


PAPER = [load(path) for path in FILES if path.stem.startswith("sdd-")]


@pytest.mark.parametrize("experiment", PAPER, ids=lambda experiment: experiment.name)
def test_the_papers_settings_are_in_the_presets(experiment: Experiment) -> None:
    (sdd,) = experiment.active_defenses
    assert sdd.name == "sdd"
    assert sdd.training.learning_rate == 5e-7
    assert (sdd.training.steps, sdd.training.batch_size) == (500, 24)
    assert sdd.training.lora is None
    assert sdd.training.precision != "bf16-pure"
    assert sdd.pairing.threshold == 0.25
    assert experiment.data.counts.defense == 8000
    harmful = [attack for attack in experiment.active_attacks if attack.name == "harmful"]
    assert [attack.shots for attack in harmful] == [10, 50, 100]
    for attack in harmful:  # Qi et al. 2023
        training = attack.training
        assert (training.learning_rate, training.epochs, training.batch_size) == (5e-5, 5, 10)
        assert (training.schedule, training.epoch_decay) == ("epoch-decay", 0.85)
        assert training.clip_norm is None
    capability = next(e for e in experiment.evaluations if e.name == "capability")
    assert capability.tasks == ("mmlu", "openbookqa")


def test_all_four_models_of_the_paper_have_a_preset() -> None:
    assert {experiment.model for experiment in PAPER} == {
        "meta-llama/Llama-2-7b-chat-hf",
        "meta-llama/Llama-2-7b-hf",
        "microsoft/phi-2",
        "zai-org/chatglm3-6b",
    }


def test_the_price_of_sdd_on_7b_by_hand() -> None:
    record = check_record(load(ROOT / "experiments" / "sdd-llama2-7b.yaml"))
    sdd = next(price for price in record["prices"] if price["label"] == "sdd")
    assert sdd["steps"] == 500
    # 8,000 rows make 333 batches of 24 and one of 8: one of the 500 steps is short by 16 rows.
    assert sdd["tokens"] == (500 * 24 - 16) * 200
    assert sdd["flops"] == 6 * 6_738_415_616 * 2_396_800
    assert sdd["runs"] == 5
    # Weights, gradients and two moments alone are 16 bytes a weight.
    assert sdd["memory_bytes"] > 16 * 6_738_415_616
