"""`flagen` and `python -m flagen`: where the command starts, and what an interrupt meets while the rest is imported."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    try:
        from flagen.cli import run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
