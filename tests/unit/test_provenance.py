"""Facts about the machine and the source, and none about the person."""

from __future__ import annotations

import getpass
import json
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from backfire.provenance import device_facts, git_state, host_facts, versions


def test_versions_name_what_is_absent() -> None:
    found = versions(("pydantic", "no-such-package-here"))
    assert found["pydantic"][0].isdigit()
    assert found["no-such-package-here"] == "absent"
    assert {"backfire", "python"} <= set(found)


def test_no_host_name_user_or_path_is_recorded() -> None:
    text = json.dumps([versions(("torch",)), git_state(), host_facts(), device_facts("cpu")])
    assert platform.node() not in text
    assert str(Path.home()) not in text
    if len(getpass.getuser()) > 4:
        assert getpass.getuser() not in text


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_changed_tree_is_dirty(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", str(tmp_path), *words],
            check=True,
            capture_output=True,
        )

    assert git_state(tmp_path) == {}
    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "first")
    clean = git_state(tmp_path)
    assert clean["dirty"] is False
    assert len(clean["commit"]) == 40
    (tmp_path / "file").write_text("two")
    assert git_state(tmp_path) == {**clean, "dirty": True}
