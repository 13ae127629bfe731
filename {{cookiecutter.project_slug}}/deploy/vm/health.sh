#!/usr/bin/env bash
# Restart the service if it hangs: its process is alive, but three requests in a row get no answer.
set -euo pipefail
# shellcheck source=deploy/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

instance=$(active_instance)
# Leave a stopped service alone: a request would start it through its socket.
[[ -n $instance ]] && systemctl is-active --quiet "$SLUG@$instance.service" || exit 0
exec 9<"$LOCK"
flock --nonblock 9 || exit 0
for _ in 1 2 3; do
    if probe "$instance" live >/dev/null; then exit 0; fi
    sleep 1
done
# <4> is the priority of a warning: the unit's LogLevelMax drops messages of lower priority.
log "<4>Instance $instance did not answer three requests in a row: restarting it"
# KILL, because a process that hangs may not handle TERM; systemd starts it again.
systemctl kill --signal=KILL "$SLUG@$instance.service"
