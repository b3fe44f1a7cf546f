"""Makes runs out of the photographs in ../shared/data, or another such folder: `python tools/photographs.py RUNS [DATA]`, then `datadesc run eurosat_sample --out RUNS`, and clothing_sample, grocery_sample, grocery_coarse_sample likewise.

The encoder is the offline one, which needs no hub. The number of sentences per class is set here, before anything is measured: three where a class has about five candidates, else the default of five.
"""
import csv
import json
import re
import sys
from pathlib import Path

import pandas as pd
import yaml

from datadesc.baselines import match_classes
from datadesc.sentences import read_sentences

DATA = Path(__file__).resolve().parents[2]/"shared"/"data"


def phrases(description):
    "The clauses of a description that somebody wrote."
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
    described, _ = match_classes(read_sentences(vdt), sorted(set(labels)))
    write_list(folder/"eurosat.csv", zip(images, labels, drawn(labels)))
    return dict(dataset=str(folder/"eurosat.csv"), descriptions=write_sentences(folder/"eurosat.json", described),
                methods=[f"menon={menon}", f"vdt={vdt}"], top_k=5)


def _grocery(folder, data, name, column):
    "Grocery photographs with their official lists, classes as this column of the dataset's table names them."
    root = data/"grocery"/"dataset"
    rows = list(csv.DictReader(open(root/"classes.csv", encoding="utf-8")))
    names, described = {int(row["Class ID (int)"]): row[column] for row in rows}, {}
    for row in rows:
        clauses = phrases((root/row["Product Description Path (str)"].lstrip("/")).read_text(encoding="utf-8"))
        of_class = described.setdefault(row[column], [])
        of_class += [text for text in clauses if text not in of_class]
    lines = [(line.split(","), split) for split in ("train", "val", "test") for line in (root/f"{split}.txt").read_text().splitlines()]
    write_list(folder/f"{name}.csv", ((root/path, names[int(label)], split) for (path, label, _), split in lines))
    return dict(dataset=str(folder/f"{name}.csv"), descriptions=write_sentences(folder/f"{name}.json", described), top_k=3)


def grocery(folder, data):
    "28 fine classes; clauses of the shop's descriptions, which people wrote."
    return _grocery(folder, data, "grocery", "Class Name (str)")


def grocery_coarse(folder, data):
    "The same photographs in 20 coarse classes, each with the clauses of all its fine ones."
    return _grocery(folder, data, "grocery_coarse", "Coarse Class Name (str)")


def clothing(folder, data):
    "450 photographs of clothes in 10 classes with their own splits; sentences of ours."
    return dict(dataset=str(data/"clothing"), descriptions=str(data/"clothing_sentences.json"), top_k=3)


def main(root, data=DATA):
    "Writes parameters and sentences of the four datasets into the folder of runs `root`; `FileNotFoundError` without the images."
    data, folder = Path(data).resolve(), Path(root).resolve()/"photographs"
    missing = [name for name in ("clothing", "grocery", "eurosat", "peers", "clothing_sentences.json") if not (data/name).exists()]
    if missing: raise FileNotFoundError(f"'{data}' lacks {', '.join(missing)}: give the folder that holds clothing, grocery, eurosat and published descriptions")
    folder.mkdir(parents=True, exist_ok=True)
    for make in (clothing, grocery, grocery_coarse, eurosat):
        (folder.parent/f"{make.__name__}_sample.yaml").write_text(yaml.safe_dump(make(folder, data) | dict(model="offline")))
    print(f"Next: datadesc run clothing_sample --out {root}")


if __name__ == "__main__":
    main(*sys.argv[1:])
