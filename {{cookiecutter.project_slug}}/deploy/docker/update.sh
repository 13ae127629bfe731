#!/bin/sh
# Replace the application by what is in this folder, while it answers: new instances are started beside the old ones,
# which leave when nginx has no request with them any more.
#   deploy/docker/update.sh              build, migrate, replace
#   TAG=1.2.3 deploy/docker/update.sh --no-build   replace by an image that is there, for instance the last one
set -eu
cd "$(dirname "$0")/../.."
export COMPOSE_FILE=compose.yaml
WAIT_SECONDS=180

list_instances() {
    docker compose ps --quiet app
}

only_in_first() {
    for id in $1; do
        echo "$2" | grep -qx "$id" || echo "$id"
    done
}

remove() {
    # shellcheck disable=SC2086  # several
    docker stop $1 > /dev/null && docker rm $1 > /dev/null
}

# Without an instance, nobody is out of use any more.
drain() {
    # shellcheck disable=SC2046  # several, by the short names that they have on the network
    docker compose exec -T proxy /bin/sh /etc/nginx/proxy/proxy.sh drain $(for id in $1; do echo "$id" | cut -c 1-12; done)
}

is_healthy() {
    [ -n "$(docker ps --quiet --filter "id=$1" --filter health=healthy)" ]
}

[ "${1:-}" = --no-build ] || docker compose build
docker compose run --rm migrate

old=$(list_instances)
count=$(echo "$old" | wc -w)
docker compose up --detach --no-deps --no-build --no-recreate --scale "app=$((2 * count))" app
new=$(only_in_first "$(list_instances)" "$old")

deadline=$(($(date +%s) + WAIT_SECONDS))
for id in $new; do
    until is_healthy "$id"; do
        if [ "$(date +%s)" -ge "$deadline" ]; then
            echo "The new instances do not get ready: the old ones stay." >&2
            docker logs --tail 20 "$id" >&2
            # nginx may ask some of them already.
            drain "$new" || true
            remove "$new"
            drain ''
            exit 1
        fi
        sleep 1
    done
done

drain "$old"
remove "$old"
drain ''
docker compose up --detach --no-deps --no-build --no-recreate --scale "app=$count" app
#% if cookiecutter.database == "postgresql"
docker compose up --detach --no-deps --no-build backup
#% else
docker compose up --detach --no-deps backup
#% endif
