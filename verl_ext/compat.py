"""The one verl that this code extends. Checked without importing verl, which takes seconds."""

from importlib import metadata

SUPPORTED_VERL = "0.9.1"


class UnsupportedVerlError(RuntimeError):
    """verl is missing, or of a version whose internals this code doesn't know."""


def require_supported_verl() -> None:
    """Check the installed verl.

    Raises:
        UnsupportedVerlError: it isn't ``SUPPORTED_VERL``.
    """
    try:
        found = f"verl {metadata.version('verl')} is installed"
    except metadata.PackageNotFoundError:
        found = "verl isn't installed"
    if found != f"verl {SUPPORTED_VERL} is installed":
        raise UnsupportedVerlError(f"{found}, verl {SUPPORTED_VERL} is needed: pip install verl=={SUPPORTED_VERL}")
