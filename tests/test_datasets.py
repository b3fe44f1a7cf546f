"""The nine published datasets in small copies of their true layouts; archives that break, servers that stop; Hugging Face's and WebDataset's storerooms."""
import io, json, os, pickle, re, signal, subprocess, sys, tarfile, threading, time, tracemalloc, zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.io import savemat

from datadesc import data, datasets
from datadesc.data import ImageSet, PackedImage, open_image
from datadesc.catalogue import published as known
from datadesc.datasets import _FILES, _Incomplete, _load_dataset, _md5_of, split_lists
from datadesc.hub import import_library

import_library("torchvision")
from torchvision import datasets as published

CLASSES = pd.read_csv(Path(datasets.__file__).parent/"assets"/"datasets"/"classes.csv", dtype=str, keep_default_na=False)
NAMES = tuple(known())


def classes_of(name): return known()[name].classes

SHARED = Path(__file__).parents[2]/"shared"/"data"
real_eurosat = pytest.mark.skipif(not (SHARED/"eurosat").is_dir(), reason="needs the satellite images in ../shared/data")
peers = pytest.mark.skipif(not (SHARED/"peers").is_dir(), reason="needs the published descriptions in ../shared/data")


# Small copies in the true layouts

def plain(path, number):
    "A file with one small picture; another number, another picture"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (number*53 % 256, number*101 % 256, number*197 % 256)).save(path)

def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

def numbered(values): return "".join(f"{i} {value}\n" for i, value in enumerate(values, 1))

def cub(root, patch, n=10):
    folders = ["001.Black_footed_Albatross", "009.Brewer_Blackbird", "146.Forsters_Tern"]
    paths = [f"{folder}/{folder[4:]}_{i:04}_{7000 + i}.jpg" for folder in folders for i in range(n)]
    for i, path in enumerate(paths): plain(root/"CUB_200_2011"/"images"/path, i)
    for part, values in {"images": paths, "classes": list(classes_of("cub")), "train_test_split": [int(i % 2 == 0) for i in range(len(paths))],
                         "image_class_labels": [int(path[:3]) for path in paths]}.items():
        write(root/"CUB_200_2011"/f"{part}.txt", numbered(values))
    write(root/"CUB_200_2011"/"README", "Caltech-UCSD Birds-200-2011")

def cifar(root, patch, name, names, n):
    "Pickled batches with a digest each, of which torchvision is told; bytes for keys, as Python 2 wrote them"
    reader, key = getattr(published, name.upper()), "labels" if name == "cifar10" else "fine_labels"
    folder, numbers = root/reader.base_folder, np.random.default_rng(0)
    folder.mkdir(parents=True)
    def dump(file, value):
        (folder/file).write_bytes(pickle.dumps(value, protocol=2))
        return [file, _md5_of(folder/file)]
    batch = lambda: {"data": numbers.integers(0, 255, (n*len(names), 3072), dtype=np.uint8), key: [i % len(names) for i in range(n*len(names))]}
    for kind in ("train_list", "test_list"): patch.setattr(reader, kind, [dump(file, batch()) for file, _ in getattr(reader, kind)])
    file, md5 = dump(reader.meta["filename"], {reader.meta["key"]: names})
    patch.setattr(reader, "meta", reader.meta | {"md5": md5})

def cifar10(root, patch): cifar(root, patch, "cifar10", list(classes_of("cifar10")), 2)

def cifar100(root, patch): cifar(root, patch, "cifar100", list(classes_of("cifar100")), 5)

def pets(root, patch, n=10):
    breeds = {"Abyssinian": 1, "american_bulldog": 2, "yorkshire_terrier": 37}   # the lists count from 1
    folder = root/"oxford-iiit-pet"
    lines = {"trainval": [], "test": []}
    for breed, number in breeds.items():
        for i in range(n):
            plain(folder/"images"/f"{breed}_{i + 1}.jpg", 100*number + i)
            lines["trainval" if i < n//2 else "test"].append(f"{breed}_{i + 1} {number} {1 if breed[0].isupper() else 2} {number}\n")
    for split in lines: write(folder/"annotations"/f"{split}.txt", "".join(lines[split]))
    write(folder/"annotations"/"list.txt", "#Image CLASS-ID SPECIES BREED ID\n")
    write(folder/"images"/"Abyssinian_100.mat", "")   # the archive has some

def eurosat(root, patch, n=10):
    for f, folder in enumerate(classes_of("eurosat")):
        for i in range(n): plain(root/"eurosat"/"2750"/folder/f"{folder}_{i + 1}.jpg", 100*f + i)

def food101(root, patch, n=20):
    lists = {"train": {}, "test": {}}
    for d, dish in enumerate(("apple_pie", "creme_brulee", "waffles")):
        names = [f"{dish}/{1000*d + i}" for i in range(n)]
        for i, name in enumerate(names): plain(root/"food-101"/"images"/f"{name}.jpg", 100*d + i)
        lists["train"][dish], lists["test"][dish] = names[:n*3//4], names[n*3//4:]
    for split, names in lists.items():
        write(root/"food-101"/"meta"/f"{split}.json", json.dumps(names))
        write(root/"food-101"/"meta"/f"{split}.txt", "\n".join(sum(names.values(), [])))
    write(root/"food-101"/"meta"/"classes.txt", "apple_pie\ncreme_brulee\nwaffles\n")

def flowers102(root, patch, n=10):
    "Images by number alone; MATLAB files say which flower (from 1) and which split"
    folder, total = root/"flowers-102", 3*n
    for i in range(total): plain(folder/"jpg"/f"image_{i + 1:05}.jpg", i)
    savemat(folder/"imagelabels.mat", {"labels": np.array([[1 + i % 3 for i in range(total)]], dtype=np.uint8)})
    ids = np.arange(1, total + 1)
    savemat(folder/"setid.mat", {"trnid": ids[None, :6], "valid": ids[None, 6:12], "tstid": ids[None, 12:]})
    digests = {part: _md5_of(folder/f"{part}.mat") for part in ("imagelabels", "setid")}
    patch.setattr(published.Flowers102, "_file_dict", {"label": ("imagelabels.mat", digests["imagelabels"]), "setid": ("setid.mat", digests["setid"])})
    mats = {f"flowers-102/{part}.mat": md5 for part, md5 in digests.items()}
    patch.setattr(datasets, "_FILES", datasets._FILES.assign(md5=[mats.get(row.path, row.md5) for row in datasets._FILES.itertuples()]))

def dtd(root, patch, n=6):
    folder, lines = root/"dtd"/"dtd", {split: [] for split in ImageSet.SPLITS}
    for t, texture in enumerate(("banded", "polka-dotted", "zigzagged")):
        for i in range(n):
            plain(folder/"images"/texture/f"{texture}_{i:04}.jpg", 100*t + i)
            lines[ImageSet.SPLITS[i % 3]].append(f"{texture}/{texture}_{i:04}.jpg\n")
    for split in lines:
        for partition in range(1, 11): write(folder/"labels"/f"{split}{partition}.txt", "".join(lines[split]))

def mini_folders(root, patch, n=6):
    for w, wnid in enumerate(classes_of("mini_imagenet")):
        for i in range(n): plain(root/"mini-imagenet"/wnid/f"{wnid}{i + 1:08}.jpg", 10*w + i)

def mini_csv(root, patch, n=6):
    wnids = list(classes_of("mini_imagenet"))
    for split, part in (("train", wnids[:64]), ("val", wnids[64:80]), ("test", wnids[80:])):
        write(root/"mini-imagenet"/f"{split}.csv", "filename,label\n" + "".join(f"{wnid}{i + 1:08}.jpg,{wnid}\n" for wnid in part for i in range(n)))
    for w, wnid in enumerate(wnids):
        for i in range(n): plain(root/"mini-imagenet"/"images"/f"{wnid}{i + 1:08}.jpg", 10*w + i)

TREES = {"cub": cub, "mini_imagenet": mini_folders, "cifar10": cifar10, "cifar100": cifar100, "pets": pets, "eurosat": eurosat, "food101": food101, "flowers102": flowers102, "dtd": dtd}
OFFICIAL = {"cub": [12, 3, 15], "mini_imagenet": [400, 100, 100], "cifar10": [80, 20, 20], "cifar100": [400, 100, 500], "pets": [12, 3, 15], "eurosat": [70, 20, 10],
            "food101": [36, 9, 15], "flowers102": [6, 6, 18], "dtd": [6, 6, 6]}
PAPER = {"cub": [12, 3, 15], "mini_imagenet": [400, 100, 100], "cifar10": [80, 20, 20], "cifar100": [400, 100, 500], "pets": [24, 3, 3], "eurosat": [70, 20, 10],
         "food101": [45, 6, 9], "flowers102": [24, 3, 3], "dtd": [6, 6, 6]}

def sizes(images): return [len(images.images(split)) for split in ImageSet.SPLITS]

@pytest.mark.parametrize("name", NAMES)
def test_published_layouts(tmp_path, monkeypatch, name):
    TREES[name](tmp_path, monkeypatch)
    for split, expected in (("official", OFFICIAL), ("paper_sizes", PAPER)):
        images = datasets.load(name, tmp_path, split)
        assert (images.name, sizes(images)) == (name, expected[name]), split
        assert list(images.classes) == [label for label in classes_of(name).values() if label in images.classes]
        assert any(note.endswith(f" of {sum(known()[name].paper_counts.values()):,} images") for note in images.notes)
        assert open_image(images.images("val")[0]).size in ((8, 8), (32, 32))
    assert known()[name].needs(tmp_path) == ""
    assert images.superclass == {"cub": "bird", "pets": "cat or dog", "eurosat": "satellite image", "food101": "food", "flowers102": "flower", "dtd": "texture"}.get(name)

def test_labels_are_those_of_the_files(tmp_path, monkeypatch):
    for name in ("cub", "pets", "food101", "dtd", "eurosat"):
        TREES[name](tmp_path, monkeypatch)
        images, on_disk = _load_dataset(name, tmp_path), {label: folder for folder, label in classes_of(name).items()}
        for split in ImageSet.SPLITS:
            for path, label in images.samples[split]: assert on_disk[images.classes[label]].split(".")[-1] in path
    assert _load_dataset("cub", tmp_path).classes == ("Black-footed Albatross", "Brewer's Blackbird", "Forster's Tern")
    assert _load_dataset("pets", tmp_path).classes == ("Abyssinian", "American Bulldog", "Yorkshire Terrier")

def test_flowers_are_counted_from_one(tmp_path, monkeypatch):
    flowers102(tmp_path, monkeypatch)
    images = _load_dataset("flowers102", tmp_path)
    assert images.classes == ("pink primrose", "hard-leaved pocket orchid", "canterbury bells")
    first = dict((Path(path).name, label) for path, label in images.samples["train"])
    assert first["image_00001.jpg"] == 0 and first["image_00002.jpg"] == 1

def test_cifar_images_are_those_of_the_batches(tmp_path, monkeypatch):
    cifar100(tmp_path, monkeypatch)
    images = _load_dataset("cifar100", tmp_path)
    assert images.classes[1] == "aquarium fish"
    batch = pickle.loads((tmp_path/"cifar-100-python"/"test").read_bytes())
    for i, image in list(enumerate(images.images("test")))[:20]:
        assert image.name == f"cifar-100-python/test/{i:05}"
        assert np.array_equal(np.asarray(open_image(image)), batch["data"][i].reshape(3, 32, 32).transpose(1, 2, 0))

def test_official_test_images_stay(tmp_path, monkeypatch):
    food101(tmp_path, monkeypatch)
    official, paper = _load_dataset("food101", tmp_path), _load_dataset("food101", tmp_path, split="paper_sizes")
    assert set(paper.images("train")) == set(official.images("train") + official.images("val"))
    assert set(paper.images("val") + paper.images("test")) == set(official.images("test"))
    assert paper.labels("test").bincount().tolist() == [3, 3, 3]

def test_both_forms_of_mini_imagenet_are_split_alike(tmp_path, monkeypatch):
    mini_folders(tmp_path/"folders", monkeypatch), mini_csv(tmp_path/"lists", monkeypatch)
    one, two = (_load_dataset("mini_imagenet", tmp_path/form) for form in ("folders", "lists"))
    assert sizes(two) == [400, 100, 100] and one.classes[7:8] == ("jellyfish",)
    for split in ImageSet.SPLITS: assert {Path(path).name for path in one.images(split)} == {Path(path).name for path in two.images(split)}

def test_mini_imagenet_in_folders_of_splits(tmp_path, monkeypatch):
    mini_folders(tmp_path, monkeypatch)
    root = tmp_path/"mini-imagenet"
    for split in ("train", "val"): (root/split).mkdir()
    for w, wnid in enumerate(classes_of("mini_imagenet")): (root/wnid).rename(root/("train" if w < 64 else "val")/wnid)
    assert sizes(_load_dataset("mini_imagenet", tmp_path)) == [400, 100, 100]

def test_split_does_not_depend_on_the_place(tmp_path, monkeypatch):
    for place in ("here", "there"): pets(tmp_path/place, monkeypatch)
    lists = [split_lists(_load_dataset("pets", tmp_path/place, "paper_sizes"), tmp_path/place) for place in ("here", "there")]
    assert lists[0].equals(lists[1]) and list(lists[0]) == ["path", "class", "split"]
    assert lists[0].path.str.startswith("oxford-iiit-pet/images/").all()

@real_eurosat
def test_real_eurosat():
    images = datasets.load("eurosat", SHARED)
    assert sizes(images) == [840, 240, 120] and images.notes[0] == "1,200 of 27,000 images"
    assert images.labels("val").bincount().tolist() == [24]*10
    assert "sea or lake" in images.classes and known()["eurosat"].needs(SHARED) == ""
    lists = split_lists(images, SHARED)
    assert re.fullmatch(r"eurosat/2750/\w+/\w+\.jpg", lists.path[0]) and lists.path.is_unique


# Names

def test_every_class_has_one_name():
    assert CLASSES.groupby("dataset").size()[list(NAMES)].tolist() == [200, 100, 10, 100, 37, 10, 101, 102, 47]
    assert not CLASSES.duplicated(["dataset", "class"]).any() and not CLASSES.duplicated(["dataset", "folder"]).any()
    assert not CLASSES["class"].str.contains(r"[_?]|^\s|\s$|^$").any()

def test_names_agree_with_torchvision():
    flat = lambda names: [name.lower().strip("?").replace("_", " ") for name in names]
    assert flat(classes_of("flowers102").values()) == flat(published.Flowers102.classes)
    assert list(classes_of("flowers102")) == [str(i) for i in range(1, 103)]
    for name in ("cifar10", "cifar100", "food101", "pets"):
        assert flat(classes_of(name).values()) == flat(classes_of(name))
        assert list(classes_of(name)) == sorted(classes_of(name), key=str.lower) or name.startswith("cifar")

def test_files_agree_with_torchvision():
    theirs = {published.CIFAR10.url: published.CIFAR10.tgz_md5, published.CIFAR100.url: published.CIFAR100.tgz_md5, published.Food101._URL: published.Food101._MD5,
              published.DTD._URL: published.DTD._MD5, **dict(published.OxfordIIITPet._RESOURCES),
              **{published.Flowers102._download_url_prefix + file: md5 for file, md5 in published.Flowers102._file_dict.values()}}
    ours = dict(zip(_FILES.url, _FILES.md5))
    assert {url: ours.get(url) for url in theirs} == theirs
    assert sorted(_FILES.dataset[~_FILES.url.isin(theirs)]) == ["cub", "eurosat"]

@peers
def test_names_agree_with_published_descriptions():
    told = lambda file: list(json.loads((SHARED/"peers"/file).read_text()))
    letters = lambda names: [re.sub(r"[^a-z]", "", name.lower()) for name in names]
    assert letters(classes_of("food101").values()) == letters(told("waffleclip/descriptors_food101.json"))
    assert list(classes_of("dtd").values()) == told("waffleclip/descriptors_dtd.json")
    names = json.loads((SHARED/"peers"/"clip_benchmark"/"en_classnames.json").read_text())
    assert list(classes_of("pets").values()) == names["pets"]
    differ = [(ours, theirs) for ours, theirs in zip(classes_of("flowers102").values(), names["flowers"]) if letters([ours]) != letters([theirs])]
    assert differ == [("pink-yellow dahlia", "pink and yellow dahlia"), ("ball moss", "air plant")]
    birds = [re.sub(r"^\d+\.", "", folder) for folder in classes_of("cub")]
    assert letters(birds) == letters(told("waffleclip/descriptors_cub.json"))
    without_s = lambda name: re.sub(r"('?s)+(?=$| )", "", name.lower().replace("-", " "))
    differ = {name for name, theirs in zip(classes_of("cub").values(), told("waffleclip/descriptors_cub.json")) if without_s(name) != without_s(theirs)}
    assert differ == {"Arctic Tern"}   # which CUB and those who copied from it spell "Artic"


# What is missing or damaged

@pytest.mark.parametrize("name", NAMES)
def test_nothing_there(tmp_path, name):
    with pytest.raises(_Incomplete, match=rf"{re.escape(known()[name].title)} is not complete: '.*{re.escape(known()[name].layout[0])}' is missing"): _load_dataset(name, tmp_path)
    assert str(tmp_path) in known()[name].needs(tmp_path)
    assert (_FILES.dataset == name).any() == ("--download fetches them" in known()[name].needs(tmp_path))

@pytest.mark.parametrize("name, pattern", [("cub", "CUB_200_2011/images/001*/*"), ("pets", "oxford-iiit-pet/images/*.jpg"), ("food101", "food-101/images/waffles/*"),
                                           ("flowers102", "flowers-102/jpg/*"), ("dtd", "dtd/dtd/images/banded/*")])
def test_missing_images_are_named(tmp_path, monkeypatch, name, pattern):
    TREES[name](tmp_path, monkeypatch)
    gone = sorted(tmp_path.glob(pattern))[2:4]
    for path in gone: path.unlink()
    with pytest.raises(_Incomplete, match="and 1 more of") as error: _load_dataset(name, tmp_path)
    assert any(str(path) in str(error.value) for path in gone) and "download=True" in str(error.value) and "http" in str(error.value)

@pytest.mark.parametrize("name, file", [("cifar10", "cifar-10-batches-py/data_batch_4"), ("cifar100", "cifar-100-python/meta"), ("flowers102", "flowers-102/setid.mat")])
def test_files_of_another_content_are_named(tmp_path, monkeypatch, name, file):
    TREES[name](tmp_path, monkeypatch)
    with open(tmp_path/file, "ab") as end: end.write(b"x")
    with pytest.raises(_Incomplete, match=f"is damaged: '{re.escape(str(tmp_path/file))}' is not the file"): _load_dataset(name, tmp_path)

@pytest.mark.parametrize("name, file", [("food101", "food-101/meta/train.json"), ("pets", "oxford-iiit-pet/annotations/trainval.txt"), ("cub", "CUB_200_2011/image_class_labels.txt")])
def test_lists_that_were_cut_off(tmp_path, monkeypatch, name, file):
    TREES[name](tmp_path, monkeypatch)
    text = (tmp_path/file).read_text()
    (tmp_path/file).write_text(text[:text.rindex("\n", 0, -20) + 3] if "\n" in text else text[:-9])
    with pytest.raises(_Incomplete, match="is damaged"): _load_dataset(name, tmp_path)

def test_truncated_image(tmp_path, monkeypatch):
    pets(tmp_path, monkeypatch)
    path = tmp_path/"oxford-iiit-pet"/"images"/"Abyssinian_3.jpg"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="Abyssinian_3.jpg"): _load_dataset("pets", tmp_path)
    images = datasets.load("pets", tmp_path, bad_images="skip")
    assert len(images) == 29 and "Abyssinian_3.jpg" in images.skipped[0]

def test_unknown_class_folder(tmp_path, monkeypatch):
    eurosat(tmp_path, monkeypatch)
    plain(tmp_path/"eurosat"/"2750"/"Desert"/"Desert_1.jpg", 1)
    with pytest.raises(ValueError, match="EuroSAT has no class 'Desert'"): _load_dataset("eurosat", tmp_path)

def test_wrong_names():
    with pytest.raises(ValueError, match="No published dataset 'cubs': expected one of cub, mini_imagenet"): _load_dataset("cubs")
    with pytest.raises(FileNotFoundError, match="No dataset 'cubs': .*wds:SHARDS, or one of cub"): datasets.load("cubs")

def test_data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("DATADESC_STORE", str(tmp_path/"store"))
    monkeypatch.delenv("DATADESC_DATA", raising=False)
    assert datasets.data_folder() == tmp_path/"store"/"data"
    monkeypatch.setenv("DATADESC_DATA", str(tmp_path/"kept"))
    assert datasets.data_folder() == tmp_path/"kept" and datasets.data_folder("x") == Path("x")


# Fetching

class Mirror(BaseHTTPRequestHandler):
    "Serves `server.files` with ranges; `server.cuts` gives after how many bytes each answer breaks off"
    def log_message(self, *_): pass
    def do_GET(self):
        content = self.server.files.get(self.path.rsplit("/")[-1])
        asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        self.server.asked.append(int(asked[1]) if asked else 0)
        if self.server.errors: return self.send_error(self.server.errors.pop(0))
        if content is None: return self.send_error(404)
        start = int(asked[1]) if asked and self.server.ranges else 0
        if start >= len(content): return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", len(content) - start)
        self.send_header("Content-Encoding", "x-gzip")   # as some servers say of .tgz: it must not be unpacked on the way
        self.end_headers()
        self.wfile.write(content[start:start + (self.server.cuts.pop(0) if self.server.cuts else len(content))])

@pytest.fixture
def mirror(monkeypatch):
    "A server on this machine, which is asked for all files that are fetched"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    server.files, server.cuts, server.errors, server.asked, server.ranges = {}, [], [], [], True
    threading.Thread(target=server.serve_forever, args=(.01,), daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(datasets, "_fetch_file", lambda *args, fetch=datasets._fetch_file, **options: fetch(*args, pause=.01, **options))
    yield server
    server.shutdown()

def serve(server, patch, name, tree):
    "Put the dataset's archives, made from its small copy, on the server"
    table = datasets._FILES.copy()
    for place, row in table[table.dataset == name].iterrows():
        file, packed = row.url.rsplit("/")[-1], io.BytesIO()
        if file.endswith(".zip"):
            with zipfile.ZipFile(packed, "w") as archive:
                for path in sorted((tree/row.path).rglob("*.*")): archive.write(path, path.relative_to((tree/row.path).parent))
        elif file.endswith("gz"):
            with tarfile.open(fileobj=packed, mode="w:gz") as archive: archive.add(tree/row.path, Path(row.path).name)
        else: packed = io.BytesIO((tree/row.path).read_bytes())
        server.files[file] = packed.getvalue()
        table.loc[place, "url"] = f"{server.url}/{file}"
        (tree/"archive").write_bytes(packed.getvalue())
        table.loc[place, "md5"] = _md5_of(tree/"archive")
    patch.setattr(datasets, "_FILES", table)

@pytest.mark.parametrize("name", [name for name in NAMES if name != "mini_imagenet"])
def test_download(tmp_path, monkeypatch, mirror, name):
    TREES[name](tmp_path/"made", monkeypatch)
    serve(mirror, monkeypatch, name, tmp_path/"made")
    images = _load_dataset(name, tmp_path/"fetched", download=True)
    assert images.fingerprint == _load_dataset(name, tmp_path/"made").fingerprint
    left = {path.name for path in (tmp_path/"fetched").rglob("*") if path.suffix in (".tgz", ".gz", ".zip", ".part", ".unpacking")}
    assert not left and len(mirror.asked) == len(mirror.files)
    _load_dataset(name, tmp_path/"fetched", download=True)
    assert len(mirror.asked) == len(mirror.files)   # what is there is not fetched again

def test_download_repairs_what_is_half_there(tmp_path, monkeypatch, mirror):
    pets(tmp_path/"made", monkeypatch), pets(tmp_path/"half", monkeypatch)
    serve(mirror, monkeypatch, "pets", tmp_path/"made")
    for path in list((tmp_path/"half"/"oxford-iiit-pet"/"images").glob("*.jpg"))[:7]: path.unlink()
    assert len(_load_dataset("pets", tmp_path/"half", download=True)) == 30

def test_mini_imagenet_cannot_be_fetched(tmp_path):
    with pytest.raises(_Incomplete, match="image-net.org"): _load_dataset("mini_imagenet", tmp_path, download=True)

def test_fetching_goes_on_where_it_stopped(tmp_path, mirror):
    mirror.files["big.bin"], mirror.cuts = bytes(range(256))*4000, [300_000, 300_000]
    (tmp_path/"whole").write_bytes(mirror.files["big.bin"])
    path = datasets._fetch_file(f"{mirror.url}/big.bin", tmp_path/"big.bin", _md5_of(tmp_path/"whole"), progress=False)
    assert path.read_bytes() == mirror.files["big.bin"] and len(mirror.asked) == 3 and mirror.asked[0] == 0 < mirror.asked[1] < mirror.asked[2]

def test_server_without_ranges(tmp_path, mirror):
    mirror.files["big.bin"], mirror.cuts, mirror.ranges = bytes(range(256))*400, [30_000], False
    (tmp_path/"whole").write_bytes(mirror.files["big.bin"])
    datasets._fetch_file(f"{mirror.url}/big.bin", tmp_path/"big.bin", _md5_of(tmp_path/"whole"), progress=False)
    assert (tmp_path/"big.bin").read_bytes() == mirror.files["big.bin"]

def test_busy_server_is_asked_again(tmp_path, mirror):
    mirror.files["a.bin"], mirror.errors = b"a", [503, 429]
    (tmp_path/"whole").write_bytes(b"a")
    datasets._fetch_file(f"{mirror.url}/a.bin", tmp_path/"a.bin", _md5_of(tmp_path/"whole"), progress=False)
    assert len(mirror.asked) == 3

def test_what_cannot_be_fetched(tmp_path, mirror):
    with pytest.raises(ConnectionError, match=r"Cannot fetch .*none.bin: .*404.*put it at '.*none.bin'"): datasets._fetch_file(f"{mirror.url}/none.bin", tmp_path/"none.bin", "0")
    assert len(mirror.asked) == 1
    with pytest.raises(ConnectionError, match="Cannot fetch http://127.0.0.1:9/a.bin"): datasets._fetch_file("http://127.0.0.1:9/a.bin", tmp_path/"a.bin", "0")

def test_another_digest(tmp_path, mirror):
    mirror.files["a.bin"] = b"not it"
    with pytest.raises(ValueError, match="MD5 is .*, expected 0000"): datasets._fetch_file(f"{mirror.url}/a.bin", tmp_path/"a.bin", "0"*32, progress=False)
    assert not any(tmp_path.iterdir())

def test_an_archive_that_was_brought_is_used_and_stays(tmp_path, monkeypatch, mirror):
    dtd(tmp_path/"made", monkeypatch)
    serve(mirror, monkeypatch, "dtd", tmp_path/"made")
    archive = tmp_path/"root"/"dtd"/"dtd-r1.0.1.tar.gz"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(mirror.files[archive.name])
    assert len(_load_dataset("dtd", tmp_path/"root", download=True)) == 18 and archive.exists() and not mirror.asked

def test_a_complete_dataset_in_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    dtd(tmp_path, monkeypatch)
    monkeypatch.setattr(datasets, "writable_folder", lambda folder: pytest.fail("nothing is to be written"))
    assert len(_load_dataset("dtd", tmp_path, download=True)) == 18

def test_two_processes_fetch_once(tmp_path, monkeypatch, mirror):
    dtd(tmp_path/"made", monkeypatch)
    serve(mirror, monkeypatch, "dtd", tmp_path/"made")
    with ThreadPoolExecutor(3) as pool: found = list(pool.map(lambda _: len(_load_dataset("dtd", tmp_path/"root", download=True)), range(3)))
    assert found == [18]*3 and len(mirror.asked) == 1


# Unpacking

def archive_of(path, names, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 5
            tar.addfile(entry, io.BytesIO(b"hello"))
    return path

@pytest.mark.parametrize("name", ["../evil.txt", "photos/../../evil.txt"])
def test_tar_that_reaches_out(tmp_path, name):
    (tmp_path/"in").mkdir()
    with pytest.raises(ValueError, match=f"'{name}' is not allowed in an archive of data"): datasets._unpack(archive_of(tmp_path/"a.tgz", ["photos/1.jpg", name]), tmp_path/"in"/"photos")
    assert not list(tmp_path.rglob("evil.txt")) and not any((tmp_path/"in").iterdir())

def test_tar_with_a_whole_path(tmp_path):
    "The data filter takes the leading slash off, so the file stays inside"
    datasets._unpack(archive_of(tmp_path/"a.tgz", ["photos/1.jpg", "/evil.txt"]), tmp_path/"photos")
    assert not Path("/evil.txt").exists() and sorted(path.name for path in tmp_path.iterdir()) == ["a.tgz", "photos"]

def test_tar_with_a_link_that_reaches_out(tmp_path):
    with tarfile.open(tmp_path/"a.tgz", "w:gz") as tar:
        entry = tarfile.TarInfo("photos/link")
        entry.type, entry.linkname = tarfile.SYMTYPE, "../../../etc"
        tar.addfile(entry)
    with pytest.raises(ValueError, match="'photos/link' is not allowed"): datasets._unpack(tmp_path/"a.tgz", tmp_path/"photos")

@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "photos/../../evil.txt"])
def test_zip_that_reaches_out(tmp_path, name):
    (tmp_path/"in").mkdir()
    with zipfile.ZipFile(tmp_path/"a.zip", "w") as packed:
        packed.writestr("photos/1.jpg", "x"), packed.writestr(name, "x")
    with pytest.raises(ValueError, match="is not allowed in an archive of data"): datasets._unpack(tmp_path/"a.zip", tmp_path/"in"/"photos")
    assert not list(tmp_path.rglob("evil.txt")) and not any((tmp_path/"in").iterdir())

@pytest.mark.parametrize("suffix", ["tgz", "zip", "tar"])
def test_truncated_archives_leave_nothing(tmp_path, suffix):
    path, content = tmp_path/f"a.{suffix}", os.urandom(20_000)
    if suffix == "zip":
        with zipfile.ZipFile(path, "w") as packed: packed.writestr("photos/1.jpg", content)
    else:
        with tarfile.open(path, "w:gz" if suffix == "tgz" else "w") as tar:
            entry = tarfile.TarInfo("photos/1.jpg")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ValueError, match=f"Cannot unpack '.*a.{suffix}'"): datasets._unpack(path, tmp_path/"photos")
    assert {file.name for file in tmp_path.iterdir()} == {path.name}

def test_another_archive(tmp_path):
    with pytest.raises(ValueError, match="holds no folder 'photos'"): datasets._unpack(archive_of(tmp_path/"a.tgz", ["birds/1.jpg"]), tmp_path/"photos")

def test_old_folder_is_replaced_as_a_whole(tmp_path):
    plain(tmp_path/"photos"/"old.jpg", 1)
    datasets._unpack(archive_of(tmp_path/"a.tgz", ["photos/1.jpg", "photos/2.jpg"]), tmp_path/"photos")
    assert sorted(path.name for path in (tmp_path/"photos").iterdir()) == ["1.jpg", "2.jpg"]

def test_killed_while_unpacking(tmp_path):
    "A process that is killed leaves no folder of the dataset's name; the next one clears up and gets through"
    archive = archive_of(tmp_path/"a.tgz", [f"photos/{i}.jpg" for i in range(1500)])
    code = f"from datadesc import datasets; print('ready', flush=True); datasets._unpack({str(archive)!r}, {str(tmp_path/'photos')!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    fresh = tmp_path/".a.tgz.unpacking"
    while process.poll() is None and not (fresh/"photos").exists(): time.sleep(.001)
    process.send_signal(signal.SIGKILL), process.wait()
    assert fresh.exists() and not (tmp_path/"photos").exists()
    datasets._unpack(archive, tmp_path/"photos")
    assert len(list((tmp_path/"photos").iterdir())) == 1500 and not fresh.exists()


# Hugging Face

hf = pytest.importorskip("datasets", reason="needs the library datasets, an extra")
assert hf.__name__ == "datasets" and hf.disable_progress_bars() is None

@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path/"hf_cache")

def jpeg(number, size=(8, 8)):
    file = io.BytesIO()
    Image.new("RGB", size, (number*53 % 256, number*101 % 256, number*197 % 256)).save(file, "jpeg")
    return file.getvalue()

def rows(n=20, labels=(0, 1)): return {"image": [{"bytes": jpeg(i), "path": None} for i in range(n)], "label": [labels[i % len(labels)] for i in range(n)]}

def features(label=None): return hf.Features({"image": hf.Image(), "label": label or hf.ClassLabel(names=["zebra", "ape"])})

def test_parquet(tmp_path):
    for split, n in (("train", 20), ("validation", 4), ("test", 6)): hf.Dataset.from_dict(rows(n), features()).to_parquet(tmp_path/"animals"/f"{split}-00000-of-00001.parquet")
    images = datasets.load(f"hf:{tmp_path}/animals", superclass="animal")
    assert (images.name, images.classes, images.superclass, sizes(images)) == ("animals", ("zebra", "ape"), "animal", [20, 4, 6])
    assert str(images.images("train")[3]) == "hf:animals/train/3"
    assert np.array_equal(np.asarray(open_image(images.images("train")[3])), np.asarray(Image.open(io.BytesIO(jpeg(3)))))

def test_image_folder_is_the_same_dataset(tmp_path):
    for split, n in (("train", 8), ("test", 2)):
        for name in ("ape", "zebra"):
            for i in range(n): plain(tmp_path/"animals"/split/name/f"{i}.png", i + 10*n)
    one, two = datasets.load(f"hf:{tmp_path}/animals"), datasets.load(tmp_path/"animals")
    assert one.fingerprint == two.fingerprint and sizes(one) == [12, 4, 4]

def test_saved_to_disk(tmp_path):
    hf.DatasetDict({"train": hf.Dataset.from_dict(rows(), features()), "test": hf.Dataset.from_dict(rows(6), features())}).save_to_disk(tmp_path/"both")
    hf.Dataset.from_dict(rows(), features()).save_to_disk(tmp_path/"one")
    assert sizes(datasets.load(f"hf:{tmp_path}/both")) == [16, 4, 6] and sizes(datasets.load(f"hf:{tmp_path}/one")) == [12, 4, 4]

def test_labels_that_are_words_or_missing(tmp_path):
    words = hf.Dataset.from_dict(rows(20, ("ape", "zebra")), features(hf.Value("string")))
    words.to_parquet(tmp_path/"words"/"train.parquet")
    assert datasets.load(f"hf:{tmp_path}/words").classes == ("ape", "zebra")
    for split, labels in (("train", (0, 1)), ("test", (0, 1, -1)), ("unsupervised", (-1,))): hf.Dataset.from_dict(rows(12, labels), features()).to_parquet(tmp_path/"some"/f"{split}.parquet")
    images = datasets.load(f"hf:{tmp_path}/some")
    assert len(images.images("test")) == 8 and "4 images of split 'test': their class is not given" in images.skipped

def test_splits_of_other_names(tmp_path):
    parts = {split: hf.Dataset.from_dict(rows(12), features()) for split in ("train", "test", "extra")}
    hf.DatasetDict(parts).save_to_disk(tmp_path/"parts")
    images = datasets.load(f"hf:{tmp_path}/parts")
    assert sizes(images) == [10, 2, 12] and images.skipped == ("split 'extra': not called like train, val or test",)
    hf.DatasetDict({"full": parts["extra"]}).save_to_disk(tmp_path/"full")
    assert sum(sizes(datasets.load(f"hf:{tmp_path}/full"))) == 12

def test_two_columns_of_classes(tmp_path):
    both = hf.Features({"img": hf.Image(), "fine": hf.ClassLabel(names=["ape", "asp"]), "coarse": hf.ClassLabel(names=["animal", "plant"])})
    table = rows()
    hf.Dataset.from_dict({"img": table["image"], "fine": table["label"], "coarse": table["label"]}, both).to_parquet(tmp_path/"two"/"train.parquet")
    with pytest.raises(ValueError, match=r"Which column is the label\? There are img, fine, coarse: .*hf:NAME\?label=fine"): datasets.load(f"hf:{tmp_path}/two")
    with pytest.raises(ValueError, match="Which column is the label"): datasets.load(f"hf:{tmp_path}/two?label=fin")
    assert datasets.load(f"hf:{tmp_path}/two?label=coarse&image=img").classes == ("animal", "plant")

def test_unreadable_row(tmp_path):
    table = rows()
    table["image"][3] = {"bytes": jpeg(3)[:300], "path": None}
    hf.Dataset.from_dict(table, features()).to_parquet(tmp_path/"bad"/"train.parquet")
    with pytest.raises(ValueError, match="hf:bad/train/3"): datasets.load(f"hf:{tmp_path}/bad")
    assert datasets.load(f"hf:{tmp_path}/bad", bad_images="skip").skipped[0].startswith("hf:bad/train/3: ")

def test_folder_called_like_a_reader(tmp_path, monkeypatch):
    hf.Dataset.from_dict(rows(), features()).to_parquet(tmp_path/"parquet"/"train.parquet")
    monkeypatch.chdir(tmp_path)
    assert len(datasets.load("hf:parquet")) == 20

def test_no_hub(monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"): monkeypatch.delenv(name, raising=False)
    with pytest.raises(FileNotFoundError, match="Cannot open hf:no/such: .*a network, the first time"): datasets.load("hf:no/such")

@pytest.mark.parametrize("library, address, extra", [("datasets", "hf:x", "datasets"), ("webdataset.shardlists", "wds:x.tar", "webdataset")])
def test_without_the_extra(monkeypatch, library, address, extra):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=f"pip install {extra}"): datasets.load(address)


# WebDataset

def shard(path, samples, mode="w"):
    "A tar file of (name, {kind: bytes})"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, kinds in samples:
            for kind, content in kinds.items():
                entry = tarfile.TarInfo(f"{name}.{kind}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return path

def pairs(n, start=0, names=None): return [(f"s{start + i:07}", {"cls": (names[i % 2] if names else str(i % 2)).encode(), "jpg": jpeg(start + i)}) for i in range(n)]

def test_shards_with_splits_and_names(tmp_path):
    for s in range(3): shard(tmp_path/"zoo"/"train"/f"{s}.tar", pairs(8, 10*s))
    shard(tmp_path/"zoo"/"test"/"0.tar", pairs(6, 50))
    write(tmp_path/"zoo"/"classnames.txt", "zebra\nape\n")
    for address in (f"wds:{tmp_path}/zoo", f"wds:{tmp_path}/zoo/{{train/{{0..2}},test/0}}.tar", f"wds:{tmp_path}/zoo/*/*.tar"):
        images = datasets.load(address, superclass="animal")
        assert sizes(images)[1:] == [4, 6] and len(images) == 30 and set(images.classes) == {"ape", "zebra"} and images.superclass == "animal"
    pixels = np.asarray(open_image(next(image for image in images.images("train") + images.images("val") if image.name.endswith("train/1.tar/s0000013"))))
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(jpeg(13)))))

def test_shards_with_words_and_no_splits(tmp_path):
    for s in range(2): shard(tmp_path/"zoo"/f"zoo-{s:03}.tar", pairs(10, 10*s, ("ape", "zebra")) + [("note", {"txt": b"x"})])
    images = datasets.load(f"wds:{tmp_path}/zoo/zoo-{{000..001}}.tar")
    assert (images.name, images.classes, sizes(images)) == ("zoo", ("ape", "zebra"), [12, 4, 4]) and "1 samples without" in images.skipped[0]

def test_wrong_shards(tmp_path):
    shard(tmp_path/"n"/"0.tar", pairs(4))
    with pytest.raises(ValueError, match="s0000000.cls.* is the number 0, and no classnames.txt"): datasets.load(f"wds:{tmp_path}/n/0.tar")
    write(tmp_path/"n"/"classnames.txt", "zebra\n")
    with pytest.raises(ValueError, match="is the number 1, .*found 1 lines"): datasets.load(f"wds:{tmp_path}/n/0.tar")
    shard(tmp_path/"z"/"0.tar", pairs(4, names=("a", "b")), "w:gz")
    with pytest.raises(ValueError, match="not compressed"): datasets.load(f"wds:{tmp_path}/z/0.tar")
    shard(tmp_path/"e"/"0.tar", [("a", {"txt": b"x"})])
    with pytest.raises(ValueError, match="No image in"): datasets.load(f"wds:{tmp_path}/e/0.tar")
    with pytest.raises(FileNotFoundError, match="No shard 'pipe:cat x'"): datasets.load("wds:pipe:cat x")

def test_shard_that_was_cut_off(tmp_path):
    path = shard(tmp_path/"zoo"/"0.tar", pairs(20, names=("a", "b")))
    path.write_bytes(path.read_bytes()[:15_000])
    with pytest.raises(ValueError, match="0.tar"): datasets.load(f"wds:{tmp_path}/zoo/0.tar")


# Memory and threads

def noise(seed, side=256):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)).save(file, "jpeg", quality=95)
    return file.getvalue()

@pytest.mark.parametrize("kind", ["hf", "wds"])
def test_memory_stays_flat(tmp_path, kind):
    "The bytes held while a set is opened, keyed and embedded do not grow with it: 160 images, 100 kB each as files and 200 kB as pixels"
    n, pictures = 160, [noise(i) for i in range(8)]
    if kind == "hf": hf.Dataset.from_dict({"image": [{"bytes": pictures[i % 8], "path": None} for i in range(n)], "label": [i % 2 for i in range(n)]}, features()).to_parquet(tmp_path/"set"/"train.parquet")
    else: shard(tmp_path/"set"/"0.tar", [(f"{i:05}", {"jpg": pictures[i % 8], "cls": b"ab"[i % 2:i % 2 + 1]}) for i in range(n)])
    place = f"{kind}:{tmp_path}/set"
    datasets.load(place)
    tracemalloc.start()
    try:
        images = datasets.load(place)
        images.fingerprint
        for split in ImageSet.SPLITS:
            for image in images.images(split): open_image(image)
        held, most = tracemalloc.get_traced_memory()
    finally: tracemalloc.stop()
    total = n*len(pictures[0])
    assert total > 10e6 and most < total/3 and held < total/20, (held, most, total)

@pytest.mark.parametrize("kind", ["hf", "wds"])
def test_images_are_read_by_many_threads(tmp_path, kind):
    n = 200
    if kind == "hf": hf.Dataset.from_dict(rows(n), features()).to_parquet(tmp_path/"set"/"train.parquet")
    else: shard(tmp_path/"set"/"0.tar", pairs(n, names=("a", "b")))
    images = [image for split, samples in datasets.load(f"{kind}:{tmp_path}/set").samples.items() for image, _ in samples]
    number = lambda image: int(re.search(r"(\d+)$", image.name)[1])
    with ThreadPoolExecutor(8) as pool: read = list(pool.map(lambda image: image.read(), images*3))
    assert all(content == jpeg(number(image)) for image, content in zip(images*3, read))
    assert pickle.loads(pickle.dumps(images[0])).read() == images[0].read()
