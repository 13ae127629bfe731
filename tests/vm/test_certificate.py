"""The certificate that comes from an ACME authority."""

from collections.abc import Iterator

import pytest

from tests.support.machines import Site
from tests.support.servers import DOMAIN, EMAIL, PROJECT, Server
from tests.support.serving import wait_until

pytestmark = pytest.mark.servers("postgresql")


@pytest.fixture
def acme_root(server: Server) -> Iterator[str]:
    """The root certificate of an ACME authority that runs on the server itself."""
    machine, slug = server.machine, server.slug
    machine.push(machine.commands / "acme-server.sh", "/root/acme-server.sh")
    # pebble rejects every twentieth nonce by default, and certbot gives up after two rejections in a row.
    machine.run(
        f"""
        cd /etc/systemd/system && mkdir acme-server.service.d
        printf '[Service]\nEnvironment=PEBBLE_WFE_NONCEREJECT=0\n' > acme-server.service.d/nonces.conf
        cp /etc/hosts /root/hosts
        /root/acme-server.sh {DOMAIN}
        cp /etc/acme-server/ca.pem /usr/local/share/ca-certificates/acme-server.crt
        update-ca-certificates
        echo 'server = https://localhost:14000/dir' > /etc/letsencrypt/cli.ini
        """
    )
    yield machine.run("cat /etc/acme-server/issuer-root.pem")
    machine.run(
        f"""
        systemctl stop acme-server
        rm -r /etc/systemd/system/acme-server.service.d
        rm -rf /etc/letsencrypt/{{cli.ini,accounts,archive,live,renewal}}
        rm /usr/local/share/ca-certificates/acme-server.crt
        update-ca-certificates --fresh
        cat /root/hosts > /etc/hosts
        ln -sfn /etc/{slug}/self-signed /etc/{slug}/tls
        systemctl reload nginx
        """
    )
    server.site.wait()


def serial_of(server: Server) -> str:
    connect = f"timeout 20 openssl s_client -connect 127.0.0.1:443 -servername {DOMAIN} </dev/null 2>&1"
    return server.machine.run(f"{connect} | openssl x509 -noout -serial")


def test_certificate_is_issued_when_the_name_resolves_to_the_server_and_is_renewed(
    server: Server, acme_root: str
) -> None:
    trusting_it = Site(server.site.address, DOMAIN, acme_root)
    self_signed = serial_of(server)

    provisioned = server.machine.run(f"{PROJECT}/deploy/vm/provision.sh --email {EMAIL}")
    trusting_it.wait()
    contact = server.machine.run("certbot show_account")
    # Restore the state before the name resolved to the server.
    server.machine.run(
        f"""
        rm -r /etc/letsencrypt/{{archive,live,renewal}}
        ln -sfn /etc/{server.slug}/self-signed /etc/{server.slug}/tls
        systemctl start {server.slug}-certificate.service
        """
    )
    trusting_it.wait()
    issued = serial_of(server)
    server.machine.run("certbot renew --quiet --force-renewal --no-random-sleep-on-renew")
    wait_until(
        lambda: serial_of(server) not in {self_signed, issued}, 60, lambda: "nginx serves the renewed certificate"
    )

    assert "does not point to this server yet" in server.outputs["first"]
    assert "has a certificate from Let's Encrypt" in provisioned
    assert EMAIL in contact
    assert issued != self_signed
    assert trusting_it.answers()
    assert "Nothing changed" in server.machine.run(f"{PROJECT}/deploy/vm/provision.sh")
    assert server.machine.run("systemctl is-active certbot.timer") == "active"
