"""An experiment as one frozen object: read from one YAML file, changed by `--set`, named by a digest.

>>> experiment = load(Path("experiments/demo.yaml"), ["seeds=[0]"])          # doctest: +SKIP
>>> experiment.digest                                                        # doctest: +SKIP
'3f0c1c2a9d4e5b67'

No includes, no interpolation, no inheritance: a file says everything it changes, and whoever wants
to compute an experiment writes a function that returns an `Experiment`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from backfire.attack import AnyAttack
from backfire.attack.courses import Course, courses
from backfire.attack.search import Search
from backfire.data import DataSettings
from backfire.data.chat import ChatFormat
from backfire.defend import AnyDefense
from backfire.errors import ConfigError
from backfire.evaluate import AnyEvaluation
from backfire.evaluate.verdict import VerdictSettings
from backfire.mistakes import validated
from backfire.records import Cell
from backfire.runfile import Parsed, dump, override, parse
from backfire.stage import Settings
from backfire.store import content_key

__all__ = [
    "ALIGN",
    "CONTROL",
    "Confirm",
    "Experiment",
    "from_text",
    "load",
    "resolved_yaml",
    "shipped",
]

CONTROL = "none"
"""Name and label of the defense and the attack that do nothing."""

ALIGN = "align"
"""Label in the tables of the safety training that makes the undefended model."""


class Confirm(Settings):
    """Score the worst attack on each defense once more, on seeds and prompts nothing was picked by.

    The worst of several attacks looks worse than it is on the prompts and seeds it was picked by. Here
    the defense and that attack are trained again with other seeds, and answer hazards kept back until
    then; the undefended model under the same attack, too. Both results are reported.
    """

    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (100, 101, 102)
    """Seeds of the second round; none of them may be among the run's own. Ours: three."""
    prompts: int = Field(40, ge=1)
    """Rows of role `evaluation`, its last, that are asked in the second round only. Ours."""


class Experiment(Settings):
    """One question: a model, its defenses, the attacks on each, and what is measured of the result.

    The grid is defenses x attacks x seeds, each point of an attack being an attack of its own. The
    undefended model and the unattacked state belong to every grid, listed or not: without them there is
    no verdict.
    """

    later: ClassVar[frozenset[str]] = frozenset({"search"})
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=60)]
    """Short name: lower-case letters, digits, dot, dash, underscore. Run folders begin with it."""
    question: str = ""
    """What the experiment is to find out. Empty takes the file's first comment line."""
    model: Annotated[str, Field(min_length=1)]
    """A local folder, an asset name (`backfire list assets`), a hub id, or `tiny:<architecture>`
    for a small random model."""
    chat: ChatFormat = ChatFormat()
    """How conversations become text, in training, attack and evaluation alike."""
    data: DataSettings = DataSettings()
    """Where the rows of each role come from."""
    align: AnyDefense | None = None
    """Safety training that makes the undefended model, for models that hardly refuse. None: the
    model as it comes is the undefended one."""
    defenses: tuple[AnyDefense, ...] = ()
    """What is compared with the undefended model."""
    attacks: tuple[AnyAttack, ...] = ()
    """What an attacker tries on every defense."""
    evaluations: Annotated[tuple[AnyEvaluation, ...], Field(min_length=1)]
    """What is measured of every model."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2, 3, 4)
    """Repetitions of every defense and attack. Ours: five, since three are the least that show a
    spread. Data splits, the aligned model and the evaluated prompts are the same in all."""
    verdict: VerdictSettings = VerdictSettings()
    """When an attack counts as having worked."""
    confirm: Confirm | None = None
    """A second round for the worst attack on each defense. None: the worst attack is reported as it was
    found, and a note says so."""
    search: Search | None = None
    """An attacker who tunes the settings of one attack (`backfire search`); needs `confirm`. None: no
    search."""
    trust_remote_code: bool = False
    """Run code that comes with the model, where its architecture needs it. Ours: no."""
    keep_attacked: bool = False
    """Keep attacked weights after they were evaluated. Ours: no, they are the dangerous part."""

    @field_validator("defenses", "attacks")
    @classmethod
    def _labels_are_unique(cls, members: tuple[Any, ...]) -> tuple[Any, ...]:
        first: dict[str, int] = {}
        clashes = []
        for index, member in enumerate(members):
            for course in courses(member):
                if course.label in first:
                    clashes.append(
                        f"entries {first[course.label]} and {index} have the same label "
                        f"{course.label!r}; give one a `label` of its own"
                    )
                first.setdefault(course.label, index)
        if clashes:
            raise ValueError("; ".join(clashes))
        return members

    @field_validator("evaluations")
    @classmethod
    def _evaluations_are_unique(cls, members: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [member.name for member in members]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"given more than once: {', '.join(twice)}; merge their settings")
        return members

    @field_validator("seeds")
    @classmethod
    def _seeds_are_unique(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"a seed is repeated in {list(seeds)}; repeating it adds no evidence")
        return seeds

    @model_validator(mode="after")
    def _control_names_are_taken(self) -> Self:
        for kind, members in (("defenses", self.defenses), ("attacks", self.attacks)):
            for index, member in enumerate(members):
                reserved = member.label in (CONTROL, ALIGN)
                if reserved != (member.name == CONTROL) or member.label == ALIGN:
                    raise ValueError(
                        f"{kind}.{index}: the labels {CONTROL!r} and {ALIGN!r} belong to the control and "
                        f"to the aligned model; met label {member.label!r} on {member.name!r}"
                    )
        return self

    @model_validator(mode="after")
    def _confirming_seeds_are_fresh(self) -> Self:
        used = sorted(set(self.confirm.seeds) & set(self.seeds)) if self.confirm else []
        if used:
            raise ValueError(
                f"confirm.seeds: {', '.join(map(str, used))} are among the run's own seeds, so they would "
                "confirm nothing; give others"
            )
        return self

    @model_validator(mode="after")
    def _what_a_search_finds_is_confirmed(self) -> Self:
        if self.search is not None and self.confirm is None:
            raise ValueError(
                "search: the best of many noisy trials looks better than it is, so a search needs a second "
                "round on fresh seeds and prompts; add `confirm: {}`"
            )
        return self

    @property
    def digest(self) -> str:
        """Return 16 hex digits of all that can change a number; the order of keys does not matter."""
        return content_key(self.model_copy(update={"question": "", "keep_attacked": False}))

    @property
    def active_defenses(self) -> tuple[AnyDefense, ...]:
        """Return the defenses that do something."""
        return tuple(member for member in self.defenses if member.name != CONTROL)

    @property
    def active_attacks(self) -> tuple[AnyAttack, ...]:
        """Return the attacks that do something."""
        return tuple(member for member in self.attacks if member.name != CONTROL)

    @property
    def attack_courses(self) -> tuple[Course, ...]:
        """Return what the attacks come to: each is a column of the grid."""
        return tuple(course for attack in self.active_attacks for course in courses(attack))

    def confirming(self, defense: str, attack: str) -> Experiment:
        """Return the second round for one defense: it, one attack, fresh seeds.

        Args:
            defense: Label of the defense.
            attack: Label of the attack, or of the point of one, that was worst.

        Raises:
            ValueError: when the experiment has no second round.
        """
        if self.confirm is None:
            raise ValueError("the experiment has no second round")
        return self.model_copy(
            update={
                "defenses": tuple(d for d in self.active_defenses if d.label == defense),
                "attacks": tuple(c.member for c in self.attack_courses if c.label == attack),
                "seeds": self.confirm.seeds,
            }
        )

    @property
    def cells(self) -> list[Cell]:
        """Return the whole grid, controls first, one seed after another."""
        defenses = [CONTROL, *(member.label for member in self.active_defenses)]
        attacks = [CONTROL, *(course.label for course in self.attack_courses)]
        return [Cell(d, a, seed) for seed in self.seeds for d in defenses for a in attacks]


def load(path: Path, assignments: Sequence[str] = ()) -> Experiment:
    """Return the experiment a run file describes.

    Args:
        path: A YAML file.
        assignments: `key.path=value` texts, applied in order before anything is checked.

    Raises:
        ConfigError: naming every mistake of the file and of the assignments.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"reading the run file {path}: {getattr(error, 'strerror', None) or error}; give a YAML "
            "file such as those in experiments/"
        ) from error
    return from_text(text, str(path), assignments)


def from_text(text: str, name: str, assignments: Sequence[str] = ()) -> Experiment:
    """Return the experiment that YAML text describes; see `load`."""
    parsed = parse(text, name)
    first = text.lstrip().split("\n", 1)[0]
    tree, mistakes = override(parsed.tree, assignments)
    if isinstance(tree, dict) and first.startswith("#"):
        tree.setdefault("question", first.lstrip("# ").strip())
    return validated(Experiment, Parsed(tree, parsed.lines, parsed.mistakes), name, mistakes)


def shipped(name: str, assignments: Sequence[str] = ()) -> Experiment:
    """Return an experiment that comes with the package: `demo` or `audit`."""
    text = (Path(__file__).parent / f"{name}.yaml").read_text(encoding="utf-8")
    return from_text(text, f"{name}.yaml", assignments)


def resolved_yaml(experiment: Experiment) -> str:
    """Return a run file with every default written out, which runs this experiment again."""
    tree = experiment.model_dump(mode="json")
    for kind in ("defenses", "attacks"):
        for member, written in zip(getattr(experiment, kind), tree[kind], strict=True):
            _drop_derived_label(member, written)
    if experiment.align is not None:
        _drop_derived_label(experiment.align, tree["align"])
    if experiment.search is not None:
        _drop_derived_label(experiment.search.attack, tree["search"]["attack"])
    return dump(tree, comment=experiment.question)


def _drop_derived_label(member: Any, written: dict[str, Any]) -> None:
    """Leave out a label that follows from the settings, so that it follows `--set`, too."""
    if member.label == member.default_label():
        del written["label"]
    for part, inner in zip(getattr(member, "parts", ()), written.get("parts", ()), strict=True):
        _drop_derived_label(part, inner)
