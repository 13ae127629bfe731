#!/bin/sh
# Update the application without downtime: start new instances beside the old ones, and remove the old ones when they have
# answered all requests that nginx has sent to them.
#   deploy/docker/update.sh                        build an image from this project, migrate, and replace the instances
#   TAG=1.2.3 deploy/docker/update.sh --no-build   use an existing image, for example to roll back
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
    # shellcheck disable=SC2086  # a list
    docker stop $1 > /dev/null && docker rm $1 > /dev/null
}

# drain IDS: take these instances out of use, and wait for their requests; without an ID, all instances are in use again.
drain() {
    # shellcheck disable=SC2046  # a list of the short ids, which are host names on the network
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
            echo "The new instances did not become ready: the old ones keep serving. The log of $id:" >&2
            docker logs --tail 20 "$id" >&2
            # Drain the new instances first, because nginx may already send requests to some of them.
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
