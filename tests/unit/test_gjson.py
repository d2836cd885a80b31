"""Conditions: the same results as the real GJSON, Katib's rule when one holds, and what is refused.

The results in the tables were printed by GJSON itself: by v1.14.1, which Katib links, and the same by v1.20.3.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from hpo_core.gjson import MISSING, Condition, Held, check

COMPLETE = {
    "type": "Complete",
    "status": "True",
    "reason": "CompletionsReached",
    "message": "Reached expected number of succeeded pods",
}
BACKOFF = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}
DONE = {"type": "Succeeded", "status": "True", "message": "done"}
UNKNOWN = {"type": "Succeeded", "status": "Unknown", "reason": "Running"}
JOB = {"status": {"conditions": [{"type": "Suspended", "status": "False"}, COMPLETE], "succeeded": 1}}
FAILED = {"status": {"conditions": [BACKOFF]}}
PYTORCH = {
    "status": {"conditions": [{"type": "Created", "status": "True"}, {"type": "Running", "status": "False"}, DONE]}
}
TEKTON = {"status": {"conditions": [UNKNOWN]}}
ARGO = {"status": {"phase": "Succeeded", "message": "child ok"}}
EMPTY: dict[str, Any] = {}
FIRST = {"n": 1, "s": "1", "t": True, "z": None, "k.d": {"e": 5}}
THIRD = {"n": "1", "s": "é", "o": {"p": 1}}
ODD = {
    "a": [FIRST, {"n": 2, "s": "10", "t": False, "l": ["x", "yy"]}, THIRD, "x", 3, None, [1, [2]]],
    "e": [],
    "m.n": {"*": 7},
    "u": "日本語",
    "nul": None,
    "nest": [[1, 2], [3], []],
    "num": 5,
}

ON_WORKLOADS = [
    (JOB, 'status.conditions.#(type=="Complete")#|#(status=="True")#', [COMPLETE]),
    (JOB, 'status.conditions.#(type=="Failed")#|#(status=="True")#', []),
    (FAILED, 'status.conditions.#(type=="Failed")#|#(status=="True")#', [BACKOFF]),
    (PYTORCH, 'status.conditions.#(type=="Succeeded")#|#(status=="True")#', [DONE]),
    (PYTORCH, 'status.conditions.#(type=="Running")#|#(status=="True")#', []),
    (TEKTON, 'status.conditions.#(type=="Succeeded")#|#(status=="True")#', []),
    (TEKTON, 'status.conditions.#(type=="Succeeded")#|#(status=="Unknown")#', [UNKNOWN]),
    (ARGO, 'status.[@this].#(phase=="Succeeded")#', [ARGO["status"]]),
    (ARGO, 'status.[@this].#(phase=="Failed")#', []),
    (JOB, "status.[@this].#(succeeded==1)", JOB["status"]),
    (EMPTY, 'status.conditions.#(type=="Complete")#|#(status=="True")#', MISSING),
    (EMPTY, 'status.[@this].#(phase=="Succeeded")#', []),
    (EMPTY, "status.[@this]", []),
    (JOB, 'status.conditions.#(type=="Complete").status', "True"),
    (JOB, 'status.conditions.#(type=="Complete")', COMPLETE),
    (JOB, "status.conditions.#.type", ["Suspended", "Complete"]),
    (JOB, "status.conditions.#", 2),
    (JOB, "status.#", MISSING),
    (JOB, "[status.succeeded,status.failed,kind]", [1]),
    (JOB, "@this.status.succeeded", 1),
    (JOB, "status.conditions.#(reason)#.type", ["Complete"]),
]
ON_ODD = [
    ("a.0.n", 1),
    ("a.00.n", 1),
    ("a.9", MISSING),
    ("a.-1", MISSING),
    ("a.n", MISSING),
    ("num.x", MISSING),
    ("nul", None),
    ("nul.x", MISSING),
    ("e", []),
    ("e.#", 0),
    ("e.0", MISSING),
    ("e.#(n==1)", MISSING),
    ("e.#(n==1)#", []),
    ("e.#.n", []),
    ("m\\.n", {"*": 7}),
    ("m\\.n.\\*", 7),
    ("m.n", MISSING),
    ("u", "日本語"),
    ("a.#(n==1)#", [FIRST, THIRD]),
    ('a.#(n=="1")#.n', [1, "1"]),
    ("a.#(s==1)#.s", ["1"]),
    ('a.#(s=="1")#.s', ["1"]),
    ("a.#(n=1).s", "1"),
    ("a.#(n!=1)#.n", [2]),
    ("a.#(n<2)#.n", [1, "1"]),
    ('a.#(n<="1")#.n', [1, "1"]),
    ("a.#(n>1)#.n", [2]),
    ('a.#(s>"1")#.s', ["10", "é"]),
    ("a.#(s>=2)#.s", ["é"]),
    ('a.#(n=="x")#.n', []),
    ("a.#(n==0x)#.n", []),
    ("a.#(t==true)#.n", [1]),
    ('a.#(t=="true")#.n', [1]),
    ("a.#(t!=true)#.n", [2]),
    ("a.#(t>false)#.n", [1]),
    ("a.#(t<=true)#.n", [2]),
    ('a.#(t=="True")#.n', []),
    ("a.#(z==null)#.n", []),
    ('a.#(z!="x")#.n', []),
    ("a.#(z)#.n", [1]),
    ('a.#(o=="x")#', []),
    ('a.#(o!="x")#', []),
    ('a.#(s%"1*")#.s', ["1", "10"]),
    ('a.#(s%"?")#.s', ["1", "é"]),
    ('a.#(s!%"1*")#.s', ["é"]),
    ('a.#(n%"1")#.n', ["1"]),
    ('a.#(s%"\\u00e9").s', "é"),
    ('a.#(=="x")#', ["x"]),
    ("a.#(==3)#", [3]),
    ('a.#(!="x")#', [3]),
    ('a.#(%"*")#', ["x"]),
    ('a.#(l.#(=="yy")#).n', 2),
    ('a.#(l.#(=="yy")).n', 2),
    ("a.#(l.#==2).n", 2),
    ("a.#(l.#>5).n", MISSING),
    ("a.#(k\\.d.e==5).n", 1),
    ("a.#( n == 1 ).s", "1"),
    ("a.#(n==1)#  ", [FIRST, THIRD]),
    ("a.#(n==1)# |#", 2),
    ("a.#(n>0)#|0.s", "1"),
    ("a.#(n>0)#.0", []),
    ("a.#(n>0)#|#", 3),
    ("a.#(n>0)#.l.#", [2]),
    ("a.#(n>0)#.l|0", ["x", "yy"]),
    ("a.#(n==7)", MISSING),
    ("a.#(n==7)#", []),
    ("a.#(n==7)#|#", 0),
    ("a.#(n==7)#|0", MISSING),
    ("a.#(n==7)#.l|0", []),
    ("a.#(n==7).s|@this", MISSING),
    ("a.#(n==7)|@this", MISSING),
    ("a.#.s", ["1", "10", "é"]),
    ("a.#.s|#", 3),
    ("a.#.s.#", []),
    ("a.#.missing", []),
    ("a.#|@this", 7),
    ("nest.#.#", [2, 1, 0]),
    ("nest.#.0", [1, 3]),
    ("nest.#.1", [2]),
    ("nest.0|1", 2),
    ("nest.#(#>1)#", [[1, 2]]),
    ("nest.#.#(>1)", [2, 3]),
    ("nest.#.#(>1)#", [[2], [3], []]),
    ("nest.#.#(>1)#|#", 3),
    ("[u,num,missing,nul]", ["日本語", 5, None]),
    ("[a.0.n,[num]]", [1, [5]]),
    ("num.[@this]", [5]),
    ("missing.[@this]", []),
    ("missing.x.[@this]", MISSING),
    ("missing|@this", MISSING),
    ("num|@this", 5),
    ("@this|num", 5),
    ("[@this].0.num", 5),
    ('[u].#(%"日*")', "日本語"),
    ('[u].#(%"*\\u8a9e")', "日本語"),
    ("[u]|0", "日本語"),
]


def found(expression: str, document: object) -> str:
    """What an expression finds, as text, so that 1, True and 1.0 differ."""
    return repr(Condition.parse(expression).evaluate(document))


@pytest.mark.parametrize(("document", "expression", "result"), ON_WORKLOADS)
def test_a_workload_gives_what_gjson_gives(document: object, expression: str, result: object) -> None:
    assert found(expression, document) == repr(result)


@pytest.mark.parametrize(("expression", "result"), ON_ODD)
def test_an_odd_document_gives_what_gjson_gives(expression: str, result: object) -> None:
    assert found(expression, ODD) == repr(result)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("[a]", "[a]"),
        ("a\\\\*b", "a*b"),
        ("a?b", "aéb"),
        ("*b*d", "abcd"),
        ("*", ""),
        ("?*", "x\ny"),
    ],
)
def test_a_pattern_matches_what_gjson_matches(pattern: str, text: str) -> None:
    assert found(f'#(%"{pattern}")#', [text]) == repr([text])
    assert found(f'#(!%"{pattern}")#', [text]) == "[]"


@pytest.mark.parametrize(("pattern", "text"), [("[ab]", "a"), ("a\\\\*b", "aXb"), ("??", "é"), ("a", "A"), ("a", "ab")])
def test_a_pattern_matches_nothing_more_than_gjson_does(pattern: str, text: str) -> None:
    assert found(f'#(%"{pattern}")#', [text]) == "[]"


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("1_0", 10),
        ("1e1", 10),
        ("+10.", 10),
        ("1e400", None),
        ("10x", 0),
        ("0x10", 0),
        (".5", 0.5),
        ("٣", 0),
        ("1e", 0),
    ],
)
def test_a_number_is_compared_with_what_go_reads_in_the_value(value: str, number: float | None) -> None:
    assert found(f"#(=={value})#", [0, 0.5, 10]) == repr([] if number is None else [number])


def test_a_condition_holds_for_an_array_and_tells_of_its_first_element() -> None:
    condition = Condition.parse('status.conditions.#(type=="Complete")#|#(status=="True")#')
    assert condition.holds(JOB) == Held("CompletionsReached", "Reached expected number of succeeded pods")


def test_a_condition_holds_for_an_object_and_tells_of_it() -> None:
    assert Condition.parse("status.[@this].#(phase)").holds(ARGO) == Held("", "child ok")


@pytest.mark.parametrize(
    "expression",
    [
        "status.conditions.1.status",
        "status.conditions.#",
        'status.conditions.#(type=="Complete").status',
        "status.missing",
        'status.conditions.#(type=="Failed")#',
        "missing.[@this]",
    ],
)
def test_a_condition_does_not_hold_for_scalars_nothing_and_empty_arrays(expression: str) -> None:
    assert Condition.parse(expression).holds(JOB) is None


def test_an_empty_object_holds() -> None:
    assert Condition.parse("status").holds({"status": {}}) == Held("", "")


@pytest.mark.parametrize("first", ["text", None, 3, [], {"reason": 3, "message": None}])
def test_an_element_without_texts_holds_and_says_nothing(first: object) -> None:
    assert Condition.parse("@this").holds([first]) == Held("", "")


def test_conditions_of_the_same_text_are_equal() -> None:
    assert Condition.parse("a.#(b)#") == Condition.parse("a.#(b)#")


def test_a_text_with_brackets_stays_a_text() -> None:
    assert found("message|0", {"message": "pods [a, b] failed"}) == repr(MISSING)


REFUSED = [
    ("", "the end at character 1"),
    ("status.", "the end at character 8"),
    ("status..phase", "'.phase' at character 8"),
    ("..#.a", "'..#.a' at character 1"),
    ("status ", "' ' at character 7"),
    (" status", "' status' at character 1"),
    ("status.phase\n", "at character 13"),
    ("status.*", "'*' at character 8"),
    ("st?tus", "'?tus' at character 3"),
    ("conditions[0].type", "an index is written .0"),
    ('status.phase=="Succeeded"', "comparisons stand inside"),
    ('"status".phase', "at character 1"),
    ("a.@reverse", "'@reverse' at character 3"),
    ("a.@this:1", "':1' at character 8"),
    ("@pretty", "'@pretty' at character 1"),
    ("!true", "'!true' at character 1"),
    ("{a,b}", "'{a,b}' at character 1"),
    ("[a,b", "the end at character 5"),
    ("[a, b]", "' b]' at character 4"),
    ("[x:a]", "':a]' at character 3"),
    ("[a]b", "'b' at character 4"),
    ("a.#b", "'b' at character 4"),
    ("a.# ", "' ' at character 4"),
    ("a.#()", "')' at character 5"),
    ("a.#[b==1]", "at character 4"),
    ("a.#(b", "a query is"),
    ("a.#(b==1", "a query is"),
    ("a.#(b==1]", "a query is"),
    ("a.#(b!1)", "a query is"),
    ("a.#(b==1)##", "'#' at character 11"),
    ("a.#(b==)", "a value is"),
    ("a.#(b===1)", "a value is"),
    ("a.#(b==~true)", "begins with no ~"),
    ('a.#(b=="~true")', "begins with no ~"),
    ('a.#(b=="x)', "a value is"),
    ('a.#(b=="x\\*")', "a value is"),
    (r'a.#(b%"x\\")', "lone backslash"),
    ('a.#(b=="x"y)', "'y)' at character 11"),
    ("a.#(b==1)|[c]", "before any #"),
    ("a.#.[b,c]", "before any #"),
    ("a\\.b.[@this]", "before any key with a backslash"),
    ("a\\.b.@this", "before any key with a backslash"),
    ('a.#.#(b=="x|y")#', "misreads the |"),
    ("a.#.b.#|0", "misreads the |"),
    ("a\\", "at character 2"),
]
"""GJSON beyond what is read here, mistakes of JSONPath's users, and where GJSON itself loses its way."""


@pytest.mark.parametrize(("expression", "match"), REFUSED)
def test_what_is_not_read_is_refused_with_its_place(expression: str, match: str) -> None:
    with pytest.raises(ValueError, match=re.escape(match)):
        Condition.parse(expression)


@pytest.mark.parametrize("expression", [expression for expression, _ in REFUSED])
def test_check_says_why_it_is_refused(expression: str) -> None:
    assert check(expression).startswith("found ")


@pytest.mark.parametrize("expression", [expression for _, expression, _ in ON_WORKLOADS])
def test_check_finds_nothing_in_what_is_read(expression: str) -> None:
    assert check(expression) == ""
