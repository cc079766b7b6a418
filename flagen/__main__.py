"""`python -m flagen`."""

from flagen.cli import run

if __name__ == "__main__":
    run()
