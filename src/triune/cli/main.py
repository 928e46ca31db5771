"""The entry point: runs a command; turns errors into messages and exit codes."""

import signal
from typing import NoReturn

import typer

from triune.cli.calibrating import calibrate
from triune.cli.checking import check
from triune.cli.diagnosing import app as diagnose
from triune.cli.making import align, fuse, merge, train
from triune.cli.options import err_console
from triune.cli.routing import route
from triune.cli.sweeping import sweep
from triune.cli.using import chat, evaluate, export, report
from triune.cli.whole import demo, run
from triune.errors import InputError, TriuneError
from triune.libraries import settle_libraries
from triune.record_checks import FULL

app = typer.Typer(
    help="Fuse language models aligned separately into one, and measure honestly whether it worked.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
COMMANDS = (demo, run, sweep, train, check, fuse, align, calibrate, merge, evaluate, report, export, chat, route)
for command in COMMANDS:
    app.command()(command)
app.add_typer(diagnose, name="diagnose")


def _fail(message: str, code: int) -> NoReturn:
    # Messages quote files, which may hold half a character (no stream takes it) or what steers a terminal.
    safe = "".join(c if c in "\n\t" or c.isprintable() else repr(c)[1:-1] for c in message)
    err_console.print(f"error: {safe}", style="red", highlight=False, markup=False, soft_wrap=True)
    raise SystemExit(code)


class Interrupted(BaseException):
    """Ctrl-C or a request to end. Not KeyboardInterrupt, which typer turns into an exit of its own, without a word."""


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise Interrupted


def main() -> None:
    """Run the command line; turns errors into messages and exit codes. Typer itself answers wrong options with 2."""
    settle_libraries()
    for name in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(name) is not signal.SIG_IGN:  # as under nohup
            signal.signal(name, _interrupt)
    try:
        app()
    except Interrupted:
        _fail("interrupted; finished steps are kept, the same command goes on from there", 130)
    except InputError as error:
        _fail(str(error), 2)
    except TriuneError as error:
        _fail(str(error), 1)
    except OSError as error:
        if error.errno not in FULL:
            raise
        _fail(f"the disk is full ({error}); make room, then the same command goes on from the finished steps", 1)
