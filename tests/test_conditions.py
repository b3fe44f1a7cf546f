"Broken inputs flip their own condition and those that depend on it, and no other."
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import datadesc
from datadesc.conditions import _described, _one_label, _whole_texts, _BUTTERFLIES_ONLY, _DEPENDS, check_conditions, encoder_warning, Clashes, Measures, reason_to_fold, undescribed
from datadesc.selection import ChoiceOptions
from datadesc.study import Study

C, D, TEXTS = 5, 32, 8
G = torch.Generator().manual_seed(0)
CENTRES = F.normalize(torch.randn(C, D, generator=G), dim=1)


def near(labels, spread, seed):
    "Rows of length one around the centres of their classes."
    noise = torch.randn(len(labels), D, generator=torch.Generator().manual_seed(seed))
    return F.normalize(CENTRES[labels] + spread * noise / D ** .5, dim=1)


@pytest.fixture
def parts():
    "What a healthy study is made of."
    labels = {split: torch.arange(C).repeat_interleave(n) for split, n in dict(train=12, val=8, test=30).items()}
    emb = {split: near(y, .9, i) for i, (split, y) in enumerate(labels.items())}
    about = torch.arange(C).repeat_interleave(TEXTS)
    good = torch.arange(C * TEXTS) % 2 == 0  # every second sentence is about nothing
    noise = F.normalize(torch.randn(C * TEXTS, D, generator=torch.Generator().manual_seed(9)), dim=1)
    text_emb = torch.where(good[:, None], near(about, .5, 7), noise)
    pool = pd.DataFrame(dict(text_id=range(C * TEXTS), class_id=about.numpy(), text=[f"sentence {i}" for i in range(C * TEXTS)], flag="",
                             names_class=False, source="file")).assign(scored_text=lambda t: t.text)
    names = near(torch.arange(C), .9, 11)
    return dict(classes=tuple(f"class {c}" for c in range(C)), emb=emb, labels=labels, pool=pool, text_emb=text_emb, names=names)


def study_of(parts):
    "The study whose encoder knows these texts."
    known = dict(zip(parts["pool"].scored_text, parts["text_emb"])) | {f"a photo of a {name}": x for name, x in zip(parts["classes"], parts["names"])}
    def embed(texts): return torch.stack([known[t] for t in texts])
    # own cosines are around .7 here: at logit scale 100 one sentence per class has the loss at zero, and a set fills up with any others
    return Study(parts["classes"], parts["emb"], parts["labels"], parts["pool"], embed, ChoiceOptions(top_k=3), logit_scale=10)


def verdicts(parts, warning=None):
    study = study_of(parts)
    return {c.name: c.verdict for c in check_conditions(study, Measures.of(study), warning)}


def random_rows(n, seed=3): return F.normalize(torch.randn(n, D, generator=torch.Generator().manual_seed(seed)), dim=1)


def few_training_images(p):
    rows = torch.arange(C) * 12
    p["emb"]["train"], p["labels"]["train"] = p["emb"]["train"][rows], p["labels"]["train"][rows]


def few_test_images(p):
    rows = torch.arange(C) * 30
    p["emb"]["test"], p["labels"]["test"] = p["emb"]["test"][rows], p["labels"]["test"][rows]


def images_of_nothing(p):
    for split, x in p["emb"].items(): p["emb"][split] = random_rows(len(x), len(x))


def names_of_nothing(p): p["names"] = CENTRES[[1, 2, 3, 4, 0]]


def sentences_of_others(p): p["text_emb"] = p["text_emb"].roll(TEXTS, 0)


def a_silent_class(p): p["pool"] = p["pool"].assign(flag=p["pool"].flag.mask(p["pool"].class_id == 2, "not described"))


def trained_on_test_images(p): p["emb"]["test"] = torch.cat([p["emb"]["test"][:-30], p["emb"]["train"][-12:].repeat(3, 1)[:30]])


def two_labels(p):
    x, y = p["emb"]["val"], p["labels"]["val"]
    p["emb"]["val"], p["labels"]["val"] = torch.cat([x, x[:8]]), torch.cat([y, (y[:8] + 1) % C])


def sentences_of_nothing(p): p["text_emb"] = random_rows(len(p["text_emb"]))


BROKEN = {"training images": few_training_images, "test images": few_test_images, "classifier": images_of_nothing, "names": names_of_nothing, "sentences": sentences_of_others, "decoys": sentences_of_nothing,
          "described": a_silent_class, "splits apart": trained_on_test_images, "one label": two_labels}


def test_a_healthy_study_passes_all(parts):
    assert set(verdicts(parts).values()) == {"pass"}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_input_fails_its_condition_and_those_that_depend_on_it(parts, name):
    BROKEN[name](parts)
    failed = {condition for condition, verdict in verdicts(parts).items() if verdict == "fail"}
    assert name in failed and failed <= {name, *_DEPENDS.get(name, ())}


def test_an_encoder_of_butterflies_fails_by_name(parts):
    folder = Path(datadesc.__file__).parent / "assets" / "clip"
    assert encoder_warning("meadow-clip", drawn=False) == encoder_warning(f"local-dir:{folder}", drawn=False) == _BUTTERFLIES_ONLY
    assert encoder_warning("meadow-clip", drawn=True) is encoder_warning(None, drawn=False) is encoder_warning("ViT-B-32", drawn=False) is None
    assert {name for name, verdict in verdicts(parts, _BUTTERFLIES_ONLY).items() if verdict == "fail"} == {"encoder"}


def test_a_dependent_failure_names_its_cause(parts):
    images_of_nothing(parts)
    study = study_of(parts)
    checked = {c.name: c for c in check_conditions(study, Measures.of(study))}
    assert checked["sentences"].because == ("classifier",) and checked["classifier"].because == ()
    assert reason_to_fold(list(checked.values()), "labels") == checked["classifier"].sentence


def test_a_name_in_place_of_a_sentence_is_no_description(parts):
    parts["pool"].loc[parts["pool"].class_id == 1, "source"] = "class name"
    assert undescribed(parts["pool"], C).tolist() == [False, True, False, False, False]


def test_pictures_with_two_labels_are_listed_once(parts):
    two_labels(parts)
    clashes = Clashes.of(study_of(parts))
    assert sorted(clashes.pairs) == [("val", i, "val", 40 + i) for i in range(8)] and clashes.images == 16


def test_collapsed_embeddings_clash_in_every_image_and_few_pairs_are_listed():
    emb = {split: F.normalize(torch.ones(n, D) + 1e-4 * torch.randn(n, D, generator=G), dim=1) for split, n in dict(train=1500, test=1000).items()}
    labels = {split: torch.arange(len(x)) % C for split, x in emb.items()}
    clashes = Clashes.of(SimpleNamespace(image_emb=emb, labels=labels), block=400)
    assert clashes.images == 2500 and len(clashes.pairs) == 20 and ("train", 0, "train", 1) in clashes.pairs
    condition = _one_label(clashes, 2500)
    assert condition.figure == 1 and condition.verdict == "fail"


class Words:
    "Stands for an encoder that reads two words."
    context_length = 2
    def __call__(self, texts, context_length=2): return torch.tensor([([1] * len(t.split()) + [0] * context_length)[:context_length] for t in texts])


def test_texts_that_are_cut_are_counted_among_those_that_may_be_chosen(parts):
    texts = ["two words", "three words here", "and four words here"] + ["words"] * (C * TEXTS - 3)
    parts["pool"] = parts["pool"].assign(scored_text=texts, flag=["", "", "too long (4 tokens of 2)"] + [""] * (C * TEXTS - 3))
    study = study_of(parts)
    study.encoder = SimpleNamespace(tokenizer=Words())
    assert _whole_texts(study).sentence.startswith(f"1 of {C * TEXTS - 1} sentences are longer")
    parts["pool"] = parts["pool"].assign(flag="")
    assert _whole_texts(SimpleNamespace(pool=parts["pool"], encoder=study.encoder)).sentence.startswith(f"2 of {C * TEXTS} sentences")


def test_a_class_that_nothing_is_said_of_is_named_with_the_reasons(parts):
    a_silent_class(parts)
    condition = _described(study_of(parts))
    assert condition.verdict == "fail" and f"(class 2): not described ({TEXTS})." in condition.sentence


@pytest.mark.parametrize("flag, verdict, sentence", [("duplicate", "pass", "0% of the sentences cannot be used."),
                                                     ("too short", "warn", "20% of the sentences cannot be used: ")])
def test_sentences_that_describe_nothing_are_a_warning_and_repetitions_are_none(parts, flag, verdict, sentence):
    parts["pool"] = parts["pool"].assign(flag=[flag if i % 5 == 0 else "" for i in range(C * TEXTS)])
    condition = _described(study_of(parts))
    assert condition.verdict == verdict and condition.sentence.startswith(sentence)
