#!/bin/sh
# Serve as in production: {{ cookiecutter.process_manager }}, configured by its file and the environment.
set -eu
cd "$(dirname "$0")"
#% if cookiecutter.process_manager == "supervisor"
manager=deploy.supervisor.run_supervisor
#% elif cookiecutter.process_manager == "circus"
manager=deploy.circus.run_circus
#% else
manager=gunicorn
set -- --config gunicorn_conf.py "$@"
#% endif
exec python -m "$manager" "$@"
