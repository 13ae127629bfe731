#!/bin/sh
# Make the secrets that are missing. The files are readable by all because containers read them under ids of their own;
# on this machine the folder keeps everybody else out.
set -eu
cd "$(dirname "$0")/../../secrets"
chmod 700 .
sed -n 's|^    file: ./secrets/||p' ../compose.yaml | while read -r name; do
    [ -s "$name" ] || (umask 022 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$name")
done
