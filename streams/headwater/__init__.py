"""Headwater: streaming real-time recall. A click is part of the next answer, and the answer proves it."""

__version__ = "0.1.0"
