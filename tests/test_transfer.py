"Cross-modal transfer: the batched trainer against autograd, and the promises about what a head may see."
from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from datadesc.stats import _correct_matrix, summary
from datadesc.fewshot import FewShotSplit, take_shots
from datadesc.head import Checkpoint, HeadOptions
from datadesc.transfer import (TransferOptions, batches, shuffled_rows, text_features, train_heads, train_stage, transfer,
                               _best_epoch, _EpisodeHeads)
from two_modalities import CLASSES, WIDTH, two_modalities

torch.set_num_threads(1)  # these layers are so small that a second thread only waits
PAPER = TransferOptions.paper()
QUICK = TransferOptions(image=HeadOptions(lr=1., epochs=10, batch_size=16), text=HeadOptions(lr=.3, epochs=4, batch_size=16, schedule="constant"), steps=3)


@pytest.fixture(scope="module")
def world(): return two_modalities(1.5)


def shuffled(texts, seed=0): return texts[0], texts[1][shuffled_rows(len(texts[1]), seed)], texts[2]


def autograd_head(emb, labels, rows, share, options):
    "The same training by torch's own SGD and autograd, one head."
    w, b = torch.zeros(CLASSES, WIDTH, requires_grad=True), torch.zeros(CLASSES, requires_grad=True)
    sgd = torch.optim.SGD([w, b], options.lr, options.momentum, weight_decay=options.weight_decay)
    per_epoch = len(rows) // options.epochs
    for step, (r, s) in enumerate(zip(rows, share)):
        sgd.param_groups[0]["lr"] = options.learning_rate(step // per_epoch)
        loss = (F.cross_entropy(options.logit_scale * emb[r] @ w.T + b, labels[r], reduction="none") * s).sum()
        sgd.zero_grad(); loss.backward(); sgd.step()
    return w.detach(), b.detach()


def test_heads_side_by_side_agree_with_autograd(world):
    images, labels, _ = world
    options = HeadOptions(lr=.4, epochs=5, batch_size=16, momentum=.8, weight_decay=.01)
    drawn = [batches(80, 25, 16, seed) for seed in range(3)]
    rows, share = torch.stack([d[0] for d in drawn]), torch.stack([d[1] for d in drawn]) * torch.rand(3, 25, 16)
    zero = Checkpoint(torch.zeros(CLASSES, WIDTH), torch.zeros(CLASSES), 0., 0, options.logit_scale)
    for h, ckpts in enumerate(train_heads(images["train"], labels["train"], [(rows, share)], [zero] * 3, options)):
        w, b = autograd_head(images["train"], labels["train"], rows[h], share[h], options)
        assert torch.allclose(ckpts[-1].weight, w, atol=1e-4) and torch.allclose(ckpts[-1].bias, b, atol=1e-4)


def papers_head(images, labels, texts, seed):
    "The paper's protocol with nothing but torch's layer, loss, SGD and cosine schedule: images for 200 epochs, sentences for 30."
    x, y = F.normalize(images["train"], dim=1), labels["train"]
    emb, class_ids, scores = texts
    layer, weight = torch.nn.Linear(WIDTH, CLASSES), scores.clamp(min=0) / scores.clamp(min=0).mean()
    for p in layer.parameters(): torch.nn.init.zeros_(p)
    for x, y, w, epochs in ((x, y, torch.ones(len(x)), 200), (F.normalize(emb, dim=1), class_ids, weight, 30)):
        sgd = torch.optim.SGD(layer.parameters(), lr=.1)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=200)
        order = torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            for rows in torch.randperm(len(x), generator=order).split(64):
                sgd.zero_grad(); (w[rows] * F.cross_entropy(layer(x[rows]), y[rows], reduction="none")).mean().backward(); sgd.step()
            cosine.step()
    return layer


def test_the_papers_protocol_to_the_letter(world):
    images, labels, (emb, y, _) = world
    texts = (emb.repeat(4, 1), y.repeat(4), torch.rand(4 * len(y), generator=torch.Generator().manual_seed(1)) - .2)
    rows = transfer(images, labels, {"texts": texts}, options="paper", seeds=range(2))
    assert set(rows.protocol) == {"paper"} and set(rows[rows.method == "texts"].epoch) == {30}
    right = _correct_matrix(rows[rows.method == "texts"])
    for seed in range(2):
        layer, splits = papers_head(images, labels, texts, seed), [take_shots(labels, "all", seed)]
        assert (right[seed] == (layer(F.normalize(images["test"], dim=1)).argmax(1) == labels["test"]).numpy()).all()
        head = _EpisodeHeads(images, labels, splits, "train", PAPER).fine_tune([[text_features(texts, PAPER)]], 2, torch.tensor([.1])).at(-1, 0)
        assert torch.allclose(head.weight, layer.weight, atol=1e-5) and torch.allclose(head.bias, layer.bias, atol=1e-5)


def test_a_group_is_heads_one_at_a_time(world):
    "Groups of heads on common rows, two loss terms, sample weights and rates of their own: each head as if it had been alone."
    images, labels, _ = world
    g = torch.Generator().manual_seed(0)
    options = replace(QUICK.text, momentum=.5, weight_decay=.01)
    start = [Checkpoint(torch.randn(CLASSES, WIDTH, generator=g), torch.randn(CLASSES, generator=g), 0., 0, options.logit_scale) for _ in range(6)]
    (a, sa), (b, sb) = (tuple(torch.stack(t) for t in zip(*[batches(80, 12, 16, seed) for seed in seeds])) for seeds in ((0, 1), (2, 3, 4)))
    shares, lr = torch.rand(6, 12, 16, generator=g) / 16, torch.rand(6, generator=g)
    together = train_heads(images["train"], labels["train"], [(a, sa), (b, shares)], start, options, lr)
    for h in range(6):
        alone = train_heads(images["train"], labels["train"], [(a[h // 3, None], sa[h // 3, None]), (b[h // 2, None], shares[h, None])], [start[h]], options, lr[h, None])
        assert torch.allclose(alone.layers[:, 0], together.layers[:, h], atol=1e-5)
    with pytest.raises(ValueError, match="5 heads for 2 groups"): train_heads(images["train"], labels["train"], [(a, sa)], start[:5], options)


def test_joint_heads_see_images_and_sentences_from_the_start(world):
    images, labels, texts = world
    heads = _EpisodeHeads(images, labels, [take_shots(labels, "all")], "train", QUICK)
    x, y, weight = text_features(texts, QUICK)
    (xi, yi), (w, b) = heads.sets[0]["train"], (torch.zeros(CLASSES, WIDTH, requires_grad=True), torch.zeros(CLASSES, requires_grad=True))
    for step, (r, s, rt, st) in enumerate(zip(*batches(80, 50, 16, 0), *batches(len(x), 50, 16, 0))):
        def loss(x, y, share): return (F.cross_entropy(10 * x @ w.T + b, y, reduction="none") * share).sum()
        grads = torch.autograd.grad(.5 * loss(xi[r], yi[r], s) + .5 * loss(x[rt], y[rt], st * weight[rt]), (w, b))
        with torch.no_grad():
            for p, g in zip((w, b), grads): p -= QUICK.image.learning_rate(step // 5) * g
    assert torch.allclose(heads.train_jointly([[(x, y, weight)]]).at(-1, 0).weight, w, atol=1e-4)


def test_memory_decides_how_many_train_together_and_nothing_else(world):
    images, labels, texts = world
    given, o = {name: shuffled(texts, seed) for seed, name in enumerate("abc")}, replace(QUICK, rates=(.1, 1.))
    tables = [transfer(images, labels, given, replace(o, memory_mb=mb), shots=(2, "all"), seeds=range(2), joint="ab") for mb in (0, 64)]
    assert (_correct_matrix(tables[0]) == _correct_matrix(tables[1])).all() and tables[0].epoch.equals(tables[1].epoch)


def test_a_rate_is_chosen_on_validation(world):
    "Far too small a rate is not taken when a better one is offered; with one shot nothing is chosen."
    images, labels, texts = world
    def found(lr, *rates): return transfer(images, labels, {"texts": texts}, replace(QUICK, text=replace(QUICK.text, lr=lr), rates=rates, choose="loss"), shots=(1, "all"), seeds=[0]).set_index(["method", "shots"])
    offered, small, good = found(1e-6, .3), found(1e-6), found(.3)
    for method in ("texts", "images only, same steps"):
        assert offered.correct[method, "all"] == good.correct[method, "all"] and offered.correct[method, "1"] == small.correct[method, "1"]
    with pytest.raises(ValueError, match="rates"): TransferOptions(rates=(.1, 0.))


def test_a_head_without_bias_keeps_none(world):
    images, labels, texts = world
    o = replace(QUICK, image=replace(QUICK.image, bias=False), text=replace(QUICK.text, bias=False))
    heads = _EpisodeHeads(images, labels, [take_shots(labels, 4)], "train", o)
    assert fine_tuned(heads, texts).bias.abs().max() == 0


def fine_tuned(heads, texts):
    "The one head of one seed after the text stage on one method's sentences."
    return heads.fine_tune([[text_features(texts, heads.options)]], 3, torch.tensor([heads.options.text.lr])).at(-1, 0)


def test_batches_are_whole_passes():
    rows, share = batches(10, 6, 4, seed=3)
    for p in range(2):
        seen = rows[3 * p:3 * p + 3][share[3 * p:3 * p + 3] > 0]
        assert sorted(seen.tolist()) == list(range(10))


@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
def test_shots_are_counted_honestly(world, shots):
    _, labels, _ = world
    s = take_shots(labels, shots, seed=1)
    assert labels["train"][s.train].bincount().tolist() == [shots] * CLASSES
    assert set(s.fit.tolist()) | set(s.val.tolist()) == set(s.train.tolist())
    if shots > 1: assert not set(s.fit.tolist()) & set(s.val.tolist())


def test_images_outside_the_shots_change_nothing(world):
    "Few-shot rows must not read any train or validation image that was not drawn."
    images, labels, texts = world
    seen = torch.cat([take_shots(labels, 4, seed).train for seed in range(2)])
    blind = {"train": images["train"].clone(), "val": torch.full_like(images["val"], float("nan")), "test": images["test"]}
    hidden = torch.ones(80, dtype=torch.bool).index_fill_(0, seen, False)
    blind["train"][hidden] = float("nan")
    found = [transfer(x, labels, {"texts": texts}, QUICK, shots=(4,), seeds=range(2)) for x in (images, blind)]
    assert found[0].equals(found[1])


def test_test_labels_decide_nothing(world):
    "Only accuracies may change when the test labels do; which epoch is chosen may not."
    images, labels, texts = world
    other = labels | {"test": labels["test"].flip(0)}
    epochs = [transfer(images, y, {"texts": texts}, QUICK, shots=(2, "all"), seeds=range(2), zero_shot_start=("texts",)).epoch for y in (labels, other)]
    assert epochs[0].equals(epochs[1])


def test_seeds_do_not_depend_on_their_company(world):
    images, labels, texts = world
    together = transfer(images, labels, {"texts": texts}, QUICK, shots=(2,), seeds=range(3))
    alone = transfer(images, labels, {"texts": texts}, QUICK, shots=(2,), seeds=[2])
    assert (_correct_matrix(together[together.seed == 2]) == _correct_matrix(alone)).all()


def test_methods_do_not_depend_on_their_company(world):
    images, labels, texts = world
    both = transfer(images, labels, {"a": texts, "b": shuffled(texts)}, QUICK, shots=(2,), seeds=range(2))
    alone = transfer(images, labels, {"b": shuffled(texts)}, QUICK, shots=(2,), seeds=range(2))
    assert (_correct_matrix(both[both.method == "b"]) == _correct_matrix(alone[alone.method == "b"])).all()


def test_good_sentences_help_where_images_are_few(world):
    images, labels, texts = world
    lines = summary(transfer(images, labels, {"texts": texts}, replace(QUICK, choose="last"), shots=(1,), seeds=range(5), zero_shot_start=("texts",))).set_index("method")
    assert lines["mean"]["texts"] > lines["mean"]["images only"]
    assert lines["mean"]["zero-shot start: texts"] > lines["mean"]["images only"]


def test_nothing_mixed_in_is_the_papers_text_stage(world):
    "With mix=0 the images of the text stage have no say: other images, same heads."
    images, labels, texts = world
    o = replace(QUICK, mix=0.)
    heads = _EpisodeHeads(images, labels, [take_shots(labels, "all")], "train", o)
    before = fine_tuned(heads, texts).weight
    x, y = heads.sets[0]["train"]
    heads.sets[0]["train"] = (x.flip(0), y)
    assert torch.allclose(before, fine_tuned(heads, texts).weight)


def test_weights_on_loss_and_embedding(world):
    _, _, (emb, y, _) = world
    scores = torch.rand(len(y), generator=torch.Generator().manual_seed(0))
    x, _, w = text_features((emb, y, scores), QUICK)
    assert torch.allclose(x.norm(dim=1), torch.ones(len(y))) and not torch.allclose(w, torch.ones(len(y)))
    scaled, _, one = text_features((emb, y, scores), replace(QUICK, weighting="embedding"))
    assert torch.allclose(scaled, x * w[:, None]) and torch.equal(one, torch.ones(len(y)))
    plain = text_features((emb, y, scores), replace(QUICK, weighting="none"))
    assert torch.equal(plain[0], x) and torch.equal(plain[2], torch.ones(len(y)))


def test_a_sentence_of_weight_nothing_teaches_nothing(world):
    images, labels, (emb, y, _) = world
    heads = _EpisodeHeads(images, labels, [take_shots(labels, 4)], "train", QUICK)
    scores = (torch.arange(len(y)) % 6 > 0).float()
    other = emb.clone()
    with_noise = text_features((other, y, scores), QUICK)
    changed = with_noise[0].clone()
    changed[scores == 0] = torch.randn(int((scores == 0).sum()), WIDTH)
    made = [train_stage(heads.sets, [[(x, y, with_noise[2])]], heads.base, [0], 3, QUICK.text, QUICK.mix)[0][-1].weight for x in (with_noise[0], changed)]
    assert torch.allclose(*made, atol=1e-5)


def test_sentences_may_depend_on_the_split(world):
    images, labels, texts = world
    asked = []
    def chosen(split):
        assert isinstance(split, FewShotSplit)
        asked.append((split.shots, split.seed))
        return {"first of each": (texts[0][::6], texts[1][::6], None)}
    rows = transfer(images, labels, chosen, QUICK, shots=(1, "all"), seeds=range(2))
    assert asked == [("1", 0), ("1", 1), ("all", 0), ("all", 1)]
    assert rows[rows.method == "first of each"].k.unique().tolist() == [1]


def test_one_shot_as_text_is_one_shot(world):
    "Nothing is left for validation then: the training image must not choose the epoch, as it would keep none of shuffled sentences."
    images, labels, texts = world
    as_int, as_text = (transfer(images, labels, {"shuffled": shuffled(texts)}, QUICK, shots=(n,), seeds=range(3)) for n in (1, "1"))
    assert as_int.equals(as_text) and (as_int[as_int.method == "shuffled"].epoch == QUICK.text.epochs).all()


def test_best_epoch_reads_accuracy_then_loss_then_the_clock():
    right, loss = torch.tensor([[0, 1], [3, 3], [3, 3], [3, 2]]), torch.tensor([[.9, .8], [.5, .4], [.3, .6], [.3, .1]])
    assert _best_epoch(right, loss).tolist() == [2, 1]
    assert _best_epoch(right, loss, "loss").tolist() == [2, 3]
    assert _best_epoch(right, loss, "last").tolist() == [3, 3]


def test_a_pass_over_the_sentences_when_steps_are_not_given(world):
    images, labels, texts = world
    many = (texts[0].repeat(8, 1), texts[1].repeat(8), None)
    rows = transfer(images, labels, {"few": texts, "many": many}, replace(QUICK, steps=None, choose="last"), shots=(2,), seeds=[0])
    assert rows.method.tolist() == ["images only", "images only, same steps", "few", "many"]


def test_rows_survive_parquet(world, tmp_path):
    images, labels, texts = world
    rows = transfer(images, labels, {"texts": texts}, QUICK, shots=(1, "all"), seeds=range(2))
    rows.to_parquet(tmp_path / "rows.parquet")
    assert pd.read_parquet(tmp_path / "rows.parquet").drop(columns="correct").equals(rows.drop(columns="correct"))


def test_mistakes_are_named(world):
    images, labels, texts = world
    with pytest.raises(ValueError, match="'texts'.*width 8"): transfer(images, labels, {"texts": (texts[0][:, :8], texts[1], None)}, QUICK)
    with pytest.raises(ValueError, match="'texts'.*4 classes"): transfer(images, labels, {"texts": (texts[0], texts[1] + 1, None)}, QUICK)
    with pytest.raises(ValueError, match="'texts'.*24"): transfer(images, labels, {"texts": (texts[0], texts[1][:5], None)}, QUICK)
    with pytest.raises(ValueError, match="other"): transfer(images, labels, {"texts": texts}, QUICK, zero_shot_start=("other",))
    with pytest.raises(ValueError, match="joint.*other"): transfer(images, labels, {"texts": texts}, QUICK, joint=("other",))
    with pytest.raises(ValueError, match="'letter'.*transfer, paper"): transfer(images, labels, {"texts": texts}, "letter")
    with pytest.raises(ValueError, match="expected the same for all"): transfer(images, labels, lambda split: {str(split.seed): texts}, QUICK)
    with pytest.raises(ValueError, match="share"): TransferOptions(mix=1.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_same_table_on_a_gpu(world):
    images, labels, texts = world
    def table(images): return transfer(images, labels, {"texts": texts}, QUICK, shots=(2, "all"), seeds=range(2), zero_shot_start=["texts"], joint=["texts"])
    there, here = table({s: x.cuda() for s, x in images.items()}), table(images)
    assert (there.accuracy - here.accuracy).abs().max() < .02
