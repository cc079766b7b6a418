"""From printed code and templates to files: rendering, formatting, the banner, and writing what changed.

Takes templates and contexts, gives text; decides nothing. Jinja2 lives here and nowhere else.
"""

from flagen.emit.banner import Origin, add_banner, has_banner
from flagen.emit.env import environment, render
from flagen.emit.format import format_python
from flagen.emit.writer import Changes, ForeignFile, differences, own_files, pending_changes, write_package

__all__ = [
    "Changes",
    "ForeignFile",
    "Origin",
    "add_banner",
    "differences",
    "environment",
    "format_python",
    "has_banner",
    "own_files",
    "pending_changes",
    "render",
    "write_package",
]
