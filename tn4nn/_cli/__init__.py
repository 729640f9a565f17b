"""The command line: thin over the library; `tn4nn COMMAND --help` says what each option means.

Exit codes: 0 done, 1 an error, reported in one message, 2 wrong usage, 3 an experiment that does not hold,
130 stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.
"""

from .._base.stopping import end_at_signals


def command() -> None:
    """The entry point of the process: it ends when it is told to, also while the commands are imported."""
    end_at_signals()
    main()


def main() -> None:
    """Runs the command that `sys.argv` names; leaves with an exit code.

    Errors that tn4nn raises on purpose become one message.
    """
    from .commands import run

    run()
