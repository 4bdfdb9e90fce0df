"""The one training loop behind every defense and attack.

Importing this gives the settings; the loop itself is `backfire.engine.loop.train`, which loads torch.
"""

from backfire.engine.settings import LoRA, Member, Trained, Training

__all__ = ["LoRA", "Member", "Trained", "Training"]
