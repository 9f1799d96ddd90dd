"""`python -m raygen`, and the console script: an interrupt while modules are imported is one sentence too."""

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point; see `raygen.cli.main`."""
    try:
        from raygen import cli
    except KeyboardInterrupt:
        sys.stderr.write("KeyboardInterrupt: nothing was begun\n")
        sys.exit(130)
    cli.main()


if __name__ == "__main__":
    main()
