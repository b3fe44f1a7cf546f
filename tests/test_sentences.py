"Files of sentences in every layout that people write or papers publish, and the classes that their names mean."
import csv
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st

from datadesc.names import class_names, classes_meant, nearest_name
from datadesc.sentences import for_classes, read_sentences

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")  # what torch says of a pickle that it did not write
CUB = [row for row in csv.DictReader((Path(__file__).parents[1]/"datadesc"/"assets"/"datasets"/"classes.csv").open(encoding="utf-8")) if row["dataset"] == "cub"]
BIRDS, FOLDERS = [row["class"] for row in CUB], [row["folder"] for row in CUB]
CLASSES = ("dress", "hat", "T_shirt")
GOOD = {"Dress": ["a skirt"], "hat": ["a brim", "a crown"], "t-shirt": ["sleeves"]}


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


# Layouts

@pytest.mark.parametrize("name, content", [
    ("a.json", '{"hat": ["a brim", "a\\n crown "]}'), ("a.json", '\ufeff{"hat": ["a brim", "a crown"]}'), ("a.JSON", '{" hat ": ["a brim", "a crown"]}'),
    ("a.csv", "class,text\nhat,a brim\nhat,a crown\n"), ("UP.CSV", "Class,Text\nhat,a brim\nhat,a crown\n"), ("a.csv", "\ufeffTEXT;CLASS\na brim;hat\na crown;hat\n"),
    ("a.tsv", "class\ttext\nhat\ta brim\nhat\ta crown\n"), ("a.csv", 'no,class,text\n1,hat,"a brim"\n2,hat," a\ncrown"\n'),
    ("a.jsonl", '{"class": "hat", "text": "a brim"}\n{"class": "hat", "text": "a crown"}\n'), ("a.ndjson", '{"Class": "hat", "Text": ["a brim", "a crown"], "id": 7}'),
    ("a.json", '[{"class": "hat", "text": "a brim"}, {"class": "hat", "text": "a crown"}]'),
    ("a.json", '{"index_to_descriptions": {"0": ["a brim", "a crown"]}, "super_category": "clothing", "index_to_classname": {"0": "hat"}}')])
def test_every_layout_says_the_same(tmp_path, name, content):
    assert read_sentences(written(tmp_path/name, content)) == {"hat": ["a brim", "a crown"]}


def test_json_in_another_coding_of_unicode_is_read(tmp_path):
    (tmp_path/"a.json").write_bytes('{"hat": "a brim"}'.encode("utf-16"))
    assert read_sentences(tmp_path/"a.json") == {"hat": ["a brim"]}


@pytest.mark.parametrize("content, sentences", [
    ("A red bird.\n\nA bird with a crest.", ["A red bird.", "A bird with a crest."]), ("1. A red bird.\r\n2. A crest.\r\n", ["A red bird.", "A crest."]),
    ('"A red bird."\n"A crest."', ["A red bird.", "A crest."]), ("- A red bird.\n- A crest.", ["A red bird.", "A crest."]), ('1. "A red bird."\n2. "A crest."', ["A red bird.", "A crest."]),
    ("1. A red bird.\nA crest.", ["1. A red bird.", "A crest."]), ('"Red" is what it is.\n"A crest."', ['"Red" is what it is.', '"A crest."']), ("3 toes\n2 wings", ["3 toes", "2 wings"]), ("", [])])
def test_a_folder_with_one_text_file_for_each_class(tmp_path, content, sentences):
    (tmp_path/"Cardinal.TXT").write_text(content, encoding="utf-8-sig", newline="")
    for name in (".hidden.txt", "readme.md"): (tmp_path/name).write_text("nothing")
    assert read_sentences(tmp_path) == {"Cardinal": sentences}


@pytest.mark.parametrize("legacy", [False, True])
def test_a_saved_dict_is_read_in_both_of_torchs_formats(tmp_path, legacy):
    torch.save({"hen": ["Hen is a bird\n with a comb", " "]}, tmp_path/"a.pt", _use_new_zipfile_serialization=not legacy)
    assert read_sentences(tmp_path/"a.pt") == {"hen": ["Hen is a bird with a comb", ""]}


class Harm:
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return exec, (f"open({self.path!r}, 'w')",)


@pytest.mark.parametrize("name", ["a.pt", "a.json"])
@pytest.mark.parametrize("write", [torch.save, lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
                                   lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2)), lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_file_is_refused_and_does_not_run(tmp_path, write, name):
    write({"hen": Harm(tmp_path/"harm")}, tmp_path/name)
    with pytest.raises(ValueError, match=r"a\.(pt|json)' (wants to run|is no file of plain data)"): read_sentences(tmp_path/name)
    assert not (tmp_path/"harm").exists()


@pytest.mark.parametrize("content", [b"PK\x03\x04 not a zip", b"\x80\x04", b"\x80"])
def test_a_broken_saved_file_is_an_error_that_names_it(tmp_path, content):
    (tmp_path/"a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pt' .*expected a dict"): read_sentences(tmp_path/"a.pt")


@pytest.mark.parametrize("name, content, message", [
    ("d.json", "{", "d.json' cannot be read"), ("d.json", "", "d.json' cannot be read"), ("d.json", '{"a": ["x"], "a": ["y"]}', "'a' stands in it twice"), ("d.json", "[]", "holds a list: expected JSON of {class: .sentences.}"),
    ("d.json", '["a brim"]', "Entry 1 of '.*' is 'a brim', expected an object with the fields class and text"), ("d.json", '{"hen": {"comb": 1}}', "class 'hen': expected a list of sentences, got {'comb': 1}"),
    ("d.json", '{"hen": [1]}', "class 'hen': description 1 is 1, expected a sentence in quotes"), ("d.json", '{"hen": ["a", null]}', "description 2 is None"), ("d.json", '{"hen": null}', "got None"),
    ("d.json", '{"index_to_descriptions": {"0": []}}', "without names in index_to_classname"), ("d.json", '{"index_to_descriptions": {"0": []}, "index_to_classname": {}}', "no name for index 0"),
    ("d.json", '{"index_to_descriptions": {"0": [], "1": []}, "index_to_classname": {"0": "crane", "1": "crane"}}', "two indices for the class 'crane'"),
    ("d.jsonl", '{"class": "a", "text": "b"}\n{"class"', "Line 2 of '.*' is no JSON"), ("d.jsonl", '{"class": "a"}', "Line 1 of '.*' is {'class': 'a'}, expected an object"),
    ("d.csv", "name,text\nhat,a brim\n", "No column 'class' in '.*d.csv', which has name, text"), ("d.csv", "class,text\nhat,a brim, wide\n", "Line 2 of '.*d.csv' has 3 cells, its first line 2"),
    ("d.csv", "class,text\nhat\n", "Line 2 of '.*d.csv' has 1 cells"), ("d.csv", "class,text\nhat,\n", "Line 2 of '.*d.csv' has no text"), ("d.csv", "class,text\n,a brim\n", "Line 2 of '.*d.csv' has no class"),
    ("d.csv", "class,Class,text\n", "two columns 'class' and 'Class'"), ("d.csv", "", "which has no columns")])
def test_what_is_wrong_with_a_file_is_named(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message): read_sentences(written(tmp_path/name, content))


def test_what_is_missing_or_of_another_coding_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="No file '.*none.json': expected JSON of {class: .sentences.}, CSV with"): read_sentences(tmp_path/"none.json")
    with pytest.raises(ValueError, match="Folder '.*' has no text files: expected"): read_sentences(tmp_path)
    (tmp_path/"hen.txt").write_bytes("a caf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match="hen.txt' is not UTF-8"): read_sentences(tmp_path)
    (tmp_path/"a.json").write_bytes('{"caf\xe9": "a bar"}'.encode("latin-1"))
    with pytest.raises(ValueError, match="a.json' cannot be read"): read_sentences(tmp_path/"a.json")


def test_a_file_is_checked_without_torch(tmp_path):
    written(tmp_path/"typo.json", {"hat": ["a brim"], "dres": ["a skirt"]})
    program = ("import sys\nfrom datadesc.sentences import for_classes, read_sentences\n"
               "try: for_classes(read_sentences('typo.json'), ('dress', 'hat'), 'typo.json')\nexcept ValueError as error: print(error)\n"
               "assert not {'torch', 'pandas', 'numpy'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "'typo.json' describes 'dres' (did you mean 'dress'?), which the dataset lacks. Its classes are 'dress', 'hat'."


# Classes

@pytest.mark.parametrize("content, message", [
    (GOOD | {"scarf": ["long"]}, "describes 'scarf', which the dataset lacks. Its classes are 'dress', 'hat', 'T_shirt'"),
    ({"hat": ["a brim"]}, "does not describe 'dress', 'T_shirt': expected at least one sentence for every class"), ({}, "does not describe 'dress', 'hat', 'T_shirt'"),
    (GOOD | {"hat": ["a brim", ""]}, "class 'hat': description 2 is empty"), (GOOD | {"hat": []}, "class 'hat': the list is empty")])
def test_what_does_not_fit_the_dataset_is_named(content, message):
    with pytest.raises(ValueError, match=message): for_classes(content, CLASSES, "d.json")


def test_long_lists_of_names_are_cut():
    names = [f"class {i}" for i in range(1000)]
    with pytest.raises(ValueError, match=r"'class 9' \.\.\. \(1000 in all\): expected") as error: for_classes({}, names, "d.json")
    assert len(str(error.value)) < 300


def test_sentences_are_in_the_datasets_order_under_its_names():
    found = for_classes({"T SHIRT": ["sleeves"], "Hat": ["a crown"], "hat": ["a brim"], "dress": ["a skirt"]}, CLASSES, "d.json")
    assert list(found.items()) == [("dress", ["a skirt"]), ("hat", ["a crown", "a brim"]), ("T_shirt", ["sleeves"])]


@pytest.mark.parametrize("name, classes, where", [
    ("t-shirt", ("T_shirt", "hat"), 0), ("T SHIRT", ("T_shirt",), 0), ("black_cat", ("hat", "Black Cat"), 1), ("???", ("hat", "???"), 1), ("cat", ("Black Cat",), None),
    ("cafe\u0301", ("caf\u00e9",), 0), ("CAFÉ", ("cafe\u0301",), 0), ("cafe", ("café",), 0), ("雪豹", ("雪豹", "雪狼"), 0), ("雪", ("雪豹",), None), ("कि", ("का", "कि"), 1), ("कु", ("का", "कि"), None), ("かき", ("かぎ",), None),
    ("🐶", ("🐱", "🐶"), 1), ("🐭", ("🐱", "🐶"), None), ("747", ("737", "747"), 1), ("757", ("737", "747"), None), ("3d-printer", ("2D printer", "3D printer"), 1),
    ("Chihuahua", ("n02085620-Chihuahua", "n02085782-Japanese_spaniel"), 0), ("japanese spaniels", ("n02085620-Chihuahua", "n02085782-Japanese_spaniel"), 1),
    ("Brewer Blackbird", ("Brewer's Blackbird",), 0), ("lake or sea", ("SeaLake",), 0), ("brushland or shrubland", ("HerbaceousVegetation",), 0), ("crane", ("cranefly",), None), ("eft", ("newt",), None)])
def test_which_class_a_name_means(name, classes, where): assert classes_meant([name], classes)[name][0] == (() if where is None else (where,))


@pytest.mark.parametrize("a, b", [("012.Yellow_headed_Blackbird", "yellow-headed blackbird"), ("Straße", "STRASSE"), ("t-shirt", "T Shirt"), ("coltsfoot", "colt's foot"), ("blackfooted albatross", "Black-footed Albatross")])
def test_the_same_spelling(a, b): assert classes_meant([a], [b])[a] == classes_meant([b], [a])[b] == ((0,), "spelling")


@pytest.mark.parametrize("a, b", [("Crème brûlée", "creme_brulee"), ("glasses", "glass"), ("berries", "berry"), ("box", "boxes"), ("river or lake", "lake or river"), ("lotus lotus", "lotus"), ("french fries", "French_fry"),
                                  ("roses", "rose"), ("cookies", "cookie"), ("churches", "church"), ("Anna’s Hummingbird", "anna hummingbird")])
def test_the_same_words(a, b): assert classes_meant([a], [b])[a] == classes_meant([b], [a])[b] == ((0,), "words")


@pytest.mark.parametrize("a, b", [("newt", "eft"), ("crane", "cranefly"), ("7", "8"), ("red bird", "bird"), ("pin", "pine"), ("猫", "犬")])
def test_other_classes(a, b): assert classes_meant([a], [b])[a] == ((), "")


def test_a_sure_name_is_not_lost_to_a_vague_one():
    assert classes_meant(["sunglass", "sunglasses"], ["sunglasses"]) == {"sunglass": ((), ""), "sunglasses": ((0,), "exact")}
    assert classes_meant(["crane", "cranes"], ["Cranes", "Crane"]) == {"crane": ((1,), "spelling"), "cranes": ((0,), "spelling")}


def test_a_name_of_two_classes_is_told():
    assert classes_meant(["t shirt", "t-shirt"], ("T_shirt", "t-shirt")) == {"t shirt": ((0, 1), "spelling"), "t-shirt": ((1,), "exact")}
    with pytest.raises(ValueError, match="class 't shirt' may be 'T_shirt' or 't-shirt': write it as the dataset does"): for_classes({"t shirt": ["a"]}, ("T_shirt", "t-shirt"), "d.json")
    with pytest.raises(ValueError, match="'fry' and 'fries' may both be class 'the fry'"): for_classes({"fry": ["a"], "fries": ["b"]}, ("the fry",), "d.json")


def test_aliases_come_after_own_names_and_one_for_each_class():
    assert classes_meant(["crow", "raven"], ["crow", "jackdaw"], ["raven", "crow"]) == {"crow": ((0,), "exact"), "raven": ((0,), "exact")}
    with pytest.raises(ValueError, match="1 aliases for 2 classes"): classes_meant(["crow"], ["crow", "raven"], ["crow"])


@pytest.mark.parametrize("write", [lambda folder: folder.split(".")[1].replace("_", " "), lambda folder: folder.split(".")[1].replace("_", " ").lower(), lambda folder: folder, lambda folder: folder.split(".")[1]])
@pytest.mark.parametrize("aliases", [FOLDERS, [folder.split(".")[1] for folder in FOLDERS]])
def test_names_as_labo_disclip_and_adaptclipzs_publish_them_mean_all_200_birds(write, aliases):
    "They write the folders' names, 'Brewer Blackbird' and 'Chuck will Widow', where ours are 'Brewer's Blackbird' and 'Chuck-will's-widow'."
    names = [write(folder) for folder in FOLDERS]
    assert len(names) == 200 and [ids for ids, _ in classes_meant(names, BIRDS, aliases).values()] == [(i,) for i in range(200)]
    assert list(for_classes({name: [name] for name in names}, BIRDS, "cub.json", aliases)) == BIRDS


def test_by_possessives_alone_only_a_misspelt_folder_is_left():
    names = [folder.split(".")[1].replace("_", " ") for folder in FOLDERS]
    meant = classes_meant(names, BIRDS)
    assert [name for i, name in enumerate(names) if meant[name][0] != (i,)] == ["Artic Tern"]
    assert nearest_name("Artic Tern", BIRDS) == "Arctic Tern"


@given(st.lists(st.text(max_size=8), unique=True, max_size=8), st.lists(st.text(min_size=1, max_size=8).filter(str.strip), unique=True, min_size=1, max_size=8))
def test_any_names_are_matched_without_an_error(names, classes):
    meant = classes_meant(names, classes)
    assert list(meant) == names and all(i in range(len(classes)) for ids, _ in meant.values() for i in ids)
    assert all(classes.index(name) in meant[name][0] for name in names if name in classes)
    class_names(names)
