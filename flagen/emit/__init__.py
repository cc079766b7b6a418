"""From printed code and templates to files: rendering, formatting, the banner, and writing what changed.

Takes templates and contexts, gives text; decides nothing. Jinja2 and ruff live here and nowhere else.
"""
