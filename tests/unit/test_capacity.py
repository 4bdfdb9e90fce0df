"""Which weights a training moves, with which optimizer; and that the effect report says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from backfire.attack import Harmful
from backfire.engine.anatomy import movable, scope_words
from backfire.engine.settings import Training
from backfire.errors import ConfigError
from backfire.models.load import load
from backfire.models.tiny import ARCHITECTURES, tiny_model
from backfire.records import Checkpoint
from backfire.store import content_key, read_json
from small_methods import bench, build

ONE = {"learning_rate": 1e-2, "steps": 1}


def names(architecture: str, **scope: Any) -> set[str]:
    model = tiny_model(architecture, layers=3)
    return set(movable(model, Training(**ONE, **scope)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architectures_weights_fall_into_the_scopes(architecture: str) -> None:
    model = tiny_model(architecture, layers=3)
    everything = {name for name, _ in model.named_parameters()}
    attention, mlp = (names(architecture, trainable=part) for part in ("attention", "mlp"))
    rest = names(architecture, trainable="no-embeddings")
    last = names(architecture, last_layers=1)
    assert names(architecture) == everything
    assert attention
    assert mlp
    assert not attention & mlp
    norms = {n for n in rest if "norm" in n.lower() or "ln_" in n}
    heads = {n for n in rest if n in ("lm_head.weight", "lm_head.bias", "embed_out.weight")}
    assert rest == attention | mlp | norms | heads
    shape = model.get_input_embeddings().weight.shape
    assert all(dict(model.named_parameters())[n].shape != shape for n in rest - heads)
    assert last == {n for n in everything if ".2." in n}
    assert names(architecture, trainable="mlp", last_layers=2) == {
        n for n in mlp if ".1." in n or ".2." in n
    }
    assert sum(
        dict(model.named_parameters())[n].numel() for n in attention | mlp | norms | heads
    ) + sum(p.numel() for n, p in model.named_parameters() if n not in rest) == sum(
        p.numel() for p in model.parameters()
    )


def test_a_llamas_parts_by_name() -> None:
    heads = {f"model.layers.2.self_attn.{p}_proj.weight" for p in "qkvo"}
    assert names("llama", trainable="attention", last_layers=1) == heads


def test_a_head_that_shares_the_embeddings_rests_with_them() -> None:
    assert "transformer.wte.weight" in names("gpt2")
    rest = names("gpt2", trainable="no-embeddings")
    assert not any(part in name for name in rest for part in ("wte", "wpe", "lm_head"))


def moved(start: Checkpoint, made: Checkpoint) -> set[str]:
    old = dict(load(start).model.named_parameters())
    new = dict(load(made).model.named_parameters())
    return {name for name in old if not torch.equal(old[name], new[name])}


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "lora"])
@pytest.mark.parametrize(
    "scope",
    [{"trainable": "attention"}, {"trainable": "mlp", "last_layers": 1}],
    ids=["attention", "mlp-last-1"],
)
def test_exactly_the_scope_moves_and_the_effect_says_so(
    scope: dict[str, Any], lora: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    start = Checkpoint(tiny_folder, "k")
    made = build(Harmful, training={"steps": 2, "lora": lora, **scope})(
        start, bench(tmp_path / "a")
    )
    model = load(start).model
    wanted = set(movable(model, Training(**ONE, **scope)))
    assert moved(start, made) == wanted
    effect = read_json(tmp_path / "a" / "effect.json")
    part = ", ".join(["attention"] if "last_layers" not in scope else ["mlp", "last 1 layers"])
    assert effect["parameters"] == f"{'lora' if lora else 'full'}, {part}"
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    share = sum(sizes[name] for name in wanted) / sum(sizes.values())
    assert effect["share_movable"] == pytest.approx(share)
    assert effect["warning"] == "", "a small scope is no lost update"
    assert effect["share_changed"] <= share


def test_frozen_embeddings_do_not_move(tiny_folder: Path, tmp_path: Path) -> None:
    start = Checkpoint(tiny_folder, "k")
    attack = build(Harmful, training={"steps": 2, "trainable": "no-embeddings"})
    everything = {name for name, _ in load(start).model.named_parameters()}
    assert moved(start, attack(start, bench(tmp_path / "a"))) == everything - {
        "model.embed_tokens.weight"
    }


def test_more_layers_than_there_are_and_no_such_module_are_refused(
    tiny_folder: Path, tmp_path: Path
) -> None:
    start = Checkpoint(tiny_folder, "k")
    with pytest.raises(ConfigError, match=r"`last_layers` is 9, and the model has 2 layers"):
        build(Harmful, training={"last_layers": 9})(start, bench(tmp_path / "a"))
    lora = {"rank": 2, "targets": ["q_proj"]}
    with pytest.raises(ConfigError, match=r"called .*down_proj.*q_proj"):
        build(Harmful, training={"lora": lora, "trainable": "mlp"})(start, bench(tmp_path / "b"))


def test_the_words_for_a_scope() -> None:
    assert scope_words(Training(**ONE)) == "full"
    some = Training(**ONE, lora={"rank": 4}, trainable="attention", last_layers=2)
    assert scope_words(some) == "lora, attention, last 2 layers"


def test_scope_and_momentum_at_their_defaults_leave_content_keys_alone() -> None:
    plain = Training(**ONE)
    assert content_key(plain) == content_key(Training(**ONE, trainable="all", momentum=0))
    assert content_key(plain) != content_key(Training(**ONE, trainable="mlp"))
    assert content_key(plain) != content_key(Training(**ONE, momentum=0.5))


AXES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "learning_rate": 0.1},
    "momentum": {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9},
    "adafactor": {"optimizer": "adafactor"},
    "cosine": {"schedule": "cosine"},
    "linear": {"schedule": "linear"},
    "epoch-decay": {"schedule": "epoch-decay", "epoch_decay": 0.5, "batch_size": 5},
    "warm-up": {"warmup": 1.0},
    "clipping": {"clip_norm": 1e-3},
    "order": {"shuffle": False, "batch_size": 2},
    "betas": {"betas": (0.5, 0.9)},
    "decay": {"weight_decay": 0.9},
    "max_length": {"max_length": 40},
}
"""What of `training` changes the weights beside rate, length and batch; each alone."""


@pytest.fixture(scope="module")
def plain_run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return weights of plain trainings by batch size."""
    root = tmp_path_factory.mktemp("plain")
    start = Checkpoint(tiny_folder, "k")
    base = {"schedule": "constant", "clip_norm": 1.0, "drop_last": False}
    return {
        str(size): dict(
            load(
                build(Harmful, shots=10, training={**base, "batch_size": size})(
                    start, bench(root / str(size))
                )
            ).model.named_parameters()
        )
        for size in (2, 4, 5)
    }


@pytest.mark.parametrize("axis", AXES)
def test_each_axis_changes_the_weights(
    axis: str, plain_run: dict[str, Any], tiny_folder: Path, tmp_path: Path
) -> None:
    settings = {"schedule": "constant", "clip_norm": 1.0, "drop_last": False, **AXES[axis]}
    attack = build(Harmful, shots=10, training=settings)
    made = attack(Checkpoint(tiny_folder, "k"), bench(tmp_path / "a"))
    plain = plain_run[str(settings.get("batch_size", 4))]
    ours = dict(load(made).model.named_parameters())
    assert any(not torch.equal(plain[name], ours[name]) for name in plain)
    assert read_json(tmp_path / "a" / "effect.json")["share_changed"] > 0.01


def test_momentum_and_adafactor_are_torchs(tiny_folder: Path, tmp_path: Path) -> None:
    """Three steps by hand on the same batches: every row in each, in order."""
    start = Checkpoint(tiny_folder, "k")
    for name, make in {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
    }.items():
        training = {
            "optimizer": name, "momentum": 0.9, "learning_rate": 0.1, "clip_norm": None, "batch_size": 5,
            "shuffle": False, "schedule": "constant",
        }  # fmt: skip
        place = bench(tmp_path / name)
        made = build(Harmful, training=training)(start, place)
        loaded = load(start)
        model = loaded.model.requires_grad_(True)
        rows = [loaded.chat.encode(row, 256) for row in place.data["attacker"][:5]]
        optimizer = make(model.parameters())
        for _ in range(3):
            total, count = torch.zeros(()), 0
            for row in rows:
                logs = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
                total = total - sum(logs[i - 1, row.ids[i]] for i in row.supervised)
                count += len(row.supervised)
            optimizer.zero_grad()
            (total / count).backward()
            optimizer.step()
        ours = dict(load(made).model.named_parameters())
        for key, theirs in model.named_parameters():
            torch.testing.assert_close(ours[key], theirs.detach(), atol=2e-5, rtol=1e-3)
