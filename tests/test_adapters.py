"Adapters: what each one computes against a slow way to compute it, honest tuning, and inputs that do not fit."
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from datadesc.adapters import (Adapter, _SelfAttention, _Task, adapted, adapters, _by_class, _concept_weights, _discriminability, submodular_choice, _labo, _logistic_regression,
                               _one_space, _select_concepts, _tip_adapter, _train_attention, _tuned, _vdt_adapter)
from datadesc.stats import _correct_matrix, summary
from datadesc.zeroshot import class_scores
from two_modalities import CLASSES, TEXTS, two_modalities

torch.set_num_threads(1)
TEXT_READERS = (_tip_adapter, _labo, _vdt_adapter)


@pytest.fixture(scope="module")
def world(): return two_modalities(1.2)


def scores_of(world, fit, **options):
    images, labels, (emb, ids, _) = world
    return fit(_Task(images["train"], labels["train"], emb, ids, CLASSES), **options)(images["test"])


def accuracy_of(world, fit, **options):
    return (scores_of(world, fit, **options).argmax(1) == world[1]["test"]).float().mean().item()


@pytest.mark.parametrize("fit", [*TEXT_READERS, _logistic_regression])
def test_every_adapter_learns_scores_alike_twice_and_needs_no_gradient(world, fit):
    scores = scores_of(world, fit)
    assert scores.shape == (200, CLASSES) and torch.isfinite(scores).all() and not scores.requires_grad
    assert torch.equal(scores, scores_of(world, fit))
    assert accuracy_of(world, fit) > .6


@pytest.mark.parametrize("fit, options", [(_tip_adapter, dict(epochs=5)), (_labo, {}), (_vdt_adapter, {})])
def test_training_leaves_inputs_and_the_random_state_alone(world, fit, options):
    images, labels, (emb, ids, _) = world
    before = images["train"].clone(), emb.clone(), torch.random.get_rng_state()
    scores_of(world, fit, **options)
    assert torch.equal(before[0], images["train"]) and torch.equal(before[1], emb) and torch.equal(before[2], torch.random.get_rng_state())


@pytest.mark.parametrize("fit", TEXT_READERS)
def test_order_of_texts_and_their_place_in_the_table_do_not_matter(world, fit):
    images, labels, (emb, ids, _) = world
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(1))
    again = fit(_Task(images["train"], labels["train"], emb[order], ids[order], CLASSES), epochs=0)(images["test"])
    assert torch.allclose(again, scores_of(world, fit, epochs=0), atol=1e-3)


def test_tip_adapter_is_zero_shot_plus_a_vote_per_image(world):
    images, labels, (emb, ids, _) = world
    slow = 7 * class_scores(images["test"], emb, ids, CLASSES, "mean_embedding")
    for x, y in zip(images["train"], labels["train"]):
        slow[:, y] += 2 * torch.exp(-3 * (images["test"] - x).square().sum(1) / 2)
    assert torch.allclose(scores_of(world, _tip_adapter, alpha=2., beta=3., scale=7.), slow, atol=1e-4)


def test_trained_keys_lower_the_loss_on_the_labelled_images(world):
    images, labels, (emb, ids, _) = world
    loss = [F.cross_entropy(_tip_adapter(_Task(images["train"], labels["train"], emb, ids, CLASSES), epochs=e)(images["train"]), labels["train"]) for e in (0, 20)]
    assert loss[1] < loss[0]


def value(chosen, worth, likeness):
    return worth[chosen].sum() + likeness[:, chosen].clamp(min=0).amax(1).sum()


@pytest.mark.parametrize("seed", range(20))
def test_greedy_takes_the_largest_gain_each_time_and_keeps_its_guarantee(seed):
    g = torch.Generator().manual_seed(seed)
    x = F.normalize(torch.randn(9, 3, generator=g), dim=1)
    worth, likeness = torch.rand(9, generator=g), x @ x.T
    chosen = submodular_choice(worth, likeness, 4).tolist()
    for i, last in enumerate(chosen):
        gains = {t: value(chosen[:i] + [t], worth, likeness).item() for t in range(9) if t not in chosen[:i]}
        assert gains[last] == pytest.approx(max(gains.values()), abs=1e-5)
    best = max(value(list(s), worth, likeness) for s in itertools.combinations(range(9), 4))
    assert value(chosen, worth, likeness) >= (1 - 1 / math.e) * best


def test_concepts_are_own_distinct_and_all_where_a_class_has_few(world):
    images, labels, (emb, ids, _) = world
    keep = torch.arange(len(ids)) >= TEXTS - 2  # the first class has two left
    x, texts, _ = _one_space(images["train"], emb[keep], True)
    chosen = _select_concepts(_Task(x, labels["train"], texts, ids[keep], CLASSES), k=4)
    assert ids[keep][chosen].tolist() == [0] * 2 + [1] * 4 + [2] * 4 + [3] * 4
    assert len(set(chosen.tolist())) == len(chosen)


def test_discriminability_is_between_zero_and_log_of_the_classes(world):
    images, labels, (emb, ids, _) = world
    x, texts, _ = _one_space(images["train"], emb, True)
    worth = _discriminability(x, labels["train"], texts)
    assert (worth >= -1e-6).all() and (worth <= math.log(CLASSES) + 1e-6).all()


def test_concept_weights_are_mixtures_that_start_at_home_and_turn_from_a_falsehood(world):
    images, labels, (emb, ids, _) = world
    x, texts, _ = _one_space(images["train"], emb, True)
    said = ids.clone()
    said[0], said[TEXTS] = 1, 0  # one text of class 0 and one of class 1 change places
    start, learned = (_concept_weights(_Task(x, labels["train"], texts, said, CLASSES), scale=10., epochs=e) for e in (0, 100))
    assert torch.allclose(learned.sum(1), torch.ones(CLASSES)) and (start.argmax(0) == said).all()
    kept = (learned / start)[said, torch.arange(len(said))]
    assert max(kept[0], kept[TEXTS]) < kept[ids == said].mean()


def test_self_attention_agrees_with_torchs_own():
    torch.manual_seed(0)
    layer, x = _SelfAttention(16).eval(), torch.randn(3, 5, 16)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] + [False] * 4])
    taken = layer.out(F.scaled_dot_product_attention(layer.query(x), layer.key(x), layer.value(x), attn_mask=mask[:, None].expand(3, 5, 5)))
    rows = layer.norm(.2 * taken + .8 * x)
    expected = F.normalize(torch.stack([r[m].mean(0) for r, m in zip(rows, mask)]), dim=1)
    assert torch.allclose(layer(x, mask), expected, atol=1e-5)


def test_empty_places_of_the_table_say_nothing():
    torch.manual_seed(0)
    layer, (table, mask) = _SelfAttention(16).eval(), _by_class(torch.randn(5, 16), torch.tensor([0, 1, 1, 1, 0]), 2)
    other = table.clone()
    other[~mask] = 100.
    assert torch.allclose(layer(table, mask), layer(other, mask))
    assert torch.allclose(layer(table, mask)[:1], layer(table[:1, :2], mask[:1, :2]), atol=1e-6)


def test_attention_is_the_same_for_the_same_seed_only(world):
    images, labels, (emb, ids, _) = world
    table, mask = _by_class(emb, ids, CLASSES)
    weights = [_train_attention(images["train"], labels["train"], table, mask, epochs=2, seed=s).query.weight for s in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_tuning_sees_validation_never_test_and_fits_the_winner_on_all_shots():
    "The classes are told by the first coordinate; an option turns its sign."
    def fit(task, sign=1., sure=1.):
        seen.append((len(task.x), sign, sure))
        return lambda new: sign * sure * torch.stack([-new[:, 0], new[:, 0]], 1)
    x, y, seen = torch.tensor([[-1.], [1.]]), torch.tensor([0, 1]), []
    fit_set, final_set = dict(train=(x[:1], y[:1]), val=(x, y), test=(-x, y)), dict(train=(x, y), val=(x, y), test=(-x, y))
    grid = [dict(sign=-1.), dict(sign=1.), dict(sign=1., sure=5.)]
    scores, chosen = _tuned(fit, grid, fit_set, final_set, (x, y), 2)
    assert chosen == grid[2] and seen == [(1, -1, 1), (1, 1, 1), (1, 1, 5), (2, 1, 5)]
    assert torch.equal(scores.argmax(1), torch.tensor([1, 0]))  # wrong on every test image: it was not looked at
    assert _tuned(fit, grid, fit_set, final_set, (x, y), 2, tune=False)[1] == grid[0] and seen[4:] == [(2, -1, 1)]


def test_table_has_a_row_for_every_adapter_text_shot_and_seed_and_one_for_the_probe(world):
    images, labels, texts = world
    given = {"good": texts, "fewer": (texts[0][::2], texts[1][::2], None)}
    quick = {name: Adapter(a.fit, tuple(o | dict(epochs=2) if a.fit in (_labo, _vdt_adapter) else o for o in a.grid[:2]), a.reads_texts) for name, a in adapters(10.).items()}
    table = adapted(images, labels, given, quick, shots=(1, 4, "all"), seeds=range(2))
    assert len(table) == 3 * 2 * (4 * 2 + 1) and _correct_matrix(table).shape == (len(table), 200)
    assert set(table.method) == {f"{a}: {t}" for a in list(quick)[:4] for t in given} | {"logistic regression"}
    assert table.groupby("method").k.first().to_dict() | {"logistic regression": 0, "LaBo: fewer": 3, "LaBo: good": 6} == table.groupby("method").k.first().to_dict()
    assert all(o == quick[m.split(":")[0]].grid[0] for m, o in table[table.shots == "1"][["method", "options"]].values)
    assert len(summary(table)) == 3 * 9


def test_texts_may_depend_on_the_split(world):
    images, labels, texts = world
    asked = []
    def choose(split):
        asked.append((split.shots, split.seed))
        return {"chosen": texts}
    adapted(images, labels, choose, {"Tip-Adapter": adapters()["Tip-Adapter"]}, shots=(2,), seeds=(0, 3))
    assert asked == [("2", 0), ("2", 3)]


def test_one_image_a_class_raises_no_warning(world, recwarn):
    images, labels, texts = world
    first = torch.arange(CLASSES) * 20
    _logistic_regression(_Task(images["train"][first], labels["train"][first], *texts[:2], CLASSES))
    assert not recwarn


@pytest.mark.parametrize("fit", TEXT_READERS)
def test_texts_that_do_not_fit_are_named(world, fit):
    images, labels, (emb, ids, _) = world
    with pytest.raises(ValueError, match="images of width 16, but texts of width 8"):
        fit(_Task(images["train"], labels["train"], emb[:, :8], ids, CLASSES))
    with pytest.raises(ValueError, match="No text of class 3|No sentence for class 3"):
        fit(_Task(images["train"], labels["train"], emb[ids < 3], ids[ids < 3], CLASSES))


@pytest.mark.parametrize("fit", [*TEXT_READERS, _logistic_regression])
def test_a_class_without_images_stops_nobody(world, fit):
    images, labels, (emb, ids, _) = world
    some = labels["train"] < 3
    scores = fit(_Task(images["train"][some], labels["train"][some], emb, ids, CLASSES))(images["test"])
    assert scores.shape == (len(images["test"]), CLASSES)
    assert scores[:, 3].isneginf().all() if fit is _logistic_regression else scores.isfinite().all(), "the probe has nothing else to know a class by"
    assert scores[:, :3].isfinite().all()


def test_a_class_without_images_divides_nothing(world):
    images, labels, (emb, _, _) = world
    some = labels["train"] < 3
    torch.testing.assert_close(_discriminability(images["train"][some], labels["train"][some], emb), _discriminability(images["train"][some], labels["train"][some] * 7, emb))


def test_two_classes_are_enough_for_the_probe(world):
    images, labels, texts = world
    some, test = labels["train"] < 2, labels["test"] < 2
    scores = _logistic_regression(_Task(images["train"][some], labels["train"][some], *texts[:2], 2))(images["test"][test])
    assert scores.shape == (100, 2) and (scores.argmax(1) == labels["test"][test]).float().mean() > .8
