from pathlib import Path

import pytest

from app.core.cgroups import cpu_quota, memory_limit
from app.core.config.load import env_names
from app.core.config.server import ServerSettings
from app.core.process.sockets import bind_address, trusted_proxies
from app.core.process.workers import WORKER_MEMORY_BYTES, worker_count

MANY_CORES = 64


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in env_names(ServerSettings):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty folder for the control groups of a machine."""
    (tmp_path / "cgroup").mkdir()
    return tmp_path / "cgroup"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The /proc file that lists the control groups of this process; without groups the file is missing."""
    return tmp_path / "own"


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(MANY_CORES)), raising=False)


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def make_settings(**values: object) -> ServerSettings:
    return ServerSettings(_env_file=None, **values)  # type: ignore[arg-type]  # pydantic validates them


def test_a_machine_without_control_groups_sets_no_limit(root: Path, own: Path) -> None:
    assert cpu_quota(root, own) is None
    assert memory_limit(root, own) is None


def test_limits_of_systemd_service_are_read(root: Path, own: Path) -> None:
    own.write_text("0::/system.slice/app.service\n")
    write(root / "system.slice", cpu__max="max 100000", memory__max="max")
    write(root / "system.slice/app.service", cpu__max="150000 100000", memory__max="536870912")

    assert cpu_quota(root, own) == 1.5
    assert memory_limit(root, own) == 512 * 1024 * 1024


def test_lowest_limit_of_all_control_group_levels_applies(root: Path, own: Path) -> None:
    own.write_text("0::/team.slice/team-web.slice/app.service\n")
    write(root / "team.slice", cpu__max="200000 100000", memory__max="1073741824")
    write(root / "team.slice/team-web.slice", cpu__max="50000 100000", memory__max="max")
    write(root / "team.slice/team-web.slice/app.service", cpu__max="400000 100000", memory__max="2147483648")

    assert cpu_quota(root, own) == 0.5
    assert memory_limit(root, own) == 1024 * 1024 * 1024


def test_the_limits_of_other_groups_do_not_count(root: Path, own: Path) -> None:
    own.write_text("0::/system.slice/app.service\n")
    write(root / "system.slice/app.service", cpu__max="max 100000", memory__max="max")
    write(root / "system.slice/other.service", cpu__max="10000 100000", memory__max="1048576")

    assert cpu_quota(root, own) is None
    assert memory_limit(root, own) is None


@pytest.mark.parametrize("path", ["/", "/docker/0123456789ab", "/../../kubepods/pod1"])
def test_a_container_sees_its_own_group_as_the_root(root: Path, own: Path, path: str) -> None:
    own.write_text(f"0::{path}\n")
    write(root, cpu__max="200000 100000", memory__max="268435456")

    assert cpu_quota(root, own) == 2
    assert memory_limit(root, own) == 256 * 1024 * 1024


@pytest.mark.parametrize("named", ["cpu,cpuacct", "cpuacct,cpu"])
def test_cgroup_v1_limits_are_read_in_any_order_of_controllers(root: Path, own: Path, named: str) -> None:
    own.write_text(f"9:memory:/system.slice/app.service\n4:{named}:/system.slice/app.service\n1:name=systemd:/\n")
    write(root / "cpu,cpuacct/system.slice/app.service", cpu__cfs_quota_us="75000", cpu__cfs_period_us="50000")
    (root / "cpu").symlink_to("cpu,cpuacct")
    write(root / "memory/system.slice/app.service", memory__limit_in_bytes="314572800")

    assert cpu_quota(root, own) == 1.5
    assert memory_limit(root, own) == 300 * 1024 * 1024


def test_cgroup_v1_limits_are_read_in_container_that_sees_host_path(root: Path, own: Path) -> None:
    own.write_text("4:cpu,cpuacct:/docker/0123456789ab\n3:memory:/docker/0123456789ab\n0::/docker/0123456789ab\n")
    write(root / "cpu,cpuacct", cpu__cfs_quota_us="300000", cpu__cfs_period_us="100000")
    write(root / "memory", memory__limit_in_bytes="9223372036854771712")

    assert cpu_quota(root, own) == 3
    assert memory_limit(root, own) is None


def test_cgroup_v1_without_quota_sets_no_limit(root: Path, own: Path) -> None:
    own.write_text("4:cpu,cpuacct:/\n")
    write(root / "cpu,cpuacct", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")

    assert cpu_quota(root, own) is None


@pytest.mark.parametrize("content", ["", "max", "100000", "many 100000", "100000 0", "100000 many"])
def test_invalid_control_group_values_set_no_limit(root: Path, own: Path, content: str) -> None:
    own.write_text("0::/\n")
    write(root, cpu__max=content, memory__max="" if content == "" else "many")

    assert cpu_quota(root, own) is None
    assert memory_limit(root, own) is None


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize(
    ("quota", "workers"), [("max", MANY_CORES), ("10000", 2), ("200000", 2), ("210000", 3), ("800000", 8)]
)
def test_there_is_a_worker_for_each_core_that_is_granted(root: Path, own: Path, quota: str, workers: int) -> None:
    own.write_text("0::/\n")
    write(root, cpu__max=f"{quota} 100000")

    assert worker_count(make_settings(), root, own) == workers


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize(("share", "workers"), [(0.2, 1), (1.9, 1), (5, 5), (1000, MANY_CORES)])
def test_there_are_no_more_workers_than_fit_into_the_memory(root: Path, own: Path, share: float, workers: int) -> None:
    own.write_text("0::/\n")
    write(root, memory__max=str(int(share * WORKER_MEMORY_BYTES)))

    assert worker_count(make_settings(), root, own) == workers


def test_one_core_still_gets_two_workers(root: Path, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0}, raising=False)

    assert worker_count(make_settings(), root, own) == 2


def test_configured_number_of_workers_overrides_limits_of_machine(root: Path, own: Path) -> None:
    own.write_text("0::/\n")
    write(root, cpu__max="100000 100000", memory__max="1048576")

    assert worker_count(make_settings(web_concurrency=7), root, own) == 7


@pytest.mark.parametrize(
    ("values", "address"),
    [
        ({}, "127.0.0.1:8000"),
        ({"host": "0.0.0.0", "port": 80}, "0.0.0.0:80"),  # noqa: S104  # nothing listens there
        ({"host": "::1", "port": 80}, "[::1]:80"),
        ({"host": "app.internal"}, "app.internal:8000"),
        ({"unix_socket": Path("/run/app/app.sock"), "port": 80}, "unix:/run/app/app.sock"),
    ],
)
def test_listen_address_is_formatted_for_gunicorn(values: dict[str, object], address: str) -> None:
    assert bind_address(make_settings(**values)) == address


def test_only_configured_proxies_are_trusted_over_tcp_also_as_ipv4_mapped_addresses() -> None:
    assert trusted_proxies(make_settings()) == "127.0.0.1,::1,::ffff:127.0.0.1"
    assert (
        trusted_proxies(make_settings(forwarded_allow_ips="10.0.0.1, 10.1.0.0/16, fd00::/8"))
        == "10.0.0.1,10.1.0.0/16,fd00::/8,::ffff:10.0.0.1,::ffff:10.1.0.0/112"
    )


def test_every_client_of_unix_socket_is_trusted_as_proxy() -> None:
    assert trusted_proxies(make_settings(unix_socket=Path("/run/app/app.sock"))) == "*"
