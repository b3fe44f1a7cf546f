"Head and influence: agreement with autograd, blocks, ties, and every input a user can get wrong."
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from datadesc.head import Checkpoint, HeadOptions, center, modality_mean, train_head
from datadesc.influence import (block_rows, collect, influence, _influence_matrix, mean_influence, self_influence,
                                text_influence, top)

C, D = 4, 6


def cloud(n, seed, dtype=torch.float32):
    "`n` points of `C` noisy classes in `D` dimensions, and their classes."
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % C
    x = torch.eye(C, D, dtype=dtype)[y] + .5 * torch.randn(n, D, generator=g, dtype=dtype)
    return F.normalize(x, dim=1), y


@cache
def world(dtype=torch.float32, **options):
    "Train and validation features with labels, and the checkpoints of a short training."
    (x, y), (v, w) = cloud(37, 0, dtype), cloud(23, 1, dtype)
    return x, y, v, w, train_head(x, y, C, HeadOptions(epochs=6, batch_size=8, n_checkpoints=3, **options))


def flat_gradients(ckpt, x, y):
    "Gradient of each example's loss as a row, from autograd."
    params = (ckpt.weight,) if ckpt.bias is None else (ckpt.weight, ckpt.bias)

    def loss(params, a, b):
        return F.cross_entropy(F.linear(ckpt.logit_scale * a, *params), b)
    return torch.cat([g.flatten(1) for g in torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(params, x, y)], 1)


def autograd_influence(x, y, v, w, checkpoints):
    "Influence (N, M) by the definition."
    return sum(c.lr * flat_gradients(c, x, y) @ flat_gradients(c, v, w).T for c in checkpoints)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [1., 10.])
def test_closed_form_is_autograd(bias, scale):
    x, y, v, w, ck = world(torch.float64, bias=bias, logit_scale=scale)
    want = autograd_influence(x, y, v, w, ck)
    assert (_influence_matrix(x, y, v, w, ck) - want).abs().max() < 1e-9
    found = influence(x, y, v, w, ck, top_k=5)
    assert (found.proponent_scores - want.T.topk(5).values).abs().max() < 1e-9
    assert (found.opponent_scores + (-want.T).topk(5).values).abs().max() < 1e-9
    assert (self_influence(x, y, ck) - autograd_influence(x, y, x, y, ck).diag()).abs().max() < 1e-9
    assert abs(mean_influence(x, y, v, w, ck) - want.mean()) < 1e-9
    by_class = torch.stack([want[:, w == c].mean(1) for c in range(C)], 1)
    assert (text_influence(x, y, v, w, ck) - by_class).abs().max() < 1e-9
    assert (found.by_class.T - by_class).abs().max() < 1e-9
    assert (text_influence(x, y, v, w, ck, on="own") - by_class.gather(1, y[:, None])[:, 0]).abs().max() < 1e-9
    assert (text_influence(x, y, v, w, ck, on="all") - want.mean(1)).abs().max() < 1e-9


def test_float32_agrees_within_rounding():
    x, y, v, w, ck = world(logit_scale=10.)
    double = [replace(c, weight=c.weight.double(), bias=c.bias.double()) for c in ck]
    want = _influence_matrix(x.double(), y, v.double(), w, double)
    assert (_influence_matrix(x, y, v, w, ck) - want).abs().max() < 1e-5 * want.abs().max()


@pytest.mark.parametrize("memory_mb", [256, .01, .002])
def test_blocks_change_nothing_beyond_rounding(memory_mb):
    x, y, v, w, ck = world(torch.float64)
    S = _influence_matrix(x, y, v, w, ck).T
    found = influence(x, y, v, w, ck, top_k=7, memory_mb=memory_mb)
    best, at = top(S, 7)
    worst, worst_at = top(-S, 7)
    assert torch.equal(found.proponents, at) and torch.equal(found.opponents, worst_at)
    torch.testing.assert_close(found.proponent_scores, best)
    torch.testing.assert_close(found.opponent_scores, -worst)
    torch.testing.assert_close(found.positive_by_class, torch.stack([S[w == c].clamp(min=0).mean(0) for c in range(C)]))
    for on in ("class", "all", "own"):
        torch.testing.assert_close(text_influence(x, y, v, w, ck, on, memory_mb=memory_mb), text_influence(x, y, v, w, ck, on))
    torch.testing.assert_close(self_influence(x, y, ck, memory_mb), self_influence(x, y, ck))
    assert mean_influence(x, y, v, w, ck, memory_mb) == pytest.approx(S.mean().item())


@pytest.mark.parametrize("memory_mb", [256, .002])
@pytest.mark.parametrize("normalised", [False, True])
def test_classes_with_many_images_go_by_their_gradient(memory_mb, normalised):
    x, y, *_, ck = world(torch.float64)
    v, w = cloud(40, 3, torch.float64)
    w[w == 1] = torch.tensor([1, 1, 1, 0, 0, 0, 2, 2, 2, 3])  # 3 images of class 1, fewer than D; the others have more
    each = torch.stack([text_influence(x, y, v[i:i + 1], w[i:i + 1], ck, "class", normalised)[:, w[i]] for i in range(40)])
    want = torch.stack([each[w == c].mean(0) for c in range(C)], 1)
    torch.testing.assert_close(text_influence(x, y, v, w, ck, "class", normalised, memory_mb), want)
    torch.testing.assert_close(text_influence(x, y, v, w, ck, "own", normalised, memory_mb), want.gather(1, y[:, None])[:, 0])
    torch.testing.assert_close(text_influence(x, y, v, w, ck, "all", normalised, memory_mb), each.mean(0))


def test_block_rows_stay_in_budget_and_never_vanish():
    val_rows, train_rows = block_rows(width=2000, memory_mb=64, n_val=10_000)
    assert 4 * (2000 * (val_rows + train_rows) + 3 * val_rows * train_rows) <= 64 * 2 ** 20
    assert block_rows(width=2000, memory_mb=0, n_val=10) == (1, 1)


def test_ties_go_by_index_within_and_across_blocks():
    scores = torch.tensor([[1., 3., 3., 2., 3., 2., 2.]])
    assert top(scores, 2)[1].tolist() == [[1, 2]]
    assert top(scores, 5)[1].tolist() == [[1, 2, 4, 3, 5]]
    v, w = cloud(23, 1)
    blank = Checkpoint(torch.zeros(C, D), torch.zeros(C), lr=1., epoch=0)  # its errors are quarters, so that equal influences are equal to the last bit
    same = torch.zeros(40, D)  # with a feature of zero only the bias speaks
    found = influence(same, torch.zeros(40, dtype=torch.long), v, w, [blank], top_k=6, memory_mb=.002)
    assert found.proponents.tolist() == found.opponents.tolist() == [list(range(6))] * len(v)


def blocks_of(S, val_rows, train_rows):
    "A ready matrix (M, N) in the blocks that `collect` expects."
    for i in range(0, len(S), val_rows):
        for j in range(0, S.shape[1], train_rows):
            v, t = slice(i, min(i + val_rows, len(S))), slice(j, min(j + train_rows, S.shape[1]))
            yield v, t, S[v, t].clone()


def collected(S, w, val_rows, train_rows, top_k, **options):
    return collect(blocks_of(S, val_rows, train_rows), torch.eye(S.shape[1]), w, C, top_k, torch.zeros(S.shape[1]), **options)


@pytest.mark.parametrize("val_rows, train_rows", [(30, 200), (30, 7), (11, 64), (7, 2)])
@pytest.mark.parametrize("order", ["shuffled", "rising", "falling"])
def test_collect_keeps_the_best_in_any_blocks_and_any_order(val_rows, train_rows, order):
    S = torch.randn(30, 200, generator=torch.Generator().manual_seed(0)).mul(4).round()  # few values, so many ties
    if order != "shuffled": S = S.sort(dim=1, descending=order == "falling").values
    w = torch.arange(30) % C
    found = collected(S, w, val_rows, train_rows, 9)
    assert torch.equal(found.proponents, top(S, 9)[1]) and torch.equal(found.opponents, top(-S, 9)[1])
    assert torch.equal(found.proponent_scores, top(S, 9)[0]) and torch.equal(found.opponent_scores, -top(-S, 9)[0])
    torch.testing.assert_close(found.by_class, torch.stack([S[w == c].mean(0) for c in range(C)]))
    torch.testing.assert_close(found.positive_mean, F.normalize(found.positive_by_class, p=1, dim=1))  # the embeddings are unit vectors


def test_nothing_helps_a_class_or_it_has_no_image():
    S, w = torch.ones(6, 5), torch.tensor([0, 0, 1, 1, 2, 2])
    S[w == 1] = -1
    found = collected(S, w, 4, 2, 3)
    assert found.positive_mean[[1, 3]].isnan().all() and found.positive_mean[[0, 2]].isfinite().all()
    assert (found.positive_by_class[1] == 0).all() and found.by_class[3].isnan().all()
    for images, scores in (found.class_proponents(2), found.class_opponents(2)):
        assert images.tolist() == [[0, 1]] * C and scores[3].isnan().all() and scores[:3].isfinite().all()


def test_tables_by_class_only_where_asked_for():
    x, y, v, w, ck = world()
    lean, full = influence(x, y, v, w, ck, by_class=False), influence(x, y, v, w, ck)
    assert lean.by_class is None and lean.positive_by_class is None
    assert torch.equal(lean.positive_mean, full.positive_mean) and torch.equal(lean.proponents, full.proponents)
    for best in (lean.class_proponents, lean.class_opponents):
        with pytest.raises(ValueError, match="compute the influence with by_class=True"): best()


@pytest.mark.parametrize("bias", [True, False])
def test_captum_agrees_but_for_the_bias(bias):
    "TracInCPFast differentiates the weights of the last layer only; the bias adds the sum of rate * <errors, errors>."
    from captum.influence import TracInCPFast
    x, y, v, w, ck = world(torch.float64, bias=bias, logit_scale=10.)
    net = torch.nn.Sequential(torch.nn.Linear(D, C, bias=bias, dtype=torch.float64))

    def load(net, c):
        net.load_state_dict({f"0.{name}": getattr(c, name) for name in ("weight", "bias")[:1 + bias]})
        return c.lr
    data = torch.utils.data.TensorDataset(10. * x, y)
    tracin = TracInCPFast(net, net[0], data, ck, load, torch.nn.CrossEntropyLoss(reduction="sum"), batch_size=len(data))
    bias_term = sum(c.lr * c.errors(x, y) @ c.errors(v, w).T for c in ck) if bias else 0.
    assert (_influence_matrix(x, y, v, w, ck) - (tracin.influence((10. * v, w)).T + bias_term)).abs().max() < 1e-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_storage_only(dtype):
    x, y, v, w, ck = world()
    stored = influence(x.to(dtype), y, v.to(dtype), w, ck)
    same = influence(x.to(dtype).float(), y, v.to(dtype).float(), w, ck)
    for name in ("proponents", "proponent_scores", "self_influence", "by_class", "positive_mean"):
        assert torch.equal(getattr(stored, name), getattr(same, name))
    assert stored.by_class.dtype == stored.positive_mean.dtype == torch.float32
    texts = text_influence(x.to(dtype), y, v.to(dtype), w, ck)
    assert texts.dtype == torch.float32 and torch.equal(texts, text_influence(x.to(dtype).float(), y, v.to(dtype).float(), w, ck))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu():
    x, y, v, w, ck = world(torch.float64)
    there = [a.cuda() for a in (x, y, v, w)], [replace(c, weight=c.weight.cuda(), bias=c.bias.cuda()) for c in ck]
    ours, theirs = influence(x, y, v, w, ck, top_k=5), influence(*there[0], there[1], top_k=5)
    for name, value in vars(ours).items(): torch.testing.assert_close(getattr(theirs, name).cpu(), value)
    torch.testing.assert_close(text_influence(*there[0], there[1]).cpu(), text_influence(x, y, v, w, ck))


def test_more_proponents_than_images_gives_all():
    x, y, v, w, ck = world()
    assert influence(x, y, v, w, ck, top_k=500).proponents.sort(dim=1).values.tolist() == [list(range(len(x)))] * len(v)


def test_class_without_validation_image_is_nan_and_others_are_untouched():
    x, y, v, w, ck = world()
    some = w != 2
    m, all_classes = text_influence(x, y, v[some], w[some], ck), text_influence(x, y, v, w, ck)
    assert m[:, 2].isnan().all()
    torch.testing.assert_close(m[:, [0, 1, 3]], all_classes[:, [0, 1, 3]])
    own = text_influence(x, y, v[some], w[some], ck, on="own")
    assert torch.equal(own.isnan(), y == 2)
    found = influence(x, y, v[some], w[some], ck)
    assert found.by_class[2].isnan().all() and found.positive_mean[2].isnan().all() and found.by_class[:2].isfinite().all()


def bad_rows(x): return x.index_fill(0, torch.tensor([3]), torch.nan)


@pytest.mark.parametrize("change, message", [
    (lambda x, y, v, w, ck: (bad_rows(x), y, v, w, ck), "train: 1 of 37 rows hold NaN or infinity, the first is row 3"),
    (lambda x, y, v, w, ck: (x, y, bad_rows(v), w, ck), "val: 1 of 23 rows"),
    (lambda x, y, v, w, ck: (x[:, :5], y, v, w, ck), "train: width 5, but the checkpoints were trained on features of width 6"),
    (lambda x, y, v, w, ck: (x, y[:-1], v, w, ck), "train: 37 rows but labels of shape"),
    (lambda x, y, v, w, ck: (x, y, v, w + 1, ck), "val: labels from 1 to 4, but the checkpoints know classes 0 to 3"),
    (lambda x, y, v, w, ck: (x, y, v[:0], w[:0], ck), "val: no rows"),
    (lambda x, y, v, w, ck: (x, y, v, w, []), "checkpoints: the list is empty"),
    (lambda x, y, v, w, ck: (x, y, v, w, [*ck, replace(ck[0], weight=torch.zeros(5, D))]), "checkpoints: number 3 has a weight of shape"),
    (lambda x, y, v, w, ck: (x, y, v, w, [*ck, replace(ck[0], bias=None)]), "checkpoints: number 3 differs from number 0"),
    (lambda x, y, v, w, ck: (x, y, v, w, [*ck, replace(ck[0], logit_scale=3.)]), "checkpoints: number 3 differs from number 0"),
    (lambda x, y, v, w, ck: (x, y, v, w, [*ck, replace(ck[0], weight=ck[0].weight * torch.nan)]), "checkpoints: number 3 holds NaN or infinity"),
])
@pytest.mark.parametrize("function", [influence, _influence_matrix, mean_influence, text_influence])
def test_bad_input_is_named(function, change, message):
    if function is text_influence: message = message.replace("train:", "text_emb:")
    with pytest.raises(ValueError, match=message): function(*change(*world()))


def test_top_k_is_at_least_one():
    with pytest.raises(ValueError, match="top_k=0: expected at least one proponent"): influence(*world(), top_k=0)


def test_text_influence_names_the_losses_it_knows():
    with pytest.raises(ValueError, match="on='classes': expected one of class, all, own"): text_influence(*world(), on="classes")


# The head

def test_training_is_torchs_own_sgd():
    x, y = cloud(20, 0, torch.float64)
    options = HeadOptions(epochs=4, batch_size=6, momentum=.9, weight_decay=.01, logit_scale=3., schedule="step", n_checkpoints=1, seed=5)
    layer = torch.nn.Linear(D, C, dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
    sgd = torch.optim.SGD(layer.parameters(), .1, momentum=.9, weight_decay=.01)
    shuffle = torch.Generator().manual_seed(5)
    for _ in range(4):
        for batch in torch.randperm(20, generator=shuffle).split(6):
            sgd.zero_grad(), F.cross_entropy(layer(3. * x[batch]), y[batch]).backward(), sgd.step()
    ckpt = train_head(x, y, C, options)[-1]
    torch.testing.assert_close(ckpt.weight, layer.weight.data)
    torch.testing.assert_close(ckpt.bias, layer.bias.data)


def test_weight_zero_leaves_out_without_moving_the_batches():
    x, y = cloud(24, 0)
    options = HeadOptions(epochs=3, batch_size=24, weight_decay=0.)
    keep = torch.arange(24) < 12
    half = train_head(x, y, C, options, sample_weight=keep.float() * 2)[-1]
    alone = train_head(x[keep], y[keep], C, options)[-1]  # one batch an epoch: the order inside it is no matter
    torch.testing.assert_close(half.weight, alone.weight)


def test_a_start_is_continued_and_left_alone():
    x, y = cloud(24, 0)
    first = train_head(x, y, C, HeadOptions(epochs=2))[-1]
    before = first.weight.clone()
    more = train_head(x, y, C, HeadOptions(epochs=2, seed=1), start=first)[-1]
    assert more.mean_loss(x, y) < first.mean_loss(x, y)
    assert torch.equal(first.weight, before)


def test_checkpoints_are_spread_and_end_at_the_end():
    assert HeadOptions().checkpoint_epochs() == list(range(10, 201, 10))
    assert HeadOptions(epochs=3).checkpoint_epochs() == [1, 2, 3]
    assert [c.epoch for c in train_head(*cloud(9, 0), C, HeadOptions(epochs=7, n_checkpoints=3))] == [2, 5, 7]


def test_the_papers_schedule():
    o = HeadOptions(schedule="step")
    rates = [o.learning_rate(e - 1) for e in o.checkpoint_epochs()]
    assert sum(rates[:3]) / sum(rates) == pytest.approx(.9, abs=1e-3)


def test_center_subtracts_the_modality_mean():
    x = cloud(50, 0)[0] + 3
    torch.testing.assert_close(center(x, modality_mean(x)), center(x))
    assert center(x).mean(0).norm() < .2 < modality_mean(x).norm()


@pytest.mark.parametrize("call, message", [
    (lambda x, y: HeadOptions(schedule="linear"), "schedule='linear': expected one of cosine, constant, step"),
    (lambda x, y: HeadOptions(epochs=0), "epochs=0: expected a number above zero"),
    (lambda x, y: train_head(bad_rows(x), y, C), "features: 1 of 20 rows hold NaN"),
    (lambda x, y: train_head(x[:0], y[:0], C), "features: no rows"),
    (lambda x, y: train_head(x, y[:-1], C), "labels: expected one per row"),
    (lambda x, y: train_head(x, y, 3), "labels: expected 0 to 2 for 3 classes, got 0 to 3"),
    (lambda x, y: train_head(x, y, C, sample_weight=torch.ones(3)), "sample_weight: expected one per row"),
    (lambda x, y: train_head(x, y, C, start=Checkpoint(torch.zeros(2, D), None, .1, 1, 10.)), "start: its weight has shape"),
    (lambda x, y: train_head(x, y, C, start=Checkpoint(torch.zeros(C, D), None, .1, 1, 1.)), "start: trained with logit_scale 1, the options say 10"),
    (lambda x, y: center(x[0]), "embeddings: expected a float tensor of shape"),
])
def test_bad_head_input_is_named(call, message):
    with pytest.raises(ValueError, match=message): call(*cloud(20, 0))


def test_weighted_gradients():
    x, y = cloud(20, 0, torch.float64)
    ckpt = Checkpoint(torch.randn(C, D, dtype=torch.float64), torch.zeros(C, dtype=torch.float64), .1, 1, 2.)
    w = torch.rand(20, dtype=torch.float64)
    weight = ckpt.weight.clone().requires_grad_()
    (w * F.cross_entropy(replace(ckpt, weight=weight).logits(x), y, reduction="none")).mean().backward()
    torch.testing.assert_close(ckpt.gradients(x, y, w)[0], weight.grad)
