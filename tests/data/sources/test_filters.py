import pytest

from codebrush.data.sources.filters import parse_clause
from codebrush.errors import DataError


@pytest.mark.parametrize(
    ("clause", "kept", "dropped"),
    [
        ("style = noto", ["noto"], ["twemoji", None, "", "Noto"]),
        ("style == noto", ["noto"], ["twemoji"]),
        ("style=noto", ["noto"], ["twemoji"]),
        ("style!=noto", ["twemoji", None, ""], ["noto"]),
        ("n < 3", [2, 2.9, "2", "-1"], [3, "10", None, float("nan")]),
        ("n <= 3", [3, "3.0"], [3.5]),
        ("n > 3", ["10", 4], [3, None]),
        ("n >= 3", [3, "3"], [2]),
        ("n = 1", [1, "1", 1.0, "1.0"], [2]),
        ("day < 2020-05-01", ["2020-04-30"], ["2020-05-01", "2021-01-01"]),
        ("label in cat, dog", ["cat", "dog"], ["cow", "cat, dog", None]),
        ("label in (cat, 'dog, big')", ["cat", "dog, big"], ["dog"]),
        ('label in ["a", "b"]', ["a", "b"], ["c"]),
        ("label not in cat, dog", ["cow", None], ["cat"]),
        ("label NOT IN cat,dog", ["cow"], ["dog"]),
        ("tone is null", [None, "", "  ", [], float("nan")], ["dark", 0, False]),
        ("tone is not null", ["dark", 0], [None, ""]),
        ("tags = food", [["food", "red"]], [["red"], [], None]),
        ("tags != food", [["red"], [], None], [["food", "red"]]),
        ("tags in food, drink", [["red", "drink"]], [["red"]]),
        ("done = true", [True], [False, None]),
        ("done != True", [False], [True]),
        ("`odd name!` = x", ["x"], ["y"]),
        ("label = a = b", ["a = b"], ["a"]),
        ('label = "in, out"', ["in, out"], ["in"]),
        ("label = __import__('os').getcwd()", ["__import__('os').getcwd()"], ["/"]),
    ],
)
def test_clause_keeps_and_drops(clause, kept, dropped):
    parsed = parse_clause(clause)
    assert [value for value in kept if not parsed.keeps(value)] == []
    assert [value for value in dropped if parsed.keeps(value)] == []


@pytest.mark.parametrize(("clause", "column"), [("a.b <3", "a.b"), ("`a b` is null", "a b"), ("id in 1", "id")])
def test_clause_names_its_column(clause, column):
    assert parse_clause(clause).column == column


@pytest.mark.parametrize(
    "clause",
    [
        "",
        "style",
        "style ~ x",
        "= x",
        "style is",
        "style =",
        'style = ""',
        "a is nul",
        "a in ()",
        "a in ,",
        "a in \x1c",
    ],
)
def test_unreadable_clause_is_quoted(clause):
    with pytest.raises(DataError) as caught:
        parse_clause(clause)
    assert f'"{clause}"' in str(caught.value)
