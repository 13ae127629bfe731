#!/bin/sh
# Serve for production with {{ cookiecutter.process_manager }}, configured by its configuration file and the environment.
set -eu
cd "$(dirname "$0")"
# Without these variables, glibc's malloc keeps the memory of password hashes in one arena per thread, and a worker grows to
# three times its size under load.
export MALLOC_ARENA_MAX="${MALLOC_ARENA_MAX:-2}" MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-1048576}"
#% if cookiecutter.process_manager == "supervisor"
manager=deploy.supervisor.run_supervisor
#% elif cookiecutter.process_manager == "circus"
manager=deploy.circus.run_circus
#% else
manager=gunicorn
set -- --config gunicorn_conf.py "$@"
#% endif
exec python -m "$manager" "$@"
