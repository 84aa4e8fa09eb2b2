"""Entry point: a user's mistake is one line and exit code 2, never a stack trace."""

import codecs
import errno
import locale
import os
import sys

DISK_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ENODEV,
)
"""What a full, read-only or lost disk answers, and a limit on the size of files."""

PATH_ERRORS = (
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ELOOP,
    errno.ENOENT,
)
"""What a path answers that cannot be what was asked for."""


def in_utf8() -> None:
    """Start again in Python's UTF-8 mode (PEP 686: the default from 3.15) under another locale."""
    if not sys.flags.utf8_mode and codecs.lookup(locale.getencoding()).name != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main() -> None:
    """Run the command line."""
    in_utf8()
    from datamodules.errors import InputError
    from experiments.cli import app
    from lightning_modules.errors import WeightsError

    try:
        app(prog_name="sonosweep")
    except (InputError, WeightsError) as error:
        said = str(error)
    except OSError as error:
        if error.errno in DISK_ERRORS:
            hint = "check the disk, and give the same command again"
        elif isinstance(error, PermissionError):
            hint = "check who may read or write it"
        elif error.errno in PATH_ERRORS and error.filename:
            hint = "give another path"
        else:
            raise
        said = f"{error.filename or 'a file'}: {error.strerror}; {hint}"
    else:
        return
    print(f"error: {' '.join(said.split())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
