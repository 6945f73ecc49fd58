"""The errors a user can cause; the command lines print their message alone, without a traceback."""


class TorchMojiError(Exception):
    """Base of all errors raised on purpose; the message names the thing at fault and the remedy."""


class InputError(TorchMojiError):
    """A file, option or model that cannot be used as it is (exit status 2 of the command lines)."""


class RunError(TorchMojiError):
    """Work that was begun and could not be finished (exit status 1 of the command lines)."""


class LeaseHeldError(TorchMojiError):
    """Another run is writing to the same output."""
