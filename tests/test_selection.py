"Every form of the score by its own definition, ranks, the chosen list with its reasons, precision, fall-backs, and every input a user can get wrong."
from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from datadesc.head import center, modality_mean
from datadesc.influence import influence, _influence_matrix
from datadesc.selection import FORMS, ChoiceOptions, choose, flag_counts, ift, precision_at, proponent_images, _precision_by_class
from datadesc.study import Study, _differing_parts

C, D = 4, 8


def cloud(per_class, seed, gap):
    "Unit vectors round one centre a class, all shifted by the modality's `gap`, and their classes."
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(C).repeat_interleave(per_class)
    return F.normalize(torch.eye(C, D)[y] + .4 * torch.randn(len(y), D, generator=g) + gap, dim=1), y


class World:
    "Embeddings of images and texts; a study of them is made anew whenever it is asked for."
    def __init__(self):
        gap = torch.tensor([0, 0, 0, 0, 1., -1, 2, 0])
        (self.train, self.y), (self.val, self.w), (self.text, self.t) = cloud(9, 0, gap), cloud(5, 1, gap), cloud(6, 2, -gap)
        self.pool = pd.DataFrame(dict(text_id=range(len(self.t)), class_id=self.t.numpy(), text=list(map(str, range(len(self.t))))))

    def study(self, image_influence=None, **options):
        def embed(texts): return self.text[[int(t) for t in texts]]
        images, labels = dict(train=self.train, val=self.val), dict(train=self.y, val=self.w)
        return Study("abcd", images, labels, self.pool, embed, ChoiceOptions(**options), image_influence=image_influence)

    def ift(self, form, image_influence=None, **options): return ift(form, self.study(image_influence, **options))

    @property
    def args(self): return (s := self.study()).features["train"], self.y, s.features["val"], self.w, s.scorer


@pytest.fixture
def world(): return World()


def numbers(values): return torch.tensor(values.to_numpy(), dtype=torch.float32)


def test_clip_is_the_mean_cosine_to_the_classs_images(world):
    cosine = center(world.text) @ center(world.train).T
    want = torch.stack([row[world.y == c].mean() for row, c in zip(cosine, world.t)])
    torch.testing.assert_close(numbers(world.ift("clip").ift), want)


def test_eq2_is_equation_two(world):
    S = _influence_matrix(*world.args)
    cosine = world.text @ world.train.T
    want = torch.stack([(S + row[:, None]).mean() for row in cosine])
    torch.testing.assert_close(numbers(world.ift("eq2").ift), want)


def test_proponent_and_weighted_pair_by_pair(world):
    S = _influence_matrix(*world.args)
    cosine = center(world.text) @ center(world.train).T
    near, chosen, weighted = [], [], []
    for row, c in zip(cosine, world.t):
        own = S[:, world.w == c]
        pairs = [(own[z, v], row[z]) for v in range(own.shape[1]) for z in own[:, v].topk(3).indices if own[z, v] > 0]
        near.append(sum(p[1] for p in pairs) / len(pairs)), chosen.append(sum(p[0] for p in pairs) / len(pairs))
        weighted.append((own.clamp(min=0) * row[:, None]).sum() / own.clamp(min=0).sum())
    scores = world.ift("proponent", top_m=3)
    torch.testing.assert_close(numbers(scores.clip_part), torch.stack(near))
    torch.testing.assert_close(numbers(scores.influence_part), torch.stack(chosen))
    torch.testing.assert_close(numbers(world.ift("weighted").ift), torch.stack(weighted))


def test_direct_treats_the_text_as_a_train_image(world):
    S = _influence_matrix(center(world.text), world.t, *world.args[2:])
    own = torch.stack([row[world.w == c].mean() for row, c in zip(S, world.t)])
    torch.testing.assert_close(numbers(world.ift("direct").ift), S.mean(1))
    torch.testing.assert_close(numbers(world.ift("direct_own").ift), own)
    with pytest.warns(UserWarning, match="now form='direct'"): assert world.ift("influence").ift.equals(world.ift("direct").ift)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_a_whole_table(world, form):
    scores = world.ift(form, top_k=2)
    assert list(scores) == ["text_id", "class_id", "form", "ift", "influence_part", "clip_part", "rank", "proponent"]
    assert scores.notna().all().all() and (scores.form == form).all()
    assert scores.groupby("class_id")["rank"].apply(sorted).tolist() == [[1, 2, 3, 4, 5, 6]] * C
    assert (scores.proponent == (scores["rank"] <= 2)).all()
    if form != "random": assert (scores.ift == scores.influence_part + scores.clip_part).all()


@pytest.mark.parametrize("form", FORMS)
def test_an_uncentered_head_is_scored_uncentered(world, form):
    assert world.ift(form, centered=False).ift.notna().all()


def test_rows_in_any_order_get_the_same_rank(world):
    turn = torch.randperm(len(world.t), generator=torch.Generator().manual_seed(3))
    straight = world.ift("clip")["rank"]
    world.pool = world.pool.iloc[turn.tolist()]
    assert world.ift("clip")["rank"].sort_index().equals(straight)


def test_ties_go_by_text_id(world):
    world.text = world.text[world.t * 6]  # the same sentence six times a class
    world.pool["text_id"] = range(100, 76, -1)
    scores = world.ift("clip")
    for _, rows in scores.groupby("class_id"):
        if rows.ift.nunique() == 1: assert rows.sort_values("rank").text_id.is_monotonic_increasing


def test_more_top_k_than_texts_keeps_all(world):
    assert world.ift("clip", top_k=99).proponent.all()


def test_no_positive_influence_falls_back_to_clip(world):
    found = influence(*world.args)
    hurt = (world.w == 2)[:, None]  # only class 2 has no train image that helps it
    none = replace(found, proponent_scores=torch.where(hurt, -1., 1.).expand_as(found.proponent_scores), positive_mean=found.positive_mean.index_fill(0, torch.tensor([2]), torch.nan))
    clip_scores = world.ift("clip")
    for form in ("proponent", "weighted"):
        scores = world.ift(form, image_influence=none)
        lost = scores.class_id == 2
        assert (scores.influence_part[lost] == 0).all()
        assert (scores.ift[lost] == clip_scores.ift[lost]).all()
        assert (scores.ift[~lost] != clip_scores.ift[~lost]).all()


def test_proponent_images_add_up_to_the_weighted_score(world):
    index, added = proponent_images(world.study(), top_k=len(world.y))
    torch.testing.assert_close(added.sum(1), numbers(world.ift("weighted").ift))
    few, most = proponent_images(world.study(), top_k=3)
    assert torch.equal(few, index[:, :3]) and (most[:, 0] >= most[:, 2]).all()


def test_proponent_images_need_the_tables_by_class(world):
    lean = influence(*world.args, by_class=False)
    with pytest.raises(ValueError, match="compute it with by_class=True"): proponent_images(world.study(lean))


@pytest.mark.parametrize("form", FORMS)
def test_no_form_needs_the_tables_by_class(world, form):
    found, slim = influence(*world.args), influence(*world.args, by_class=False)
    pd.testing.assert_frame_equal(world.ift(form, image_influence=slim), world.ift(form, image_influence=found))


def test_validation_images_in_any_order(world):
    turn = torch.randperm(len(world.w), generator=torch.Generator().manual_seed(5))
    before = world.ift("proponent", top_m=3).ift
    world.val, world.w = world.val[turn], world.w[turn]
    torch.testing.assert_close(numbers(world.ift("proponent", top_m=3).ift), numbers(before))


WORDS = ["red wings", "Red wings.", "blue feet", "I'm sorry, I don't know.", "long tail", "tiny eyes"]


class Pool:
    "Two classes of six sentences: the second repeats the first in other letters, the fourth describes nothing, the last two point nearly the same way."
    def __init__(self):
        x = torch.tensor([[1., 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, .1, 1]])
        self.emb = F.normalize(torch.cat([x, -x]), dim=1)  # the mean is zero: centring changes nothing
        ids = range(100, 112)
        self.texts = pd.DataFrame(dict(text_id=ids, class_id=[0] * 6 + [1] * 6, text=WORDS * 2, flag=["", "duplicate", "", "not described", "", ""] * 2))
        score = [.1, .2, -.3, .9, .6, .5]
        self.scores = pd.DataFrame(dict(text_id=ids, class_id=self.texts.class_id, form="clip", ift=score * 2, influence_part=0., clip_part=score * 2, rank=[5, 4, 6, 1, 2, 3] * 2, proponent=False))

    def choose(self, **options): return choose(self.scores, self.texts, self.emb, **options)


@pytest.fixture
def pool(): return Pool()


def test_what_has_a_flag_is_never_chosen(pool):
    first = pool.choose(top_k=2).iloc[:6]
    assert first.why_not.tolist() == ["others rank higher", "duplicate of 100", "low cosine", "not described", "", ""]
    assert first.proponent.tolist() == [False] * 4 + [True] * 2
    assert pool.choose(top_k=2).iloc[6:].why_not.tolist()[1] == "duplicate of 106"


def test_rank_is_the_place_in_the_list_and_then_the_score(pool):
    assert pool.choose(top_k=2).iloc[:6]["rank"].tolist() == [5, 4, 6, 3, 1, 2]


def test_fewer_texts_than_top_k_keep_all_without_a_flag(pool):
    assert pool.choose(top_k=99).why_not.tolist() == ["", "duplicate of 100", "", "not described", "", "", "", "duplicate of 106", "", "not described", "", ""]


def test_near_duplicate_keeps_the_better_of_two(pool):
    assert pool.choose(top_k=2, near_duplicate=.9).why_not.iloc[5] == "near duplicate of 104"
    assert pool.choose(top_k=2, near_duplicate=.9).proponent.iloc[:6].tolist() == [True, False, False, False, True, False]
    assert pool.choose(near_duplicate=1.).why_not.iloc[5] == ""


def test_diversity_takes_another_thing(pool):
    chosen = pool.choose(top_k=2, diversity=.9).iloc[:6]
    assert chosen.why_not.iloc[5] == "too like 104" and chosen.proponent.sum() == 2 and chosen.proponent.iloc[4]


def test_no_diversity_is_the_score_alone(pool):
    kept = pool.choose(top_k=3)
    assert kept[kept.class_id == 0].sort_values("rank").text_id.tolist()[:3] == [104, 105, 100]


@pytest.mark.parametrize("scale", [1e-6, 1., 1e6])
def test_diversity_does_not_depend_on_the_unit_of_the_score(pool, scale):
    plain = pool.choose(top_k=3, diversity=.4)["rank"]
    pool.scores["ift"] *= scale
    assert pool.choose(top_k=3, diversity=.4)["rank"].equals(plain)


def test_negative_influence_is_a_reason(pool):
    pool.scores["influence_part"] = pool.scores.ift - 1
    assert pool.choose(top_k=1).why_not.iloc[0] == "negative influence"


def test_a_class_without_a_usable_text_keeps_none(pool):
    pool.texts["flag"] = pool.texts.flag.mask(pool.texts.class_id == 1, "too short")
    assert pool.choose().groupby("class_id").proponent.sum().tolist() == [4, 0]


def test_equal_scores_and_one_text(pool):
    pool.scores["ift"] = 0.
    assert pool.choose(top_k=2, diversity=.5).groupby("class_id").proponent.sum().tolist() == [2, 2]
    one = [0]
    assert choose(pool.scores.iloc[one], pool.texts.iloc[one], pool.emb[one], diversity=1., near_duplicate=.5).proponent.all()


def test_any_index_and_any_order(pool):
    turn = [7, 3, 11, 0, 5, 2, 9, 1, 4, 10, 6, 8]
    turned = choose(pool.scores.iloc[turn], pool.texts.iloc[turn], pool.emb[turn], top_k=2, near_duplicate=.9)
    straight = pool.choose(top_k=2, near_duplicate=.9)
    assert turned["rank"].sort_index().equals(straight["rank"]) and turned.proponent.sort_index().equals(straight.proponent)


def test_flags_are_counted_by_reason(pool):
    assert flag_counts(pool.texts) == "repeats another (2), not described (2)"
    assert flag_counts(pool.texts.assign(flag=["too long (95 tokens of 77)", "too long (80 tokens of 77)"] + [""] * 10)) == "too long (2)"
    assert flag_counts(pool.texts.assign(flag="")) == ""


def test_a_duplicate_whose_twin_is_not_there(pool):
    pool.texts["text"] = [f"text {i}" for i in range(12)]
    assert pool.choose().why_not.iloc[1] == "duplicate"


@pytest.mark.parametrize("options, message", [
    (dict(top_k=0), "top_k=0: expected at least one"),
    (dict(diversity=-.1), r"diversity=-0.1: expected 0 \(by score alone\) to 1"),
    (dict(diversity=1.1), "diversity=1.1: expected 0"),
    (dict(diversity=float("nan")), "diversity=nan: expected 0"),
    (dict(near_duplicate=0), "near_duplicate=0: expected a cosine above 0 and up to 1, or None"),
    (dict(near_duplicate=90), "near_duplicate=90: expected a cosine"),
])
def test_bad_options_of_the_list_are_named(pool, options, message):
    with pytest.raises(ValueError, match=message): pool.choose(**options)


def test_bad_input_of_the_list_is_named(pool):
    with pytest.raises(ValueError, match="pool: no column text, flag; expected the table"): choose(pool.scores, pool.texts.drop(columns=["text", "flag"]), pool.emb)
    with pytest.raises(ValueError, match="scores: its text_id differ"): choose(pool.scores.iloc[::-1], pool.texts, pool.emb)
    with pytest.raises(ValueError, match="pool has 12 rows and text_emb 11"): choose(pool.scores, pool.texts, pool.emb[:-1])
    with pytest.raises(ValueError, match="text_emb: row 0 has length 2"): choose(pool.scores, pool.texts, 2 * pool.emb)
    with pytest.raises(ValueError, match="text_emb: 1 of 12 rows hold NaN"): choose(pool.scores, pool.texts, holed(pool.emb))


def test_precision_by_hand():
    scores = pd.DataFrame(dict(text_id=range(6), class_id=[0, 0, 0, 1, 1, 1], rank=[1, 2, 3, 3, 2, 1]))
    truth = pd.Series(["visible", "wrong", "visible", "generic", "wrong", "visible"])
    found = _precision_by_class(scores, truth, 2, "visible")
    assert found.precision.tolist() == [.5, .5] and found.chance.tolist() == [2 / 3, 1 / 3] and found.ceiling.tolist() == [1, .5]
    assert precision_at(scores, truth, 2) == pytest.approx(dict(precision=.5, chance=.5, ceiling=.75))
    assert precision_at(scores, truth, 9)["precision"] == pytest.approx(.5)  # more than there are: all of them


def holed(x): return x.index_fill(0, torch.tensor([1]), torch.nan)


@pytest.mark.parametrize("name, change, message", [
    ("text", lambda x: 2 * x, r"text_emb: row 0 has length 2, expected L2-normalised embeddings; use torch"),
    ("train", lambda x: 2 * x, "image_emb\\['train'\\]: row 0 has length 2"),
    ("val", holed, "image_emb\\['val'\\]: 1 of 20 rows hold NaN or infinity, the first is row 1"),
    ("y", lambda y: y + 1, "labels: expected 0 to 3 for 4 classes, got 1 to 4"),
    ("w", lambda y: y + 1, "val: labels from 1 to 4"),
])
def test_bad_input_is_named(world, name, change, message):
    setattr(world, name, change(getattr(world, name)))
    with pytest.raises(ValueError, match=message): world.ift("proponent")


@pytest.mark.parametrize("options, message", [(dict(top_k=0), "top_k=0: expected at least one"), (dict(top_m=0), "top_m=0: expected at least one"), (dict(form="cosine"), "form='cosine': expected set, eq2, clip")])
def test_bad_options_are_named(world, options, message):
    with pytest.raises(ValueError, match=message): world.study(**options)


def test_an_unknown_form_is_named(world):
    with pytest.raises(ValueError, match="form='cosine': expected set, eq2, clip"): world.ift("cosine")


def test_text_scores_leave_out_what_is_the_same_for_all():
    scores = pd.DataFrame(dict(class_id=[0, 0, 1, 1], influence_part=[.7, .7, .2, .2], clip_part=[.1, .3, .2, -.1]))
    torch.testing.assert_close(_differing_parts(scores), torch.tensor([.1, .3, .2, -.1]))


READ_A_CLASS = [form for form in FORMS if form not in ("eq2", "random")]


def without(world, split, *classes):
    "The world without these classes in a split."
    labels, images = dict(train="y", val="w")[split], split
    some = ~torch.isin(getattr(world, labels), torch.tensor(classes))
    setattr(world, images, getattr(world, images)[some]), setattr(world, labels, getattr(world, labels)[some])
    return world


@pytest.mark.parametrize("form", FORMS)
def test_train_images_stand_in_for_validation_images(world, form):
    complete, lacking = world.ift(form), without(world, "val", 3).ift(form)
    assert lacking.ift.notna().all()
    if form in ("clip", "proponent", "weighted", "direct_own", "direct_normalised"):
        torch.testing.assert_close(numbers(lacking.ift[lacking.class_id != 3]), numbers(complete.ift[complete.class_id != 3]))
    if form in ("proponent", "weighted"): assert lacking.ift[lacking.class_id == 3].equals(world.ift("clip").ift[lacking.class_id == 3])


def test_stand_ins_of_the_direct_forms(world):
    without(world, "val", 3)
    s = world.study()
    val, labels = torch.cat([s.features["val"], s.features["train"][world.y == 3]]), torch.cat([world.w, world.y[world.y == 3]])
    S = _influence_matrix(s.text, world.t, val, labels, s.scorer)
    tail, scale = world.t == 3, S.abs().max().item()
    torch.testing.assert_close(numbers(world.ift("direct").ift)[tail], S[tail].mean(1), atol=1e-5 * scale, rtol=1e-4)
    torch.testing.assert_close(numbers(world.ift("direct").ift)[~tail], S[~tail][:, labels != 3].mean(1), atol=1e-5 * scale, rtol=1e-4)
    torch.testing.assert_close(numbers(world.ift("direct_own").ift)[tail], S[tail][:, labels == 3].mean(1), atol=1e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_validation_images_stand_in_for_train_images(world, form):
    without(world, "train", 1)
    table = world.ift(form)
    assert table.ift.notna().all()
    if form == "clip":
        common = modality_mean(world.train)
        want = center(world.text)[world.t == 1] @ center(world.val, common)[world.w == 1].T
        torch.testing.assert_close(numbers(table.ift[table.class_id == 1]), want.mean(1))


@pytest.mark.parametrize("form", FORMS)
def test_nothing_ranks_a_class_without_images(world, form):
    without(without(world, "train", 1), "val", 1)
    table = world.ift(form, top_k=2)
    tail = table.class_id == 1
    assert table.ift[tail].isna().all() == (form in READ_A_CLASS) and table.ift[~tail].notna().all()
    if form not in READ_A_CLASS: return
    assert table["rank"][tail].tolist() == [1, 2, 3, 4, 5, 6]
    flags = world.pool.assign(text=[f"sentence {i}" for i in range(len(table))], flag="")
    for diversity in (0, .5):
        chosen = choose(table, flags, world.text, top_k=2, diversity=diversity)[tail]
        assert chosen.proponent.sum() == 2 and "no image to rank it by" in chosen.why_not.tolist()
        assert diversity or chosen.why_not.tolist() == ["", ""] + ["no image to rank it by"] * 4


def test_image_influence_that_keeps_too_few_proponents(world):
    few = influence(*world.args, top_k=3)
    with pytest.raises(ValueError, match="top_m=5, but image_influence keeps 3 proponents"): world.ift("proponent", top_m=5, image_influence=few)


def test_truth_must_match_the_scores(world):
    with pytest.raises(ValueError, match="truth: its index differs"): precision_at(world.ift("clip"), pd.Series(["visible"]), 5)
