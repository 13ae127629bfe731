#!/bin/sh
# The backup service: writes a backup of the database when the last one is BACKUP_INTERVAL_MINUTES old, and one of the files
# right after it. When one fails, it ends with an error, and the container's restart tries that one again.
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

back_up_files() {
    python -m app files backup "$FOLDER/files" --keep "$BACKUP_KEEP"
    touch "$FILES_DONE"
}

if [ "${1:-}" = health ]; then
    minutes=$((BACKUP_INTERVAL_MINUTES + 60))
    [ -n "$(find_databases -mmin "-$minutes")" ] && [ -n "$(find "$FOLDER" -path "$FILES_DONE" -mmin "-$minutes")" ]
    exit
fi

trap 'exit 0' TERM INT
while :; do
    [ -n "$(find_databases -mmin "-$BACKUP_INTERVAL_MINUTES")" ] ||
        python -m app db backup "$FOLDER" --keep "$BACKUP_KEEP"
    has_files_of_last_database || back_up_files
    # In the background: a signal does not wait for it.
    sleep 10 &
    wait $!
done
