# /// script
# requires-python = ">=3.11"
# dependencies = ["jinja2>=3.1.6,<4"]
# ///
"""Adds a field to a resource of a project: RESOURCE=note FIELD='priority:int=0'."""

from resources.commands import add_field, main

if __name__ == "__main__":
    main(add_field, "RESOURCE", "FIELD")
