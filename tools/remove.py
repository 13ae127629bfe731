# /// script
# requires-python = ">=3.11"
# dependencies = ["jinja2>=3.1.6,<4"]
# ///
"""Removes a resource from a project: RESOURCE=note."""

from resources.commands import main, remove_resource

if __name__ == "__main__":
    main(remove_resource, "RESOURCE")
