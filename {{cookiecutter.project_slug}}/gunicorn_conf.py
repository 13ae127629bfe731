"""gunicorn's configuration, on servers and in containers: `gunicorn -c gunicorn_conf.py app.main:app`."""

import atexit
import os
import shutil
import tempfile

import uvicorn_worker._workers  # type: ignore[import-untyped]  # the library has no annotation
from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker

from app.core.config.load import load_settings_or_exit
from app.core.observability.logging import logging_config
from app.core.process.draining import DrainingServer
from app.core.process.lifecycle import exit_with_parent, record_start_time
from app.core.process.sockets import bind_address, trusted_proxies
from app.core.process.workers import tmpfs_directory, worker_count

# Validate the service's settings here, so that a mistake ends gunicorn instead of each worker. The workers validate the
# settings of features.
_settings = load_settings_or_exit()

wsgi_app = "app.main:app"
bind = bind_address(_settings)
# Only the service's user and group may use a unix socket. The proxy belongs to this group.
umask = 0o007
workers = worker_count(_settings)
worker_class = _settings.worker_class
# Patch uvicorn's workers, which have no settings for the server's class and the time limit of its shutdown. The
# limit is a second less than the arbiter's, so that the application can shut down before the arbiter kills the worker.
uvicorn_worker._workers.Server = DrainingServer
for _class in (uvicorn_worker.UvicornWorker, uvicorn_worker.UvicornH11Worker):
    _class.CONFIG_KWARGS = {
        **_class.CONFIG_KWARGS,
        "timeout_graceful_shutdown": max(1, _settings.graceful_timeout_seconds - 1),
    }
# In memory: if the heartbeat files were on a disk that stalls, the arbiter would kill healthy workers.
worker_tmp_dir = tmpfs_directory()
timeout = _settings.worker_timeout_seconds
graceful_timeout = _settings.graceful_timeout_seconds
keepalive = _settings.keepalive_seconds
max_requests = _settings.max_requests
max_requests_jitter = _settings.max_requests // 10
forwarded_allow_ips = trusted_proxies(_settings)
# The control socket's default location is the home directory, which a hardened unit or a read-only container lacks.
control_socket_disable = True
# The application logs the requests.
accesslog = None
logconfig_dict = logging_config(_settings)

record_start_time()

# The directory in which the workers add up their metrics, new for each start of the master.
if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
    _metrics = tempfile.mkdtemp(prefix="metrics-", dir=tmpfs_directory())
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = _metrics
    _master = os.getpid()

    def _remove_metrics() -> None:
        if os.getpid() == _master:
            shutil.rmtree(_metrics, ignore_errors=True)

    atexit.register(_remove_metrics)


def post_fork(_server: Arbiter, _worker: Worker) -> None:
    # uvicorn's worker does not check whether its master is alive, and would keep the port after the end of the master.
    exit_with_parent()
