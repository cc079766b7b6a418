"""Rebuilding expressions, as the specs they are of do."""

from flagen.spec.rewrite import map_children as map_children
