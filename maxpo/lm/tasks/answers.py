r"""Which number a text answers with: plain text, LaTeX, GSM8K's "####".

A text is cut into tokens once, and they are read from left to right without going back, so the time
is linear in its length: it was written by a model, and may be anything.
"""

import functools
import logging
import re
import unicodedata
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from maxpo._extras import missing_extra
from maxpo.lm.tasks.text import Problem, preloads, text_only

__all__ = [
    "DEEPEST",
    "LONGEST",
    "gold_number",
    "is_mathematics",
    "math_verifier",
    "numeric_answer",
    "numeric_verifier",
]

LONGEST = 4000  # Digits of a number; Python itself refuses a little more.
DEEPEST = 20  # Brackets and fractions within each other.
_FARTHEST = 10_000  # Characters around a number that are read.


def numeric_answer(text: str) -> Fraction | None:
    r"""The number that a text answers with, or None.

    That is the first number after the last "####"; without one, what is in the last `\boxed{}` or
    `\fbox{}`, which must be one number; without one, the last number of the text.

    A number may have a sign, thousands separators, an exponent, and units, currency, degree or
    percent signs, which are dropped (50% is 50); it may be a fraction or a mixed number, in LaTeX
    or not. What is no single rational number is None rather than a guess: roots, variables, pairs,
    times, ranges, a box with anything else in it. Arithmetic is not carried out: in plain text its
    last operand counts, as of "10-5", unless a minus may stand for "to", as in "3-5".

    >>> numeric_answer("So she pays $1,250.50.")
    Fraction(2501, 2)
    >>> numeric_answer(r"\boxed{3\frac{1}{4}\text{ cm}^2} in 9 steps")
    Fraction(13, 4)
    >>> numeric_answer(r"\boxed{2\sqrt{3}}") is None
    True
    """
    after, box = _marked(text)
    if box is not None:
        return _whole(_tokens(box)) if len(box) <= _FARTHEST else None
    return _last(text) if after is None else _first(_tokens(after[:_FARTHEST]))


def gold_number(text: str) -> Fraction | None:
    """The number that a problem's answer is, or None where it is not exactly one.

    As `numeric_answer`, but what follows "####", or else the text without a box, must be a number
    with its units and nothing else: the answer of a problem is not to be guessed.

    >>> gold_number("48 / 2 = 24 #### 24 clips")
    Fraction(24, 1)
    >>> gold_number("Option 2: no") is None
    True
    """
    part = _answer(text)
    return _whole(_tokens(part)) if len(part) <= _FARTHEST else None


@text_only
def numeric_verifier(problem: Problem, completion: str) -> float:
    """1 where a completion answers with the number that the problem's answer is, else 0."""
    answer = numeric_answer(completion)
    return float(answer is not None and answer == gold_number(problem.answer))


@preloads(lambda: is_mathematics(r"$\frac{1}{2} + \sqrt{x}$"))
def math_verifier(problem: Problem, completion: str) -> float:
    """1 where a completion answers with what equals the problem's answer, else 0. Needs `math`.

    Two plain numbers are compared exactly, as by `numeric_verifier`, and anything else by the
    package math-verify: roots, variables, pairs, intervals, sets, matrices. Its own time limit,
    which takes signals and a main thread, is off: a `VerifierPool` has one.

    Raises:
      ImportError: If the package is missing.
    """
    gold = gold_number(problem.answer)
    answer = None if gold is None else numeric_answer(completion)
    if answer is not None:
        return float(answer == gold)
    expected, found = _expressions(problem.answer, is_gold=True), _expressions(completion)
    return float(_math_verify().verify(expected, found, timeout_seconds=None))


def is_mathematics(text: str) -> bool:
    r"""Whether a problem's answer is something that `math_verifier` can compare with.

    Plain words are not, though math-verify takes them for products of letters.

    Raises:
      ImportError: If the package math-verify is missing.
    """
    expressions = _expressions(text, is_gold=True)
    if gold_number(text) is not None:
        return True
    bare = re.sub(r"\\[A-Za-z]+(?:\s*\{[A-Za-z ]*\})?", "", _answer(text))
    return bool(expressions) and not re.search(r"[A-Za-z]{3}", bare)


def _answer(text: str) -> str:
    """The part of a text that is marked as its answer, or all of it."""
    after, box = _marked(text)
    return next(part for part in (box, after, text) if part is not None)


def _expressions(text: str, *, is_gold: bool = False) -> list[Any]:
    """What math-verify reads in a text, nothing where it reads no mathematics."""
    part = _answer(text)
    if "$" not in part and (is_gold or part is not text):
        part = rf"\boxed{{{part}}}"
    parse = _math_verify().parse
    return list(parse(part, fallback_mode="no_fallback", parsing_timeout=None))


@functools.cache
def _math_verify() -> Any:
    try:
        import math_verify
    except ImportError as error:
        raise missing_extra("the verifier 'math'", "math-verify", "math", error) from error
    # It warns of the time limit that is switched off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify


def _marked(text: str) -> tuple[str | None, str | None]:
    """The line after the last "####", and what is in the last box; None where there is none."""
    _, mark, after = text.rpartition("####")
    if mark:
        text = after = after.strip().partition("\n")[0]
    box = _boxed(text)
    return (after if mark and box is None else None), box


def _boxed(text: str) -> str | None:
    """What is between the braces of the last box; "" where they are not closed."""
    start = None
    for box in re.finditer(r"\\(?:boxed|fbox)\s*+\{", text):
        start = box.end()
    if start is None:
        return None
    depth = 1
    for brace in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : start + brace.start()]
    return ""


# Tokens.

_SEPARATORS = r"(?:\{,\}|,)(?:\\!)?|\\[,;:!\ ]|[~'\u2019_\ \u00a0\u2007\u2009\u202f]"
_TOKEN = re.compile(
    rf"""
    (?P<space>[^\S\n]++|\\[,;:\ ]|~|\\q?quad(?![a-zA-Z]))
    |(?P<nothing>\\!|\\[()\[\]]|`)
    |(?P<number>
        (?P<whole>[1-9]\d{{0,2}}(?P<separator>{_SEPARATORS})\d{{3}}(?:(?P=separator)\d{{3}})*(?!\d)
            |\d++|(?=\.\d))
        (?P<decimals>\.\d++)?
        (?P<exponent>[eE][-+\u2212]?\d{{1,3}}(?![\w]))?
    )
    |(?P<vulgar>[¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])
    |(?P<raised>[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]++)
    |(?P<times>(?<=\d)[xX](?=\d)|\\(?:times|cdot|ast)(?![a-zA-Z])|[\u00d7·⋅∙])
    |(?P<mark>\\[$%]|\\(?:degree|pounds|euro)(?![a-zA-Z])|[$€£¥₹₩₽¢%‰°º]
        |(?:USD|EUR|GBP|CAD|AUD|US|Rs)(?=[$\d]))
    |(?P<equals>\\(?:approx|equiv|to|implies|(?:long)?(?:left)?rightarrow)(?![a-zA-Z])
        |:?=++>?|->|[≈≡→⇒⟹])
    |(?P<stop></?[A-Za-z]\w*+>|<\|\w*+\|>|<<|>>|---+|\\\\|\n|\\(?:begin|end)\{{[a-zA-Z*]*+\}}
        |\\(?:square|blacksquare|qed|checkmark|ldots|dots)(?![a-zA-Z])|\.\.++)
    |(?P<style>\\(?:text|mathrm|mathbf|mathit|mathsf|textbf|textit|textrm|textsf|mbox|hbox|bf|rm
        |operatorname|boldsymbol|emph|boxed|fbox|displaystyle|textstyle|left|right
        |[bB]igg?[lr]?)(?![a-zA-Z]))
    |(?P<fraction>\\[dtc]?frac(?![a-zA-Z]))
    |(?P<circle>\\circ(?![a-zA-Z]))
    |(?P<bad>\\(?:[A-Za-z]++|.)|[√∛∞±∓<>≤≥≠∑∏∫])
    |(?P<power>\^)
    |(?P<dash>\u2013|--)
    |(?P<sign>[-+\u2212])
    |(?P<stars>\*++)
    |(?P<divide>[/÷\u2044]|\\div(?![a-zA-Z]))
    |(?P<subscript>_)
    |(?P<open>[(\[{{])
    |(?P<close>[)\]}}])
    |(?P<comma>[,;])
    |(?P<name>[A-Za-z]++\d[\w]*+)
    |(?P<word>[ap]\.m(?![a-z])|[^\W\d_]+(?:['\u2019][^\W\d_]+)*+)
    |(?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)

_RAISED = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")
_CURRENCIES = ("USD", "EUR", "GBP", "CAD", "AUD", "US", "Rs")
_TIMES_OF_DAY = re.compile(r"[ap]\.?m|[AP]M|o['\u2019]clock")
_MULTIPLIERS = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_FUNCTIONS = ("sqrt", "cbrt", "root", "log", "ln", "exp", "sin", "cos", "tan", "pi")
_BETWEEN = ("to", "through", "and", "or")
# Letters that are units right after a number; any other there is a variable.
_UNIT_LETTERS = "msghlLNJWVAKCF"
# What may follow a number without a space, besides words of four letters and more.
_SHORT_UNITS = re.compile(
    r"""
    [mcdknuµ]m|mi|ft|yd|in|sq                      # lengths and areas
    |lbs?|oz|[km]g|kt|[mcd][lL]|gal|mol            # masses and amounts
    |[mn]s|min|sec|hrs?|yrs?|[mk]ph                # times and speeds
    |[kMG]?Hz|k?Pa|k?J|[kM]W|kWh|[kKMGT]B|rad|deg  # what else physics measures
    |pct|pts?|px|st|nd|rd|th                       # percent, points, ordinals
    """,
    re.VERBOSE,
)


class _Token(NamedTuple):
    """A piece of a text.

    Attributes:
      kind: number, sign, times, divide, mark (currency, percent, degree), power, fraction, open,
        close, comma; variable or bad, which make a number none; word, stop or equals, which end it.
      text: What was written.
      spaced: Whether white space is in front.
      value: Value of a number and of a power; None where a number is too long to read.
    """

    kind: str
    text: str
    spaced: bool
    value: Fraction | None = None


_NUMBERS = ("number", "fraction", "power")
_ENDS = ("word", "stop", "equals")


def _tokens(text: str) -> list[_Token]:
    """All of a text but spaces and what only changes how it looks."""
    raw = _plain(text)
    closing = _matches(raw)
    skipped: set[int] = set()  # Braces of "\text{...}", whose content counts as if it stood alone.
    tokens: list[_Token] = []
    place = 0
    while place < len(raw):
        token = raw[place]
        before = tokens[-1] if tokens else None
        after = raw[place + 1] if place + 1 < len(raw) else _Token("stop", "", True)
        place += 1
        if token.kind == "style":
            if after.text == "{":
                skipped.add(closing.get(place, place))
                if place + 1 < len(raw):  # A word in it is no product of letters.
                    raw[place + 1] = raw[place + 1]._replace(spaced=True)
                place += 1
        elif place - 1 in skipped:
            continue
        elif token.kind == "power":
            end = 1 + closing.get(place, place)
            tokens += _power(before, raw[place:end])
            place = end
        elif token.kind == "raised":
            tokens += _power(before, [token._replace(text=token.text.translate(_RAISED))])
        elif token.kind == "subscript":  # A variable's; else emphasis, which is dropped.
            if before is not None and before.kind in ("variable", "word") and not token.spaced:
                place = 1 + closing.get(place, place)
        else:
            kind = _kind(before, token, after, tokens[-2].kind if len(tokens) > 1 else "stop")
            if kind == "power":
                tokens += _power(before, [after])
                place += 1
            elif kind != "nothing":
                tokens.append(token._replace(kind=kind))
    return tokens


def _plain(text: str) -> list[_Token]:
    """Tokens as `_TOKEN` finds them."""
    raw = []
    spaced = True
    for match in _TOKEN.finditer(text):
        kind = str(match.lastgroup)
        # A group within another is closed before it, so it is never the last one.
        if kind == "space":
            spaced = True
        elif kind != "nothing":
            raw.append(_Token(kind, match[0], spaced, _value(match)))
            spaced = False
    return raw


def _value(match: re.Match[str]) -> Fraction | None:
    if match["vulgar"]:
        return Fraction(unicodedata.numeric(match[0])).limit_denominator(10)
    if not match["number"] or len(match[0]) > LONGEST:
        return None
    whole = re.sub(r"\D", "", match["whole"]) or "0"
    exponent = (match["exponent"] or "").replace("\N{MINUS SIGN}", "-")
    return Fraction(whole + (match["decimals"] or "") + exponent)


def _matches(tokens: Sequence[_Token]) -> dict[int, int]:
    """Where each opening brace is closed."""
    closing = {}
    opened = []
    for place, token in enumerate(tokens):
        if token.text == "{":
            opened.append(place)
        elif token.text == "}" and opened:
            closing[opened.pop()] = place
    return closing


def _power(before: _Token | None, exponent: Sequence[_Token]) -> list[_Token]:
    """What "^" and an exponent come to: nothing after a unit, which has no part in the number."""
    content = [token for token in exponent if token.text not in "{}" and token.kind != "style"]
    if [token.text for token in content] in (["\\circ"], ["o"]):
        return [_Token("mark", "°", False)]
    if before is not None and before.kind == "word":
        return []
    text = "".join(token.text for token in content).replace("\N{MINUS SIGN}", "-")
    if re.fullmatch(r"[-+]?\d{1,3}", text):
        return [_Token("power", text, False, Fraction(text))]
    return [_Token("bad", text, False)]


def _kind(before: _Token | None, token: _Token, after: _Token, earlier: str) -> str:
    """What a token is, by those around it."""
    is_number = before is not None and before.kind in ("number", "power", "close", "mark")
    tight = is_number and not token.spaced
    match token.kind:
        case "vulgar":
            return "number"
        case "circle":
            return "mark"
        case "stars":
            operand = after.kind in ("number", "sign", "open", "fraction") or after.text == "x"
            if len(token.text) > 1:
                return "power" if tight and operand and not after.spaced else "nothing"
            return "times" if is_number and operand else "nothing"
        case "dash":
            return "bad" if is_number and after.kind in ("number", "mark") else "stop"
        case "other":
            if not tight or after.spaced:
                return "stop"
            # A time, a ratio, feet and inches; "0.\overline{3}".
            joined = token.text in ":'\u2019\u2032\"" and after.kind == "number"
            return "bad" if joined or (token.text == "." and after.kind == "bad") else "stop"
        case "word" | "name":
            return _kind_of_word(before, token, after, earlier, is_number)
    return token.kind


def _kind_of_word(
    before: _Token | None, token: _Token, after: _Token, earlier: str, is_number: bool
) -> str:
    """A variable, or a word: a unit, or one that has nothing to do with a number."""
    text = token.text.rstrip("_0123456789") if token.kind == "name" else token.text
    tight = is_number and not token.spaced
    if text in _CURRENCIES and after.kind in ("number", "mark"):
        return "mark"
    if text in _FUNCTIONS:
        return "bad"
    if not _is_latin_or_greek(text):
        return "word"
    if len(text) > 1:
        known = len(text) > 3 or text in _CURRENCIES
        if known or not tight or _SHORT_UNITS.fullmatch(text) or _TIMES_OF_DAY.fullmatch(text):
            return "word"
        return "variable"
    if token.kind == "name" and not is_number:
        return "word"
    if is_number:
        if text in "xX" and after.kind == "number" and token.spaced == after.spaced:
            return "times"
        if text in _UNIT_LETTERS:
            return "word"
        return "variable" if tight or (text.islower() and text != "a") else "word"
    last = "stop" if before is None else before.kind
    operated = last in ("sign", "times", "divide")
    if text in _UNIT_LETTERS and (last == "word" or (operated and earlier == "word")):
        return "word"  # As of "in m^2" and "km/h".
    if after.kind in ("power", "raised") or (after.text == "(" and not after.spaced):
        return "variable"
    if after.text == "}" or (last == "open" and after.kind != "close"):
        return "variable"
    if text in "aAI":
        return "word"
    return "variable" if operated or after.kind in ("sign", "times", "divide", "stars") else "word"


def _is_latin_or_greek(text: str) -> bool:
    return all(character.isascii() or "\u0370" <= character <= "\u03ff" for character in text)


# Numbers of tokens.


class _NotANumberError(Exception):
    """Tokens are not what a number is made of."""


class _Reader:
    """Reads one number from the left of some tokens.

    Args:
      tokens: What to read.
    """

    def __init__(self, tokens: Sequence[_Token]):
        self.tokens = list(tokens)
        self.place = 0
        self._depth = 0

    def see(self, ahead: int = 0) -> _Token:
        place = self.place + ahead
        return self.tokens[place] if place < len(self.tokens) else _Token("end", "", True)

    def take(self, *kinds: str) -> _Token:
        token = self.see()
        if token.kind not in kinds:
            raise _NotANumberError
        self.place += 1
        return token

    def number(self) -> Fraction:
        """A number with its sign, currency, percent and degree signs."""
        signs = []
        while self.see().kind in ("sign", "mark"):
            token = self.take("sign", "mark")
            if token.kind == "sign":
                signs.append(token.text)
        if len(signs) > 1:
            raise _NotANumberError
        value = self._magnitude()
        while self.see().kind == "mark":
            self.place += 1
        return value if signs in ([], ["+"]) else -value

    def _magnitude(self) -> Fraction:
        value, text = self._part()
        token = self.see()
        if token.kind == "divide" and self.see(1).kind == "number":
            return self._divided(value)
        if token.kind == "times" and self.see(1).text == "10" and self.see(2).kind == "power":
            self.place += 2
            return value * self._power_of_ten()
        if token.kind == "power" and text == "10":
            return self._power_of_ten()
        if token.kind in ("number", "fraction") and text.isdecimal():  # A mixed number.
            part, text = self._part()
            if self.see().kind == "divide" and text.isdecimal():
                part = self._divided(part)
            elif text.isdecimal():
                raise _NotANumberError
            if not 0 < part < 1:
                raise _NotANumberError
            return value + part
        return value

    def _part(self) -> tuple[Fraction, str]:
        """A number without a sign, a fraction of LaTeX or brackets; and its text if it has one."""
        self._depth += 1
        if self._depth > DEEPEST:
            raise _NotANumberError
        token = self.take("number", "fraction", "open")
        text = token.text
        if token.kind == "number":
            value = token.value
        elif token.kind == "fraction":
            value = self._ratio(self._argument(), self._argument())
        else:
            first = self.see()
            value = self.number()
            closing = self.take("close")
            # "(100,200)" is a pair as well as a number.
            if text == "[" or "([{".index(text) != ")]}".index(closing.text):
                raise _NotANumberError
            if text == "(" and "," in first.text:
                raise _NotANumberError
        self._depth -= 1
        if value is None:
            raise _NotANumberError
        return value, text

    def _argument(self) -> Fraction:
        """An argument of LaTeX's fraction: braces, or one digit."""
        token = self.take("open", "number")
        if token.kind == "open" and token.text == "{":
            value = self.number()
            if self.take("close").text != "}":
                raise _NotANumberError
            return value
        if not token.text.isdecimal():
            raise _NotANumberError
        if len(token.text) > 1:
            self.place -= 1
            rest = token.text[1:]
            if len(rest) > 1:  # Digits that would be a factor.
                raise _NotANumberError
            self.tokens[self.place] = _Token("number", rest, False, Fraction(rest))
        return Fraction(token.text[0])

    def _divided(self, value: Fraction) -> Fraction:
        self.take("divide")
        divisor = self.take("number").value
        if divisor is None:
            raise _NotANumberError
        return self._ratio(value, divisor)

    def _ratio(self, value: Fraction, divisor: Fraction) -> Fraction:
        if divisor == 0:
            raise _NotANumberError
        return value / divisor

    def _power_of_ten(self) -> Fraction:
        return Fraction(10) ** int(self.take("power").value or 0)


def _whole(tokens: Sequence[_Token]) -> Fraction | None:
    """The number that all of some tokens are, with its units; None where there is anything else."""
    tokens = [token for token in tokens if token.text != "\n"]
    if tokens and tokens[-1].text == ".":
        tokens.pop()
    equals = [place for place, token in enumerate(tokens) if token.kind == "equals"]
    if equals:
        left, tokens = tokens[: equals[0]], tokens[equals[0] + 1 :]
        depth = 0
        for token in left:
            depth += {"open": 1, "close": -1}.get(token.kind, 0)
            if (token.kind == "comma" and depth == 0) or token.text in _BETWEEN:
                return None
    reader = _Reader(tokens)
    try:
        value = reader.number()
    except _NotANumberError:
        return None
    units = tokens[reader.place :]
    # Words such as "square meters per second", with signs in between.
    between = ("word", "mark", "divide", "times", "sign", "open", "close")
    if any(token.kind not in between and token.text != "." for token in units):
        return None
    if units and units[0].kind != "word" and units[0].text not in ("(", "/"):
        return None
    return _scaled(value, units)


def _last(text: str) -> Fraction | None:
    """The last number of a text."""
    for line in reversed(text.split("\n")):  # A number ends with its line, so few are read.
        digits = [digit.start() for digit in re.finditer(r"[\d¼-¾⅐-⅞]", line)]
        if not digits:
            continue
        tokens = _tokens(line[max(0, digits[-1] - _FARTHEST) : digits[-1] + _FARTHEST])
        if runs := list(_runs(tokens)):
            if len(runs) > 1 and _joined(tokens[runs[-2][1] : runs[-1][0]]):
                return None
            return _of_run(tokens, *runs[-1], lenient=True)
    return None


def _first(tokens: Sequence[_Token]) -> Fraction | None:
    """The first number of some tokens, or the one that all of them are."""
    value = _whole(tokens)
    runs = list(_runs(tokens))
    if value is not None or not runs:
        return value
    if len(runs) > 1:
        gap = tokens[runs[0][1] : runs[1][0]]
        if _joined(gap) or [token.kind for token in gap] == ["comma"]:
            return None
    return _of_run(tokens, *runs[0], lenient=False)


def _runs(tokens: Sequence[_Token]) -> Iterator[tuple[int, int]]:
    """From where to where tokens go together and have a number in them."""
    inside = [0] * (len(tokens) + 1)  # Changes of the number of brackets that are open.
    paired = set()
    opened: list[int] = []
    for place, token in enumerate(tokens):
        if token.kind in _ENDS:
            opened.clear()
        elif token.kind == "open":
            opened.append(place)
        elif token.kind == "close" and opened:
            start = opened.pop()
            paired |= {start, place}
            inside[start] += 1
            inside[place] -= 1
    start = depth = 0
    for place, token in enumerate([*tokens, _Token("stop", "", True)]):
        depth += inside[place]
        ends = token.kind in _ENDS or (token.kind == "comma" and not depth)
        if ends or (token.kind in ("open", "close") and place not in paired):
            if any(token.kind in _NUMBERS for token in tokens[start:place]):
                yield start, place
            start = place + 1


def _joined(gap: Sequence[_Token]) -> bool:
    """Whether words between two numbers make them two ends or parts: "3 to 5", "3 cm or 5"."""
    words = [token.text for token in gap]
    return len(words) in (1, 2) and words[-1] in _BETWEEN and all(t.kind == "word" for t in gap)


def _of_run(tokens: Sequence[_Token], start: int, end: int, *, lenient: bool) -> Fraction | None:
    """The number that a run is; if lenient, of arithmetic the last operand."""
    run = list(tokens[start:end])
    if run[-1].kind in ("sign", "divide", "times"):  # As in "$5/hour" and "5 - a lot".
        run.pop()
    reader = _Reader(run)
    try:
        value = reader.number()
        if lenient:
            value = _last_operand(reader, value)
        reader.take("end")
    except _NotANumberError:
        return None
    return _scaled(value, tokens[end : end + 1])


def _last_operand(reader: _Reader, value: Fraction) -> Fraction:
    """The value of arithmetic whose first operand is read. A range or a date has none."""
    hyphens = 0
    while reader.see().kind != "end":
        is_plain = reader.see(-1).kind != "close"
        sign = reader.take("sign", "times")
        first, value = value, reader.number()
        if sign.text in ("-", "\N{MINUS SIGN}"):
            hyphens += 1
            if hyphens > 1 or (is_plain and 0 <= first < value):
                raise _NotANumberError
            # A minus in front of which is a space may be the number's own.
            if sign.spaced:
                value = -value
    return value


def _scaled(value: Fraction, units: Sequence[_Token]) -> Fraction | None:
    """A number times what "million" and the like stand for; None where it is a time of the day."""
    if not units:
        return value
    word = units[0].text
    return None if _TIMES_OF_DAY.fullmatch(word) else value * _MULTIPLIERS.get(word, 1)
