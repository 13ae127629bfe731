# /// script
# requires-python = ">=3.11"
# dependencies = ["jinja2>=3.1.6,<4"]
# ///
"""Adds a resource to a project: NAME=note FIELDS='title:str(200) due:date?' and optionally SHARED=1 or ADMIN=1."""

from resources.commands import add_resource, main

if __name__ == "__main__":
    main(add_resource, "NAME", "FIELDS", "SHARED", "ADMIN")
