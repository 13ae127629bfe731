#!/bin/sh
# The backup service: backs up the database every BACKUP_INTERVAL_MINUTES, and the files right after it. It retries a failed
# backup a minute later. The health check fails if the last successful backup is too old.
#   backup.sh health   check whether the last backups are recent enough
set -eu
cd "$(dirname "$0")"
FOLDER=/backups
# The modification time of this file is the time of the last backup of the files.
FILES_DONE=$FOLDER/.files-done

find_databases() {
    find "$FOLDER" -maxdepth 1 -type f ! -name '.*' "$@"
}

has_files_of_last_database() {
    [ -e "$FILES_DONE" ] && [ -z "$(find_databases -newer "$FILES_DONE")" ]
}

back_up() {
    if [ -z "$(find_databases -mmin "-$BACKUP_INTERVAL_MINUTES")" ]; then
        python -m app db backup "$FOLDER" --keep "$BACKUP_KEEP" || return
    fi
    has_files_of_last_database ||
        { python -m app files backup "$FOLDER/files" --keep "$BACKUP_KEEP" && touch "$FILES_DONE"; }
}

if [ "${1:-}" = health ]; then
    minutes=$((BACKUP_INTERVAL_MINUTES + 60))
    [ -n "$(find_databases -mmin "-$minutes")" ] && [ -n "$(find "$FOLDER" -path "$FILES_DONE" -mmin "-$minutes")" ]
    exit
fi

trap 'exit 0' TERM INT
while :; do
    pause=10
    # A failure must not end the container, because operators run restores in it.
    back_up || pause=60
    # In the background: the shell handles a signal during `wait`, but not during `sleep`.
    sleep "$pause" &
    wait $!
done
