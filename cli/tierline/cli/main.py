"""The `tierline` command. Errors of the user are one line and a documented exit code; ours keep their traceback.

`edge run` and `cloud run` are taken out before anything of the command line is imported: an agent on a small board
should not carry the packages behind the other commands (65 ms and 6 MiB with typer 0.15, 15 ms and 1 MiB with 0.29).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

EXIT_BUG = 70
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. See docs/exit-codes.md."""
    seen: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        if ours:
            signal.signal(signal.SIGINT, interrupt)
        return _run(argv, seen)
    except KeyboardInterrupt:
        print("tierline: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(argv: Sequence[str] | None, interrupts: Sequence[int]) -> int:
    """Raises KeyboardInterrupt, also where a library that was just being imported made another error of it."""
    import traceback  # what takes time to import is imported here, where Ctrl-C is expected

    from tierline.core.errors import TierlineError

    arguments = list(sys.argv[1:] if argv is None else argv)
    # gRPC's core would add lines of its own to standard error; it reads this once, when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # ONNX Runtime (since 1.29, read at its import) would report to its makers, keep an id in the user's cache folder
    # and leave a file `.ses` in the temporary one.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        if arguments[:2] in (["edge", "run"], ["cloud", "run"]):
            from tierline.cli.run import run_node

            return run_node(arguments[0], arguments[2:])
        from tierline.cli.app import run_app

        code = run_app(arguments)
        if code and interrupts:  # a check that failed only because its import was interrupted
            raise KeyboardInterrupt
        return code
    except TierlineError as error:
        if interrupts:
            raise KeyboardInterrupt from None
        return _say(error, error.exit_code)
    except BrokenPipeError:  # `tierline ... | head`: nobody reads on
        sys.stdout = None
        return 0
    except Exception as error:
        if interrupts:
            raise KeyboardInterrupt from None
        if code := _code_of_kernels(error):
            return _say(error, code)
        traceback.print_exc()
        print("tierline: this is a bug of tierline; please report it with the lines above", file=sys.stderr)
        return EXIT_BUG


def _say(error: Exception, code: int) -> int:
    print(f"tierline: {' '.join(str(error).splitlines())}", file=sys.stderr)
    return code


def _code_of_kernels(error: Exception) -> int:
    """Exit code of an error of the kernels, which know no TierlineError; 0 of another. Imports nothing for it."""
    library = sys.modules.get("tierline.kernels.library")
    if library is None or not isinstance(error, library.build.BuildError):
        return 0
    from tierline.core.errors import ConfigError, MissingDependency

    return (ConfigError if isinstance(error, library.UnknownChoice) else MissingDependency).exit_code


if __name__ == "__main__":
    sys.exit(main())
