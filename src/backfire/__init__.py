"""Harden open-weight language models against malicious fine-tuning, and measure whether it works."""

__version__ = "0.1.0"
