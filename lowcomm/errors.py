"""Everything lowcomm raises on purpose, as one tree.

LowcommError
|-- ConfigError            a recipe, a --set value or an argument is wrong (also a ValueError)
|   `-- ArgumentError      an argument is of another type than expected (also a TypeError)
|-- UsageError             a call that can't be made now: before `start`, after `close` (also a RuntimeError)
|-- DataError              no text, too few documents, a source that can't be read (also a ValueError)
|-- ModelError             a model or layout that can't be used as asked (also a ValueError)
|-- CodecError             a payload of the wrong size, or values that can't be encoded (also a ValueError)
|   `-- NonFiniteError     NaN or Inf where finite numbers are required
|-- StorageError           a run folder or disk that can't be used
|   `-- CheckpointError    a checkpoint that is truncated, corrupt or from another run
|-- ExchangeError          the network side
|   |-- AddressError       an address that can't be parsed (also a ValueError)
|   |-- PeerUnreachableError
|   |-- PortInUseError
|   |-- JoinRefusedError   the swarm runs with other shared settings or another model
|   `-- ProtocolError      a message that breaks the protocol
|-- IslandError            the ranks of an island lost each other
|-- LossError              the training loss is not a finite number
`-- OutOfMemoryError       the device's memory does not hold what training needs
"""

from __future__ import annotations


class LowcommError(Exception):
    """Base of all errors that lowcomm raises for its users."""


class ConfigError(LowcommError, ValueError):
    """A configuration value is unknown, of the wrong type, or out of range."""


class ArgumentError(ConfigError, TypeError):
    """An argument is of another type than the call expects."""


class UsageError(LowcommError, RuntimeError):
    """A call at the wrong time or place: before `start`, after `close`, on a rank that doesn't lead."""


class DataError(LowcommError, ValueError):
    """The training text can't be found, read or divided as asked."""


class ModelError(LowcommError, ValueError):
    """A model, or the layout of its parameters, can't be used as asked."""


class CodecError(LowcommError, ValueError):
    """A payload has the wrong size, or values can't be encoded."""


class NonFiniteError(CodecError):
    """NaN or Inf where only finite numbers are allowed."""


class StorageError(LowcommError):
    """A run folder can't be used: another run's, unwritable, or the disk is full."""


class CheckpointError(StorageError):
    """A checkpoint is truncated, corrupt, or belongs to another run."""


class ExchangeError(LowcommError):
    """Something between the peers failed."""


class AddressError(ExchangeError, ValueError):
    """An address can't be parsed."""


class PeerUnreachableError(ExchangeError):
    """A peer can't be reached, or the link to it broke."""


class PortInUseError(ExchangeError):
    """The port asked for is taken by another process."""


class JoinRefusedError(ExchangeError):
    """The swarm runs with other shared settings, or with another model."""


class ProtocolError(ExchangeError):
    """A message breaks the protocol: unknown, malformed, too large."""


class IslandError(LowcommError):
    """A rank of this island is gone, or can't be reached."""


class LossError(LowcommError):
    """The training loss is NaN or infinite."""


class OutOfMemoryError(LowcommError):
    """The memory of the device does not hold what training needs."""
