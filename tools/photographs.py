"""Makes runs out of the photographs in ../shared/data, or another such folder: `python tools/photographs.py RUNS [DATA]`.

Then `datadesc run clothing_sample --out RUNS`, and grocery_sample, grocery_coarse_sample, eurosat_sample likewise. The encoder is the
offline one, which needs no hub. The number of sentences per class is set here, before anything is measured: three where a class has
about five candidates or fewer, else the default of five.
nbs/runs/photographs.ipynb shows what `measured` gives for each of the four.
"""
import csv
import json
import re
import sys
from functools import cache
from pathlib import Path

import pandas as pd
import torch
import yaml

from datadesc import runs
from datadesc.audit import add_label_noise, auc_of_scores, label_issue_scores, label_issues
from datadesc.baselines import from_templates, match_classes
from datadesc.benchmark import benchmark, chosen_by, controls
from datadesc.decoys import decoy_precision, decoy_summary
from datadesc.embed import load_encoder
from datadesc.plan import load_images
from datadesc.report import candidate_sentences
from datadesc.selection import ChoiceOptions
from datadesc.sentences import read_sentences
from datadesc.stats import gain, named_comparisons, summary
from datadesc.store import Store
from datadesc.study import Study
from datadesc.zeroshot import names_only

LOCAL = "SmolLM2"  # the language model of this machine, asked from memory
CLAUSES = "people, clauses"  # the shop's descriptions cut finer
POOLS = {"clothing": {"people": 3, LOCAL: 5}, "grocery": {"people": 3, CLAUSES: 3, LOCAL: 5}, "grocery_coarse": {"people": 3, CLAUSES: 3},
         "eurosat": {"GPT-4": 5, "GPT-3": 3, LOCAL: 5}}  # sentences to choose; the first of a dataset is that of the planned comparisons
FORMS = ("set", "direct", "clip")  # that choose, of all in the package
DATA = Path(__file__).resolve().parents[2]/"shared"/"data"


def sentences(description):
    "The sentences of a description that somebody wrote."
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+", description.strip()) if part.strip()]


def clauses(description):
    "Its clauses, of two words or more."
    return [part.strip() for part in re.split(r"[.,;]\s+|\.$| and (?=\w+ \w+ \w+)", description) if len(part.split()) > 1]


def write_list(path, rows):
    "A CSV of images: path, label and split."
    with open(path, "w", newline="", encoding="utf-8") as file: csv.writer(file).writerows([("path", "label", "split"), *rows])


def write_sentences(path, described):
    "Sentences as a file: {class: [sentences]}; its path as a text."
    path.write_text(json.dumps(described))
    return str(path)


def drawn(labels, train=16/120, val=8/120, seed=0):
    "The split of each image: these shares of every class at random, at least one image each, the others for testing."
    table = pd.Series(labels).sample(frac=1, random_state=seed)
    place, size = table.groupby(table).cumcount(), table.map(table.value_counts())
    n_train, n_val = ((share * size).round().clip(lower=1) for share in (train, val))
    split = pd.Series("test", table.index).mask(place < n_train + n_val, "val").mask(place < n_train, "train")
    return split.sort_index().tolist()


def eurosat(folder, data):
    "EuroSAT's 1,200 images, 960 of them for testing; sentences by GPT-4 and phrases by GPT-3 that other authors published."
    images, peers = sorted((data/"eurosat"/"2750").glob("*/*.jpg")), data/"peers"
    labels = [image.parent.name for image in images]
    vdt, menon = peers/"vdt"/"eurosat.pt", peers/"waffleclip"/"descriptors_eurosat.json"
    described, phrased = (match_classes(read_sentences(file), sorted(set(labels)))[0] for file in (vdt, menon))
    write_sentences(folder/"eurosat_gpt3.json", phrased)
    write_list(folder/"eurosat.csv", zip(images, labels, drawn(labels)))
    return dict(dataset=str(folder/"eurosat.csv"), descriptions=write_sentences(folder/"eurosat.json", described),
                methods=[f"menon={menon}", f"vdt={vdt}"], top_k=5)


def _grocery(folder, data, name, column):
    "Grocery photographs with their official lists, classes as this column of the dataset's table names them."
    root = data/"grocery"/"dataset"
    rows = list(csv.DictReader(open(root/"classes.csv", encoding="utf-8")))
    names = {int(row["Class ID (int)"]): row[column] for row in rows}
    def described(cut):
        texts = {}
        for row in rows:
            description = (root/row["Product Description Path (str)"].lstrip("/")).read_text(encoding="utf-8")
            texts.setdefault(row[column], {}).update(dict.fromkeys(cut(description)))
        return {label: list(of_class) for label, of_class in texts.items()}
    lines = [(line.split(","), split) for split in ("train", "val", "test") for line in (root/f"{split}.txt").read_text().splitlines()]
    write_list(folder/f"{name}.csv", ((root/path, names[int(label)], split) for (path, label, _), split in lines))
    clauses_at = write_sentences(folder/f"{name}_clauses.json", described(clauses))
    sentences_at = write_sentences(folder/f"{name}.json", described(sentences))
    return dict(dataset=str(folder/f"{name}.csv"), descriptions=sentences_at, methods=[f"clauses={clauses_at}"], top_k=3)


def grocery(folder, data):
    "28 fine classes; the shop's descriptions, which people wrote, cut into sentences."
    return _grocery(folder, data, "grocery", "Class Name (str)")


def grocery_coarse(folder, data):
    "The same photographs in 20 coarse classes, each with the sentences of all its fine ones."
    return _grocery(folder, data, "grocery_coarse", "Coarse Class Name (str)")


def clothing(folder, data):
    "450 photographs of clothes in 10 classes with their own splits; sentences of ours."
    return dict(dataset=str(data/"clothing"), descriptions=str(data/"clothing_sentences.json"), top_k=3)


def main(root, data=DATA):
    "Writes parameters and sentences of the four datasets into the folder of runs `root`; `FileNotFoundError` without the images."
    data, folder = Path(data).resolve(), Path(root).resolve()/"photographs"
    missing = [name for name in ("clothing", "grocery", "eurosat", "peers", "clothing_sentences.json") if not (data/name).exists()]
    if missing:
        raise FileNotFoundError(f"'{data}' lacks {', '.join(missing)}: give the folder that holds clothing, grocery, eurosat and "
                                "published descriptions")
    folder.mkdir(parents=True, exist_ok=True)
    for make in (clothing, grocery, grocery_coarse, eurosat):
        (folder.parent/f"{make.__name__}_sample.yaml").write_text(yaml.safe_dump(make(folder, data) | dict(model="offline")))
    print(f"Next: datadesc run clothing_sample --out {root}")


def params_of(folder, name, store):
    "All parameters of a dataset's run."
    defaults = {p.name: p.default for p in runs.known_parameters().values()}
    return defaults | yaml.safe_load((folder/f"{name}_sample.yaml").read_text()) | dict(store=str(store))


def pool_of(folder, name, pool, image_set, encoder, store):
    "The candidate sentences of a dataset from one source, as a run would have them."
    params = params_of(folder, name, store)
    if pool == LOCAL: params |= dict(descriptions=None, llm_gguf="smollm2", knowledge="none")
    if pool == CLAUSES: params |= dict(descriptions=str(folder/"photographs"/f"{name}_clauses.json"))
    if pool == "GPT-3": params |= dict(descriptions=str(folder/"photographs"/"eurosat_gpt3.json"))
    return candidate_sentences(params, image_set, encoder).pool


def methods_of(studies):
    "Every choice from every pool, its controls, and class names in three forms."
    first = next(iter(studies.values()))
    episode = cache(lambda pool, shots, seed: studies[pool].few_shot(shots, seed))
    def in_pool(pool, method): return (lambda few: method(episode(pool, few.split.shots, few.split.seed))) if callable(method) else method
    def names(prompts):
        return pd.DataFrame([(c, prompt) for c, of_class in enumerate(prompts) for prompt in of_class], columns=["class_id", "prompt"])
    methods = {"class names": controls(first)["class names"], "class names, bare": names([t] for t in names_only(first.classes, "{class}")),
               "class names in templates": names(from_templates(first.classes).values())}
    for pool, study in studies.items():
        of_pool = {form: chosen_by(form) for form in FORMS} | controls(study, "set")
        methods |= {f"{pool}: {name}": in_pool(pool, method) for name, method in of_pool.items() if name != "class names"}
    return methods


def suspects(study, seeds, share=.1):
    """One row per seed and label-issue score: AUC, and the share of planted errors among as many highest scores (`found`).

    `reported` is the score of `label_issues`, as a report shows it; the others are those of `label_issue_scores`.

    `flagged` counts the labels called likely wrong, `flagged_right` those of them that are."""
    rows, y = [], study.labels["train"]
    for seed in range(seeds):
        labels = add_label_noise(y, share, seed)
        noisy = Study(study.classes, study.image_emb, {**study.labels, "train": labels}, study.pool, study.embed, study.options)
        wrong = labels != y
        reported = label_issues(noisy).sort_values("image")  # by heads that have not seen the image
        flagged = torch.tensor(reported.likely.to_numpy(copy=True))
        scores = label_issue_scores(noisy).assign(reported=reported.score.to_numpy())
        found = auc_of_scores(scores, wrong).rename_axis("by").reset_index()
        counts = dict(planted=int(wrong.sum()), flagged=int(flagged.sum()), flagged_right=int((flagged & wrong).sum()))
        rows.append(found.assign(seed=seed, images=len(y), **counts))
    return pd.concat(rows).assign(likely_as_it_is=int(label_issues(study).likely.sum()))


def gains_of(rows, studies):
    "Differences from class names (zero-shot) and from images only (trained), and of each choice from its pool and from random choice."
    bare = rows[(rows.protocol == "zero_shot") & (rows.aggregation == "mean") & (rows.names != "with")]
    gains = [gain(bare, "class names").assign(over="class names"),
             gain(rows[rows.protocol == "transfer"], "images only", ["protocol", "shots"]).assign(over="images only")]
    for pool in studies:
        for over in ("whole pool", "random choice"):
            compared = bare[bare.method.isin([f"{pool}: {method}" for method in (*FORMS, over)])]
            gains.append(gain(compared, f"{pool}: {over}").assign(over=over))
    return pd.concat(gains)


def sizes_of(studies):
    "Images, candidates and chosen sentences per class of every pool."
    def row(pool, study):
        candidates = dict(candidates=len(study.pool), flagged=(study.pool.flag != "").sum(), named=study.pool.names_class.mean())
        images = {split: len(y) for split, y in study.labels.items()}
        return dict(pool=pool, classes=study.n_classes, **candidates, top_k=study.options.top_k, **images)
    return pd.DataFrame([row(pool, study) for pool, study in studies.items()])


def measured(folder, name, store, seeds=5, shots=(1, 4, 16, "all")):
    "What the page shows of one dataset, as tables by name: lines, gains, comparisons, decoys, suspects, pools."
    store, encoder = Store(store), load_encoder("offline")
    image_set, _ = load_images(params_of(folder, name, store.root))
    studies = {}
    for pool, k in POOLS[name].items():
        candidates = pool_of(folder, name, pool, image_set, encoder, store.root)
        studies[pool] = Study.of(image_set, encoder, candidates, ChoiceOptions(top_k=k), store, progress=False)
    first = next(iter(studies.values()))
    rows = benchmark(first, methods_of(studies), shots, (), range(seeds))
    compared = [named_comparisons(rows, f"{pool}: set").assign(pool=pool, planned=studies[pool] is first) for pool in studies]
    decoys = [decoy_summary(decoy_precision(study, (*FORMS, "random"), range(seeds))).assign(pool=pool) for pool, study in studies.items()]
    lines = summary(rows[(rows.protocol == "transfer") | (rows.aggregation == "mean")])
    tables = dict(lines=lines, gains=gains_of(rows, studies), comparisons=pd.concat(compared), decoys=pd.concat(decoys),
                  suspects=suspects(first, seeds), pools=sizes_of(studies))
    return {of: table.assign(dataset=name) for of, table in tables.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
