"""What `DERIVATION.md` says of elementwise scans."""

from __future__ import annotations

from flagen.algebra.scan import Kind, Scan, ScanForm
from flagen.backends.markdown_.printer import ExpressionPrinter, symbol

_PRODUCTS: dict[Kind, str] = {
    "affine": r"(a_1, b_1) \cdot (a_2, b_2) &= (a_1 \odot a_2,\; a_2 \odot b_1 + b_2)",
    "logaddexp": r"(w_1, c_1) \cdot (w_2, c_2) &= (w_1 + w_2,\; \operatorname{logaddexp}(c_1 + w_2, c_2))",
    "maximum": r"(w_1, c_1) \cdot (w_2, c_2) &= (w_1 + w_2,\; \operatorname{maximum}(c_1 + w_2, c_2))",
    "phase": r"b_1 \cdot b_2 &= \operatorname{fraction}(b_1 + b_2)",
}


def scan_context(form: ScanForm | None, printer: ExpressionPrinter) -> dict[str, object]:
    """The values of the template's part on scans; empty where there are none."""
    scans = () if form is None else form.scans
    phases = any(scan.kind == "phase" for scan in scans)
    return {
        "scan": [(symbol(scan.state.name), _update(scan), _element(scan, printer)) for scan in scans],
        "scan_products": [_PRODUCTS[kind] for kind in sorted({scan.kind for scan in scans})],
        "scan_phases": phases,
        "scan_shifts": [symbol(scan.state.name) for scan in scans if scan.is_shift],
        "scan_last": "last" if phases else "second",
        "scan_order": ", ".join(symbol(scan.state.name) for scan in reversed(scans)),
        "scan_slopes": [(symbol(scan.state.name), printer.print(scan.slope)) for scan in reversed(scans)],
    }


def _update(scan: Scan) -> str:
    x = symbol(scan.state.name)
    match scan.kind:
        case "affine":
            return rf"{x}_t = a_t \odot {x}_{{t-1}} + b_t"
        case "logaddexp" | "maximum" as function:
            return rf"{x}_t = \operatorname{{{function}}}({x}_{{t-1}} + w_t, c_t)"
        case "phase":
            return rf"{x}_t = \operatorname{{fraction}}({x}_{{t-1}} + b_t)"


def _element(scan: Scan, printer: ExpressionPrinter) -> str:
    return r", \quad ".join(f"{letter}_t = {printer.print(value)}" for letter, value in scan.element)
