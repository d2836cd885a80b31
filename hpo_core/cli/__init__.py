"""The command `hpo`: argv, environment, signals, logging set-up, exit codes, and every word that is printed.

`arguments` holds the options, `commands` what each command does; here errors become messages and exit codes.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from hpo_core.errors import HpoError, SpecError
from hpo_core.exit_codes import BUG, INTERRUPTED, OUT_OF_REACH, REFUSED, code_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words behind `hpo`; None takes the process's.

    Returns:
        The exit code.
    """
    arguments = None
    try:
        # Imported here, so that an interruption while the modules load is taken as calmly as a later one.
        from hpo_core.cli.arguments import make_parser

        arguments = make_parser().parse_args(argv)
        level = logging.INFO if arguments.verbose else logging.WARNING
        logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
        code: int = arguments.command(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our output has gone; nothing more is to be said, not even by the interpreter at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        # Files of the user and records have their own errors; what is left is our own output.
        print(f"hpo: cannot write what there is to say: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return OUT_OF_REACH
    except SpecError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return REFUSED
    except HpoError as error:
        print(f"hpo {arguments.name if arguments else ''}: {error}", file=sys.stderr)
        return code_of(error)
    except Exception as error:
        if arguments is None or arguments.verbose:
            raise
        print(
            f"hpo {arguments.name}: this is a bug of ours: {error!r}; please report it with the output of --verbose",
            file=sys.stderr,
        )
        return BUG


if __name__ == "__main__":
    sys.exit(main())
