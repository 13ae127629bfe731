#!/bin/sh
# The backup service: writes a backup of the database and then of the files when the last one is BACKUP_INTERVAL_MINUTES
# old. When one fails, it ends with an error, and the container's restart tries again.
#   backup.sh health   whether the last backup is recent enough
set -eu
cd "$(dirname "$0")"
FOLDER=/backups
# As old as the last backup of both.
COMPLETED=$FOLDER/.completed

has_backup_of_last_minutes() {
    [ -e "$COMPLETED" ] && [ -n "$(find "$COMPLETED" -mmin "-$1")" ]
}

if [ "${1:-}" = health ]; then
    has_backup_of_last_minutes $((BACKUP_INTERVAL_MINUTES + 60))
    exit
fi

trap 'exit 0' TERM INT
while :; do
    if ! has_backup_of_last_minutes "$BACKUP_INTERVAL_MINUTES"; then
        python -m app db backup "$FOLDER" --keep "$BACKUP_KEEP"
        python -m app files backup "$FOLDER/files" --keep "$BACKUP_KEEP"
        touch "$COMPLETED"
    fi
    # In the background: a signal does not wait for it.
    sleep 10 &
    wait $!
done
