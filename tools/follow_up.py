"""Measures what questions about confused pairs change; nbs/runs/follow_up.ipynb shows the tables.

`measured(name)` gives the rows of one synthetic dataset, `photographs(data, store)` those of clothing with the small language model.
Pairs are picked on validation images, accuracies are of test images. Every pool has the same sentences and some more:
before: none; asked: answers about the pairs; ordinary: as many further answers about the same classes by themselves; other pairs: answers
to the same question with a random class in the place of the confused one; random: as many sentences about random other classes.
"""
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from datadesc import meadow, runs
from datadesc.audit import confusable_pairs
from datadesc.decoys import decoy_precision, decoy_summary
from datadesc.describe import describe, flagged
from datadesc.differences import Differences
from datadesc.embed import load_encoder
from datadesc.llm import LLM
from datadesc.plan import language_model, load_images
from datadesc.selection import flag_too_long
from datadesc.store import Store
from datadesc.study import Study
from datadesc.zeroshot import class_scores

N_PAIRS = 8
SETTINGS = (("text", 3), ("none", 3), ("text", 1))  # knowledge, and answers per question
CHOICES = (("set", 3), ("set", 5), ("direct", 5))  # form, and sentences per class
COLUMNS = ["class_id", "component", "sample", "text", "source", "knowledge"]


def enlarged(pool, rows, classes, kind):
    "The pool with further rows after it, flagged against all before them."
    new = flagged([*pool[COLUMNS].to_dict("records"), *rows[COLUMNS].to_dict("records")], classes, kind).iloc[len(pool):]
    new = new.assign(text_id=range(len(pool), len(pool) + len(new)))
    if "truth" in rows: new = new.assign(truth=rows.truth.to_numpy())
    return pd.concat([pool, new], ignore_index=True)


def as_many(rows, added):
    "Random rows of each class, as many as were added to it."
    rows = rows.sample(frac=1, random_state=0)
    rows = rows[rows.groupby("class_id").cumcount() < rows.class_id.map(added).fillna(0)]
    return rows.sort_values(["class_id", "component", "sample"]).reset_index(drop=True)


def ordinary_rows(synthetic, added, knowledge, source):
    "Further answers about each class by itself, from new draws of the same simulated model."
    seeds, draws = iter(range(1, 100)), []
    while not draws or (pd.concat(draws).groupby("class_id").size().reindex(added.index) < added).any():
        rng = np.random.default_rng([9_000, next(seeds)])
        draws.append(meadow._answers(synthetic.species, knowledge, rng, synthetic.factors["visible"]))
    return as_many(pd.concat(draws, ignore_index=True), added).assign(source=source)


def other_rows(synthetic, pairs, llm, knowledge, samples):
    "What the same question says of each class of the pairs when the other one is drawn at random."
    rng, n, partners = np.random.default_rng(0), len(synthetic.classes), {frozenset(pair) for pair in pairs}
    def of(c):
        other = int(rng.choice([d for d in range(n) if d != c and frozenset((c, d)) not in partners]))
        asked = Differences.ask([(c, other)], synthetic.classes, llm, "butterfly", synthetic.articles, knowledge, samples, progress=False)
        return asked.rows[asked.rows.class_id == c]
    rows = pd.concat([of(c) for pair in pairs for c in pair], ignore_index=True)
    rows = rows.drop_duplicates(["class_id", "against", "component", "sample"]).reset_index(drop=True)
    return rows.assign(truth=synthetic.truth_of(rows))


def random_rows(pool, added):
    "Sentences about other classes, as if they were about the class."
    rng, usable = np.random.default_rng(0), pool[pool.flag == ""]
    drawn = [usable[usable.class_id != c].sample(m, random_state=int(rng.integers(2**31))).assign(class_id=c) for c, m in added.items()]
    rows = pd.concat(drawn, ignore_index=True)
    return rows.assign(truth="wrong") if "truth" in rows else rows


def chosen_scores(study):
    "Zero-shot scores (N, C) of the test images by the chosen sentences."
    at = torch.tensor(np.flatnonzero(study.chosen().proponent))
    return class_scores(study.image_emb["test"], study.text_emb[at], study.text_class[at], study.n_classes)


def pair_right(scores, labels, pairs):
    "Whether each test image of a pair is classified correctly between these two: (pairs, N), NaN for images of other classes."
    def of(a, b): return torch.where((labels == a) | (labels == b), ((scores[:, a] > scores[:, b]) == (labels == a)).double(), torch.nan)
    return torch.stack([of(a, b) for a, b in pairs]).numpy()


def alone(study, pairs, before, normalised=False):
    "Scores of each pair by its own answers alone, as FuDD uses them, else the scores before: a list of (N, 2), and which have answers."
    pool, images, found = study.pool, study.image_emb["test"], []
    for a, b in pairs:
        of = [np.flatnonzero((pool.class_id == c) & (pool.against == o) & (pool.flag == "")) for c, o in ((a, b), (b, a))]
        means = [study.text_emb[torch.tensor(rows)].mean(0) for rows in of if len(rows)]
        if normalised: means = [mean / mean.norm() for mean in means]
        found.append(images @ torch.stack(means).T if len(means) == 2 else before[:, [a, b]])
    return found


def by_answers_alone(study, pairs, before, facts):
    "Rows of the pairs classified by their answers alone, over means of cosines and by one embedding; all classes in two steps as FuDD."
    labels, rows = study.labels["test"], []
    top = before.topk(2, 1).indices.sort(1).values
    for normalised in (False, True):
        final, right = before.argmax(1).clone(), []
        for (a, b), scores in zip(pairs, alone(study, pairs, before, normalised)):
            first, of_pair, undecided = scores[:, 0] > scores[:, 1], (labels == a) | (labels == b), (top == torch.tensor([a, b])).all(1)
            right.append((first == (labels == a))[of_pair].double().mean().item())
            final[undecided] = torch.where(first[undecided], a, b)
        method = "differences alone" + ", one embedding" * normalised
        rows.append(facts | dict(method=method, accuracy=np.mean(right), all_classes=(final == labels).double().mean().item()))
    return rows


def told_feature(synthetic, pool, pairs):
    "Share of the twins among the pairs of whose differing feature the pool has a usable true sentence about both."
    part = {feature: component for component, feature in meadow._COMPONENTS.items()}
    def has(c):
        component = part[synthetic.species.twin_feature[c].replace("accent", "pattern")]
        return ((pool.class_id == c) & (pool.flag == "") & (pool.truth == "visible") & (pool.component == component)).any()
    twins = [(a, b) for a, b in pairs if synthetic.species.twin_of[a] == b]
    return np.mean([has(a) and has(b) for a, b in twins]) if twins else np.nan


def line(study, pairs, method, facts):
    "One row: accuracy between the classes of the pairs and over all classes, precision, and how many of the new sentences are chosen."
    scores, labels, pool = chosen_scores(study), study.labels["test"], study.pool
    chosen, true, new = study.chosen().proponent.to_numpy(), (pool.truth == "visible").to_numpy(), np.arange(len(pool)) >= facts["pool"]
    of_pairs = pool.class_id.isin({c for pair in pairs for c in pair}).to_numpy()
    row = dict(accuracy=np.nanmean(pair_right(scores, labels, pairs), 1).mean(), all_classes=(scores.argmax(1) == labels).double().mean().item(),
               precision=true[chosen].mean(), precision_of_pairs=true[chosen & of_pairs].mean(), usable=int((pool.flag == "").sum()),
               chosen_new=int(chosen[new].sum()), added=int(new.sum()), true_new=true[new].mean() if new.any() else np.nan)
    if facts["form"] == "set" and facts["k"] == 5 and method in ("before", "asked"): row["own"] = decoy_summary(decoy_precision(study)).own[0]
    return facts | dict(method=method) | row, scores


def dataset(name):
    "meadow, heath, or a dataset of a fresh seed: s6101."
    return meadow.load() if name == "meadow" else meadow.make_synthetic(7 if name == "heath" else int(name[1:]), name)


def in_setting(synthetic, base, pool, llm, knowledge, samples):
    "Rows of one setting: every pool under every choice."
    table = confusable_pairs(base, N_PAIRS)
    pairs = list(zip(table.a.tolist(), table.b.tolist()))
    options = (synthetic.classes, llm, "butterfly", synthetic.articles, knowledge, samples)
    asked = Differences.ask(pairs, *options, progress=False)
    joined, added = asked.joined(pool, synthetic.classes, "butterfly", synthetic.articles), asked.rows.groupby("class_id").size()
    joined.loc[len(pool):, "truth"] = synthetic.truth_of(joined.iloc[len(pool):])
    more = {"ordinary": ordinary_rows(synthetic, added, knowledge, llm.model), "random": random_rows(pool, added),
            "other pairs": other_rows(synthetic, pairs, llm, knowledge, samples)}
    pools = {"before": pool, "asked": joined} | {method: enlarged(pool, rows, synthetic.classes, "butterfly") for method, rows in more.items()}
    studies = {method: base.with_pool(flag_too_long(of, base.encoder.tokenizer)) for method, of in pools.items()}
    named = {f"named_{when}": told_feature(synthetic, studies[when].pool, pairs) for when in ("before", "asked")}
    facts = dict(dataset=synthetic.name, knowledge=knowledge, samples=samples, pool=len(pool), confusion=table.confusion.mean(),
                 twins=int(sum(synthetic.species.twin_of[a] == b for a, b in pairs)),
                 no_difference=int((asked.asked.outcome == "no visible difference").sum())) | named
    rows = []
    for form, k in CHOICES:
        lines = {method: line(study.with_options(form=form, top_k=k), pairs, method, facts | dict(form=form, k=k)) for method, study in studies.items()}
        rows += [row for row, _ in lines.values()]
        rows += by_answers_alone(studies["asked"], pairs, lines["before"][1], facts | dict(form=form, k=k))
    return rows


def measured(name):
    "Rows of one synthetic dataset in all settings."
    synthetic, encoder, base, rows = dataset(name), load_encoder("meadow-clip"), None, []
    llm = LLM(f"{name}-author", client=synthetic.simulated_llm, cache=Path(tempfile.mkdtemp())/"answers.sqlite")
    for knowledge, samples in SETTINGS:
        pool = describe(synthetic.classes, llm, "butterfly", synthetic.articles, knowledge, samples=samples, progress=False)
        pool = flag_too_long(pool.assign(truth=synthetic.truth_of(pool)), encoder.tokenizer)
        base = base.with_pool(pool) if base else Study.of(synthetic.images, encoder, pool, progress=False)
        rows += in_setting(synthetic, base, pool, llm, knowledge, samples)
    return pd.DataFrame(rows)


def drawn_means(right, repeats=5_000):
    "Means over pairs (repeats,) of values (pairs, N) in bootstrap draws of the N test images."
    weight = np.random.default_rng(0).multinomial(right.shape[1], np.full(right.shape[1], 1 / right.shape[1]), size=repeats)
    return np.nanmean((weight @ np.nan_to_num(right).T) / (weight @ ~np.isnan(right).T), 1)


def photographs(data, store, samples=3, more=3):
    "(rows, answers) of clothing under the offline encoder with the small model's answers; intervals by bootstrap over test images."
    params = {name: parameter.default for name, parameter in runs.known_parameters().items()}
    params |= dict(dataset=str(Path(data)/"clothing"), model="offline", llm_gguf="smollm2", knowledge="none", store=str(store))
    images, encoder, llm = load_images(params)[0], load_encoder("offline"), language_model(params)
    ask = lambda n: describe(images.classes, llm, None, None, "none", n, progress=False)
    pool = flag_too_long(ask(samples), encoder.tokenizer)
    study = Study.of(images, encoder, pool, store=Store(store), progress=False)
    table = confusable_pairs(study, N_PAIRS)
    pairs = list(zip(table.a.tolist(), table.b.tolist()))
    asked = Differences.ask(pairs, images.classes, llm, None, None, "none", samples, progress=False)
    added, further = asked.rows.groupby("class_id").size(), ask(samples + more)
    joined = asked.joined(pool, images.classes)
    pools = {"before": pool, "asked": joined, "ordinary": enlarged(pool, as_many(further[further["sample"] >= samples], added), images.classes, None),
             "random": enlarged(pool, random_rows(pool, added), images.classes, None)}
    rows = [row for form, k in CHOICES for row in _photograph_rows(study, pools, pairs, form, k, encoder)]
    new = joined.iloc[len(pool):]
    answers = new.assign(**{"class": [images.classes[c] for c in new.class_id], "other": [images.classes[c] for c in new.against]})
    counts = asked.asked.outcome.value_counts().to_dict()
    return pd.DataFrame(rows).assign(questions=len(asked.asked), answered=counts.get("differences", 0), no_difference=counts.get("no visible difference", 0),
                                     failed=counts.get("failed", 0)), answers[["class", "other", "component", "sample", "text", "flag"]]


def _photograph_rows(study, pools, pairs, form, k, encoder):
    "Rows of one choice: every pool, and the pairs by their answers alone."
    labels, base = study.labels["test"], None
    def compared(method, right, hits, **more):
        ends = np.quantile(drawn_means(right - base[0]), [.025, .975])
        all_ends = np.quantile(drawn_means((hits - base[1])[None]), [.025, .975])
        return dict(form=form, k=k, method=method, accuracy=np.nanmean(right, 1).mean(), gain=np.nanmean(right - base[0], 1).mean(), low=ends[0],
                    high=ends[1], all_classes=hits.mean(), all_low=all_ends[0], all_high=all_ends[1]) | more
    for method, pool in pools.items():
        of = study.with_pool(flag_too_long(pool, encoder.tokenizer)).with_options(form=form, top_k=k)
        scores = chosen_scores(of)
        right, hits = pair_right(scores, labels, pairs), (scores.argmax(1) == labels).double().numpy()
        base, before = base or (right, hits), scores if method == "before" else before
        own = decoy_summary(decoy_precision(of)).iloc[0] if form == "set" and k == 5 and method in ("before", "asked") else {}
        n = len(pools["before"])
        yield compared(method, right, hits, added=len(pool) - n, usable=int((pool.flag[n:] == "").sum()),
                       chosen_new=int(of.chosen().proponent[n:].sum()), own=own.get("own"), own_low=own.get("low"), own_high=own.get("high"))
    asked = study.with_pool(flag_too_long(pools["asked"], encoder.tokenizer))
    right = np.stack([pair_right(scores, torch.where(labels == a, 0, torch.where(labels == b, 1, 2)), [(0, 1)])[0]
                      for (a, b), scores in zip(pairs, alone(asked, pairs, before))])
    yield compared("differences alone", right, base[1])
