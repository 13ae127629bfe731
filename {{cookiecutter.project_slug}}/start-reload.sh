#!/bin/sh
# Serve for development: a single process, restarted whenever the code changes.
set -eu
cd "$(dirname "$0")"
exec python -m app serve --reload "$@"
