"""The local language model: store, worker process, chat and agent loop, usable without the gateway.

Knows nothing of gateways, catalogs or policies; it reads no environment."""

from engine.chat import ChatModel
from engine.errors import (
    BadModelFile,
    BadRequest,
    ContextOverflow,
    EngineError,
    ModelBusy,
    ModelNotFound,
    ModelUnavailable,
    NoMemory,
    WorkerDied,
    WorkerFailed,
)
from engine.pool import LoadedModel, ModelOptions, ModelPool
from engine.sources import KnownModel
from engine.statistics import Spent
from engine.store import ModelStore, StoredModel

__all__ = [
    "BadModelFile",
    "BadRequest",
    "ChatModel",
    "ContextOverflow",
    "EngineError",
    "KnownModel",
    "LoadedModel",
    "ModelBusy",
    "ModelNotFound",
    "ModelOptions",
    "ModelPool",
    "ModelStore",
    "ModelUnavailable",
    "NoMemory",
    "Spent",
    "StoredModel",
    "WorkerDied",
    "WorkerFailed",
]
