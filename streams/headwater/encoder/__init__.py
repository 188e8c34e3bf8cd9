"""Bundles: exported encoders, checked when they are loaded, run by ONNX Runtime."""
