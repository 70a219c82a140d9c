"""Errors that speak to the user: what is wrong, where, and what to do next.

The command line turns a `UserError` into one clear message and exit code 2; any other exception is a defect of ours (exit
code 1, with its traceback). Raise `UserError` for everything a user can mend: a file that is missing or broken, a key that
is mistyped, a disk that is full. Raise `ValueError` or use `assert` for what only a programmer can get wrong.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Something the user can mend.

    Args:
        what: one sentence that says what is wrong.
        where: the file, line, key or record it is wrong at.
        todo: what to do or type next.
    """

    def __init__(self, what: str, *, where: str | Path | None = None, todo: str | None = None) -> None:
        self.what, self.where, self.todo = what, str(where) if where is not None else None, todo
        super().__init__(self.render())

    def render(self) -> str:
        """The message as a person reads it: `where: what` on one line, then what to do."""
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  → {self.todo}" if self.todo else head


class Interrupted(Exception):  # noqa: N818  an interruption is no error: what was done is saved
    """The user or the system asked us to stop; everything is saved, and `todo` says how to go on."""

    def __init__(self, what: str, *, todo: str, signal_number: int = 2) -> None:
        self.what, self.todo, self.exit_code = what, todo, 128 + signal_number
        super().__init__(f"{what}\n  → {todo}")


_OS_ADVICE = {
    errno.ENOSPC: ("the disk is full", "free some space, then run the same command again: what is done is kept"),
    errno.EDQUOT: (
        "the disk quota is used up",
        "free some space, then run the same command again: what is done is kept",
    ),
    errno.EACCES: ("no permission", "choose a folder you may use (out=DIR), or change its permissions"),
    errno.EPERM: ("not permitted", "choose a folder you may use (out=DIR), or change its permissions"),
    errno.EROFS: ("the file system is read-only", "choose a folder you may write to (out=DIR)"),
    errno.ENOENT: ("no such file or folder", "check the path"),
    errno.EISDIR: ("that is a folder, not a file", "give the path of a file"),
    errno.ENOTDIR: ("that is a file, not a folder", "give the path of a folder"),
    errno.EMFILE: ("too many open files", "raise the limit with `ulimit -n 4096`"),
}


def explain_os_error(error: OSError) -> UserError | None:
    """The `UserError` for an operating-system error the user can mend, or None for one that is ours."""
    if error.errno not in _OS_ADVICE:
        return None
    what, todo = _OS_ADVICE[error.errno]
    return UserError(what, where=error.filename2 or error.filename, todo=todo)


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn operating-system errors the user can mend into `UserError` while the block runs."""
    try:
        yield
    except OSError as error:
        explained = explain_os_error(error)
        if explained is None:
            raise
        raise explained from error
