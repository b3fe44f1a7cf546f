"""Names in one form, without catalogue numbers, and printable."""
import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datadesc.names import class_names, composed, printable


def test_one_form():
    assert composed(" Cafe\u0301 ") == composed("Café") == "Café"

def test_bytes_that_are_no_text_can_be_shown():
    assert printable(os.fsdecode(b"caf\xe9/b\xe4r.png")) == r"caf\xe9/b\xe4r.png"
    assert printable("雪豹.png") == "雪豹.png"

@pytest.mark.parametrize("labels, names", [
    ("001.Black_footed_Albatross|002.Laysan_Albatross", "Black_footed_Albatross|Laysan_Albatross"),
    ("n02085620-Chihuahua|n02085782-Japanese_spaniel", "Chihuahua|Japanese_spaniel"),
    ("01 apple|12 pear", "apple|pear"), ("1-雪豹|2-虎", "雪豹|虎"),
])
def test_numbers_are_off(labels, names): assert class_names(labels.split("|")) == tuple(names.split("|"))

@pytest.mark.parametrize("labels", ["747|737", "737-800|747-400", "3D printer|2D plotter", "0|1|2", "3 series|5 series", "1.cat|dog", "1_cat|2_cat", "1_cat|2_Cat", "n02085620|n02085782", "001.|002.", "2-0|3-1"])
def test_numbers_that_are_names_stay(labels): assert class_names(labels.split("|")) == tuple(labels.split("|"))

@given(st.lists(st.text("0123456789n.-_ abCÄé雪", min_size=1, max_size=12), min_size=2, max_size=8, unique_by=composed))
def test_names_are_as_many_as_labels_and_as_different(labels):
    names = class_names(labels)
    assert len(set(names)) == len(names) == len(labels)
    for label, name in zip(labels, names): assert composed(label).endswith(name) and name == unicodedata.normalize("NFC", name)
