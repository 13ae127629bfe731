"""Errors of nginx have the same format as errors of the service, so that clients handle only one format."""

import json
import re

from app.core.http.problems import Problem, problem_response
from app.core.project import ROOT, read_project

NGINX = ROOT / "deploy" / "nginx"


def test_errors_of_nginx_have_the_codes_of_the_service() -> None:
    table = (NGINX / "http.conf").read_text(encoding="utf-8").partition("$refusal_code {")[2].partition("}")[0]
    codes = {int(status): code for status, code in re.findall(r"(\d{3}) ([a-z-]+);", table)}
    # The service derives this code from a phrase of Python that differs between versions.
    del codes[416]

    assert len(codes) > 10
    responses = {status: problem_response({"path": "/"}, status, "") for status in codes}
    assert {status: json.loads(bytes(response.body))["code"] for status, response in responses.items()} == codes


def test_errors_of_nginx_have_the_fields_of_the_service() -> None:
    texts = [path.read_text(encoding="utf-8") for path in NGINX.glob("*.conf")]
    documents = [document for text in texts for document in re.findall(r"return \d+ '(\{.*\})\\n';", text)]

    assert len(documents) == 3
    for document in documents:
        problem = Problem.model_validate({"request_id": None, **json.loads(document.replace("$status", "404"))})
        assert problem.type == f"urn:problem-type:{read_project().name}:{problem.code}"
