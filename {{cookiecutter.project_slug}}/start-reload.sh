#!/bin/sh
# Serve for development: one process that restarts when the code changes.
set -eu
cd "$(dirname "$0")"
exec python -m app serve --reload "$@"
