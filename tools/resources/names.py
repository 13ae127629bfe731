"""Names of resources and fields, and the names that they may not have."""

import builtins
import keyword
import re
from dataclasses import dataclass

from resources.errors import RefusedError

MAX_LENGTH = 30


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Names of the generated modules, of what they import and of their variables, in snake case, and paths of the service.
TAKEN_NAMES = _words(
    """
    account added admin alias annotated answer any api app auth base bindparam body boolean cache change changed client
    code column command core created date datetime decimal default delete deleted docs empty enum feature field first
    foreign_key found headers health index insert json_object kept line listed method missing model name other page
    page_context page_request page_result params query read record refused request response router schema second select
    service session sign_in sign_out sign_up static str_enum stranger string target test text time update user uuid
    value web
    """
)
# Columns of every resource; parameters of queries and functions; attributes of tuples, of SQLAlchemy's models and of
# Pydantic's models; and types in the annotations of the fields.
TAKEN_FIELDS = _words(
    """
    id owner owner_id creator creator_id created_at updated_at
    after_created_at after_id at_most cls csrf_token data page_limit self session user
    count index metadata registry type_annotation_map construct copy dict from_orm json parse_file parse_obj parse_raw
    schema schema_json update_forward_refs validate
    annotated date datetime
    """
)
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


@dataclass(frozen=True)
class Names:
    """The spellings of a resource's name, such as meeting_note."""

    singular: str

    @property
    def plural(self) -> str:
        return pluralize(self.singular)

    @property
    def cls(self) -> str:
        return camel_case(self.singular)

    @property
    def words(self) -> str:
        return self.singular.replace("_", " ")

    @property
    def plural_words(self) -> str:
        return self.plural.replace("_", " ")

    @property
    def a(self) -> str:
        return f"{article(self.words)} {self.words}"

    @property
    def title(self) -> str:
        return self.words.capitalize()

    @property
    def constant(self) -> str:
        return self.singular.upper()

    @property
    def plural_constant(self) -> str:
        return self.plural.upper()

    @property
    def code(self) -> str:
        """The beginning of the resource's error codes."""
        return self.singular.replace("_", "-")

    @property
    def path(self) -> str:
        return "/" + self.plural.replace("_", "-")


def pluralize(singular: str) -> str:
    """Return the regular English plural, the only one that tests/support/attacks.py of a project recognizes."""
    if re.search(r"(s|x|z|ch|sh)$", singular):
        return f"{singular}es"
    return re.sub(r"(?<![aeiou])y$", "ie", singular) + "s"


def camel_case(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def article(words: str) -> str:
    return "an" if words[0] in "aeiou" and not re.match(r"uni|use|euro|one", words) else "a"


def parse_name(text: str) -> Names:
    """Return the names of a new resource. Raises RefusedError."""
    name = text.strip()
    _check_form(name, "the name of a resource", "note or meeting_note")
    names = Names(name)
    for each in (names.singular, names.plural):
        _refuse_python(each, "a resource")
        if each in TAKEN_NAMES:
            raise RefusedError(f"{each} is a name of the service's own code: choose another name for the resource.")
    return names


def check_field_name(name: str) -> None:
    """Raise RefusedError for a name that a field cannot have."""
    _check_form(name, "the name of a field", "due or due_on")
    _refuse_python(name, "a field")
    if name in TAKEN_FIELDS or name.startswith("model_"):
        raise RefusedError(f"The service itself uses the name {name}: choose another name for the field.")


def _check_form(name: str, what: str, examples: str) -> None:
    if not name:
        raise RefusedError(f"There is no name: give {what}, such as {examples}.")
    if not NAME.fullmatch(name):
        raise RefusedError(
            f"{name} cannot be {what}: use lower-case letters a-z, digits and single underscores, beginning with a"
            f" letter, such as {examples}."
        )
    if len(name) > MAX_LENGTH:
        raise RefusedError(f"{name} is longer than {MAX_LENGTH} characters: choose a shorter name.")


def _refuse_python(name: str, what: str) -> None:
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise RefusedError(f"{name} is a keyword of Python: choose another name for {what}.")
    if hasattr(builtins, name):
        raise RefusedError(f"{name} is a built-in name of Python: choose another name for {what}.")
