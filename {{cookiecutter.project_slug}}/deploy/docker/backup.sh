#!/bin/sh
# The backup service: writes a backup when the last one is BACKUP_INTERVAL_MINUTES old. When one fails, it ends with an
# error, and the container's restart tries again.
#   backup.sh health   whether the last backup is recent enough
set -eu
cd "$(dirname "$0")"
FOLDER=/backups

has_backup_of_last_minutes() {
    [ -n "$(find "$FOLDER" -maxdepth 1 -type f ! -name '.*' -mmin "-$1")" ]
}

if [ "${1:-}" = health ]; then
    has_backup_of_last_minutes $((BACKUP_INTERVAL_MINUTES + 60))
    exit
fi

trap 'exit 0' TERM INT
while :; do
    has_backup_of_last_minutes "$BACKUP_INTERVAL_MINUTES" ||
        python -m app db backup "$FOLDER" --keep "$BACKUP_KEEP"
    # In the background: a signal does not wait for it.
    sleep 10 &
    wait $!
done
