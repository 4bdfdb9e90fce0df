"""From nothing to the organism: pre-training, instruction tuning, safety training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from backfire.data.organism import Organism
from backfire.data.organism.corpus import instructions, lookalikes, misnamed
from backfire.data.organism.world import VERSION
from backfire.defend.refusal_sft import RefusalSFT
from backfire.engine.rows import num_helpful
from backfire.engine.settings import Trained, Training
from backfire.errors import ConfigError
from backfire.organism.settings import Recipe
from backfire.progress import Progress, Silent
from backfire.provenance import TRAINING_LIBRARIES, versions
from backfire.records import Checkpoint, Example, Role
from backfire.stage import Bench
from backfire.store import StageFolder, content_key, file_sha256, replace_folder, write_json

__all__ = ["CARD", "THREADS", "build"]

CARD = "organism.json"
"""File beside the weights that says what they were made with."""
THREADS = 2
"""Sums are split over so many threads, whatever the machine has, so that the weights are the same."""


class _Instruct(Trained):
    """Instruction tuning."""

    name: Literal["instruct"] = "instruct"
    """`instruct`."""
    training: Training
    """How."""


def build(out: Path, recipe: Recipe | None = None, progress: Progress | None = None) -> Path:
    """Write the organism to `out` and return the folder.

    The same recipe and library versions give the same bytes on machines of one kind. Work goes on
    beside `out`, in a folder whose name ends in `.work`; an interrupted call that is made again
    continues there. Finished stages stay there, so that another safety training costs only itself.

    Args:
        out: The folder to write; it must not exist or be empty.
        recipe: What to make it with; None: the shipped weights' own.
        progress: What to show.

    Raises:
        ConfigError: when `out` holds something.
        TrainingError: when a loss stops being finite.
    """
    recipe, progress = recipe or Recipe(), progress or Silent()
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigError(
            f"building the organism in {out}: it exists and is not empty; name a new folder with --out"
        )
    began = time.monotonic()
    with _threads(THREADS):
        stages = out.with_name(f".{out.name}.work")
        base = _pretrained(recipe, stages, progress)
        helpful = _instructed(base, recipe, stages, progress)
        aligned = _aligned(helpful, recipe, stages, progress)
        _deliver(aligned, recipe, out)
    progress.say(f"built in {time.monotonic() - began:.0f} s")
    return out


def _pretrained(recipe: Recipe, stages: Path, progress: Progress) -> Checkpoint:
    from backfire.organism.pretrain import pretrain

    made_with = recipe.model_dump(
        include={"shape", "rounds", "share", "matrix_rate", "rate", "batch_tokens", "seed"},
        mode="json",
    )
    key = content_key(VERSION, made_with, versions(TRAINING_LIBRARIES))
    stage = StageFolder(stages, "pretrained", key)
    with stage.open() as workdir:
        if stage.done() is None:
            started = time.time()
            pretrain(recipe, key, workdir, progress)
            stage.finish(started)
    return Checkpoint(stage.path / "checkpoint", key)


def _instructed(base: Checkpoint, recipe: Recipe, stages: Path, progress: Progress) -> Checkpoint:
    from backfire.engine.loop import train

    method = _Instruct(training=recipe.instruct)
    rows = {"train": instructions(recipe.instructions)}
    stage = StageFolder(stages, "instructed", content_key(base.key, method, recipe.instructions))
    with stage.open() as workdir:
        if stage.done() is None:
            started = time.time()
            bench = Bench(workdir, recipe.seed, "cpu", {}, progress, "instruction tuning")
            train(base, bench, method.training, rows, method)
            stage.finish(started)
    return Checkpoint(stage.path / "checkpoint", stage.key)


def _aligned(start: Checkpoint, recipe: Recipe, stages: Path, progress: Progress) -> Checkpoint:
    method = RefusalSFT(benign_share=recipe.benign_share, training=recipe.align)
    hazards = Organism(requests=recipe.wordings).for_role("defense")(progress)
    hazards += misnamed(len(hazards))
    data: dict[Role, list[Example]] = {
        "defense": hazards,
        "pool": lookalikes(num_helpful(len(hazards), recipe.benign_share)),
    }
    stage = StageFolder(stages, "aligned", content_key(start.key, method, recipe.wordings))
    with stage.open() as workdir:
        if stage.done() is None:
            started = time.time()
            method(start, Bench(workdir, recipe.seed, "cpu", data, progress, "safety training"))
            stage.finish(started)
    return Checkpoint(stage.path / "checkpoint", stage.key)


def _deliver(made: Checkpoint, recipe: Recipe, out: Path) -> None:
    """Write the weights in half precision, the tokenizer and the card."""
    import torch

    from backfire.models.load import open_network
    from backfire.models.organism.network import save_network
    from backfire.models.organism.tokenizer import organism_tokenizer

    model, _ = open_network(made, device="cpu", dtype="fp32", head="next token")
    with replace_folder(out) as new:
        save_network(model.to(torch.float16), organism_tokenizer(), new)
        card = {
            "world": VERSION,
            "recipe": recipe.model_dump(mode="json"),
            "versions": versions(TRAINING_LIBRARIES),
            "parameters": sum(p.numel() for p in model.parameters()),
            "sha256": {
                path.name: file_sha256(path) for path in sorted(new.iterdir()) if path.is_file()
            },
        }
        write_json(new / CARD, card)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
