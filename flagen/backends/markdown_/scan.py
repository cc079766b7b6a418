"""What `DERIVATION.md` says of elementwise scans."""

from __future__ import annotations

from flagen.algebra.scan import Scan, ScanForm
from flagen.backends.markdown_.printer import ExpressionPrinter, symbol

_LETTERS = {"affine": ("a", "b"), "logaddexp": ("w", "c")}


def scan_context(form: ScanForm | None, printer: ExpressionPrinter) -> dict[str, object]:
    """The values of the template's part on scans; empty where there are none."""
    scans = () if form is None else form.scans
    return {
        "scan": [(symbol(scan.state.name), _update(scan), _element(scan, printer)) for scan in scans],
        "scan_kinds": sorted({scan.kind for scan in scans}),
        "scan_order": ", ".join(symbol(scan.state.name) for scan in reversed(scans)),
        "scan_slopes": [(symbol(scan.state.name), printer.print(scan.slope)) for scan in reversed(scans)],
    }


def _update(scan: Scan) -> str:
    x = symbol(scan.state.name)
    if scan.kind == "affine":
        return rf"{x}_t = a_t \odot {x}_{{t-1}} + b_t"
    return rf"{x}_t = \operatorname{{logaddexp}}({x}_{{t-1}} + w_t, c_t)"


def _element(scan: Scan, printer: ExpressionPrinter) -> str:
    parts = zip(_LETTERS[scan.kind], (scan.factor, scan.term), strict=True)
    return r", \quad ".join(f"{letter}_t = {printer.print(value)}" for letter, value in parts)
