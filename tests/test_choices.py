"Every published choice: it sees labelled images of its own study only, obeys flags and numbers, is deterministic, and ignores the order of the pool."
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from two_modalities import CLASSES, TEXTS, two_modalities

from datadesc.adapters import submodular_choice
from datadesc.baselines import BASELINES, from_templates
from datadesc.benchmark import texts_of
from datadesc.choices import CHOICES, disclip_scores
from datadesc.selection import ChoiceOptions
from datadesc.study import Study

NAMES = ("ant", "bee", "cat", "dog")
POOL = pd.DataFrame([dict(text_id=t, class_id=t // TEXTS, text=f"text {t}", scored_text=f"text {t}", component="", flag="") for t in range(CLASSES * TEXTS)])


@pytest.fixture(scope="module")
def world(): return two_modalities(1.5)


def study_of(world, pool=POOL, images=None, labels=None, **options):
    "A study of the embeddings, in which 'text 7' has the seventh text embedding and a class name in a template one near its class."
    text_emb = world[2][0]
    def embed(texts): return torch.stack([text_emb[int(t.split()[1])] if t.startswith("text ") else of_name(t) for t in texts])
    def of_name(t):
        c = next(c for c, name in enumerate(NAMES) if name in t)
        return F.normalize(text_emb[c * TEXTS:(c + 1) * TEXTS].mean(0), dim=0)
    return Study(NAMES, images or world[0], labels or world[1], pool, embed, ChoiceOptions(**(dict(top_k=3) | options)), logit_scale=30.)


def ids(texts): return texts.text_id.tolist()


@pytest.fixture(params=CHOICES)
def choice(request): return CHOICES[request.param]


def test_a_choice_has_as_many_unflagged_texts_as_asked_for(world, choice):
    flags = ["duplicate" if t % TEXTS == 1 else "not described" if t % TEXTS == 4 else "" for t in range(len(POOL))]
    for k in (1, 2, 4, 6):
        chosen = choice(study_of(world, POOL.assign(flag=flags), top_k=k))
        assert chosen.groupby("class_id").size().tolist() == [min(k, 4)] * CLASSES
        assert not {t % TEXTS for t in chosen.text_id} & {1, 4} and chosen.text_id.is_unique and list(chosen.index) == ids(chosen)


def test_auto_is_ten_or_all(world, choice):
    assert len(choice(study_of(world, top_k="auto"))) == len(POOL)


def test_a_choice_never_sees_test_images(world, choice):
    images, labels, _ = world
    other = study_of(world, images=images | {"test": images["test"].flip(0)}, labels=labels | {"test": labels["test"].flip(0) * 0})
    without = study_of(world, images={s: images[s] for s in ("train", "val")}, labels={s: labels[s] for s in ("train", "val")})
    assert ids(choice(study_of(world))) == ids(choice(other)) == ids(choice(without))


@pytest.mark.parametrize("shots", [1, 4])
def test_a_few_shot_study_is_chosen_by_its_shots_alone(world, choice, shots):
    images, labels, _ = world
    rows = study_of(world).few_shot(shots, 2).split.train
    rest = torch.ones(len(images["train"]), dtype=torch.bool)
    rest[rows] = False
    train = images["train"].clone()
    train[rest] = train[rest].flip(1)
    other = study_of(world, images=images | {"train": train, "val": images["val"].flip(0)})
    assert ids(choice(study_of(world).few_shot(shots, 2))) == ids(choice(other.few_shot(shots, 2)))


def test_a_choice_is_deterministic_and_ignores_the_order_of_the_pool(world, choice):
    once, turned = choice(study_of(world)), choice(study_of(world, POOL[::-1].reset_index(drop=True)))
    pd.testing.assert_frame_equal(once, choice(study_of(world)))
    assert ids(once) == ids(turned)


def test_equal_texts_go_by_text_id(world, choice):
    "Copies of two texts: whatever the rule, the copy with the lower id of each comes first."
    copies = POOL.assign(scored_text=[f"text {t // TEXTS * TEXTS + t % 2}" for t in POOL.text_id])
    if choice in (CHOICES["random"], CHOICES["random edits"]): return
    assert {t % TEXTS for t in choice(study_of(world, copies, top_k=1)).text_id} <= {0, 1}


def test_classes_without_texts_or_without_images(world, choice):
    labels = world[1]
    chosen = choice(study_of(world, POOL[POOL.class_id != 1]))
    assert chosen.groupby("class_id").size().to_dict() == {0: 3, 2: 3, 3: 3}
    some = {s: labels[s] != 2 for s in ("train", "val")}
    lacking = study_of(world, images={s: world[0][s][some[s]] for s in some}, labels={s: labels[s][some[s]] for s in some})
    assert choice(lacking).groupby("class_id").size().tolist() == [3] * CLASSES
    without_val = study_of(world, images=world[0] | {"val": world[0]["val"][labels["val"] < 2]}, labels=labels | {"val": labels["val"][labels["val"] < 2]})
    assert len(choice(without_val)) == 3 * CLASSES


def test_every_choice_is_a_method_of_the_benchmark(world):
    for name, texts in texts_of(CHOICES, study_of(world).few_shot(2), budget=2).items(): assert len(texts) == 2 * CLASSES, name


def test_random_choices_differ_by_episode(world):
    for name in ("random", "random edits"):
        study = study_of(world, top_k=2)
        said = [tuple(ids(CHOICES[name](study.few_shot(1, seed)))) for seed in range(3)]
        assert len(set(said)) > 1, name


def test_choices_that_look_at_images_beat_random_ones(world):
    "On well separated classes with false texts in every pool, which belong to the next class."
    shifted = POOL.assign(scored_text=[f"text {(t + TEXTS * (t % 2)) % len(POOL)}" for t in POOL.text_id])  # odd ones describe the next class
    for name in ("cosine with MMR", "direct with MMR", "DisCLIP per class", "forward by accuracy", "random edits"):
        chosen = CHOICES[name](study_of((*two_modalities(.5)[:2], world[2]), shifted, top_k=2))
        assert (chosen.text_id % 2 == 0).mean() > .8, name


def naive_disclip(study, image, k=3):
    "DisCLIP's scores of one image, class by class and text by text, without names."
    x, y = (torch.cat([of["train"], of["val"]]) for of in (study.image_emb, study.labels))
    means = torch.stack([x[y == c].mean(0) for c in range(CLASSES)])
    names = study.embed([f"A photo of a {name}." for name in NAMES])
    scores, ambiguous = torch.full((CLASSES,), -torch.inf), (names @ image).topk(k).indices.tolist()
    for c in ambiguous:
        similar = study.text_emb @ means[ambiguous].T
        over = similar[:, [ambiguous.index(c)]] - similar
        passing = [t for t in range(len(POOL)) if (over[t] >= 0).all()]
        best = sorted(passing, key=lambda t: -over[t].mean())[:study.options.top_k]
        if not best: best = [t for t in range(len(POOL)) if study.text_class[t] == c][:study.options.top_k]
        scores[c] = (study.text_emb[best] @ image).mean()
    return scores


def test_disclip_scores_are_those_of_the_definition(world):
    study, images = study_of(world), world[0]["test"][::10]
    torch.testing.assert_close(disclip_scores(study, images, 0.), torch.stack([naive_disclip(study, image) for image in images]))


def test_disclip_weighs_names_by_validation_images_alone(world):
    images, labels, _ = world
    study, other = study_of(world), study_of(world, images=images | {"test": images["test"].flip(0)}, labels=labels | {"test": labels["test"] * 0})
    chosen = disclip_scores(study, images["test"])
    assert torch.equal(chosen, disclip_scores(other, images["test"]))
    finite = chosen.isfinite()
    weight = ((chosen - disclip_scores(study, images["test"], 0.)) / (disclip_scores(study, images["test"], 1.) - disclip_scores(study, images["test"], 0.)))[finite]
    assert weight.std() < 1e-3 and 0 <= weight.mean() < 40


def test_greedy_coverage_of_equal_worth_takes_the_medoid_first():
    similarity = torch.tensor([[1., .9, 0, 0], [.9, 1, .8, 0], [0, .8, 1, 0], [0, 0, 0, 1]])
    assert submodular_choice(torch.zeros(4), similarity, 2).tolist() == [1, 3]


PUBLISHED = {
    "food101": ["a photo of {c}, a type of food."], "pets": ["a photo of a {c}, a type of pet."], "flowers": ["a photo of a {c}, a type of flower."],
    "eurosat": ["a centered satellite photo of {c}.", "a centered satellite photo of a {c}.", "a centered satellite photo of the {c}."],
    "dtd": [f"a photo of {article} {{c}} {kind}." for kind in ("texture", "pattern", "thing", "object") for article in ("a", "the")]}


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_published_templates_become_prompts(dataset):
    table = BASELINES["clip_templates"].table(from_templates(["sea_or_lake", "air plant"], PUBLISHED[dataset]), ["sea_or_lake", "air plant"])
    assert len(table) == 2 * len(PUBLISHED[dataset]) and table.prompt.is_unique
    assert table.prompt[table.class_id == 0].str.contains("sea or lake").all() and not table.prompt.str.contains("[{}]").any()
