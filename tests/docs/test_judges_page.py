"""The page on judges names every judge, and its hashes, numbers and example are the program's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import TypeAdapter

from backfire.evaluate import Harmfulness
from backfire.judges import AnyJudge, Policy, StrongRejectRubric

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "judges.md").read_text(encoding="utf-8")


def test_every_judge_has_its_row() -> None:
    names = [m.model_fields["name"].default for m in get_args(get_args(AnyJudge)[0])]
    table = PAGE.split("\n\n")[2]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(names)


@pytest.mark.parametrize("judge", [Policy, StrongRejectRubric])
def test_version_and_prompt_hash_are_the_programs(judge: type[Policy | StrongRejectRubric]) -> None:
    """Another prompt is another judge: raise `version` if verdicts can differ, then mend the page."""
    name = judge.model_fields["name"].default
    row = next(
        line for line in PAGE.splitlines() if line.startswith(f"| `{name}` | {judge.version} |")
    )
    assert f"`{judge.model_construct().prompt_hash}`" in row
    (said,) = re.findall(rf"(\d+)(?: tokens)? for\s+`{name}`", PAGE)
    endpoint = {"base_url": "http://localhost/v1", "model": "m"}
    assert judge(endpoint=endpoint).bill(1, 0).tokens_in == pytest.approx(int(said), rel=0.05)


def test_the_example_is_read() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (evaluation,) = yaml.safe_load(block)["evaluations"]
    found = TypeAdapter(Harmfulness).validate_python(evaluation)
    assert found.judges[2].endpoint.key_variable == "JUDGE_KEY"


def test_the_number_of_attacks_is_right() -> None:
    attacks = yaml.safe_load((ROOT / "tests/unit/judge_attacks.yaml").read_text(encoding="utf-8"))
    assert f"holds {len(attacks)} such answers" in PAGE
