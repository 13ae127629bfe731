#!/bin/sh
# Create the missing secrets. All users may read the files, because the containers run with other user ids. On this machine,
# the permissions of the directory keep other users out.
set -eu
cd "$(dirname "$0")/../../secrets"
chmod 700 .
sed -n 's|^    file: ./secrets/||p' ../compose.yaml | while read -r name; do
    [ -s "$name" ] || (umask 022 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$name")
done
