"""The `tierline` command. Errors of the user are one line and a documented exit code; ours keep their traceback.

`edge run` and `cloud run` are taken out before anything of the command line is imported: an agent on a small board
should not carry the packages behind the other commands (65 ms and 6 MiB with typer 0.15, 15 ms and 1 MiB with 0.29).
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from tierline.core.errors import TierlineError

EXIT_BUG = 70
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. See docs/exit-codes.md."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # gRPC's core would add lines of its own to standard error; it reads this once, when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        if arguments[:2] in (["edge", "run"], ["cloud", "run"]):
            from tierline.cli.run import run_node

            return run_node(arguments[0], arguments[2:])
        from tierline.cli.app import run_app

        return run_app(arguments)
    except TierlineError as error:
        print(f"tierline: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `tierline ... | head`: nobody reads on
        sys.stdout = None
        return 0
    except Exception:
        traceback.print_exc()
        print("tierline: this is a bug of tierline; please report it with the lines above", file=sys.stderr)
        return EXIT_BUG


if __name__ == "__main__":
    sys.exit(main())
