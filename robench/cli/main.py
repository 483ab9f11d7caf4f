"""The group of commands, and how every one of them ends: an exit code, and no traceback for a user's mistake."""

import os
import signal
import sys
from types import FrameType

import click

from robench.errors import RobenchError, unknown_name
from robench.plain import plain_lines

INTERRUPTED = 130
# name -> "module:command", imported when asked for: --help must not wait for torch.
COMMANDS = {
    "run": ("robench.cli.run", "Attack defenses and write records."),
    "diagnose": ("robench.cli.diagnose", "Look for signs that an evaluation fails."),
    "list": ("robench.cli.listing", "List defenses, attacks, datasets, protocols or transformations."),
    "show": ("robench.cli.show", "Show a card, a suite, an attack, a protocol or a record."),
    "train": ("robench.cli.train", "Train a card's checkpoint by its recipe."),
    "corrupt": ("robench.cli.corrupt", "Write a data set's images corrupted, as ImageNet-C has them."),
    "verify": ("robench.cli.verify", "Re-check records from their certificates."),
    "check": ("robench.cli.check", "Say whether a checkpoint is still as robust as it was."),
    "board": ("robench.cli.board", "Make a table from records."),
    "table": ("robench.cli.table", "Print a paper's own table from records."),
    "plot": ("robench.cli.plot", "Draw pictures from records."),
    "results": ("robench.cli.results", "Merge, export and prune records."),
    "cache": ("robench.cli.cache", "Show or clear the corrupted images that are kept."),
    "doctor": ("robench.cli.doctor", "Say what is installed, what is missing and how to get it."),
}


class Commands(click.Group):
    """Loads a command's module when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        import importlib

        return importlib.import_module(COMMANDS[cmd_name][0]).command

    def resolve_command(self, ctx: click.Context, args: list[str]):
        if args and args[0] not in COMMANDS:
            ctx.fail(str(unknown_name("command", args[0], COMMANDS)))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="robench")
def cli() -> None:
    """Find out whether an image classifier's defense really holds.

    \b
    robench run --defense mimir --attack autoattack
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = cli.main(args=arguments, prog_name="robench", standalone_mode=False)
        sys.stdout.flush()
    except (click.exceptions.Abort, KeyboardInterrupt):
        _say("interrupted: the same command goes on from here")
        code = INTERRUPTED
    except click.ClickException as error:
        _say(error.format_message())
        if isinstance(error, click.UsageError) and error.ctx is not None:
            _say(f"{error.ctx.command_path} --help explains")
        code = error.exit_code
    except RobenchError as error:
        _say(str(error))
        code = error.exit_code
    except BrokenPipeError:
        # Whoever read our output has gone; nothing is left to be said to them.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    print(f"robench: {plain_lines(text)}", file=sys.stderr)
