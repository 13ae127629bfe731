# shellcheck shell=bash
# Idempotent changes, in Ansible's words: each one is logged, counted, and only planned in a dry run. Sourced after lib.sh.

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
        log "${0##*/}: could not ${CURRENT_CHANGE%%,*}. Fix the cause and run it again: it skips what is already done" >&2
}

# Print the output of a command only if it fails.
quietly() {
    local output
    output=$("$@" 2>&1) || { log "$output" >&2; return 1; }
}

# install_file MODE GROUP PATH [HANDLER]: write standard input to PATH, and notify HANDLER if that changes the file. Not in a
# pipeline: its subshell would lose the count of changes.
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

# enable_units UNIT...: start them now, and whenever the machine starts.
enable_units() {
    local unit
    for unit in "$@"; do
        systemctl is-enabled --quiet "$unit" 2>/dev/null ||
            change "enable $unit" systemctl --quiet enable --now "$unit"
    done
}

# notify HANDLER: have `run_handler` run it. A file keeps the notification, so that the run after an interrupted one obeys it.
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
