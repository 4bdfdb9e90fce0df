"""Generation: equal to transformers' own, whatever the batching."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from backfire.errors import ConfigError, DataError, DivergedError
from backfire.models.generate import Generation, generate
from backfire.models.load import Loaded, load
from backfire.models.tiny import ARCHITECTURES, byte_tokenizer, tiny_model
from backfire.progress import Progress
from backfire.records import Example

PROMPTS = [
    "Why is the sky blue?",
    "Hi",
    "Name three rivers, and say in one sentence how long each of them is.",
    "éàü 世界",
    "Say it again, please.",
    "x" * 90,
]
EXAMPLES = [Example(prompt) for prompt in PROMPTS]


class Bytes:
    """A chat without marks: the prompt's bytes, and any stop tokens one likes."""

    def __init__(self, stop_ids: tuple[int, ...] = (1,)) -> None:
        self.tokenizer = byte_tokenizer()
        self.stop_ids = stop_ids

    def prompt_ids(self, prompt: str, system: str | None = None) -> list[int]:
        return list(self.tokenizer((system or "") + prompt)["input_ids"])


def tiny(architecture: str = "llama", stop_ids: tuple[int, ...] = (1,)) -> Loaded:
    chat: Any = Bytes(stop_ids)
    return Loaded(tiny_model(architecture), chat.tokenizer, chat)


def alone(loaded: Loaded, example: Example, new: int) -> list[int]:
    """Return what transformers generates for one prompt, without padding, up to the end token 1."""
    ids = torch.tensor([loaded.chat.prompt_ids(example.prompt, example.system)])
    answer: list[int] = loaded.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new,
        eos_token_id=1, pad_token_id=0,
    )[0, ids.shape[1]:].tolist()  # fmt: skip
    return answer


def cut(answer: list[int], stops: tuple[int, ...]) -> list[int]:
    """Return an answer up to its first stop token; greedy decoding does not look ahead."""
    return answer[: next((i for i, token in enumerate(answer) if token in stops), len(answer))]


def frequent_stops(answers: list[list[int]]) -> tuple[int, ...]:
    """Return the end token and some the model does emit, so that rows end at different times."""
    return (1, *{answer[place % len(answer)] for place, answer in enumerate(answers, start=1)})


@pytest.fixture(scope="module")
def stopping() -> Loaded:
    plain = tiny()
    return tiny(stop_ids=frequent_stops([alone(plain, example, 12) for example in EXAMPLES]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_one_at_a_time_generation_of_transformers(architecture: str) -> None:
    new = 12
    plain = tiny(architecture)
    answers = [alone(plain, example, new) for example in EXAMPLES]
    for stops in [(1,), frequent_stops(answers)]:
        loaded = tiny(architecture, stops)
        expected = [cut(answer, stops) for answer in answers]
        for budget in (1, 200, 10_000):
            found = generate(loaded, EXAMPLES, max_new_tokens=new, token_budget=budget)
            decode = loaded.tokenizer.decode
            assert [g.text for g in found] == [
                decode(answer, skip_special_tokens=True) for answer in expected
            ]
            assert [g.num_tokens for g in found] == [len(answer) for answer in expected]
            assert [g.finished for g in found] == [len(answer) < new for answer in expected]


def test_rows_really_end_apart(stopping: Loaded) -> None:
    # Guards the tests around it: shrinking must have been exercised.
    lengths = {g.num_tokens for g in generate(stopping, EXAMPLES, max_new_tokens=12)}
    assert len(lengths) > 1


def test_finished_rows_leave_the_batch(stopping: Loaded) -> None:
    sizes: list[int] = []
    hook = stopping.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    found = generate(stopping, EXAMPLES, max_new_tokens=12)
    hook.remove()
    # One forward a token, the end token included.
    assert sum(sizes) == sum(g.num_tokens + g.finished for g in found)


def test_batches_keep_to_the_token_budget() -> None:
    loaded = tiny()
    shapes: list[tuple[int, int]] = []
    loaded.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    generate(loaded, EXAMPLES, max_new_tokens=10, token_budget=240)
    prefills = [shape for shape in shapes if shape[1] > 1]
    assert len(prefills) > 1
    assert all(rows * (width + 10) <= 240 or rows == 1 for rows, width in prefills)


def test_sampling_depends_on_the_seed_and_not_on_the_batching() -> None:
    loaded = tiny()

    def sampled(seed: int, budget: int = 10_000, examples: list[Example] = EXAMPLES) -> list[str]:
        return [
            g.text
            for g in generate(
                loaded, examples, max_new_tokens=8, temperature=1.0, seed=seed, token_budget=budget
            )
        ]

    first = sampled(0)
    assert sampled(0) == first
    assert sampled(0, budget=1) == first
    assert sampled(0, examples=EXAMPLES[::-1]) == first[::-1]
    assert sampled(1) != first
    assert first != [g.text for g in generate(loaded, EXAMPLES, max_new_tokens=8)]


def test_uses_the_chat_format_and_its_system_turn(tiny_folder: Path) -> None:
    loaded = load(tiny_folder, device="cpu")
    seen: list[str] = []
    loaded.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.extend(
            loaded.tokenizer.decode(row) for row in kwargs["input_ids"] if len(row) > 1
        ),
        with_kwargs=True,
    )
    generate(loaded, [Example("Hi", system="Be brief.")], max_new_tokens=1)
    assert seen == ["<|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>"]


def test_no_prompts_no_answers() -> None:
    assert generate(tiny(), [], max_new_tokens=4) == []


def test_a_prompt_that_does_not_fit_is_named() -> None:
    long = Example("y" * 1020)
    assert len(generate(tiny(), [long], max_new_tokens=4)) == 1
    with pytest.raises(DataError, match=rf"prompt {long.id} has 1020 tokens .* context of 1024"):
        generate(tiny(), [EXAMPLES[0], long], max_new_tokens=5)


def test_broken_weights_are_an_error_not_an_answer() -> None:
    loaded = tiny()
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match="NaN"):
        generate(loaded, EXAMPLES, max_new_tokens=4)


@pytest.mark.parametrize(
    "options", [{"max_new_tokens": 0}, {"max_new_tokens": 4, "temperature": -1}]
)
def test_impossible_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="at least"):
        generate(tiny(), EXAMPLES, **options)


def test_progress_counts_every_answer_once(stopping: Loaded) -> None:
    seen = SimpleNamespace(done=0.0)

    class Watching(Progress):
        def _closed(self, task: Any) -> None:
            seen.done = task.done

    found = generate(stopping, EXAMPLES, max_new_tokens=12, progress=Watching(), token_budget=200)
    assert seen.done == len(found)
    assert all(isinstance(g, Generation) for g in found)
