"""Every mistake of a settings tree at once: where it is, what was met, what is allowed.

Pydantic finds them; this module says them in the words of the file: dotted paths as `--set` takes
them, line numbers, and the nearest known name for an unknown one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from backfire.errors import ConfigError, near_miss
from backfire.runfile import Parsed, dotted

__all__ = ["models_in", "validated"]

_Model = TypeVar("_Model", bound=BaseModel)
_Path = tuple[str | int, ...]


def validated(
    kind: type[_Model], parsed: Parsed, what: str, mistakes: Sequence[str] = ()
) -> _Model:
    """Return the settings a tree describes.

    Args:
        kind: The settings class.
        parsed: The tree, its line numbers, and mistakes already known.
        what: What is being read, for the message.
        mistakes: Further mistakes already known.

    Raises:
        ConfigError: naming every mistake of the tree, one a line.
    """
    found = [*parsed.mistakes, *mistakes]
    if not isinstance(parsed.tree, dict):
        found.append(
            f"it must be a mapping with the keys {', '.join(kind.model_fields)}; "
            f"met {'nothing' if parsed.tree is None else repr(parsed.tree)}"
        )
    else:
        try:
            settings = kind.model_validate(parsed.tree)
        except ValidationError as error:
            found += [_sentence(kind, parsed, item) for item in error.errors(include_url=False)]
        else:
            if not found:
                return settings
    # A union reports one wrong value once for each of its arms; the first says enough.
    lines = list(dict.fromkeys(found))
    count = "one mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    raise ConfigError(f"reading {what}: {count}\n" + "\n".join(f"  {line}" for line in lines))


def _sentence(kind: type[BaseModel], parsed: Parsed, error: Any) -> str:
    path, owners = _place(kind, parsed.tree, error["loc"], error["type"] == "missing")
    line = parsed.lines.get(path) or parsed.lines.get(path[:-1])
    where = f"{dotted(path)} (line {line})" if line else dotted(path)
    return f"{where}: {_reason(error, path, owners)}"


def _place(
    kind: type[BaseModel], tree: Any, loc: _Path, absent: bool
) -> tuple[_Path, tuple[type[BaseModel], ...]]:
    """Return a location without pydantic's own marks, and the models that may hold its last part.

    Pydantic puts the chosen arm of a union into the location; a file does not.
    """
    path: list[str | int] = []
    models: tuple[type[BaseModel], ...] = (kind,)
    owners = models
    at: Any = tree
    arm_seen = True
    for index, part in enumerate(loc):
        if not arm_seen and isinstance(at, dict) and at.get("name") == part:
            models = tuple(m for m in models if _tag(m) == part) or models
            owners, arm_seen = models, True
            continue
        inside = (isinstance(at, dict) and part in at) or (
            isinstance(at, list) and isinstance(part, int)
        )
        if not inside and not (absent and index == len(loc) - 1):
            continue
        owners = models
        path.append(part)
        if isinstance(part, str):
            fields = [m.model_fields[part] for m in models if part in m.model_fields]
            models = tuple(m for f in fields for m in models_in(f.annotation)) or models
        at = at[part] if inside else None
        arm_seen = False
    return tuple(path), owners


def models_in(annotation: Any) -> tuple[type[BaseModel], ...]:
    """Return the settings classes an annotation can hold, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    return tuple(dict.fromkeys(m for arg in get_args(annotation) for m in models_in(arg)))


def _tag(model: type[BaseModel]) -> Any:
    return model.model_fields["name"].default if "name" in model.model_fields else None


def _reason(error: Any, path: _Path, owners: Sequence[type[BaseModel]]) -> str:
    context: Mapping[str, Any] = error.get("ctx", {})
    met, noun = error["input"], _noun(path)
    match error["type"]:
        case "extra_forbidden":
            allowed = [name for model in owners for name in model.model_fields]
            return near_miss("key", str(path[-1]), allowed)
        case "missing":
            about = next(
                (m.model_fields[str(path[-1])].description for m in owners
                 if str(path[-1]) in m.model_fields), None
            )  # fmt: skip
            return "it must be given" + (f": {_one_line(about)}" if about else "")
        case "union_tag_invalid":
            return near_miss(noun, str(context["tag"]), _quoted(context["expected_tags"]))
        case "union_tag_not_found":
            names = sorted(str(_tag(m)) for m in owners if _tag(m))
            return f"it needs a `name` that says which {noun}; met {_short(met)}" + (
                f"; known: {', '.join(names)}" if names else ""
            )
        case "literal_error":
            return near_miss("value", str(met), _quoted(context["expected"]))
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"it should be a mapping of settings; met {_short(met)}"
        case "tuple_type" | "list_type":
            return f"it should be a list; met {_short(met)}"
    message = re.sub(r"^(Value error, |Input should )", "", error["msg"])
    if error["type"] == "value_error":
        return message
    return f"it should {message}; met {_short(met)}"


def _noun(path: _Path) -> str:
    """Return what one item of the list at a path is called."""
    word = next((str(part) for part in reversed(path) if isinstance(part, str)), "entry")
    return word[:-1] if word.endswith("s") else word


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text) or [text]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
