#!/usr/bin/env bash
# The service's command line on this server, such as `users create-admin EMAIL`; without arguments it prints its help.
set -euo pipefail
# shellcheck source=deploy/vm/lib.sh
. "/usr/local/lib/{{ cookiecutter.project_slug }}/lib.sh"

require_root
[[ -e $BASE/current ]] || die "nothing is deployed: run deploy.sh first"
manage "$BASE/current" "$@"
