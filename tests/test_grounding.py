"Grounding: sentences read back, regions of drawn butterflies, maps, and measures against cases worked by hand."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from datadesc.bottleneck import Bottleneck, Concepts
from datadesc.embed import load_encoder
from datadesc.grounding import concept_maps, existence, importance, location, recovered, region, stated
from datadesc.renderer import Look

LOOK = Look("rounded", "blue", "spots", "red", "white", "brown", "straight")


def concepts_of(direction, texts=None):
    "Concepts of these directions, as embedded images are scored on them."
    k = len(direction)
    texts = texts or [f"direction {i}" for i in range(k)]
    return Concepts(tuple(texts), torch.ones(1, k, dtype=torch.bool), direction, None, torch.zeros(k), torch.ones(k))


@pytest.mark.parametrize("seed", range(20))
def test_every_phrase_of_a_look_is_read_back(seed):
    rng = np.random.default_rng(seed)
    look = Look.random(rng)
    for feature in Look.FEATURES:
        expected = {feature: getattr(look, feature)} | ({"accent": look.accent} if feature == "pattern" else {})
        for phrase in look.phrases(feature, rng):
            assert stated(phrase) == expected
            assert stated(f"The Old Naiad has {phrase}.") == stated(phrase[0].upper() + phrase[1:] + ".") == expected
    for sentence in look.overall(rng):
        assert stated(sentence) and all(getattr(look, attribute) == value for attribute, value in stated(sentence).items())


def test_no_other_sentence_states_a_look():
    rng = np.random.default_rng(0)
    others = [*Look.generic(rng), *(Look.unseen(part, rng) for part in ("underside", "caterpillar", "habits") for _ in range(20)), "red", ""]
    assert not any(map(stated, others))


def test_nothing_but_the_region_changes_with_a_feature():
    def draw(look): return np.asarray(look.draw(np.random.default_rng([1, 2])))
    for feature, value in dict(shape="tailed", base="green", border="plain", body="grey", antennae="clubbed").items():
        inside, changed = region(LOOK, [1, 2], feature, least=0), draw(replace(LOOK, **{feature: value}))
        assert (changed == draw(LOOK))[~inside].all() and (changed != draw(LOOK))[inside].any()
    body, border = (region(LOOK, [1, 2], feature) for feature in ("body", "border"))
    assert 60 < body.sum() < 300 and (body & border).sum() < .4 * body.sum()


def test_existence_knows_a_perfect_a_useless_and_a_reversed_score():
    looks = [replace(LOOK, body=body) for body in ("brown", "brown", "red", "grey")]
    scores = torch.tensor([[2., 0, 0], [1, 0, 1], [0, 0, 2], [-1, 0, 3]])
    table = existence(scores, [{"body": "brown"}] * 3, looks)
    assert list(table.auc) == [1, .5, 0] and table.accuracy[0] == 1 and table.threshold[0] == 1 and set(table.feature) == {"body"}
    held = existence(scores[:, :1], [{"body": "brown"}], looks, pd.Series({0: 1.5}))
    assert held.accuracy[0] == .75
    assert existence(scores, [{"body": "yellow"}, {"base": "blue"}, {}], looks).empty  # true of none, of all, states nothing


def test_location_counts_only_what_is_positive_and_within():
    inside = torch.zeros(2, 2, dtype=torch.bool)
    inside[0, 0] = True
    maps = torch.tensor([[[1., 3.], [-9., 0.]], [[5., 0.], [0., 0.]]])
    assert location(maps, inside).to_dict("list") == dict(share=[.25, 1], area=[.25, .25], hit=[False, True])
    left = torch.tensor([[True, False], [True, False]])
    assert location(maps, inside, left).to_dict("list") == dict(share=[1, 1], area=[.5, .5], hit=[True, True])


def test_maps_of_a_uniform_picture_are_flat_and_of_a_butterfly_are_not():
    encoder = load_encoder("meadow-clip")
    concepts = concepts_of(F.normalize(torch.randn(2, encoder.dim, generator=torch.Generator().manual_seed(0)), dim=1))
    flat = concept_maps(encoder, np.full((64, 64, 3), 120, np.uint8), concepts)
    picture = np.asarray(LOOK.draw(np.random.default_rng(0)))
    seen = {by: concept_maps(encoder, picture, concepts, by) for by in ("occlusion", "activation")}
    assert flat.abs().max() < 1e-5 and all(maps.shape == (2, 64, 64) and maps.std() > 1e-4 for maps in seen.values())
    backwards = concept_maps(encoder, picture, replace(concepts, direction=-concepts.direction), "activation")
    torch.testing.assert_close(backwards, -seen["activation"], atol=1e-5, rtol=1e-4)
    assert not any(weight.requires_grad for weight in encoder.model.parameters())
    assert not any(module._forward_hooks for module in encoder.model.visual.modules())


def test_importance_of_a_bottleneck_that_decides_by_one_feature():
    looks = [LOOK, replace(LOOK, body="red"), replace(LOOK, body="red", shape="tailed")]
    concepts = concepts_of(torch.eye(3), ["a brown body", "a red body", "long tails on the hindwings"])
    bottleneck = Bottleneck(concepts, ("a", "b", "c"), torch.tensor([[1., 0, 0], [0, 1, 0], [0, 1, 0]]), torch.zeros(3))
    emb, labels = F.normalize(torch.tensor([[1., 0, 0], [0, 1, 0], [0, 1, 1]]), dim=1), torch.arange(3)
    table = importance(bottleneck, emb, labels, looks)
    assert table.contribution["body"] == 1 and table.contribution.sum() == 1 and list(table.sentences) == [0, 0, 0, 0, 2, 0]
    assert table["drop"]["body"] == pytest.approx(1 / 3) and table["shapley"]["body"] == pytest.approx(1 / 3)
    assert table.true_drop.to_dict() == pytest.approx(dict.fromkeys(Look.FEATURES, 0) | dict(shape=1 / 3, body=1 / 3))
    assert table.true_shapley["body"] == table.true_shapley["shape"] == pytest.approx(1 / 3)


def test_recovered_is_all_for_a_basis_and_the_share_of_a_plane():
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([3., 2., 1., 0.])
    plane = torch.eye(4)[:2]
    assert recovered(x, x, torch.eye(4)) == pytest.approx(1, abs=1e-5)
    assert recovered(x, x, plane) == pytest.approx(13 / 14, abs=.02)
    assert recovered(x, x, plane, nonnegative=True) == pytest.approx(13 / 28, abs=.05)  # half of each axis
    both_ways = torch.cat([torch.eye(4), -torch.eye(4)])
    assert recovered(x, x, both_ways, nonnegative=True) == pytest.approx(1, abs=1e-5)
    with_more = recovered(x, x, torch.randn(9, 4, generator=torch.Generator().manual_seed(1)))
    assert with_more == pytest.approx(1, abs=1e-4)  # more directions than dimensions
