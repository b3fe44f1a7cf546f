"""Lists as people and spreadsheets write them; a fault is told by its line."""
import pytest

from datadesc.rows import read_rows


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path

@pytest.mark.parametrize("content", ["class,text\ncat,a cat\n", "Class;Text\ncat;a cat\n", "\ufeffTEXT\tclass \r\na cat \tcat\r\n", 'class,other,text\n\n"cat",x,"a cat"\n\n'], ids=["comma", "semicolon", "tab", "more"])
def test_every_spelling_of_a_list(tmp_path, content):
    rows = read_rows(write(tmp_path/"a.csv", content), ("class", "text"), ("part",))
    assert [{name: row[name] for name in ("class", "text", "part")} for row in rows] == [{"class": "cat", "text": "a cat", "part": ""}]

def test_lines_are_those_of_the_file(tmp_path):
    rows = read_rows(write(tmp_path/"a.csv", 'class,text\ncat,"two\nlines"\n\ndog,one\n'), ("class", "text"))
    assert [(row["class"], row["line"]) for row in rows] == [("cat", 3), ("dog", 5)]

def test_cells_stay_text(tmp_path):
    rows = read_rows(write(tmp_path/"a.csv", "class,text\nNA,007\nnull,1e5\n"), ("class", "text"))
    assert [(row["class"], row["text"]) for row in rows] == [("NA", "007"), ("null", "1e5")]

@pytest.mark.parametrize("content, says", [
    ("class,text\ncat,a, b\n", "Line 2 of '.*a.csv' has 3 cells, its first line 2: put a cell that holds a comma in quotes"),
    ("class,text\ncat,a\ndog\n", "Line 3 of '.*a.csv' has 1 cells, its first line 2: every line needs as many cells"),
    ("class,text,Text\ncat,a,b\n", "two columns 'text' and 'Text': keep one"),
    ("name,text\ncat,a\n", "No column 'class' in '.*a.csv', which has name, text: expected class, text in its first line"),
    ("", "No column 'class' in '.*a.csv', which has no columns"),
    ('class,text\ncat,"a\n', "Line 2 of '.*a.csv' cannot be read as CSV"),
    ("class,text\nCafé,a\n".encode("latin-1"), "Line 2 of '.*a.csv' is not UTF-8"),
    ("class,text\ncat,a\n".encode("utf-16"), "Line 1 of '.*a.csv' is not UTF-8"),
], ids=["comma", "too few", "Text", "column", "empty", "quote", "latin-1", "utf-16"])
def test_faults_are_named_with_their_line(tmp_path, content, says):
    with pytest.raises(ValueError, match=says): read_rows(write(tmp_path/"a.csv", content), ("class", "text"))
