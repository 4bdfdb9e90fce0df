"""What users really get wrong: a clear error, the right exit code, and nothing lost.

Damaged and empty data files, wrong columns and damaged caches have their own tests beside the sources
and the assets; here the whole command is run.
"""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from backfire.attack import Harmful
from backfire.cli import app
from backfire.engine.job import Job
from backfire.errors import DataError
from backfire.evaluate.harmfulness import Harmfulness
from backfire.evaluate.perplexity import Perplexity
from backfire.models.load import load
from backfire.models.tiny import byte_tokenizer, save_tiny, tiny_model
from backfire.records import Checkpoint, Example
from backfire.stage import Bench
from backfire.store import read_json, write_json

QUIET = ("--progress", "none")
FEW = ("--set", "data.counts.defense=14", "--set", "data.counts.pool=40")
TRAINING = "method.training={steps: 2, batch_size: 2, learning_rate: 1e-3}"
QUICK = ("--set", "method.pairing.encoder=hash", "--set", TRAINING)


def call(*words: str) -> Any:
    """Run a command; a traceback fails the test."""
    return CliRunner().invoke(app, list(words), catch_exceptions=False)


def refused(code: int, *words: str) -> str:
    """Run a command that must fail with an exit code and one message; return the message."""
    result = call(*words)
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    message = str(result.stderr)
    assert message.startswith("error: ")
    return message


def harden(model: str | Path, out: Path, *words: str) -> tuple[str, ...]:
    return ("harden", str(model), "--out", str(out), *FEW, *QUICK, *words, *QUIET)


# ---------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize(
    ("model", "code", "said"),
    [
        ("smollm2-135m-instuct", 2, "did you mean 'smollm2-135m-instruct'"),
        ("./nowhere", 2, "there is no such folder"),
        ("tiny:lama", 2, "did you mean 'llama'"),
        ("nobody/nothing", 3, "hf download nobody/nothing"),
    ],
)
def test_an_unknown_model_is_told_apart_from_one_that_cannot_be_reached(
    model: str, code: int, said: str, tmp_path: Path
) -> None:
    assert said in refused(code, *harden(model, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("model.safetensors", "safetensors"),
        ("config.json", "config.json"),
        ("tokenizer.json", "tokenizer"),
    ],
)
def test_a_damaged_model_is_named_with_the_remedy(file: str, said: str, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    content = (model / file).read_bytes()
    (model / file).write_bytes(content[: len(content) // 2])
    message = refused(1, *harden(model, tmp_path / "out"))
    assert "loading a model" in message
    assert said in message
    assert "fetch it again" in message
    (model / file).write_bytes(content)
    assert call(*harden(model, tmp_path / "out")).exit_code == 0


def bare(folder: Path, *, eos: bool) -> Path:
    """A model whose tokenizer has no padding token, and an end token only if asked."""
    save_tiny(folder)
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    if not eos:
        tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("eos", [True, False])
def test_without_a_padding_token_all_is_as_with_one(
    eos: bool, tiny_folder: Path, tmp_path: Path
) -> None:
    """The template ends answers with a token of its own, so an end token is not missed either."""
    made = []
    for model in (bare(tmp_path / "bare", eos=eos), tiny_folder):
        out = tmp_path / f"from-{model.name}"
        assert call(*harden(model, out)).exit_code == 0
        made.append(AutoModelForCausalLM.from_pretrained(out).state_dict())
    assert all(made[0][name].equal(made[1][name]) for name in made[1])
    assert load(tmp_path / "from-bare").tokenizer.pad_token_id is not None
    AutoTokenizer.from_pretrained(tmp_path / "from-bare")
    asked = [Example(text, harmful=True) for text in ("short", "a longer question")]
    bench = Bench(tmp_path, device="cpu", data={"evaluation": asked})
    tables = [
        Harmfulness(encoder="hash", max_new_tokens=4)(Checkpoint(tmp_path / name, "k"), bench)
        for name in ("from-bare", f"from-{tiny_folder.name}")
    ]
    assert tables[0]["exchanges"] == tables[1]["exchanges"]


def test_an_answer_that_could_never_end_is_refused(tmp_path: Path) -> None:
    model = bare(tmp_path / "bare", eos=False)
    for template in ("plain", "{{ messages[0]['content'] }}"):
        words = ("--set", f"chat.template={json.dumps(template)}")
        message = refused(1, *harden(model, tmp_path / "out", *words))
        assert "set `eos_token` in tokenizer_config.json" in message


# ------------------------------------------------------------------------------------ longer than fits

CONTEXT = 64


def short(folder: Path, architecture: str) -> Path:
    """A model that reads no more than `CONTEXT` tokens: GPT-2 has no position beyond, Llama has."""
    config = tiny_model(architecture).config
    setattr(config, "n_positions" if architecture == "gpt2" else "max_position_embeddings", CONTEXT)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("trainer", ["engine", "trl"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_training_keeps_within_the_context(architecture: str, trainer: str, tmp_path: Path) -> None:
    start = Checkpoint(short(tmp_path / "model", architecture), "start")
    attack = Harmful.model_validate(
        {"name": "harmful", "shots": 2, "trainer": trainer,
         "training": {"learning_rate": 1e-3, "steps": 1, "batch_size": 2, "max_length": 512}}
    )  # fmt: skip

    def attacked(name: str, *rows: Example) -> Checkpoint:
        (tmp_path / name).mkdir()
        return attack(start, Bench(tmp_path / name, device="cpu", data={"attacker": rows}))

    made = attacked("cut", Example("short", "an answer" * 50), Example("short too", "yes"))
    effect = read_json(made.path.parent / "effect.json")
    assert effect["truncated"] == 1
    assert effect["tokens"] == CONTEXT + 4 + len("short tooyes")
    with pytest.raises(DataError, match=rf"has 103 tokens, the limit is {CONTEXT}.*drop the row"):
        attacked("refused", Example("p" * 100, "yes"), Example("short", "yes"))
    assert not (tmp_path / "refused" / "checkpoint").exists()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_measuring_keeps_within_the_context(architecture: str, tmp_path: Path) -> None:
    start = Checkpoint(short(tmp_path / "model", architecture), "start")
    rows = [Example("p" * 100, "t" * 200, harmful=True)]
    bench = Bench(tmp_path, device="cpu", data={"evaluation": rows, "probe": rows})
    with pytest.raises(DataError, match=rf"{rows[0].id} has 103 tokens .* context of {CONTEXT}"):
        Harmfulness(encoder="hash", max_new_tokens=4)(start, bench)
    (loss,) = Perplexity()(start, bench)["losses"]
    assert loss.tokens == CONTEXT


# ------------------------------------------------------------------------------------ data and methods


def test_a_threshold_that_rejects_everything_says_what_it_met(
    tiny_folder: Path, tmp_path: Path
) -> None:
    words = ("--set", "method.pairing.threshold=-0.99")
    message = refused(2, *harden(tiny_folder, tmp_path / "out", *words))
    assert "met the threshold -0.99; the least cosine seen is" in message
    assert "keep_least" in message
    assert not (tmp_path / "out").exists()
    keep = ("--set", "method.pairing.on_exhausted=keep_least")
    assert call(*harden(tiny_folder, tmp_path / "out", *words, *keep)).exit_code == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "mine.jsonl"),
        ('{"prompt": "a"}\n{"prompt', "mine.jsonl"),
        ('{"promt": "a question"}\n', "did you mean 'promt'"),
    ],
    ids=["empty", "cut off", "wrong column"],
)
def test_rows_that_cannot_be_read_are_told_before_anything_is_trained(
    text: str, said: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backfire.engine.loop.train", None)
    (tmp_path / "mine.jsonl").write_text(text)
    words = ("--data", str(tmp_path / "mine.jsonl"))
    assert said in refused(1, *harden(tiny_folder, tmp_path / "out", *words))


def test_a_training_that_diverges_writes_no_model_and_keeps_its_last_state(
    tmp_path: Path,
) -> None:
    """The model overflows by itself: its weights are near fp32's largest number."""
    model = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "model"))
    model.lm_head.weight.data.fill_(3e38)
    model.save_pretrained(tmp_path / "model")
    message = refused(1, *harden(tmp_path / "model", tmp_path / "out"))
    assert "diverged at step 1 of 2: loss" in message
    assert "lower `learning_rate`" in message
    assert not (tmp_path / "out").exists()
    (state,) = (tmp_path / ".out.work" / "stages").glob("method-*/state/step-0/weights.safetensors")
    assert state.stat().st_size > 0


# ------------------------------------------------------------------------------------------ run folders

RUN = """# Does a run survive a full disk?
name: full
model: tiny:llama
data: {counts: {defense: 14, defender_harm: 0, attacker: 14, evaluation: 14, pool: 40, benign: 0, probe: 4}}
defenses:
  - name: sdd
    pairing: {encoder: hash}
    training: {learning_rate: 1e-3, steps: 2, batch_size: 2}
attacks:
  - {name: harmful, shots: 4, training: {learning_rate: 1e-3, epochs: 1}}
evaluations:
  - {name: perplexity}
seeds: [0]
"""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
    ids=["Python", "safetensors"],
)
def test_a_disk_that_fills_up_within_a_checkpoint(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    words = ("run", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run"), *QUIET)
    real, saved = Job._save_model, []

    def fill(self: Job, model: Any, folder: Path) -> None:
        if saved:
            (folder / "model.safetensors").write_bytes(b"half of the")
            raise error
        saved.append(folder)
        real(self, model, folder)

    with monkeypatch.context() as patch:
        patch.setattr(Job, "_save_model", fill)
        message = refused(3, *words)
    assert "the disk is full" in message
    assert "run the command again" in message
    stages = tmp_path / "run" / "stages"
    markers = {path: path.stat().st_mtime_ns for path in stages.glob("*/done.json")}
    assert len({path.parent.name.split("-")[0] for path in markers}) >= 3
    held = [path.parent.parent for path in stages.glob("*/*checkpoint*/*.safetensors")]
    assert held, "the starting model and the first trained one"
    assert all((folder / "done.json").is_file() for folder in held), "no half folder"
    assert not list(stages.rglob(".checkpoint.*"))
    assert call(*words).exit_code == 0
    after = {path: path.stat().st_mtime_ns for path in markers if path.parent.name[:6] != "attack"}
    assert after == {path: markers[path] for path in after}, "nothing was done twice"


def test_harden_says_that_the_disk_is_full_too(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(Job, "_save_model", full)
        assert "the disk is full" in refused(3, *harden(tiny_folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert call(*harden(tiny_folder, tmp_path / "out")).exit_code == 0


def test_ctrl_c_within_a_checkpoint_leaves_none(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Job, model: Any, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half of the")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Job, "_save_model", interrupted)
        result = call(*harden(tiny_folder, tmp_path / "out"))
    assert (result.exit_code, result.stdout) == (130, "")
    assert "goes on where it stopped" in result.stderr
    assert not (tmp_path / "out").exists()
    stage = next((tmp_path / ".out.work" / "stages").glob("method-*"))
    assert not list(stage.rglob("model.safetensors"))
    assert call(*harden(tiny_folder, tmp_path / "out")).exit_code == 0


def test_a_folder_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    run = tmp_path / "run"
    write_json(run / "manifest.json", {"schema_version": 99})
    for words in (
        ("run", str(tmp_path / "run.yaml"), "--out", str(run), *QUIET),
        ("run", str(tmp_path / "run.yaml"), "--out", str(run), "--fresh", *QUIET),
        ("report", str(run)),
        ("compare", str(run), str(run)),
    ):
        message = refused(1, *words)
        assert "version 99" in message
        assert "upgrade backfire" in message
    assert read_json(run / "manifest.json") == {"schema_version": 99}
    assert {path.name for path in run.iterdir()} <= {"manifest.json", ".lock"}


def test_rows_that_belong_together_must_be_as_many(tiny_folder: Path, tmp_path: Path) -> None:
    from backfire.engine import Member, Training
    from backfire.engine.loop import train

    few, more = ([Example(f"question {i}", "answer") for i in range(n)] for n in (2, 3))
    training = Training(learning_rate=1e-3, steps=1, batch_size=2)
    start, bench = Checkpoint(tiny_folder, "k"), Bench(tmp_path, device="cpu")
    with pytest.raises(DataError, match="there are 2, and they belong to the 3 rows 'train'"):
        train(
            start,
            bench,
            training,
            {"train": more, "harm": few},
            Member(name="x"),
            aligned=("harm",),
        )
