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
    WorkerFailed,
)
from engine.sources import KnownModel, known_models
from engine.store import ModelStore, StoredModel

__all__ = [
    "BadModelFile",
    "BadRequest",
    "ChatModel",
    "ContextOverflow",
    "EngineError",
    "KnownModel",
    "ModelBusy",
    "ModelNotFound",
    "ModelStore",
    "ModelUnavailable",
    "StoredModel",
    "WorkerFailed",
    "known_models",
]
