"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


class WriteError(OSError):
    """Error of a file that could not be written; it names file and remedy, and what was there before is whole."""

    @classmethod
    def of(cls, path: Path, error: OSError) -> WriteError:
        """Make the error for `path` from what the file system said."""
        return cls(f"cannot write {path} ({error.strerror or error}); make room there, or choose another place")


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside `path`: it takes the place of `path` when the block ends well, else it is removed.

    Several writers of one file do not disturb each other; the last one wins. Raises WriteError where the file system
    refuses.
    """
    path = Path(path)
    # a random name: process ids repeat across containers and hosts that share a folder
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch wraps the error of its file in a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise WriteError.of(path, cause) from error
    finally:
        with contextlib.suppress(NotADirectoryError):
            temporary.unlink(missing_ok=True)


def file_and_list(text: Path | str) -> tuple[Path, str]:
    """Split `FILE:LIST` into a file and the name of one of its lists, "" without one; a colon may be the file's own."""
    name, _, chosen = str(text).rpartition(":")
    return (Path(text), "") if not name or Path(text).exists() else (Path(name), chosen)


def remove_unfinished(directory: Path) -> None:
    """Remove temporary files that killed writers left in `directory`; nobody else may write there meanwhile."""
    for temporary in directory.glob(".*.tmp"):
        temporary.unlink(missing_ok=True)
