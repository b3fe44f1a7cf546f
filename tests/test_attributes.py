"CUB's attribute table: the published layout with its irregular lines, the rule from words to attributes, and truth that is known of some sentences only."
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from datadesc import report
from datadesc.attributes import AttributeTable, _tokens
from datadesc.catalogue import published
from datadesc.data import ImageSet
from datadesc.describe import from_file
from datadesc.selection import precision_at
from test_report import NAMES, Tokenizer, findings_of, sections

PEERS = Path(__file__).parents[2]/"shared"/"data"/"peers"
COLOURS = "blue brown iridescent purple rufous grey yellow olive green pink orange black white red buff".split()
PATTERNS = "solid spotted striped multi-colored".split()
ATTRIBUTES = [f"has_{part}::{value}" for part, values in {
    "bill_shape": ["curved_(up_or_down)", "dagger", "hooked", "needle", "hooked_seabird", "spatulate", "all-purpose", "cone", "specialized"],
    "bill_length": ["about_the_same_as_head", "longer_than_head", "shorter_than_head"], "head_pattern": ["crested", "masked", "eyering", "eyeline", "capped"],
    "tail_shape": ["forked_tail", "notched_tail"], "wing_shape": ["rounded-wings", "long-wings"], "shape": ["duck-like", "gull-like"],
    "size": ["large_(16_-_32_in)", "small_(5_-_9_in)", "very_large_(32_-_72_in)", "medium_(9_-_16_in)", "very_small_(3_-_5_in)"],
    **{f"{part}_color": COLOURS for part in "wing upperparts upper_tail under_tail breast belly throat eye forehead crown nape leg bill primary back".split()},
    **{f"{part}_pattern": PATTERNS for part in "wing breast belly tail back".split()}}.items() for value in values]
BIRDS = ["001.Black_footed_Albatross", "009.Brewer_Blackbird", "146.Forsters_Tern"]


def numbered(values): return "".join(f"{i} {value}\n" for i, value in enumerate(values, 1))


@pytest.fixture
def tree(tmp_path):
    "The published layout with three classes of two images and invented numbers; attributes.txt lies beside the folder."
    folder, rng = tmp_path/"CUB_200_2011", np.random.default_rng(0)
    (folder/"attributes").mkdir(parents=True)
    (tmp_path/"attributes.txt").write_text(numbered(ATTRIBUTES))
    (folder/"classes.txt").write_text(numbered(BIRDS))
    (folder/"images.txt").write_text(numbered(f"{bird}/{bird[4:]}_{i:04}.jpg" for bird in BIRDS for i in range(2)))
    (folder/"image_class_labels.txt").write_text(numbered([1, 1, 2, 2, 3, 3]))
    shares = rng.uniform(0, 100, (3, len(ATTRIBUTES)))
    (folder/"attributes"/"class_attribute_labels_continuous.txt").write_text("\n".join(" ".join(f"{x:.6g}" for x in row) for row in shares) + "\n")
    return SimpleNamespace(root=tmp_path, folder=folder, shares=shares)


def table(**shares):
    "One class that has nothing but what is given, in percent; 'wing_color__black' is has_wing_color::black."
    known = {f"has_{name.replace('__', '::')}": share for name, share in shares.items()}
    return AttributeTable(tuple(ATTRIBUTES), np.array([[known.get(name, 0.) for name in ATTRIBUTES]]))


def claims(text): return ["not " * denied + "|".join(name.removeprefix("has_") for name in names) for names, denied in table().matches(text)]


# The files

def test_the_published_table_in_the_order_that_is_asked_for(tree):
    found = AttributeTable.read(tree.root, BIRDS[::-1])
    assert found.names == tuple(ATTRIBUTES) and np.allclose(found.shares, tree.shares[::-1], atol=.001)
    (tree.root/"attributes.txt").rename(tree.folder/"attributes"/"attributes.txt")
    assert np.allclose(AttributeTable.read(tree.root, BIRDS[:1]).shares, tree.shares[:1], atol=.001)


def test_annotations_of_single_images_where_the_table_of_classes_is_missing(tree):
    "Lines have five fields; some of the published file have six or seven. What could not be seen does not count."
    (tree.folder/"attributes"/"class_attribute_labels_continuous.txt").unlink()
    lines = [f"{image} {a} {int((image + a) % 2)} 4 {a}.5" for image in range(1, 7) for a in range(1, len(ATTRIBUTES) + 1)]
    lines[0] = "1 1 0 3 0 2.708"
    lines[len(ATTRIBUTES)] = "2 1 1 4 0 7 5.106"
    lines[1] = "1 2 1 1 3.1"  # certainty 1: not visible
    lines.append("")
    (tree.folder/"attributes"/"image_attribute_labels.txt").write_text("\n".join(lines) + "\n")
    shares = AttributeTable.read(tree.root, BIRDS).shares
    assert shares.shape == (3, len(ATTRIBUTES)) and shares[0, :3].tolist() == [50, 0, 50] and (shares[1:] == 50).all()


def test_files_that_are_missing_or_do_not_fit(tree):
    (tree.folder/"classes.txt").write_text(numbered(BIRDS[:2]))
    with pytest.raises(ValueError, match="has 3 rows of .* expected 2 classes"): AttributeTable.read(tree.root, BIRDS[:2])
    (tree.root/"attributes.txt").unlink()
    with pytest.raises(FileNotFoundError, match="expected CUB's list of attributes"): AttributeTable.read(tree.root, BIRDS)
    with pytest.raises(ValueError, match="shares: 2 columns"): AttributeTable(("a",), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="expected 0 <= false_below"): AttributeTable(("a",), np.zeros((1, 1)), 10., 50.)


# The rule

@pytest.mark.parametrize("text, expected", {
    "black wings and white belly": ["wing_color::black", "belly_color::white"],
    "black and white wings": ["wing_color::black", "wing_color::white"],
    "black or grey wings": ["wing_color::black|wing_color::grey"],
    "blue-gray upperparts": ["upperparts_color::blue|upperparts_color::grey"],
    "black, brown, or grey": ["primary_color::black|primary_color::brown|primary_color::grey"],
    "long, brownish-grey wings": ["wing_shape::long-wings", "wing_color::brown|wing_color::grey"],
    "a white stripe on the back of the head": [], "black feathers that extend from the back of the head": [],
    "a long, hooked bill": ["bill_length::longer_than_head", "bill_shape::hooked|bill_shape::hooked_seabird"],
    "Its beak is longer than its head.": [],  # 'than' elsewhere compares classes; see the next
    "black legs and feet": ["leg_color::black"],
    "Black breast and throat": ["breast_color::black", "throat_color::black"],
    "legs that are black, medium length": ["leg_color::black"],
    "wings: white": ["wing_color::white"],
    "a white tail with a black tip": ["upper_tail_color::white|under_tail_color::white"],
    "a white head": ["forehead_color::white|crown_color::white"],
    "yellow-throated": ["throat_color::yellow"],
    "a multi-coloured back": ["back_pattern::multi-colored"],
    "a white breast with dark streaks": ["breast_color::white", "breast_pattern::striped"],
    "two white bars on its wings": ["wing_pattern::striped"],
    "no crest, mask or eye ring": ["not head_pattern::crested", "not head_pattern::masked", "not head_pattern::eyering"],
    "a white wing patch": [], "two white wing bars": [], "a black rump": [], "red markings": [],
    "a white eye-ring": ["head_pattern::eyering"], "no eye ring": ["not head_pattern::eyering"],
    "wings without spots, white belly": ["not wing_pattern::spotted", "belly_color::white"],
    "not black wings": [], "black wings in winter": [], "the male has a red crown": [], "often a black bill": [],
    "black and white": ["primary_color::black", "primary_color::white"],
    "a small bird": ["size::small_(5_-_9_in)|size::very_small_(3_-_5_in)"],
    "a very small bird": ["size::very_small_(3_-_5_in)"],
    "a small to medium-sized songbird": ["size::small_(5_-_9_in)|size::very_small_(3_-_5_in)|size::medium_(9_-_16_in)"],
    "a duck-like body": ["shape::duck-like"], "a forked tail": ["tail_shape::forked_tail"], "long, rounded wings": ["wing_shape::long-wings", "wing_shape::rounded-wings"],
    "it lives near the sea": [], "": [], "\u00e9\u00e8 ; , .": []}.items())
def test_what_a_sentence_claims(text, expected):
    assert claims(text) == expected


def test_a_bill_compared_with_the_head():
    assert claims("a bill longer than its head") == [] and "longer-than-head" in _tokens("a bill longer than its head")


@pytest.mark.parametrize("share, expected", [(50, "visible"), (49.9, None), (10, None), (9.9, "wrong"), (np.nan, None)])
def test_thresholds(share, expected):
    truth = table(wing_color__black=share).truth_of(pd.DataFrame(dict(class_id=[0], text=["black wings"])))
    assert (truth.truth[0] if expected else None) == expected and truth.attributes[0] == "has_wing_color::black"
    assert expected or truth.truth.isna().all()


def test_one_failed_claim_makes_a_sentence_wrong_and_alternatives_need_one():
    birds = table(wing_color__black=90, belly_color__white=30, wing_color__grey=0, throat_color__red=5)
    texts = ["black wings", "black wings and white belly", "black wings and red throat", "black or grey wings", "no red throat", "no black wings", "no white belly", "its song"]
    found = birds.truth_of(pd.DataFrame(dict(class_id=0, text=texts), index=range(10, 18)))
    assert found.index.tolist() == list(range(10, 18))
    assert found.truth.fillna("").tolist() == ["visible", "", "wrong", "visible", "visible", "wrong", "", ""]
    assert (found.attributes == "").tolist() == [False] * 7 + [True]


def test_the_copy_without_the_class_name_is_read():
    pool = pd.DataFrame(dict(class_id=[0], text=["The black-winged tern flies."], scored_text=["This bird flies."]))
    assert table().truth_of(pool).attributes[0] == ""


# Where it enters

def test_unknown_truth_counts_neither_as_right_nor_as_wrong():
    scores = pd.DataFrame(dict(class_id=[0, 0, 0, 0, 1, 1, 2], rank=[1, 2, 3, 4, 1, 2, 1], proponent=[True, True, False, False, True, False, True]))
    truth = pd.Series(["visible", None, "wrong", "visible", "wrong", "visible", None])
    found = precision_at(scores, truth, None)
    assert found == pytest.approx(dict(precision=(1 + 0) / 2, chance=(2 / 3 + 1 / 2) / 2, ceiling=1.))
    assert precision_at(scores, truth, 3)["precision"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert all(np.isnan(x) for x in precision_at(scores, truth.mask(truth.notna()), None).values())


def test_a_run_on_cub_gets_the_columns_where_the_table_is_there(tree, tmp_path):
    known = published()["cub"].classes
    images = ImageSet("cub", tuple(known[bird] for bird in BIRDS), dict(train=[], val=[], test=[]), "bird", raw_names=tuple(BIRDS))
    (tmp_path/"said.json").write_text(json.dumps({name: ["black wings", "it sings", "white belly"] for name in images.classes}))
    params = dict(dataset="cub", data_root=str(tree.root), descriptions=str(tmp_path/"said.json"), knowledge="none", superclass=None, llm_model="nobody", llm_base_url=None, answers=[], store=str(tmp_path/"store"))
    def pool(**changes): return report.candidate_sentences(params | changes, images, SimpleNamespace(tokenizer=Tokenizer())).pool
    asked = pd.DataFrame(dict(class_id=[0, 1, 2], text="black wings"))
    found = pool()
    black = found[found.text == "black wings"]
    assert black.truth.fillna("").tolist() == AttributeTable.read(tree.root, BIRDS).truth_of(asked).truth.fillna("").tolist()
    assert found[found.text == "it sings"].truth.isna().all() and "attributes" in found
    assert "truth" not in pool(data_root=str(tmp_path/"nowhere")) and "truth" not in pool(dataset=str(tree.root))


def test_the_report_says_what_is_known(tmp_path):
    findings = findings_of(NAMES, tmp_path)
    pool = findings.study.pool
    pool["truth"] = [None if i % 3 == 0 else "visible" if i % 3 == 1 else "wrong" for i in range(len(pool))]
    pool["attributes"] = ["" if i % 6 == 0 else "has_wing_color::black" for i in range(len(pool))]
    words = sections(findings).text
    n, known = len(pool), pool.truth.value_counts()
    assert f"{known.visible} of {n} sentences are true of their class and {known.wrong} wrong" in words and "that are decided" in words
    assert f"{(pool.attributes == '').sum()} name none of its attributes" in words and "synthetic" not in words
    pool["truth"] = None
    assert "that are decided" not in sections(findings_of(NAMES, tmp_path)).text


@pytest.mark.skipif(not PEERS.is_dir(), reason="needs the published descriptions in ../shared/data/peers")
@pytest.mark.parametrize("file", ["waffleclip/descriptors_cub.json", "vdt/cub.pt"])
def test_most_published_sentences_about_birds_are_matched(file):
    known = published()["cub"]
    pool = from_file(PEERS/file, list(known.classes.values()), "bird", list(known.classes))
    birds = table()
    assert sum(bool(birds.matches(text)) for text in pool.scored_text) > .6 * len(pool)
