"""Entry point of `python -m robench` and of the command `robench`."""

from robench.core.interrupts import end_at_once


def main() -> None:
    """Run the command line and exit."""
    with end_at_once():
        from robench.cli import main as command_line
    command_line()


if __name__ == "__main__":
    main()
