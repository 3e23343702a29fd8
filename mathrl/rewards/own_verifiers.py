"""Whether the `verifiers` that Python finds is ours: another distribution installs one of that name too."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec
from pathlib import Path

from mathrl.errors import UserError

_MARK = 'OWNER = "mathrl"'
"""Stands in our verifiers/__init__.py. Where two distributions share a folder, the later one wrote it."""


def require_own_verifiers() -> None:
    """Raise UserError where `import verifiers` would find another distribution's package, or none."""
    check_owner(importlib.util.find_spec("verifiers"))


def check_owner(spec: ModuleSpec | None) -> None:
    """Raise UserError unless a found package `verifiers` is ours; nothing of it is imported."""
    loader = spec.loader if spec else None
    if isinstance(loader, InspectLoader) and _MARK in (loader.get_source("verifiers") or ""):
        return
    where = f"in {Path(spec.origin).parent} " if spec and spec.origin else ""
    raise UserError(
        f"the package 'verifiers' {where}is not mathrl's own{_others()}: give mathrl an environment of its "
        "own, or uninstall that distribution and then install mathrl again as before, with pip's options "
        "--force-reinstall --no-deps"
    )


def _others() -> str:
    """Which installed distributions have a package of this name, besides mathrl."""
    names = importlib.metadata.packages_distributions().get("verifiers", [])
    found = sorted({f"{name} {importlib.metadata.version(name)}" for name in names if name != "mathrl"})
    return f"; {' and '.join(found)} installed another one under that name" if found else ""
