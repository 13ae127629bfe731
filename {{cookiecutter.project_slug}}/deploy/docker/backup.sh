#!/bin/sh
# The backup service: writes a backup of the database when the last one is BACKUP_INTERVAL_MINUTES old, and one of the files
# right after it. One that fails is tried again a minute later; the health check tells when none succeeds.
#   backup.sh health   whether the last backups are recent enough
set -eu
cd "$(dirname "$0")"
FOLDER=/backups
# As old as the last backup of the files.
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
    # A failure must not end the container: after a loss, a restore runs in it.
    back_up || pause=60
    # In the background: a signal does not wait for it.
    sleep "$pause" &
    wait $!
done
