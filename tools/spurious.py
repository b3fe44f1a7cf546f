"""Measures what a spurious cue does to classifiers over sentences; nbs/runs/spurious.ipynb shows the tables.

`measured(name, cue, encoder, label)` gives four tables of one synthetic dataset whose cue goes with the class in training and not in test:
methods: accuracies by group of every classifier; ranks: where sentences that name the cue stand; proponents: of decisions; reads: whether
the encoder reads the cue. `keep(...)` appends them to CSV files. A group is a class and whether the picture shows the class's colour.
"""
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV

from datadesc import meadow
from datadesc.bottleneck import Concepts, hybrid, sparse_layer
from datadesc.describe import describe
from datadesc.influence import influence
from datadesc.llm import LLM
from datadesc.renderer import Look, marker_phrases
from datadesc.selection import FORMS
from datadesc.stats import holm
from datadesc.study import Study
from datadesc.zeroshot import class_scores

PER_CLASS = (40, 20, 44)  # pictures per species in train, val and test
LABELLED = 2  # test pictures of every group that are set aside, with their group known
CHOICES = ("set", "direct", "clip", "random")
PENALTIES = (.1, 1., 10., 100.)  # C of scikit-learn's LogisticRegression
KEPT = Path("../../build/spurious")  # pictures and embeddings, so that a second encoder or look need not make them again


def through_file(name, make):
    "What `make` returns, from a file of this name if there is one."
    file = KEPT / f"{name}.pkl"
    if not file.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_bytes(pickle.dumps(make()))
        part.rename(file)
    return pickle.loads(file.read_bytes())


def study_of(name, cue, encoder, label):
    "The study of a dataset, its species and the colours that its pictures show; its pool says which sentences name the cue."
    synthetic = through_file(f"{name}_{cue}", lambda: meadow.make_spurious(int(name[1:]), name, cue, per_class=PER_CLASS))
    llm = LLM(f"{name}-author", client=synthetic.simulated_llm, cache=f"{tempfile.mkdtemp()}/answers.sqlite")
    pool = describe(synthetic.classes, llm, synthetic.superclass, synthetic.articles, samples=synthetic.SAMPLES, progress=False)
    feature = pool[synthetic.KEYS].merge(synthetic.truth, on=synthetic.KEYS, how="left").feature
    pool = pool.assign(truth=synthetic.truth_of(pool), names_cue=(feature == "cue").to_numpy())
    emb = through_file(f"{name}_{cue}_{label}", lambda: encoder.embed_set(synthetic.images, progress=False))
    labels, embed = {split: synthetic.images.labels(split) for split in emb}, encoder.text_embedder(None, False)
    study = Study(synthetic.classes, emb, labels, pool, embed, logit_scale=encoder.logit_scale)
    return study, synthetic.species, synthetic.cues


def set_aside(labels, agrees):
    "Numbers of the test pictures that are labelled by group, and of those that stay for testing."
    place = pd.Series(range(len(labels))).groupby([labels.numpy(), agrees]).cumcount().to_numpy()
    return np.flatnonzero(place < LABELLED), np.flatnonzero(place >= LABELLED)


def by_group(logits, labels, agrees, shown, cue):
    """Accuracies on test pictures; `conflict` is the mean over classes on pictures whose cue conflicts, `worst` that of the worst group.

    `lured` is the share of errors on conflicting pictures that fall on a class of the colour shown."""
    guess = logits.argmax(1).numpy()
    right = guess == labels
    table = pd.DataFrame(dict(c=labels, agrees=agrees, right=right)).groupby(["agrees", "c"]).right.mean()
    wrong = ~agrees & ~right
    return dict(accuracy=right.mean(), agree=table[True].mean(), conflict=table[False].mean(), worst=table.min(),
                worst_conflict=table[False].min(), lured=(cue[guess[wrong]] == shown[wrong]).mean() if wrong.any() else np.nan)


def guilty(concepts, texts):
    "Numbers of the sentences that name the cue."
    named = set(texts.scored_text[texts.names_cue])
    return [k for k, text in enumerate(concepts.texts) if text in named]


def found_by_rule(bottleneck, study, emb, labels, agrees):
    """Numbers of the sentences that give pictures of a class more where these show its cue, by a few pictures labelled by group.

    One-sided z test of the mean contribution to the true class, Holm's correction; the variance is that of training pictures in their class."""
    weight, score = bottleneck.weight, bottleneck.concepts.scores(emb)
    train, y = bottleneck.concepts.scores(study.image_emb["train"]), study.labels["train"]
    within = torch.stack([train[y == c].var(0) for c in range(study.n_classes)]).mean(0)
    gap, variance = torch.zeros(weight.shape[1]), torch.zeros(weight.shape[1])
    for c in range(study.n_classes):
        agreeing, conflicting = (score[(labels == c) & torch.from_numpy(agrees == side)] for side in (True, False))
        gap += weight[c] * (agreeing.mean(0) - conflicting.mean(0))
        variance += weight[c] ** 2 * within * (1 / len(agreeing) + 1 / len(conflicting))
    used = np.flatnonzero(variance > 0)
    p = holm(pd.Series(norm.sf((gap / variance.sqrt())[used].numpy())))
    return list(used[np.asarray(p) < .05])


def methods_of(study, species, cues, choices):
    "Accuracies by group of every classifier, and of the bottlenecks how many sentences name the cue and which the rule finds."
    shown, cue = np.array(cues["test"]), species.cue.to_numpy()
    y, rows = study.labels["test"], []
    agrees = shown == cue[y.numpy()]
    few, rest = set_aside(y, agrees)
    emb, labels = study.image_emb["test"][rest], y[rest].numpy()
    def note(pool, method, logits, **more):
        rows.append(dict(pool=pool, method=method) | by_group(logits, labels, agrees[rest], shown[rest], cue) | more)

    x = {split: values.numpy() for split, values in study.features.items()}
    fits = [LogisticRegression(C=C, max_iter=2000).fit(x["train"], study.labels["train"].numpy()) for C in PENALTIES]
    best = max(fits, key=lambda fit: fit.score(x["val"], study.labels["val"].numpy()))
    again = GridSearchCV(LogisticRegression(max_iter=2000), {"C": PENALTIES}, cv=2).fit(x["test"][few], y[few].numpy())
    for method, fit in (("linear probe", best), ("probe on labelled groups", again)):
        note("none", method, torch.from_numpy(fit.decision_function(x["test"][rest])))

    kept = study.pool[~study.pool.names_cue].reset_index(drop=True)
    clean = study.with_pool(kept.assign(text_id=kept.index))
    def layer(of, texts): return sparse_layer(of, Concepts.of(of, texts))
    def zero_shot(texts):
        classes = torch.tensor(texts.class_id.to_numpy(copy=True))
        return class_scores(emb, study.embed(list(texts.scored_text)), classes, study.n_classes)
    for form in choices:
        texts = study.texts(form)
        bottleneck, innocent = layer(study, texts), texts[~texts.names_cue]
        named = guilty(bottleneck.concepts, texts)
        ruled = found_by_rule(bottleneck, study, study.image_emb["test"][few], y[few], agrees[few])
        weights = bottleneck.weight.abs().sum(0)
        used = [k for k in named if weights[k] > 0]
        note(form, "bottleneck", bottleneck.logits(emb), chosen=len(bottleneck.concepts), used=int((weights > 0).sum()), named=len(used),
             ruled=len(ruled), ruled_named=len({*ruled} & {*named}), weight_named=float(weights[named].sum() / weights.sum()))
        note(form, "pruned by hand", bottleneck.without(named).logits(emb))
        note(form, "pruned by rule", bottleneck.without(ruled).logits(emb))
        note(form, "refitted", layer(study, innocent).logits(emb))
        note(form, "rechosen, refitted", layer(clean, clean.texts(form)).logits(emb))
        for method, of in (("zero-shot", texts), ("zero-shot, pruned", innocent), ("zero-shot, rechosen", clean.texts(form))):
            note(form, method, zero_shot(of))
        if form == "set":
            both = hybrid(study, bottleneck.concepts, bottleneck)
            note(form, "hybrid", both.logits(emb))
            note(form, "hybrid, pruned", both.without(named).logits(emb))
    return pd.DataFrame(rows)


def ranks_of(study):
    """By form and kind of sentence: its mean place among the usable ones of its class (0 first, 1 last), and its share of chosen ones.

    Kinds: guilty, which name their class's cue; true, visible and not about the cue; other."""
    pool, rows = study.pool, []
    usable = (pool.flag == "").to_numpy()
    kind = np.select([pool.names_cue & (pool.truth == "spurious"), pool.truth == "visible"], ["guilty", "true"], "other")
    for form in ("set", *FORMS):
        chosen, place = study.chosen(form).proponent.to_numpy(), pd.Series(np.nan, pool.index)
        if form != "set":
            order = study.scores(form).ift[usable].groupby(pool.class_id[usable])
            place = ((order.rank(ascending=False) - 1) / (order.transform("size") - 1)).reindex(pool.index)
        for what in ("guilty", "true", "other"):
            of = usable & (kind == what)
            rows.append(dict(form=form, kind=what, place=place[of].mean(), first=(place[of] == 0).sum() / study.n_classes,
                             of_chosen=(kind[chosen] == what).mean(), of_pool=of.sum() / usable.sum(), chosen=chosen[of].mean()))
    return pd.DataFrame(rows)


def proponents_of(study, species, cues, top=10):
    """By case of test pictures: the share of the ten proponents of the decision, and opponents of the true class, that show its colour.

    Beside it the share in the predicted class's training pictures, in all, in those of other classes. `into_cue`: decisions for a class of
    the colour. `self_auc`: whether self-influence ranks training pictures of another colour than their class's above the others."""
    shown, train, cue = np.array(cues["test"]), np.array(cues["train"]), species.cue.to_numpy()
    y, t, colours = study.labels["test"].numpy(), study.labels["train"].numpy(), sorted(set(cues["train"]))
    x, known = (study.features["train"], study.labels["train"]), study.features["test"]
    guess = study.scorer[-1].logits(known).argmax(1)
    decision = influence(*x, known, guess, study.scorer, top)
    truth = influence(*x, known, study.labels["test"], study.scorer, top)
    guess, same = guess.numpy(), train[None] == shown[:, None]
    def share(found): return np.take_along_axis(same, found.numpy(), 1)
    others = t[None] != y[:, None]
    of_class = np.array([[(train[t == c] == colour).mean() for colour in colours] for c in range(study.n_classes)])
    column = np.array([colours.index(colour) for colour in shown])
    lures = np.array([[c != k and cue[c] == colour for c in range(study.n_classes)] for k, colour in zip(y, shown)]).sum(1)
    agrees, auc = shown == cue[y], roc_auc_score(train != cue[t], decision.self_influence.numpy())
    cases = {"conflicting, wrong": ~agrees & (guess != y), "conflicting, right": ~agrees & (guess == y), "agreeing, right": agrees & (guess == y)}
    return pd.DataFrame([dict(
        case=case, images=at.sum(), proponents=share(decision.proponents)[at].mean(), predicted_class=of_class[guess, column][at].mean(),
        all_training=same[at].mean(), of_predicted_class=(t[decision.proponents.numpy()] == guess[:, None])[at].mean(),
        opponents=share(truth.opponents)[at].mean(), other_classes=(same & others)[at].sum() / others[at].sum(),
        into_cue=(cue[guess] == shown)[at].mean(), into_cue_chance=lures[at].mean() / (study.n_classes - 1), self_auc=auc)
        for case, at in cases.items() if at.any()])


def reads_of(study, cues, cue):
    "Accuracy of the cue's colour in test pictures: by its phrases, and by a linear probe fitted to half of them."
    shown, rng = np.array(cues["test"]), np.random.default_rng(0)
    colours, half = sorted(set(shown)), rng.permutation(len(shown)) < len(shown) // 2
    def phrases(colour):
        if cue == "marker": return dict.fromkeys(phrase for _ in range(4) for phrase in marker_phrases(colour, rng))
        return [form.format(word) for form in Look.forms("border", colour) for word in Look.COLOURS[colour][1]]
    texts = [(i, phrase) for i, colour in enumerate(colours) for phrase in phrases(colour)]
    classes = torch.tensor([i for i, _ in texts])
    scores = class_scores(study.image_emb["test"], study.embed([phrase for _, phrase in texts]), classes, len(colours))
    x = study.features["test"].numpy()
    probe = LogisticRegression(C=10., max_iter=2000).fit(x[half], shown[half])
    return pd.DataFrame([dict(zero_shot=(np.array(colours)[scores.argmax(1).numpy()] == shown).mean(), probe=probe.score(x[~half], shown[~half]),
                              chance=max(np.mean(shown == colour) for colour in colours))])


def measured(name, cue, encoder, label, choices=CHOICES):
    "The four tables of one dataset."
    study, species, cues = study_of(name, cue, encoder, label)
    return dict(methods=methods_of(study, species, cues, choices), ranks=ranks_of(study), proponents=proponents_of(study, species, cues),
                reads=reads_of(study, cues, cue))


def keep(name, cue, encoder, label, folder, choices=CHOICES):
    "Measure one dataset, and put its rows into the tables of a folder."
    for what, table in measured(name, cue, encoder, label, choices).items():
        file, table = Path(folder) / f"spurious_{what}.csv", table.assign(dataset=name, cue=cue, encoder=label)
        if file.exists():
            old = pd.read_csv(file)
            table = pd.concat([old[(old.dataset != name) | (old.cue != cue) | (old.encoder != label)], table])
        table.round(5).to_csv(file, index=False)
