"""The command `abuseguard`, and the only module that speaks to a shell: messages on one line, exit codes.

0: it went well. 1: it failed on the way. 2: what was asked for cannot be done. 130: interrupted.
"""

from __future__ import annotations

import sys
from importlib import metadata
from typing import TYPE_CHECKING

from abuseguard.errors import AbuseGuardError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import click

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code.

    Args:
        arguments: of the command; by default those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _run(arguments)
    except MissingExtraError as error:
        return _complain(str(error), 2)
    except AbuseGuardError as error:
        return _complain(str(error), 1)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)


def _run(arguments: Sequence[str]) -> int:
    try:
        import click
    except ImportError as error:
        extra = "demo" if "demo" in arguments[:1] else "cli"
        raise MissingExtraError("click", extra) from error
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # names out of a log need not fit a terminal's encoding
    try:
        return _group().main(arguments, prog_name="abuseguard", standalone_mode=False) or 0
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "abuseguard"
        return _complain(f"{error.format_message()} (see {path} --help)", error.exit_code)
    except click.ClickException as error:
        return _complain(error.format_message(), error.exit_code)
    except click.Abort:
        return _complain("interrupted", INTERRUPTED)


def _group() -> click.Group:
    import click

    from abuseguard.demo.command import demo

    @click.group(invoke_without_command=True, commands=[demo])
    @click.version_option(metadata.version("abuseguard"), message="%(prog)s %(version)s")
    @click.pass_context
    def abuseguard(context: click.Context) -> None:
        """Token buckets and detection of distillation for API servers."""
        if context.invoked_subcommand is None:
            click.echo(context.get_help())

    return abuseguard


def _complain(message: str, exit_code: int) -> int:
    print(f"abuseguard: {' '.join(message.split())}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
