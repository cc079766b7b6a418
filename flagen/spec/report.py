"""What the front end can say about a spec: the table of codes, and the collector of one file's diagnostics."""

from __future__ import annotations

from flagen.diagnostics import Diagnostic, Source, Span

CODES: dict[str, str] = {
    # E1: the file and its YAML.
    "E101": "the file cannot be read",
    "E102": "the file is not UTF-8",
    "E103": "the file is too large",
    "E104": "not YAML",
    "E105": "the file is empty",
    "E106": "more than one document",
    "E107": "the file is not a mapping",
    "E108": "duplicate key",
    "E109": "a YAML tag",
    "E110": "a YAML alias that is undefined, or one too many",
    "E111": "nested too deeply",
    "E112": "a key that is not text",
    "E113": "a character that no text file has",
    "E114": "a value cut at a comma",
    "E115": "a name and its value, not told apart",
    # E2: keys, types and values of the sections.
    "E201": "a required key is missing",
    "E202": "unknown key",
    "E203": "a value of the wrong type",
    "E204": "a value outside the allowed ones",
    "E205": "unsupported language version",
    "E206": "a name no package can have",
    "E207": "a name no class can have",
    "E208": "not a range",
    "E209": "a number out of bounds",
    "E210": "not supported yet",
    "E211": "an empty section",
    "E212": "a name beside the packages",
    # E3: names.
    "E301": "not a name",
    "E302": "reserved name",
    "E303": "one name for two things",
    "E304": "unknown name",
    "E305": "declared and never used",
    "E306": "a per-step name outside a repeat",
    "E307": "a state where states cannot be read",
    "E308": "used before it is defined",
    "E309": "a local of a repeat, read outside it",
    "E310": "assignment to something that is neither a state nor a new local",
    "E311": "a local assigned twice",
    "E312": "a function without its arguments",
    "E313": "a default over more than sizes",
    "E314": "a state that never reaches the output",
    "E315": "a value that is not kept from token to token",
    "E316": "no mini-batch to be the first of",
    "E317": "a state that is not kept in levels",
    # E4: the grammar of expressions.
    "E401": "not an expression",
    "E402": "a construct the language does not have",
    "E403": "an operator the language does not have",
    "E404": "an expression that is too long",
    "E405": "an expression nested too deeply",
    "E406": "not a number of the language",
    "E407": "wrong arguments",
    "E408": "unknown function",
    "E409": "an attribute other than .T",
    "E410": "a character the language does not have",
    "E411": "not an assignment",
    "E412": "a constant without a finite value",
    "E413": "several statements in one text",
    # E5: dims.
    "E501": "a sum of different dims",
    "E502": "a product of dims that do not nest",
    "E503": "a contraction of different dims",
    "E504": "a contraction of a scalar",
    "E505": "a dim twice in one result",
    "E506": "a reduction over a dim that is not there",
    "E507": "a row function of something that is no vector",
    "E508": "an assignment of other dims",
    "E509": "a dim twice in one declaration",
    "E510": "a dim of unknown size",
    "E511": "dims of batch, time or heads",
    "E512": "not a size",
    "E513": "sizes that follow from each other",
    "E514": "a size that follows from an unknown one",
    "E515": "a rotation of what has other pairs",
    "E516": "a dim by the name of one that is not as long",
    "E517": "a system of equations that does not fit",
    # E6: what update and output mean together.
    "E601": "a state that is never updated",
    "E602": "steps and repeat that do not fit",
    "E603": "nested repeats",
    "E604": "per: step without steps",
    "E605": "an output that does not end in o",
    "E606": "an output that depends on no state",
    "E607": "a decay that multiplies no state",
    "E608": "a gate that scales no write",
    # E8: the layer around the operator.
    "E801": "a module that no constructor makes",
    "E802": "a number that has no value",
    "E803": "defaults that a requirement refuses",
    "E804": "an output that nothing assigns",
    "E805": "a condition that is not known when the layer is made",
    "E806": "an operator that does not run exactly once",
    "E807": "arguments that an operator does not take",
    "E808": "shapes that do not fit",
    "E809": "a module or param that is not there",
    "E810": "something that is no tensor",
    "E811": "masks that do not fit",
    "E812": "another spec that cannot be used",
    "E813": "an argument that has to be given behind one that need not be",
    # W7: legal, and probably not meant.
    "W701": "a state that may grow without bound",
}
"""Every code with its title. A code never changes its meaning; docs/diagnostics.md explains each."""


class Report:
    """Collects the diagnostics of one file, so that all of them are reported at once."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._found: dict[Diagnostic, None] = {}
        self.version = 1
        """The version of the language that the file is written in."""
        self.obscured = False
        """Whether something could not be read that may have used any name: then none is called unused."""
        self.unread = False
        """Whether some expression is none of the language: it may have used any name, but its target is known."""
        self.misnamed: set[str] = set()
        """What was declared and is no name: said once, and not again wherever it is used."""

    def error(self, code: str, span: Span, message: str, hint: str = "") -> None:
        self._add(Diagnostic(code, span, message, hint))

    def warn(self, code: str, span: Span, message: str, hint: str = "") -> None:
        self._add(Diagnostic(code, span, message, hint, "warning"))

    def failed(self) -> bool:
        return any(diagnostic.severity == "error" for diagnostic in self._found)

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """All diagnostics as they were found, each once."""
        return tuple(self._found)

    def ordered(self) -> tuple[Diagnostic, ...]:
        """All diagnostics in order of position."""
        return tuple(sorted(self._found, key=lambda diagnostic: (diagnostic.span, diagnostic.code)))

    def _add(self, diagnostic: Diagnostic) -> None:
        assert diagnostic.code in CODES, diagnostic.code
        self._found[diagnostic] = None


class Abandon(Exception):
    """The reported error leaves nothing that could be checked further."""
