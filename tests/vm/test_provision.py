"""`provision.sh`: dry runs, repeated runs, failures, and arguments that it refuses."""

from collections.abc import Iterator

import pytest

from tests.support.servers import PROJECT, Server, reaches


def test_dry_run_lists_the_changes_and_changes_nothing(server: Server) -> None:
    planned = [line for line in server.outputs["dry run"].splitlines() if line.startswith("- ")]

    assert any("install" in line and "nginx" in line for line in planned)
    assert f"{len(planned)} changes would be made; nothing was changed" in server.outputs["dry run"]
    assert server.slug not in server.outputs["after the dry run"]
    assert "nginx" not in server.outputs["after the dry run"]


def test_second_provision_changes_nothing_and_says_so(server: Server) -> None:
    assert "Nothing changed" in server.outputs["second"]
    assert "\n- " not in server.outputs["second"]


def test_nginx_listens_on_ipv4_alone_where_the_kernel_has_no_ipv6(server: Server) -> None:
    provision = f"{PROJECT}/deploy/vm/provision.sh"
    listed = "nginx -T 2>/dev/null | grep -c 'listen \\[::\\]:' || true"
    before = int(server.machine.run(listed))
    # A kernel that starts without IPv6 has no /proc/sys/net/ipv6.
    without = server.machine.run(f"unshare --mount sh -c 'mount -t tmpfs none /proc/sys/net && {provision}'")
    meanwhile = int(server.machine.run(listed))
    server.machine.run(provision)

    assert f"write /etc/nginx/conf.d/{server.slug}.conf" in without
    assert (before > 0, meanwhile, int(server.machine.run(listed))) == (True, 0, before)
    server.site.wait()


@pytest.mark.servers("postgresql")
def test_failed_provision_reports_the_step_and_the_next_one_completes_it(server: Server) -> None:
    provision = f"{PROJECT}/deploy/vm/provision.sh"
    server.machine.run("rm /etc/nginx/service/tls.conf; echo nonsense > /etc/nginx/conf.d/broken.conf")

    stopped = server.machine.fails(provision)
    served = server.site.answers()
    server.machine.run("rm /etc/nginx/conf.d/broken.conf")
    completed = server.machine.run(provision)

    assert "unknown directive" in stopped or "unexpected end of file" in stopped
    assert "could not reload nginx. Fix the cause, and run the script again" in stopped
    assert served
    assert "- reload nginx" in completed
    assert "Nothing changed" in server.machine.run(provision)


@pytest.fixture
def ssh_settings(server: Server) -> Iterator[tuple[str, str]]:
    """The paths of settings files for sshd and for its systemd socket; both are removed after the test."""
    files = "/etc/ssh/sshd_config.d/port.conf", "/etc/systemd/system/ssh.socket.d/port.conf"
    yield files
    server.machine.run(
        f"""
        rm -f {" ".join(files)}
        systemctl daemon-reload; systemctl stop ssh.socket ssh; systemctl start ssh
        for port in 2222 2223 2224; do ufw delete allow "$port/tcp"; done
        """
    )


def provision_opens(server: Server, port: int) -> bool:
    """Return whether a provision opened this port, which was closed before."""
    closed = not reaches(server.site.address, port)
    server.machine.run(f"{PROJECT}/deploy/vm/provision.sh")
    return closed and reaches(server.site.address, port)


@pytest.mark.servers("postgresql")
def test_ssh_stays_reachable_on_any_port(server: Server, ssh_settings: tuple[str, str]) -> None:
    sshd, activation = ssh_settings

    server.machine.run(f"echo 'Port 2222' > {sshd}; systemctl restart ssh")
    as_configured = provision_opens(server, 2222)
    # sshd still listens on 2222; the new port applies after its next start.
    server.machine.run(f"ufw delete allow 2222/tcp; echo 'Port 2223' > {sshd}")
    as_it_is = provision_opens(server, 2222)
    server.machine.run(
        f"""
        rm {sshd}; systemctl stop ssh
        install -D /dev/stdin {activation} <<< $'[Socket]\nListenStream=2224'
        systemctl daemon-reload; systemctl start ssh.socket
        """
    )
    as_systemd_listens = provision_opens(server, 2224)

    assert (as_configured, as_it_is, as_systemd_listens) == (True, True, True)
    assert reaches(server.site.address, 22)


@pytest.mark.servers("postgresql")
def test_swap_file_is_created_except_in_containers(server: Server) -> None:
    provision = f"{PROJECT}/deploy/vm/provision.sh --swap 64M"
    is_container = server.machine.run("systemd-detect-virt --container || true") != "none"

    planned = "" if is_container else server.machine.run(f"{provision} --dry-run")
    output = server.machine.fails(provision) if is_container else server.machine.run(provision)

    assert is_container or "- create a swap file of 64M" in planned
    assert ("--swap does not work in a container" in output) == is_container
    assert ("/swapfile" in server.machine.run("cat /proc/swaps /etc/fstab")) != is_container


@pytest.mark.servers("postgresql")
def test_wrong_arguments_change_nothing(server: Server) -> None:
    release = server.release
    calls = ("deploy.sh rolback root@localhost", "deploy.sh --downgrade", "provision.sh --dryrun", "deploy.sh -x")

    outputs = [server.machine.fails(f"{PROJECT}/deploy/vm/{call}") for call in calls]
    meanwhile = server.machine.fails(f"flock /opt/{server.slug} {PROJECT}/deploy/vm/deploy.sh")

    assert all("Usage: " in output for output in outputs), outputs
    assert "another deployment is under way" in meanwhile
    # Another account cannot hold the lock.
    server.machine.fails(f"runuser -u nobody -- flock --nonblock /opt/{server.slug} true")
    assert server.release == release
