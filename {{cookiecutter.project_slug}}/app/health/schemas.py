from typing import Literal

from pydantic import BaseModel


class Health(BaseModel):
    name: str
    version: str
    status: Literal["ok"] = "ok"


class Liveness(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    status: Literal["ready"] = "ready"
