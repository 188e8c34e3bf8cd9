"""The published figures, measured beside their baselines in one run: `make bench` (see README.md)."""
