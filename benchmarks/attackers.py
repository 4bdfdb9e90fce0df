"""What it would bring to train several adapter attackers on one frozen base at once.

    python benchmarks/attackers.py [--quick] [--model FOLDER] [--steps N] [--runs N]

Three attackers with other learning rates train an adapter on the same rows, one after the other, as a run
does it: each loads the base, encodes the rows, trains, writes, and reads its start once more to say what
moved. The clock stands at each of these.

- `shared base`: the most that one load of the base and one encoding of the rows for all would save. Loads
  and encodings after the first count as saved, and every reading of the start; nothing else changes.
- `rows together`: a step of all attackers in one pass, rows of each through an adapter of its own, against
  a step of each. Both sides are the same bare code, adapters as stacked matrices; sides alternate.

`ratio` is the time today over the time then.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

OUT = Path(__file__).parent / "out" / "attackers.json"
RATES = (5e-5, 1e-4, 2e-4)
ROWS, BATCH, RANK = 40, 8, 16


@contextmanager
def clocked(owner: Any, name: str, clock: dict[str, float], key: str) -> Iterator[None]:
    """Add to a clock what a function of a class or module takes."""
    real = getattr(owner, name)

    def timed(*given: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return real(*given, **named)
        finally:
            clock[key] += time.perf_counter() - started

    setattr(owner, name, timed)
    try:
        yield
    finally:
        setattr(owner, name, real)


def rows() -> list[Any]:
    """Return fictional hazards with their answers."""
    from backfire.data import Counts, DataSettings, load_roles
    from backfire.progress import Silent

    counts = dict.fromkeys(Counts.model_fields, 0) | {"attacker": ROWS}
    return list(load_roles(DataSettings(counts=Counts(**counts)), 0, Silent())["attacker"])


def one_after_the_other(model: Path, data: list[Any], steps: int) -> dict[str, float]:
    """Return seconds of three attacks in all, and of what they are made of."""
    from backfire.attack import Harmful
    from backfire.engine import effect
    from backfire.engine.job import Job
    from backfire.engine.loop import _Loop
    from backfire.records import Checkpoint
    from backfire.stage import Bench

    clock: dict[str, float] = defaultdict(float)
    started = time.perf_counter()
    for rate in RATES:
        training = {
            "learning_rate": rate,
            "steps": steps,
            "batch_size": BATCH,
            "lora": {"rank": RANK},
        }
        attack = Harmful.model_validate({"name": "harmful", "shots": ROWS, "training": training})
        with (
            tempfile.TemporaryDirectory() as folder,
            clocked(Job, "load", clock, "load"),
            clocked(Job, "stream", clock, "encode"),
            clocked(_Loop, "_steps", clock, "steps"),
            clocked(effect, "load", clock, "start again"),
        ):
            attack(Checkpoint(model, "base"), Bench(Path(folder), 1, "cpu", {"attacker": data}))
    return {**clock, "all": time.perf_counter() - started}


class Together:
    """Adapters of several attackers on every linear layer of a frozen model, rows of each in turn."""

    def __init__(self, model: PreTrainedModel, attackers: int) -> None:
        """Hang the adapters on the model; `gone` takes them off again."""
        import torch
        from torch import nn

        self.model, self.attackers = model, attackers
        head = model.get_output_embeddings()
        linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
        self.weights: list[torch.Tensor] = []
        self._hooks = []
        for module in linear:
            down = torch.randn(attackers, module.in_features, RANK) * module.in_features**-0.5
            up = torch.zeros(attackers, RANK, module.out_features)
            pair = (down.requires_grad_(), up.requires_grad_())
            self.weights += pair
            self._hooks.append(module.register_forward_hook(self._hook(*pair)))
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-4)

    def _hook(self, down: torch.Tensor, up: torch.Tensor) -> Callable[..., torch.Tensor]:
        def add(module: Any, given: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
            (x,) = given
            parts = x.reshape(self.attackers, -1, x.shape[-1])
            return out + 2 * (parts @ down @ up).reshape(out.shape)

        return add

    def step(self, ids: torch.Tensor) -> None:
        """Make one step of every attacker on token ids (attackers * B, T); losses do not meet."""
        loss = self.model(input_ids=ids, labels=ids, use_cache=False).loss * self.attackers
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def gone(self) -> None:
        """Take the adapters off the model."""
        for hook in self._hooks:
            hook.remove()


def rows_together(model: Path, length: int, repeats: int) -> tuple[list[float], list[float]]:
    """Return seconds of a step of each attacker in turn, and of all at once."""
    import torch

    from backfire.models.load import load

    base = load(model, device="cpu", dtype="fp32").model.requires_grad_(False)
    ids = torch.randint(3, base.config.vocab_size, (BATCH, length))
    apart: list[float] = []
    at_once: list[float] = []
    for _ in range(repeats + 1):
        for attackers, seconds in ((1, apart), (len(RATES), at_once)):
            side = Together(base, attackers)
            started = time.perf_counter()
            for _ in range(len(RATES) // attackers):
                side.step(ids.repeat(attackers, 1))
            seconds.append(time.perf_counter() - started)
            side.gone()
    return apart[1:], at_once[1:]  # the first pays for warming up


def main() -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model, few steps")
    parser.add_argument("--model", type=Path, help="folder; default SmolLM2-135M-Instruct")
    parser.add_argument("--steps", type=int, default=20, help="of each attacker")
    parser.add_argument("--runs", type=int, default=5, help="of each side, rows together")
    options = parser.parse_args()
    from backfire.assets import resolve_model
    from backfire.models.load import load
    from backfire.progress import Silent

    with tempfile.TemporaryDirectory() as folder:
        if options.quick:
            from backfire.models.tiny import save_tiny

            model = save_tiny(Path(folder) / "tiny")
        else:
            model = options.model or resolve_model("smollm2-135m-instruct", Silent())
        data = rows()
        chat = load(model, device="cpu").chat
        length = round(statistics.mean(len(chat.encode(row, 4096).ids) for row in data))
        found = one_after_the_other(model, data, 2 if options.quick else options.steps)
        apart, at_once = rows_together(model, length, 1 if options.quick else options.runs)
    others = (len(RATES) - 1) / len(RATES)
    saved = others * (found["load"] + found["encode"]) + found["start again"]
    then = found["all"] - saved
    parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in found.items() if name != "all")
    table = [
        {
            "name": "shared base", "today": round(found["all"], 2),
            "then": round(then, 2), "ratio": round(found["all"] / then, 3),
            "unit": f"s for three attackers, {options.steps} steps each", "n": 1, "note": f"of it {parts}",
        },
        {
            "name": "rows together", "today": round(statistics.median(apart), 3),
            "then": round(statistics.median(at_once), 3),
            "ratio": round(statistics.median(apart) / statistics.median(at_once), 3),
            "unit": "s a step of three attackers", "n": len(apart),
            "note": f"{BATCH} rows of {length} tokens each, rank {RANK}",
        },
    ]  # fmt: skip
    for row in table:
        print("{name:14} {today:8} {then:8} {ratio:6}  {unit}; {note}".format(**row))
    if not options.quick:
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
