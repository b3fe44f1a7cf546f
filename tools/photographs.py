"""Makes runs out of the photographs in ../shared/data: `python tools/photographs.py FOLDER`, then `datadesc run eurosat_sample --out FOLDER`, and grocery_sample and clothing_sample likewise.

No weights of a real CLIP are there, so the encoder is the one that knows drawn butterflies: these runs prove that real files go through, and nothing about quality.
"""
import csv
import json
import re
import sys
from pathlib import Path

import yaml

from datadesc.baselines import match_classes
from datadesc.sentences import read_sentences

SHARED = Path(__file__).resolve().parents[2]/"shared"/"data"
QUICK = dict(model="meadow-clip", top_k=5)


def phrases(description):
    "The clauses of a description that somebody wrote."
    return [part.strip() for part in re.split(r"[.,;]\s+|\.$| and (?=\w+ \w+ \w+)", description) if len(part.split()) > 1]


def write_list(path, rows):
    "A CSV of images: path, label and split, which may be empty."
    with open(path, "w", newline="", encoding="utf-8") as file: csv.writer(file).writerows([("path", "label", "split"), *rows])


def eurosat(folder):
    "EuroSAT's 1,200 images; sentences and phrases that other authors published."
    images, peers = sorted((SHARED/"eurosat"/"2750").glob("*/*.jpg")), SHARED/"peers"
    described, _ = match_classes(read_sentences(peers/"vdt"/"eurosat.pt"), sorted({image.parent.name for image in images}))
    (folder/"eurosat.json").write_text(json.dumps(described))
    write_list(folder/"eurosat.csv", ((image, image.parent.name, "") for image in images))
    return dict(dataset=str(folder/"eurosat.csv"), descriptions=str(folder/"eurosat.json"), methods=[f"menon={peers/'waffleclip'/'descriptors_eurosat.json'}", f"vdt={peers/'vdt'/'eurosat.pt'}"])


def grocery(folder):
    "28 classes with their official lists; clauses of the descriptions that the dataset's authors wrote."
    root = SHARED/"grocery"/"dataset"
    rows = list(csv.DictReader(open(root/"classes.csv", encoding="utf-8")))
    names = {int(row["Class ID (int)"]): row["Class Name (str)"] for row in rows}
    described = {row["Class Name (str)"]: phrases((root/row["Product Description Path (str)"].lstrip("/")).read_text(encoding="utf-8")) for row in rows}
    (folder/"grocery.json").write_text(json.dumps(described))
    lines = [(line.split(","), split) for split in ("train", "val", "test") for line in (root/f"{split}.txt").read_text().splitlines()]
    write_list(folder/"grocery.csv", ((root/path, names[int(label)], split) for (path, label, _), split in lines))
    return dict(dataset=str(folder/"grocery.csv"), descriptions=str(folder/"grocery.json"))


def clothing(folder):
    "450 photographs of clothes; phrases of ours."
    return dict(dataset=str(SHARED/"clothing"), descriptions=str(SHARED/"clothing_sentences.json"))


def main(root):
    "Writes parameters and sentences of the three datasets into the folder of runs `root`."
    folder = Path(root).resolve()/"photographs"
    folder.mkdir(parents=True, exist_ok=True)
    for make in (eurosat, grocery, clothing):
        (folder.parent/f"{make.__name__}_sample.yaml").write_text(yaml.safe_dump(make(folder) | QUICK))
    print(f"Next: datadesc run eurosat_sample --out {root}")


if __name__ == "__main__":
    main(*sys.argv[1:])
