"""The application, for the servers that load it."""

import gc
import sys

from fastapi import FastAPI

# How many new objects make Python look for cycles: with its own 700, the slowest of a hundred requests under load took
# half as long again.
GARBAGE_THRESHOLDS = (10_000, 20, 20)


def build_app() -> FastAPI:
    """Keep the collector of cycles from what lives as long as the process.

    It would look through all of it every second of load, and stop the loop for a tenth of a second each time.
    """
    # An import leaves no cycles behind that are worth a search.
    gc.disable()
    # Imported after gc.disable(). open_files comes first, because creating a metric opens its file.
    from app.core.observability.metrics_files import open_files

    open_files()
    from app.application import create_app

    app = create_app()
    gc.enable()
    # PyPy's collector is another one.
    if sys.implementation.name == "cpython":
        gc.freeze()
        gc.set_threshold(*GARBAGE_THRESHOLDS)
    return app


app = build_app()
