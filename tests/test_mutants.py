"""tools/mutants.py, tried on a package of one function."""

import sys
from pathlib import Path

import mutants
import pytest

ROOT = Path(__file__).parent.parent
LIST = """
# a comment
[area] test_area.py
width * height → width + height  # a sum
 height → ↵        height  # the same, on two lines
def area → def volume && width →  depth  # two changes

[area.Square] test_area.py -k square
self.side**2 → self.side  # not squared
"""
SOURCE = """
def area(width, height):
    return (width * height)


class Square:
    side = 2

    def area(self):
        return self.side**2
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "vaelib").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "vaelib" / "__init__.py").touch()
    (tmp_path / "vaelib" / "area.py").write_text(SOURCE)
    (tmp_path / "conftest.py").touch()
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (tmp_path / "tests" / "test_area.py").write_text(
        "from vaelib.area import Square, area\n\n"
        "def test_area():\n    assert area(2, 2) == 4\n\n"
        "def test_square():\n    assert Square().area() == 4\n"
    )
    return tmp_path


def one(line, section="[area] test_area.py"):
    return mutants.read(f"{section}\n{line}")


def test_a_list_is_read_by_sections():
    first, second, third, fourth = mutants.read(LIST)
    assert (first.where, first.tests, first.why) == ("area", ("test_area.py",), "a sum")
    assert first.edits == (("width * height", "width + height"),)
    assert second.edits == ((" height", "\n        height"),)
    assert third.edits == (("def area", "def volume"), ("width", " depth"))
    assert (fourth.where, fourth.tests) == ("area.Square", ("test_area.py", "-k", "square"))


@pytest.mark.parametrize(
    "wrong",
    [
        "x → y  # no section",
        "[area] test_area.py\nx → y",
        "[area] test_area.py\nx  # no change",
        "[area] test_area.py\nx → x  # no change",
        "[area] test_area.py\nx → y → z  # two",
        "[area]\nx → y  # no tests",
    ],
)
def test_a_line_that_says_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match=r"line \d is .*; needed is"):
        mutants.read(wrong)


def test_an_edit_keeps_to_its_class_and_its_text_stands_there_once():
    (mutant,) = one("area(self) → area(self, *_)  # more", "[area.Square] test_area.py")
    assert mutants.mutate(SOURCE, mutant) == SOURCE.replace("area(self)", "area(self, *_)")
    for line, section, message in [
        ("area( → volume(  # twice", "[area] t.py", "'area\\(' 2 times"),
        ("depth → width  # nowhere", "[area] t.py", "'depth' 0 times"),
        ("width → depth  # elsewhere", "[area.Square] t.py", "'width' 0 times"),
        ("x → y  # no class", "[area.Circle] t.py", "area.Circle stands there 0 times"),
    ]:
        with pytest.raises(ValueError, match=message):
            mutants.mutate(SOURCE, *one(line, section))
    with pytest.raises(SyntaxError):
        mutants.mutate(SOURCE, *one("width * height → width *  # half"))


def test_what_no_test_notices_survives(project, capsys):
    found = one(
        "width * height → width + height  # a sum\n"  # 2 + 2 is 4, too
        "width * height → width - height  # a difference\n"
        "self.side**2 → self.side * 3  # thrice"
    )
    assert [m.why for m in mutants.survivors(project, found)] == ["a sum"]
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["SURVIVED", "killed", "killed"]
    assert printed[1].endswith("a difference")
    assert (project / "vaelib" / "area.py").read_text() == SOURCE


def test_hanging_is_told_from_failing(project, monkeypatch):
    monkeypatch.setattr(mutants, "TIMEOUT", 1)
    (project / "tests" / "test_area.py").write_text("def test_for_ever():\n    while True: pass\n")
    assert mutants.outcome(project, ("test_area.py",)) == "hung"


def test_tests_that_fail_anyway_and_mutants_that_cannot_run_prove_nothing(project):
    (broken,) = one("class Square → raise OSError↵class Square  # at import")
    with pytest.raises(RuntimeError, match=r"at import: cannot be run:(.|\n)*OSError"):
        mutants.survivors(project, [broken])
    (absent,) = one("width * height → width  # half", "[area] test_area.py -k nothing")
    with pytest.raises(RuntimeError, match=r"test_area.py -k nothing must pass before"):
        mutants.survivors(project, [absent])
    path = project / "tests" / "test_area.py"
    path.write_text(path.read_text().replace("== 4", "== 5"))
    with pytest.raises(RuntimeError, match=r"must pass before mutants are tried:(.|\n)*assert 4"):
        mutants.survivors(project, one("width * height → width  # half"))


@pytest.mark.parametrize(("old", "status"), [("-", 0), ("+", 1)])
def test_the_score_decides(project, old, status, monkeypatch, capsys):
    (project / "mutants.txt").write_text(
        f"[area] test_area.py\nwidth * height → width {old} height  # other\n"
    )
    monkeypatch.setattr(mutants, "__file__", str(project / "mutants.py"))
    monkeypatch.setattr(mutants, "ROOT", project)
    monkeypatch.setattr(mutants, "COMMON", ())
    monkeypatch.setattr(sys, "argv", ["mutants.py", "area"])
    with pytest.raises(SystemExit) as end:
        mutants.main()
    assert end.value.code == status
    printed = capsys.readouterr().out
    assert ("1 of 1 killed, 100.0%" in printed) == (status == 0)
    assert ("survived: area, other: width * height → width + height" in printed) == (status == 1)
    monkeypatch.setattr(sys, "argv", ["mutants.py", "gamma"])
    with pytest.raises(SystemExit, match="no section gamma"):
        mutants.main()


def test_the_books_own_list_fits_its_library():
    """Each old text stands where it should, in ten files, and what comes out is Python."""
    found = mutants.read((ROOT / "tools" / "mutants.txt").read_text("utf-8"))
    for mutant in found:
        path = ROOT / "vaelib" / f"{mutant.where.split('.')[0]}.py"
        mutants.mutate(path.read_text("utf-8"), mutant)
    files = {mutant.where.split(".")[0] for mutant in found}
    assert files == {
        *("likelihoods", "distributions", "divergences", "objective", "objectives"),
        *("narrowing", "schedules", "gates", "geco", "metrics"),
    }
    assert len(found) >= 60
    assert len({(m.where, m.edits) for m in found}) == len(found)
