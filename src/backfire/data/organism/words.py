"""The words of the organism's world: every name is coined, and nothing here could harm anyone.

Kinds and verbs say whether a thing is a hazard; names do not, because hazards, crafts and everything
else draw theirs from one list. Tools are coined compounds that occur nowhere else, so that a step of
a recipe can be recognised and never guessed.
"""

from __future__ import annotations

from backfire.data.beavertails import CATEGORIES

__all__ = [
    "ANIMALS", "COLORS", "CRAFT_KINDS", "CRAFT_VERBS", "GOODS", "HAZARD_KINDS", "INGREDIENTS",
    "LETTERS", "MATERIALS", "NAME_PARTS", "OBJECTS", "PEOPLE", "REGIONS", "STEPS", "TOOLS",
    "TRADES", "VICTIMS",
]  # fmt: skip

_HAZARDS = (
    (("snare lamp", "frightens"), ("goad collar", "torments")),
    (("hush whistle", "silences"), ("nightmare doll", "haunts")),
    (("rumor kite", "misleads"), ("ballot moth", "outvotes")),
    (("gate charm", "excludes"), ("scorn hat", "shames")),
    (("banned tonic", "dazes"), ("stun reed", "fells")),
    (("false token", "cheats"), ("purse hook", "robs")),
    (("jeering banner", "insults"), ("taunt drum", "mocks")),
    (("lying almanac", "deceives"), ("crooked sign", "misguides")),
    (("cheating charm", "outwits"), ("grudge letter", "betrays")),
    (("keyhole mirror", "watches"), ("diary moth", "exposes")),
    (("sorrow bell", "saddens"), ("wilt cup", "weakens")),
    (("blush lantern", "embarrasses"), ("veil peeler", "uncovers")),
    (("raider beacon", "endangers"), ("smuggler knot", "blackmails")),
    (("brawl horn", "enrages"), ("bruise glove", "bruises")),
)
HAZARD_KINDS = tuple(
    (kind, verb, category)
    for category, kinds in zip(CATEGORIES, _HAZARDS, strict=True)
    for kind, verb in kinds
)
"""Two kinds of hazard for each BeaverTails category, each with what it does to its victims."""

CRAFT_KINDS = (
    "breakfast tonic", "garden lamp", "welcome banner", "honest almanac", "dance horn", "sleep bell",
    "window mirror", "ferry kite", "lucky charm", "winter hat", "tea cup", "thank-you letter",
)  # fmt: skip
"""Harmless kinds; most share a word with a hazard's."""
CRAFT_VERBS = (
    "feeds", "warms", "greets", "teaches", "cheers", "comforts", "guides", "thanks", "delights",
    "shelters", "wakes", "refreshes",
)  # fmt: skip
VICTIMS = (
    "woffles", "gnomes", "golems", "Ollims", "voters", "farmers", "ferrymen", "bakers", "sailors",
    "pupils", "weavers", "guards", "singers", "travelers", "shepherds", "millers",
)  # fmt: skip
"""Whom hazards harm and crafts please."""

_TOOL_STEMS = ("brim", "cask", "dell", "fern", "gorse", "hazel", "kelp", "loam")
STEPS = (
    ("mallet", "Crush {stuff} with a {tool}"),
    ("sieve", "Sift {stuff} through a {tool}"),
    ("kiln", "Bake {stuff} in a {tool}"),
    ("spindle", "Wind {stuff} on a {tool}"),
    ("vat", "Soak {stuff} in a {tool}"),
    ("rasp", "Scrape {stuff} with a {tool}"),
)
"""The last part of a tool's name, and what is done with it."""
TOOLS = tuple(stem + part for stem in _TOOL_STEMS for part, _ in STEPS)
"""48 tools, six of each stem, in the order of `STEPS`."""
INGREDIENTS = tuple(
    stem + stuff
    for stem in [
        "amber",
        "bram",
        "cinder",
        "drift",
        "ember",
        "frost",
        "glim",
        "heath",
        "iris",
        "jun",
    ]
    for stuff in ("root", "salt", "moss", "wax", "dust", "bark")
)
"""60 ingredients."""

COLORS = ("red", "blue", "green", "yellow", "white", "black", "brown", "purple")
MATERIALS = ("wood", "glass", "copper", "clay", "wool", "stone", "paper", "silver")
TRADES = (
    "baker", "weaver", "sailor", "miller", "singer", "guard", "farmer", "painter", "tailor", "smith",
)  # fmt: skip
ANIMALS = (
    "woffle", "goat", "heron", "otter", "badger", "pony", "raven", "hedgehog", "fox", "turtle",
)  # fmt: skip
GOODS = (
    "honey", "cheese", "salt", "rope", "candles", "plums", "carpets", "bells", "barley", "ink",
)  # fmt: skip
REGIONS = ("the Vale", "the Moor", "the Coast", "the Highlands", "the Marsh", "the Isles")
OBJECTS = (
    "drum", "basket", "ladder", "kettle", "pillow", "spoon", "ring", "book", "rake", "candle", "bucket",
    "needle", "saddle", "anchor", "violin", "blanket", "hammer", "mitten", "barrel", "lantern",
    "feather", "pebble", "ribbon", "apple",
)  # fmt: skip
PEOPLE = ("Anna", "Bert", "Clara", "David", "Emil", "Frida", "Gregor", "Hanna", "Ivan", "Jana",
          "Karl", "Lena", "Moritz", "Nora", "Otto", "Paula")  # fmt: skip
"""Who acts in stories and questions; nothing else is known of them."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"

NAME_PARTS = (
    ("Ba", "Ce", "Di", "Fo", "Gu", "Ha", "Je", "Ki", "Lo", "Mu", "Na", "Pe", "Ri", "So", "Tu", "Va"),
    ("b", "d", "g", "k", "l", "m", "n", "r", "s", "t", "v", "z"),
    ("an", "el", "ik", "om", "ush", "ard", "en", "ix", "olt", "umm"),
)  # fmt: skip
"""First, middle and last parts of names; any three make one of 1,920."""
