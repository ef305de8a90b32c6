"""Errors a user can act on. The command line maps them to exit codes: `UsageError` 2, the others 1."""


class UsageError(ValueError):
    """Bad input or configuration: one line that says what, the value, what is allowed and what to do."""


class OptionError(UsageError):
    """A UsageError whose message begins with the name of the option at fault, before which a job puts its section."""


class DatasetMismatchError(UsageError):
    """A dataset was opened for writing with settings other than its own; the message names each key."""


class StorageError(RuntimeError):
    """A store refused or failed for good, after retries; the message names the object and the cause."""


class NotFoundError(StorageError):
    """The object does not exist."""


class OversizeError(StorageError):
    """The object is larger than what is read into memory at once."""


class AlreadyExistsError(StorageError):
    """A create-only put found that the object already exists."""


class CorruptShardError(RuntimeError):
    """A committed shard is not what its commit says; the message names shard and, where known, sample."""
