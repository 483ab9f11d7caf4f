"""The group of commands; each ends with an exit code, and without a traceback for an error that the user can fix."""

import os
import signal
import sys
from types import FrameType

import click

import robench
from robench.cli.output import Output, open_standard_streams
from robench.core.errors import (
    ResourceError,
    RobenchError,
    broken_package,
    place_in_own_code,
    unknown_name,
)
from robench.core.interrupts import INTERRUPTED, end, end_at_once, importing
from robench.core.sanitize import plain_lines

# Shells ask by this variable what to complete.
COMPLETION = "_ROBENCH_COMPLETE"
# name -> "module:command", imported when asked for: --help must not wait for torch.
COMMANDS = {
    "run": ("robench.cli.run", "Attack defenses and write records."),
    "sweep": ("robench.cli.sweep", "Vary a setting of a defense or of an attack."),
    "curve": ("robench.cli.curve", "Plot robust accuracy against the radius."),
    "transfer": ("robench.cli.transfer", "Test purifiers on datasets that they were not trained on."),
    "diagnose": ("robench.cli.diagnose", "Find out whether an evaluation failed."),
    "certify": ("robench.cli.certify", "Certify lower bounds on robust accuracy."),
    "list": (
        "robench.cli.listing",
        "List defenses, attacks, datasets, protocols, tables and more.",
    ),
    "show": ("robench.cli.show", "Show a card, a suite, an attack, a protocol or a record."),
    "train": ("robench.cli.train", "Train the checkpoint of a card."),
    "corrupt": ("robench.cli.corrupt", "Write the corruptions of ImageNet-C for any dataset."),
    "verify": ("robench.cli.verify", "Verify records by classifying their adversarial examples again."),
    "challenge": ("robench.cli.challenge", "Judge adversarial examples from another tool."),
    "check": ("robench.cli.check", "Check that a checkpoint is as robust as its baseline."),
    "board": ("robench.cli.board", "Make a leaderboard from records."),
    "table": ("robench.cli.table", "Print the tables of a paper from records."),
    "plot": ("robench.cli.plot", "Draw plots from records."),
    "results": ("robench.cli.results", "Merge, export, migrate and prune records."),
    "cache": ("robench.cli.cache", "Show or clear the cache of corrupted images."),
    "doctor": ("robench.cli.doctor", "Show what is installed, what is missing and how to install it."),
}


class Commands(click.Group):
    """Loads a command's module when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        import importlib

        with end_at_once():
            return importlib.import_module(COMMANDS[cmd_name][0]).command

    def resolve_command(self, ctx: click.Context, args: list[str]):
        if args and args[0] not in COMMANDS:
            ctx.fail(str(unknown_name("command", args[0], COMMANDS, "robench --help lists all")))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            # click would print an empty line first.
            raise click.Abort() from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"robench, version {robench.__version__}")
        context.exit()


@click.group(
    cls=Commands,
    no_args_is_help=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and exit.",
)
@click.pass_context
def cli(context: click.Context) -> None:
    """Find out whether an image classifier's defense really holds.

    \b
    robench run --defense mimir --attack autoattack
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    open_standard_streams()
    if COMPLETION in os.environ:
        # click writes bytes for the shell, and exits.
        cli.main(prog_name="robench")
    before = sys.stdout, sys.stderr
    output, sys.stderr = Output(sys.stdout), Output(sys.stderr)
    sys.stdout = output
    try:
        code = _run(arguments)
        output.flush()
        if output.failure is not None:
            _say(f"cannot write to stdout ({output.failure.strerror}): what was printed is lost")
            code = code or ResourceError.exit_code
    finally:
        sys.stdout, sys.stderr = before
    sys.exit(code)


def _run(arguments: list[str] | None) -> int:
    """The exit code of a command; errors that the user can fix have been printed."""
    interrupts: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        if importing(frame):
            end(number, frame)
        interrupts.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        code = cli.main(args=arguments, prog_name="robench", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        return _interrupted()
    except click.ClickException as error:
        _say(error.format_message())
        if isinstance(error, click.UsageError) and error.ctx is not None:
            _say(f"see {error.ctx.command_path} --help")
        return error.exit_code
    except RobenchError as error:
        return _failed(error, error)
    except Exception as error:
        # Whoever was interrupted may have made another error of it.
        if interrupts:
            return _interrupted()
        if isinstance(error, ImportError) and not (error.name or "").startswith("robench"):
            return _failed(broken_package(error), error)
        if not _out_of_memory(error):
            raise
        _say("out of memory: repeat with a smaller --batch-size, or on another --device")
        return ResourceError.exit_code
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    return code if isinstance(code, int) else 0


def _failed(error: RobenchError, origin: Exception) -> int:
    _say(str(error))
    if place := place_in_own_code(origin):
        _say(f"the error began in {place}")
    return error.exit_code


def _out_of_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:
        return False
    from robench.engine.backing_off import out_of_memory

    return out_of_memory(error)


def _interrupted() -> int:
    _say("interrupted: run the same command again to resume")
    return INTERRUPTED


def _say(text: str) -> None:
    print(f"robench: {plain_lines(text)}", file=sys.stderr)
