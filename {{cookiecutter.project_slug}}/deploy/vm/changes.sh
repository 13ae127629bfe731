# shellcheck shell=bash
# Functions for idempotent changes, named as in Ansible. Each change is logged and counted; a dry run makes none of them. Source
# this file after lib.sh.

CHANGES=0
DRY_RUN=''
CURRENT_CHANGE=''
PENDING_HANDLERS=' '

# change DESCRIPTION COMMAND...
change() {
    log "- $1"
    CHANGES=$((CHANGES + 1))
    CURRENT_CHANGE=$1
    [[ -n $DRY_RUN ]] || "${@:2}"
    CURRENT_CHANGE=''
}

# A trap for EXIT: name the change that failed.
report_failed_change() {
    local result=$?
    [[ $result -eq 0 || -z $CURRENT_CHANGE ]] ||
        log "${0##*/}: could not ${CURRENT_CHANGE%%,*}. Fix the cause, and run the script again: it skips what is already done" >&2
}

# Print the output of a command only if it fails.
quietly() {
    local output
    output=$("$@" 2>&1) || { log "$output" >&2; return 1; }
}

# install_file MODE GROUP PATH [HANDLER]: write standard input to PATH, and notify HANDLER if that changes the file. Do not call
# this function in a pipeline, which runs it in a subshell: the count of changes would be lost.
install_file() {
    local mode=$1 group=$2 path=$3 handler=${4:-} new
    new=$(mktemp)
    cat >"$new"
    if ! cmp --silent "$new" "$path" || [[ $(stat -c '%a %U %G' "$path") != "$mode root $group" ]]; then
        [[ -z $handler ]] || notify "$handler"
        change "write $path" install -D -m "$mode" -o root -g "$group" "$new" "$path"
    fi
    rm "$new"
}

# ensure_dir MODE OWNER GROUP PATH
ensure_dir() {
    [[ $(stat -c '%a %U %G' "$4" 2>/dev/null || true) == "$1 $2 $3" ]] ||
        change "create the directory $4" install -d -m "$1" -o "$2" -g "$3" "$4"
}

# enable_units UNIT...: start the units now, and whenever the machine starts.
enable_units() {
    local unit
    for unit in "$@"; do
        systemctl is-enabled --quiet "$unit" 2>/dev/null ||
            change "enable $unit" systemctl --quiet enable --now "$unit"
    done
}

# notify HANDLER: make `run_handler HANDLER` run its command. A file stores the notification, so that the next run of the script
# handles it if this run is interrupted.
notify() {
    PENDING_HANDLERS+="$1 "
    [[ -n $DRY_RUN ]] || touch "$CONFIG/.$1"
}

# run_handler HANDLER DESCRIPTION COMMAND...: run the command once if HANDLER was notified.
run_handler() {
    [[ $PENDING_HANDLERS == *" $1 "* || -e $CONFIG/.$1 ]] || return 0
    change "$2" "${@:3}"
    [[ -n $DRY_RUN ]] || rm -f "$CONFIG/.$1"
}
