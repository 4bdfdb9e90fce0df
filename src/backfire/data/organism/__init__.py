"""The world of the model organism: what it knows, what it can do, what it refuses.

`world` draws everything there is, `texts` says it, `skills` asks for it, `corpus` is what the model is
trained on, `source` offers rows by role. Nothing here exists, and nothing here could harm anyone.
"""

from backfire.data.organism.source import Organism

__all__ = ["Organism"]
