"""Numbers and mathematics in texts: what is read, and what is no number."""

import math
import time
from fractions import Fraction

import pytest

from maxpo.lm.tasks import answers
from maxpo.lm.tasks.answers import (
    gold_number,
    is_mathematics,
    math_verifier,
    numeric_answer,
    numeric_verifier,
)
from maxpo.lm.tasks.text import Problem

GSM8K = "In May she sold 48/2 = <<48/2=24>>24 clips.\nAltogether 48+24 = 72.\n#### 72"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("72", 72),
        ("#### 72", 72),
        ("1 + 1 = 3\n#### 72", 72),
        ("#### 1\n#### 2", 2),
        ("####72 apples, of 100", 72),
        ("The answer is 72.", 72),
        ("first 5, then 6, so 7!", 7),
        (r"\boxed{8} and then 9", 8),
        (r"\boxed{1} or \boxed{x = 2}", 2),
        (r"$\boxed{-\frac{3}{4}}$", Fraction(-3, 4)),
        (r"\dfrac{1}{3}", Fraction(1, 3)),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)),
        ("1,234,567", 1234567),
        (r"1{,}234", 1234),
        ("1,234.50", Fraction(2469, 2)),
        ("it takes 1,2", 2),
        ("it takes 1,2345", 2345),
        ("$5", 5),
        (r"\$5.25", Fraction(21, 4)),
        ("-$5", -5),
        ("$-5", -5),
        ("€ 5", 5),
        ("50%", 50),
        ("12.5 %", Fraction(25, 2)),
        ("-7", -7),
        ("\N{MINUS SIGN}7", -7),
        ("+7", 7),
        ("10-5", 5),
        ("10 - 5", -5),
        ("x=-5", -5),
        ("(2)-5", 5),
        (".5", Fraction(1, 2)),
        ("-.5", Fraction(-1, 2)),
        ("0.1", Fraction(1, 10)),
        ("007", 7),
        ("72.0", 72),
        ("72.", 72),
        ("6e3", 6000),
        ("1.5e-3", Fraction(3, 2000)),
        ("2 eggs", 2),
        ("", None),
        ("no number", None),
        ("####", None),
        ("5 #### none", None),
        (r"5 \boxed{}", None),
        ("1/0", None),
        ("9" * 5000, None),
    ],
)
def test_numeric_answer(text, number):
    assert numeric_answer(text) == number


@pytest.mark.parametrize("number", [0.1, -2.5, 1234.0, 3e-7, 12345678.75])
def test_numeric_answer_reads_what_python_writes(number):
    for text in (repr(number), f"{number:,.10f}", f"{number:e}"):
        assert math.isclose(numeric_answer(text), number, rel_tol=1e-6, abs_tol=1e-9)


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("#### 72", 1.0),
        ("so it is 72.00", 1.0),
        ("144/2", 1.0),
        ("71.9999999999999999999", 0.0),
        ("72 or 73", 0.0),
        ("1e999999999", 0.0),
        ("", 0.0),
    ],
)
def test_numeric_verifier(completion, reward):
    assert numeric_verifier(Problem("", GSM8K, {}), completion) == reward


NUMBERS = {
    # Units, powers of which are no part of the number.
    r"12\text{ cm}^2": 12,
    "25 m^2": 25,
    "25 cm2": 25,
    "12 km²": 12,
    "25cm^3": 25,
    r"25\,\mathrm{m/s^2}": 25,
    r"9.8 \text{ m/s}^{2}": Fraction(49, 5),
    r"12\ \text{cm}^{-1}": 12,
    "60 km/h": 60,
    "$5/hour": 5,
    "5m": 5,
    "2nd": 2,
    "12 sq. ft.": 12,
    r"\textbf{12 apples}": 12,
    # Degrees, percent, currency.
    r"45^{\circ}": 45,
    r"45^\circ": 45,
    "45°": 45,
    r"45\degree": 45,
    "25°C": 25,
    r"50\%": 50,
    "US$50": 50,
    "50 USD": 50,
    "50€": 50,
    # Mixed numbers and fractions.
    "3 1/2": Fraction(7, 2),
    r"3\frac{1}{2}": Fraction(7, 2),
    r"3\,\dfrac12": Fraction(7, 2),
    "-2 1/4": Fraction(-9, 4),
    "3½": Fraction(7, 2),
    "7 ⅞": Fraction(63, 8),
    "-⅔": Fraction(-2, 3),
    r"-3\tfrac14\text{ in}": Fraction(-13, 4),
    r"\frac12": Fraction(1, 2),
    r"\frac 3 4": Fraction(3, 4),
    r"\frac3{4}": Fraction(3, 4),
    r"\frac{-1}{2}": Fraction(-1, 2),
    r"-\frac{1}{2}": Fraction(-1, 2),
    r"\frac{\frac12}{3}": Fraction(1, 6),
    r"\left(\frac{1}{2}\right)": Fraction(1, 2),
    # Thousands.
    r"1,\!000,\!000": 1_000_000,
    r"10\,000": 10_000,
    r"1\;000": 1000,
    "1~000": 1000,
    "1'000": 1000,
    "1_000": 1000,
    "1 000 000": 1_000_000,
    "1\N{NARROW NO-BREAK SPACE}000": 1000,
    "1\N{NO-BREAK SPACE}000": 1000,
    "1\N{THIN SPACE}000": 1000,
    # Powers of ten.
    r"3 \times 10^5": 300_000,
    r"3 \cdot 10^{5}\text{ km}": 300_000,
    "3 \u00d7 10^{-2}": Fraction(3, 100),
    "3·10⁵": 300_000,
    "3x10^5": 300_000,
    "3*10**5": 300_000,
    "10^{-1}": Fraction(1, 10),
    "5 million": 5_000_000,
    # What stands around it.
    "x = 5": 5,
    r"\approx 3.14": Fraction(157, 50),
    "**5**": 5,
    r"\mathbf{5}": 5,
    "(5)": 5,
    "$5$": 5,
    r"\(5\)": 5,
}
NO_NUMBERS = [
    *(r"2\sqrt{3}", r"\sqrt3", "2√3", "sqrt(3)", r"\frac{\sqrt{3}}{2}", r"\frac{1}{\sqrt2}"),
    *("5x", "2x+1", "5y^2", "2ab", r"\frac{x}{2}", "5/x", r"3\pi", "3π", "3pi", "3+4i"),
    *("(3, 5)", "(3,5)", "(100,200)", "[3, 5]", r"\{3, 5\}", r"\left(3, 5\right)"),
    *("10:30", "10:30 am", "5 pm", "5pm", "3:4", "2024-01-05", "1/5/2024", "05.01.2024", "1.2.3"),
    *("3-5", "3 - 5", "3\u20135", "3--5", "3 to 5", "3 cm to 5 cm", "$3-$5", "20%-30%"),
    *("3 or 5", "3 and 5", r"5 \pm 2", r"\pm 5", "2^3", "2^{10}", r"0.\overline{3}", "2(3)"),
    *("1/0", r"\frac{1}{0}", r"3\frac{7}{2}", "3 7/2", r"\frac123", "5'3\"", r"\binom{5}{2}"),
    *(r"3 \times 10^{99999}", "1e9999"),
]
AROUND = [
    "{}",
    "####{}",
    "In step 9 we get {}",
    "The answer is {}.\nBye.",
    r"\boxed{{{}}} in step 9",
]


@pytest.mark.parametrize("around", AROUND)
def test_a_number_is_read_wherever_it_stands(around):
    wanted = {around.format(text): number for text, number in NUMBERS.items()}
    assert {text: numeric_answer(text) for text in wanted} == wanted


@pytest.mark.parametrize("around", AROUND)
def test_what_is_no_number_is_no_guess(around):
    texts = [around.format(text) for text in NO_NUMBERS]
    assert {text: numeric_answer(text) for text in texts} == dict.fromkeys(texts)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (r"3 tries gave \boxed{45^{\circ}} in step 9", 45),
        (r"\boxed{12\text{ cm}^2}", 12),
        (r"\boxed{\frac{1}{2}}", Fraction(1, 2)),
        (r"\boxed{\boxed{5}}", 5),
        (r"\fbox{7} of 9", 7),
        (r"\boxed 5", 5),
        (r"\boxed{5", None),  # Cut off: it may go on.
        (r"\boxed{1} or \boxed{2", None),
        (r"\boxed{5 of 6}", None),
        (r"\boxed{\text{(A) } 5}", None),
        (r"\boxed{3, 5}", None),
        (r"\boxed{x_1 = 3, x_2 = 5}", None),
        (r"\boxed{x = 1 \text{ or } x = 2}", None),
        (r"\boxed{f(1, 2) = 5}", 5),
        (r"\boxed{\begin{pmatrix}3\\5\end{pmatrix}}", None),
        (r"\boxed{x > 5}", None),
        (r"\boxed{5 \text{ feet } 3 \text{ inches}}", None),
        (r"#### \boxed{5} is right", 5),
        ("#### 3, 5", None),
        ("#### x^2 = 4", 4),
        ("#### 72 apples\nof 100", 72),
        ("####\n72", 72),
        ("<answer>5</answer>", 5),
        ("48/2 = <<48/2=24>>24 clips", 24),
        ("答案是5个", 5),
        ("It is 25 (in m^2).", 25),
        ("In step9 of v1.2, H2O: 4", 4),
        ("x_1 = 3", 3),
        ("2 x 3 = 6", 6),
        (r"\begin{align} x &= 5 \end{align}", 5),
        ("between 3 and 5", None),
        ("x is 3½ cups", Fraction(7, 2)),
    ],
)
def test_where_an_answer_stands(text, number):
    assert numeric_answer(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("24 #### 24 clips", 24),
        (r"so \boxed{3\frac12}, at 10:30", Fraction(7, 2)),
        ("1,080", 1080),
        ("-2.5", Fraction(-5, 2)),
        ("1e-05", Fraction(1, 100_000)),
        ("$5.", 5),
        (r"2\sqrt{3}", None),
        ("(3, 5)", None),
        ("10:30", None),
        ("Option 2: no", None),
        ("So she pays $5.", None),
        ("#### 72 apples, of 100", None),
        ("5, 6", None),
        ("no", None),
        ("", None),
    ],
)
def test_a_gold_answer_is_one_number_or_none(text, number):
    assert gold_number(text) == number


def test_no_text_takes_more_than_linear_time(monkeypatch):
    assert numeric_answer(r"\frac{" + " " * 3000 + "#### 3") == 3

    # So that the last of the three sizes below costs little: what is read twice would show.
    monkeypatch.setattr(answers, "_FARTHEST", 2000)

    def seconds(piece, size):
        text = piece * (size // len(piece))
        times = []
        for _ in range(2):  # The less, because a collection of garbage may take longer than all.
            start = time.process_time()
            for around in ("{}", "{}#### 3", r"\boxed{{{}"):
                numeric_answer(around.format(text))
            gold_number(text)
            times.append(time.process_time() - start)
        return min(times)

    pieces = [r"\frac{", " ", "(", "{", r"\boxed{", r"\boxed ", "1,000,", "1 ", "1/ ", "- ", "a'"]
    pieces += ["<a", "#", "^{", "x_", "*", "5 to ", "5 m^2 ", "1.", r"\text{", "3 x ", "45^\\circ"]
    for piece in pieces:
        short, middle, long = (seconds(piece, size) for size in (200, 2_000, 60_000))
        # Ten times as long: 10 times the time, where a square would be 100; and 30 and 900.
        assert middle < 40 * max(short, 1e-3), piece
        assert long < 150 * max(middle, 1e-3), piece


@pytest.mark.parametrize(
    ("answer", "completion", "reward"),
    [
        (r"2\sqrt{3}", r"so \boxed{\sqrt{12}}", 1.0),
        (r"2\sqrt{3}", r"so \boxed{\sqrt{13}}", 0.0),
        (r"2\sqrt{3}", "no idea", 0.0),
        ("(3, 5)", r"\boxed{(3,5)}", 1.0),
        ("(3, 5)", r"\boxed{(5,3)}", 0.0),
        (r"#### $\frac{\pi}{2}$", r"It is $\pi/2$.", 1.0),
        (r"\boxed{x^2 - 1}", r"\boxed{(x-1)(x+1)}", 1.0),
        # Plain numbers are read by us: math-verify takes "3 1/2" for 2.
        ("2", r"\boxed{3 1/2}", 0.0),
        ("7/2", r"\boxed{3 1/2}", 1.0),
        ("2", r"\boxed{\sqrt{4}}", 1.0),
        ("1000", "#### 1,000 apples", 1.0),
    ],
)
def test_math_verifier(answer, completion, reward):
    pytest.importorskip("math_verify")
    assert is_mathematics(answer)
    assert math_verifier(Problem("", answer, {}), completion) == reward


@pytest.mark.parametrize("answer", ["Option 2: no", "So she pays a lot", "", r"\frac{", "####"])
def test_what_math_cannot_compare_with(answer):
    pytest.importorskip("math_verify")
    assert not is_mathematics(answer)
