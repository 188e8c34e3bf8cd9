"""Copies of bundles, changed for a test."""

from pathlib import Path

import msgspec

from headwater.encoder.bundle import Manifest


def rewritten(bundle: Path, **changes: object) -> None:
    manifest = msgspec.json.decode((bundle / "bundle.json").read_bytes(), type=Manifest)
    (bundle / "bundle.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(manifest, **changes)))
