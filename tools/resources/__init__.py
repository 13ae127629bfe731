"""Adds resources to a project, adds fields to them, and removes them: see resource.py, field.py and remove.py."""
