#!/bin/sh
# Resolves the locks in deploy/requirements/ from pyproject.toml, for all systems and Pythons that it names.
# Further arguments go to uv: `deploy/lock.sh --upgrade`, `deploy/lock.sh --upgrade-package polars`.
#
# dev.txt holds everything and the others are cut from the same versions, so what is tested is what is deployed.
set -eu
cd "$(dirname "$0")/.."
locks=deploy/requirements

resolve() { # no address of anybody's index goes into a lock
    output=$locks/$1.txt
    shift
    uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --no-annotate \
        --python-version 3.11 --output-file "$output" "$@"
}

requirements() { # of one key of pyproject.toml, without the project's base
    python3 -c 'import sys, tomllib
for key in sys.argv[1:]:
    value = value[key] if key != sys.argv[1] else tomllib.load(open("pyproject.toml", "rb"))[key]
print("\n".join(value))' "$@"
}

resolve dev pyproject.toml --extra cpu --extra demo --extra mcp --extra train --extra export --extra test --extra check "$@"
# What a web service installs: the client alone.
resolve client pyproject.toml --constraints $locks/dev.txt "$@"
resolve cpu pyproject.toml --extra cpu --constraints $locks/dev.txt "$@"
resolve gpu pyproject.toml --extra gpu --constraints $locks/dev.txt "$@"
# Added to cpu.txt or gpu.txt.
requirements project optional-dependencies broker | resolve broker - --constraints $locks/dev.txt "$@"
requirements project optional-dependencies demo | resolve demo - --constraints $locks/dev.txt "$@"
requirements project optional-dependencies mcp | resolve mcp - --constraints $locks/dev.txt "$@"
requirements build-system requires | resolve build - --constraints $locks/dev.txt "$@"
# uv itself, for machines without it. Its own version is the one that resolved the rest.
uv --version | sed -E 's/^uv ([0-9.]+).*/uv==\1/' | resolve uv - --no-config "$@"
