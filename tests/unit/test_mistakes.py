"""All mistakes of a file at once, each with its place, what was met and what is allowed."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field

from backfire.errors import ConfigError
from backfire.mistakes import validated
from backfire.runfile import parse
from backfire.stage import Settings


class Training(Settings):
    learning_rate: float = Field(1.0, gt=0)
    steps: int | None = None


class SDD(Settings):
    name: Literal["sdd"] = "sdd"
    training: Training = Training()


class Other(Settings):
    name: Literal["none"] = "none"
    mode: Literal["full", "lora"] = "full"
    shots: int | Literal["all"] = 3


AnyOf = Annotated[SDD | Other, Field(discriminator="name")]


class File(Settings):
    name: str
    model: str
    """Which model to harden."""
    defenses: tuple[AnyOf, ...]
    align: AnyOf | None = None
    extra: dict[str, Training] = Field(default_factory=dict)


def messages(text: str, *known: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validated(File, parse(text), "x.yaml", known)
    head, *lines = str(caught.value).split("\n")
    assert head.startswith("reading x.yaml: ")
    assert head.endswith("one mistake" if len(lines) == 1 else f"{len(lines)} mistakes")
    return [line.strip() for line in lines]


def test_all_mistakes_come_at_once_with_path_line_and_nearest_name() -> None:
    found = messages(
        """name: x
defnses: 3
defenses:
  - name: sd
  - name: sdd
    training: {learning_rate: -1, stepz: 3, learning_rate: -2}
  - name: none
    mode: ful
    lable: y
  - training: 1
  - name: sdd
    training: 5
  - 7
align: {name: nne}
extra:
  foo: {steps: 1.5}
""",
        "--set foo: no value",
    )
    expected = [
        "defenses.1.training.learning_rate (line 6): the key is given twice",
        "--set foo: no value",
        "model: it must be given: Which model to harden",
        "defenses.0 (line 4): unknown defense 'sd'; did you mean 'sdd'? known: none, sdd",
        "defenses.1.training.learning_rate (line 6): it should be greater than 0; met -2",
        "defenses.1.training.stepz (line 6): unknown key 'stepz'; did you mean 'steps'?",
        "defenses.2.mode (line 8): unknown value 'ful'; did you mean 'full'? known: full, lora",
        "defenses.2.lable (line 9): unknown key 'lable'",
        "defenses.3 (line 10): it needs a `name` that says which defense",
        "defenses.4.training (line 12): it should be a mapping of settings; met 5",
        "defenses.5 (line 13): it should be a mapping of settings; met 7",
        "align (line 14): unknown align 'nne'; did you mean 'none'?",
        "extra.foo.steps (line 16): it should be a valid integer",
        "defnses (line 2): unknown key 'defnses'; did you mean 'defenses'?",
    ]
    assert len(found) == len(expected)
    for start in expected:
        assert any(line.startswith(start) for line in found), start


def test_a_file_that_is_no_mapping_says_which_keys_there_are() -> None:
    assert messages("- 1") == [
        "it must be a mapping with the keys name, model, defenses, align, extra; met [1]"
    ]
    assert messages("")[0].endswith("met nothing")


def test_a_name_of_an_arm_that_is_also_a_key_keeps_its_place() -> None:
    # The tag `none` belongs to pydantic's location, not to the file's.
    assert messages("name: a\nmodel: b\ndefenses: []\nalign: {name: none, mod: 1}") == [
        "align.mod (line 4): unknown key 'mod'; did you mean 'mode'? known: mode, name, shots"
    ]


def test_a_known_mistake_alone_is_enough_to_refuse() -> None:
    assert messages("name: a\nmodel: b\ndefenses: []", "--set x: wrong") == ["--set x: wrong"]


def test_a_right_file_gives_the_settings() -> None:
    read = validated(File, parse("name: a\nmodel: b\ndefenses: [{name: sdd}]"), "x.yaml")
    assert read.defenses == (SDD(),)
