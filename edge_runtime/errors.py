"""Every error Hedgerow raises on purpose. What a caller did wrong and what a peer sent are different classes."""

from __future__ import annotations


class EdgeRuntimeError(Exception):
    """Base of all errors here; its text is one line that says what, where and what would help."""


class ConfigError(EdgeRuntimeError, ValueError):
    """A setting that is unknown, of the wrong type or outside its range. The text names the key and the range."""


class MissingPackageError(EdgeRuntimeError, ImportError):
    """A package or data file that this call needs is not installed. The text holds the install command."""


class UnsupportedOpError(EdgeRuntimeError, NotImplementedError):
    """A model, format or option that cannot be done exactly, and is therefore refused."""


class BudgetError(EdgeRuntimeError, ValueError):
    """No plan fits the memory budget. The text says what the smallest one needs, what fills it, what would help."""


class ProgramError(EdgeRuntimeError, ValueError):
    """A Program file, or an op table in it, that is malformed, of another version, or reaches outside its arena."""


class NumericsError(EdgeRuntimeError, ArithmeticError):
    """NaN or infinity in data, loss or gradients. The text says at which step, and in which op if asked for."""


class ArtefactError(EdgeRuntimeError, ValueError):
    """A model file that does not match its manifest, or that a runner must not open."""


class RunError(EdgeRuntimeError):
    """A run that cannot go on or came to nothing, through no fault of one client."""


class PeerError(EdgeRuntimeError):
    """Malformed bytes or settings from the other side. Costs that peer's part of the round, never the round."""


class MemoryLimitError(PeerError):
    """What the other side asks for takes more memory than this device's owner allows."""
