"""What can go wrong in the engine, as one tree.

Knows nothing of where the errors come from or how a caller answers them.

    EngineError
    ├── ModelNotFound        no such model in the store or the shipped list: the caller names another
    ├── BadModelFile         the file is not a GGUF model we can trust: its publisher must mend it
    ├── ModelUnavailable     no source delivered the model: the operator brings a file or a network
    ├── BadRequest           the request is malformed or above a limit: the client changes it
    │   └── ContextOverflow  the prompt does not fit the context: the client shortens it
    ├── ModelBusy            the queue or the memory is full: the client tries again later
    ├── NoMemory             the model is too large for the memory models may use: the operator changes one of them
    ├── WorkerFailed         the worker process could not load the model: the operator looks at the reason
    │   └── WorkerDied       it died or hung while it worked: a retry starts a new one
    ├── BadDefinition        an agent's definition is wrong: its author mends it
    └── TranscriptError      the transcript of a run cannot be read or written
        ├── TranscriptNotFound   there is no such run, or its name is not clear
        └── TranscriptBusy       the run is still going on
"""


class EngineError(Exception):
    """Something the engine could not do."""


class ModelNotFound(EngineError):
    """No model has this name; the message lists the names there are."""


class BadModelFile(EngineError):
    """The file is not a GGUF model, is damaged, or is not the one its digest promises."""


class ModelUnavailable(EngineError):
    """No source of a known model could deliver it; the message says why for each."""


class BadRequest(EngineError):
    """The request is malformed, unsupported or above a limit; sending it again cannot help."""


class ContextOverflow(BadRequest):
    """Prompt and answer do not fit the model's context."""


class ModelBusy(EngineError):
    """All sequences are taken and the queue is full; trying again later can help.

    `retry_after_s` is a guess in seconds.
    """

    def __init__(self, message: str, *, retry_after_s: int = 2) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NoMemory(EngineError):
    """The model, with its context, needs more memory than all models together may use."""


class WorkerFailed(EngineError):
    """The worker process could not load the model; the next request starts a new one."""


class WorkerDied(WorkerFailed):
    """The worker process died or hung in the middle of this request; trying again can help at once."""


class BadDefinition(EngineError):
    """An agent's definition breaks a rule; the message says where and what is allowed."""


class TranscriptError(EngineError):
    """The transcript of a run cannot be read or written."""


class TranscriptNotFound(TranscriptError):
    """There is no such run, or several whose ids look like the given one."""


class TranscriptBusy(TranscriptError):
    """Another process is still adding to the transcript."""
