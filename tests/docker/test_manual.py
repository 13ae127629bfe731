"""The operator's manual, docs/containers.md."""

import re
from pathlib import Path
from uuid import uuid4

from tests.support.containers import ADMIN, Stack, read_manual_text
from tests.support.projects import BakedProject


def test_first_deployment_has_an_administrator(stack: Stack) -> None:
    assert stack.request("GET", "/api/v1/users", headers=stack.sign_in(ADMIN)).status_code == 200


def test_logs_show_each_request_and_the_probe_answers(stack: Stack, manual: dict[str, list[str]]) -> None:
    (look,) = manual["Logs and health"]
    path = f"/api/v1/{uuid4().hex}"
    request_id = stack.request("GET", path).headers["x-request-id"]

    # Type Ctrl-C as soon as nginx and the application have logged the request.
    output = stack.follow(look, typed={f'"request_id":"{request_id}"': "\x03"})

    assert '{"status":"ready"' in output
    assert f'"path":"{path}"' in output


def test_every_command_of_the_manual_is_run(manual: dict[str, list[str]], origin: BakedProject) -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("*.py"))
    blocks = [block for section in manual.values() for block in section]
    prose = re.sub(r"(?ms)^```sh\n.*?^```", "", read_manual_text(origin))
    inline = set(re.findall(r"`((?:docker|deploy/docker|openssl|git) [^`]+)`", prose))

    followed = set(re.findall(r'manual\["([^"]+)"\]', source))

    assert {heading for heading, section in manual.items() if section} == followed
    assert len(manual["Update, roll back, scale"]) == 6
    assert not [command for command in inline if not any(command in block for block in blocks)]
