#!/usr/bin/env bash
# Restart the service when it hangs: when its process lives and three requests in a row get no answer.
set -euo pipefail
# shellcheck source=deploy/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

instance=$(active_instance)
# What was stopped on purpose stays stopped: a request would start it.
[[ -n $instance ]] && systemctl is-active --quiet "$SLUG@$instance.service" || exit 0
exec 9<"$LOCK"
flock --nonblock 9 || exit 0
for _ in 1 2 3; do
    if probe "$instance" live >/dev/null; then exit 0; fi
    sleep 1
done
# With the priority of a warning: what is less is not logged.
say "<4>No answer three times in a row: restarting instance $instance"
# Killed, since it would not hear anything milder; systemd starts it again.
systemctl kill --signal=KILL "$SLUG@$instance.service"
