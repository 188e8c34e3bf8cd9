"""Encoders and their bundles."""
