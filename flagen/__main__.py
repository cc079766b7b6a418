"""`flagen` and `python -m flagen`: where the command starts, and what an interrupt meets while the rest is imported."""

from __future__ import annotations

import gc
import sys
from typing import NoReturn


def main() -> NoReturn:
    gc.disable()  # A process of seconds: looking for garbage takes a tenth of them, most of it during imports.
    try:
        from flagen.cli import run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
