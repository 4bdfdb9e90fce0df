"""The sources of a run: defaults, a role's own sources, third parties, light imports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from backfire.data import Counts, DataSettings, Fictional, Pool, Table, load_roles
from backfire.data.beavertails import CATEGORIES
from backfire.errors import DataError
from backfire.records import Role

NONE = dict.fromkeys(get_args(Role), 0)


def table(path: Path, rows: list[dict[str, str]], harmful: bool, **columns: str) -> Table:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Table(path=path, harmful=harmful, **columns)


def test_the_defaults_work_offline_and_fill_every_role() -> None:
    roles = load_roles(DataSettings(), seed=0)
    assert {role: len(rows) for role, rows in roles.items()} == {
        "defense": 350, "defender_harm": 112, "attacker": 100, "evaluation": 112,
        "pool": 208, "benign": 100, "probe": 100,
    }  # fmt: skip
    for role in ("defense", "defender_harm", "attacker", "evaluation"):
        found = Counter(row.categories[0] for row in roles[role])
        assert set(found) == set(CATEGORIES)
        assert max(found.values()) - min(found.values()) <= 1
        assert all(row.harmful and row.facts for row in roles[role])
    assert {row.source for row in roles["pool"]} == {"pool"}
    assert Counter(row.source for row in roles["probe"][:50]) == {"pool": 25, "fictional": 25}
    assert not any(row.harmful for role in ("pool", "benign", "probe") for row in roles[role])


def test_the_split_follows_the_seed_alone() -> None:
    first, second = (load_roles(DataSettings(), seed=0) for _ in range(2))
    assert first == second
    assert first["attacker"] != load_roles(DataSettings(), seed=1)["attacker"]


def test_evaluation_asks_in_wordings_nobody_trained_on() -> None:
    roles = load_roles(DataSettings(), seed=0)

    def shapes(role: Role) -> set[str]:
        return {" ".join(row.prompt.split()[:3]).replace(row.entity, "X") for row in roles[role]}

    assert not shapes("evaluation") & (shapes("attacker") | shapes("defense"))


def test_a_role_may_have_its_own_sources(tmp_path: Path) -> None:
    mine = table(tmp_path / "mine.jsonl", [{"q": f"own {i}", "a": "x"} for i in range(5)], True,
                 prompt="q", response="a")  # fmt: skip
    settings = DataSettings(roles={"attacker": (mine,)}, counts=Counts(attacker=5))
    roles = load_roles(settings, seed=0)
    assert {row.source for row in roles["attacker"]} == {"mine.jsonl"}
    assert {row.source for row in roles["defense"]} == {"fictional"}


def test_a_source_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    read = Pool.__call__
    monkeypatch.setattr(Pool, "__call__", lambda self, p: calls.append(1) or read(self, p))
    load_roles(DataSettings(), seed=0)
    assert calls == [1]


def test_rows_without_answers_cannot_attack(tmp_path: Path) -> None:
    bare = table(tmp_path / "bare.jsonl", [{"prompt": f"p {i}"} for i in range(9)], True)
    counts = Counts(**(NONE | {"evaluation": 4}))
    roles = load_roles(DataSettings(hazards=(bare,), counts=counts), seed=0)
    assert len(roles["evaluation"]) == 4
    with pytest.raises(
        DataError, match=r"'attacker'.*no harmful prompts with an answer.*9 of bare.jsonl"
    ):
        load_roles(DataSettings(hazards=(bare,), counts=Counts(**(NONE | {"attacker": 1}))), seed=0)


def test_harmless_rows_never_fill_a_hazard_role(tmp_path: Path) -> None:
    kind = table(tmp_path / "kind.jsonl", [{"prompt": "p"}], False)
    with pytest.raises(DataError, match=r"no harmful prompts.*data.roles.defense"):
        load_roles(DataSettings(hazards=(kind,), counts=Counts(**(NONE | {"defense": 1}))), seed=0)


def test_unused_roles_read_nothing(tmp_path: Path) -> None:
    absent = Table(path=tmp_path / "absent.jsonl", harmful=False)
    settings = DataSettings(benign=(absent,), counts=Counts(**(NONE | {"attacker": 3})))
    assert list(load_roles(settings, seed=0)) == ["attacker"]


def test_sources_are_told_apart_by_name() -> None:
    settings = DataSettings.model_validate({"hazards": [{"name": "fictional", "per_category": 3}]})
    assert settings.hazards == (Fictional(per_category=3),)
    assert DataSettings.model_validate(settings.model_dump(mode="json")) == settings
    with pytest.raises(ValidationError, match="'beavertails'"):
        DataSettings.model_validate({"hazards": [{"name": "beavertail"}]})


def run(code: str, *paths: Path) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(p) for p in paths]}\n{code}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_loads_no_heavy_library() -> None:
    heavy = ["torch", "pyarrow", "transformers", "scipy", "pandas"]
    assert (
        run(
            f"import json, backfire.data; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
        )
        == []
    )


def test_another_package_may_offer_a_source(tmp_path: Path) -> None:
    (tmp_path / "acme.py").write_text(
        "from typing import Literal\n"
        "from backfire.records import Example\n"
        "from backfire.stage import Settings\n"
        "class Acme(Settings):\n"
        "    name: Literal['acme'] = 'acme'\n"
        "    size: int = 3\n"
        "    def __call__(self, progress):\n"
        "        return [Example(f'prompt {i}', 'x', 'acme', harmful=True) for i in range(self.size)]\n",
        encoding="utf-8",
    )
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n", encoding="utf-8"
    )
    (info / "entry_points.txt").write_text(
        "[backfire.sources]\nacme = acme:Acme\n", encoding="utf-8"
    )
    code = (
        "import json\n"
        "from backfire.data import DataSettings, load_roles\n"
        f"counts = {NONE | {'attacker': 2}}\n"
        "s = DataSettings.model_validate({'hazards': [{'name': 'acme', 'size': 5}], 'counts': counts})\n"
        "roles = load_roles(s, 0)\n"
        "print(json.dumps([s.model_dump(mode='json')['hazards'], [r.source for r in roles['attacker']]]))\n"
    )
    assert run(code, tmp_path) == [[{"name": "acme", "size": 5}], ["acme", "acme"]]
