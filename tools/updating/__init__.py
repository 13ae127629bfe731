"""The parts of `tools/update.py`: brings a project to another version of the template, or to other answers."""
