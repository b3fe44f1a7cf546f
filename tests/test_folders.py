"""Layouts as people have them: splits by any name, folders in folders, what systems leave behind, every format; and lists."""
import os
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datadesc import data, datasets, folders
from datadesc.folders import MARK, Listing, _split_named, image_formats, look, read_images


def png(number=0, size=(8, 6)):
    "The bytes of a plain picture; another number, another picture"
    file = BytesIO()
    Image.new("RGB", size, (number*53 % 256, number*101 % 256, number*197 % 256)).save(file, "png")
    return file.getvalue()

def lay(root, *paths, content=None):
    "A picture at each path below the root; a path that ends in / is an empty folder"
    for number, path in enumerate(paths):
        (root/path if path.endswith("/") else (root/path).parent).mkdir(parents=True, exist_ok=True)
        if not path.endswith("/"): (root/path).write_bytes(png(number) if content is None else content)
    return root

def each(pattern, n=1, **values):
    "The paths of a pattern for all values of its braces, `n` pictures each"
    paths = [pattern]
    for key, names in values.items(): paths = [path.replace(f"{{{key}}}", name) for path in paths for name in names.split()]
    return [f"{path}/{i}.png" for path in paths for i in range(n)]

def summary(listing): return sorted({(split, label) for _, label, split in listing.rows})


# Names of splits

@pytest.mark.parametrize("name, split", [
    *((name, "train") for name in ("train", "Training", "TRAIN", "trn", "seg_train", "train_set", "trainset", "train2017", "train-images", "images_train", "TrainImages", "trainval", "train_val")),
    *((name, "val") for name in ("val", "valid", "validation", "Validation", "dev", "eval", "evaluation", "val2017", "valid_set", "images-val")),
    *((name, "test") for name in ("test", "testing", "Testing", "tst", "images_test", "test_set1", "seg_test")),
    *((name, "") for name in ("cat", "trains", "trainers", "contest", "latest", "value", "train_test_split", "devil", "unlabeled", "")),
])
def test_names_of_splits(name, split): assert _split_named(name) == split

@pytest.mark.parametrize("names, splits", [
    ("train dev test", "train val test"), ("train val dev", "train val "), ("train val eval", "train val test"), ("train dev eval", "train val test"),
    ("train eval test", "train val test"), ("train val test eval", "train val test "), ("train train_small test", "train  test"), ("train training", "train train"),
])
def test_names_of_splits_together(names, splits): assert list(Listing.split_names(names.split()).values()) == splits.split(" ")


# Layouts

BOTH = [("test", "cat"), ("test", "dog"), ("train", "cat"), ("train", "dog")]

@pytest.mark.parametrize("paths, expected, says", [
    (each("{s}/{c}", s="Training Testing", c="cat dog"), BOTH, []),
    (each("{s}/{c}", s="training validation", c="cat dog"), [("train", "cat"), ("train", "dog"), ("val", "cat"), ("val", "dog")], []),
    (each("seg_{s}/seg_{s}/{c}", s="train", c="cat dog") + each("seg_{s}/seg_{s}/{c}", s="test", c="cat dog"), BOTH, ["gone through: seg_test/seg_test, seg_train/seg_train"]),
    (each("{s}/images/{c}", s="train test", c="cat dog"), BOTH, ["gone through: test/images, train/images"]),
    (each("train/train/{c}", c="cat dog") + each("test/{c}", c="cat dog"), BOTH, ["gone through: train/train."]),
    (each("archive/{s}/{c}", s="train test", c="cat dog"), BOTH, ["in the folder 'archive'"]),
    (each("a/b/c/{c}", c="cat dog"), [("", "cat"), ("", "dog")], ["in the folder 'a/b/c', which"]),
    (each("images_{s}/{c}", s="train test", c="cat dog") + ["annotations/a.txt"], BOTH, ["1 folder without an image, left out: annotations"]),
    (each("{s}/{c}", s="seg_train seg_test", c="cat dog") + each("seg_pred", 3), BOTH, ["beside the splits (seg_test, seg_train): seg_pred (3 images)"]),
    (each("train/{c}", c="cat dog") + each("test", 5), BOTH[2:], ["the 5 images in 'test', since they lie in no class folder"]),
    (each("train/{c}", c="cat dog") + each("test/unknown", 5), BOTH[2:], ["none of its folders (unknown) is a class of the training images"]),
    (each("{c}/{s}", c="cat dog", s="train test"), BOTH, ["inside the folders of the classes"]),
    (each("{c}", c="bus train tram"), [("", "bus"), ("", "train"), ("", "tram")], []),
    (each("{c}", c="bus train tram") + each("train/old"), [("", "bus"), ("", "train"), ("", "tram")], ["deeper folders hold 1"]),
    (each("{c}/{t}", c="train_station bus_stop", t="day"), [("", "bus_stop"), ("", "train_station")], []),
    (each("{c}", c="covid_test_positive covid_test_negative"), [("", "covid_test_negative"), ("", "covid_test_positive")], []),
    (each("{c}/images", c="n01 n02"), [("", "n01"), ("", "n02")], []),
    (each("{s}/Fruit/{c}", s="train test", c="apple pear") + each("{s}/Vegetables/leek", s="train test"), [(s, c) for s in ("test", "train") for c in ("Fruit", "Vegetables")],
     ["2 classes: Fruit, Vegetables; deeper folders hold 3: -p class_level=deepest."]),
    (each("{c}", c="cat dog") + ["a.png", "b.png"], [("", "cat"), ("", "dog")], ["2 images beside the class folders"]),
    (each("{c}", c="cat dog") + ["eel/", "labels/a.txt"], [("", "cat"), ("", "dog")], ["2 folders without an image, left out: eel, labels"]),
    (each("{c}", c="001.cat 002.dog"), [("", "001.cat"), ("", "002.dog")], ["'cat' for '001.cat'"]),
], ids=["Testing", "training", "doubled", "split/images", "half doubled", "archive", "nested", "affixes", "seg_pred", "flat test", "unknown", "inside", "trains", "trains deep", "station", "covid",
        "tiny imagenet", "grocery", "mixed", "empty", "numbers"])
def test_layouts(tmp_path, paths, expected, says):
    listing = read_images(lay(tmp_path, *paths))
    assert summary(listing) == expected
    assert len(listing.notes) == len(says) and all(part in note for part, note in zip(says, listing.notes)), listing.notes

@pytest.mark.parametrize("paths, says", [
    (each("{t}/{c}", t="fresh rotten", c="apple pear"), r"\(fresh, rotten\) all hold the same folders \(apple, pear\).*class_level=top for fresh, rotten; .*=deepest for apple, pear.*=path for 'fresh/apple'"),
    (each("{t}/{c}", t="art photo sketch", c="cat dog eel") + each("art/gnu"), r"\(art, photo, sketch\) all hold the same folders \(cat, dog, eel\)"),
    (each("train/{t}/{c}", t="art photo", c="cat dog"), r"The folders in '.*train' \(art, photo\) all hold"),
    (each("{t}/{c}", t="train masks", c="cat dog"), r"\(masks, train\) all hold"),
    (each("{s}/{c}", s="train training", c="cat dog"), "2 folders for the split 'train': train, training. Keep one"),
    (each("{s}", s="train_images test_images"), r"No class folder in .*The 2 images there lie in no class folder; a CSV"),
    (["a.png", "b.png"], "No class folder in .*The 2 images there"),
    (["eel/", "labels/a.txt"], "No class folder in"),
    (each("cat") + ["eel/"], "Only one class in '.*', 'cat'.*1 folder without an image, left out: eel"),
    (["cat/a.eps", "dog/a.txt"], "No class folder in"),
], ids=["states", "domains", "split", "masks", "twice", "flat splits", "loose", "empty", "one", "no images"])
def test_layouts_that_cannot_be(tmp_path, paths, says):
    with pytest.raises(ValueError, match=says): read_images(lay(tmp_path, *paths))

def test_the_level_of_the_classes(tmp_path):
    lay(tmp_path, *each("{t}/{c}", t="fresh rotten", c="apple pear"))
    labels = lambda level: read_images(tmp_path, level).labels
    assert labels("top") == ["fresh", "rotten"] and labels("deepest") == ["apple", "pear"] and labels("path") == ["fresh/apple", "fresh/pear", "rotten/apple", "rotten/pear"]
    assert read_images(tmp_path, "deepest").notes == ["2 class names in more than one place, each read as one class: apple, pear."]
    with pytest.raises(ValueError, match="class_level is 'bottom': expected one of auto, top, deepest, path"): labels("bottom")
    lay(tmp_path, *each("{t}/{c}", 4, t="fresh rotten", c="apple pear"))
    assert datasets.load(tmp_path, class_level="deepest").classes == ("apple", "pear")

def test_deepest_folders_of_uneven_depth(tmp_path):
    lay(tmp_path, *each("{s}/Fruit/Apple/{c}", s="train test", c="Golden Pink"), *each("{s}/Fruit/Pear", s="train test"), *each("{s}/Vegetables/Leek", s="train test"))
    assert read_images(tmp_path, "deepest").labels == ["Golden", "Leek", "Pear", "Pink"]
    assert read_images(tmp_path, "path").labels == ["Fruit/Apple/Golden", "Fruit/Apple/Pink", "Fruit/Pear", "Vegetables/Leek"]

SYSTEM = ["__MACOSX", ".Spotlight-V100", "$RECYCLE.BIN", "System Volume Information", "lost+found", ".Trash-1000", "@eaDir", "#recycle", "@Recycle", "#snapshot", ".@__thumb", ".ipynb_checkpoints", "__pycache__", ".datadesc"]

def test_what_systems_leave_behind(tmp_path):
    lay(tmp_path, *each("train/{c}", c="cat dog"))
    clean = read_images(tmp_path)
    for name in SYSTEM: lay(tmp_path, f"{name}/eel/0.png", f"train/{name}/0.png", f"train/cat/{name}/0.png")
    lay(tmp_path, ".DS_Store", "train/._cat", "train/cat/._0.png", "train/cat/Thumbs.db", "train/dog/desktop.ini", "train/dog/Icon\r")
    assert read_images(tmp_path) == clean

def test_our_own_output_is_never_read(tmp_path):
    lay(tmp_path, *each("{c}", c="cat dog"), "papermill_runs/photos/figures/images.png", "results/figures/images.png", f"results/{MARK}", "cat/run/0.png", f"cat/run/{MARK}")
    assert summary(read_images(tmp_path)) == [("", "cat"), ("", "dog")] and len(read_images(tmp_path).rows) == 2
    assert len(read_images(lay(tmp_path/"other", "cat/0.png", "dog/papermill_runs/0.png")).rows) == 2

def test_links_that_lead_up(tmp_path):
    lay(tmp_path/"pets", *each("{c}", c="cat dog"))
    lay(tmp_path, "beside/0.png")
    os.symlink(tmp_path/"pets", tmp_path/"pets"/"cat"/"up")
    os.symlink(tmp_path, tmp_path/"pets"/"dog"/"further_up")
    assert len(read_images(tmp_path/"pets").rows) == 2

def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    lay(tmp_path, *each("{c}", c="cat dog"))
    def scandir(path, scandir=os.scandir):
        if Path(path).name == "dog": raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ValueError, match=r"Cannot look into the folder '.*dog': you may not read it. Change that \(chmod u\+rx\)"): read_images(tmp_path)

@pytest.mark.skipif(sys.platform != "linux", reason="other systems know no such names")
def test_names_that_are_no_utf8(tmp_path):
    for folder in (b"caf\xe9", b"dog"):
        os.makedirs(os.path.join(os.fsencode(tmp_path), folder))
        for i in range(3):
            with open(os.path.join(os.fsencode(tmp_path), folder, b"b\xe4r%d.png" % i), "wb") as file: file.write(png(i + len(folder)))
    lay(tmp_path, "dog/notes.txt")
    images = data.ImageSet.from_files(tmp_path)
    assert images.classes == ("caf\\xe9", "dog") and len(images) == 6 and images.fingerprint
    assert data.open_image(images.images("val")[0]).size == (8, 6)
    for line in look(tmp_path): line.encode()
    from datadesc.datasets import split_lists
    split_lists(images, tmp_path).to_csv(tmp_path/"lists.csv")
    with open(os.path.join(os.fsencode(tmp_path), b"dog", b"b\xe4d.png"), "wb"): pass
    with pytest.raises(ValueError, match=r"dog/b\\xe4d.png: the file is empty") as error: data.ImageSet.from_files(tmp_path)
    str(error.value).encode()
    "".join(data.ImageSet.from_files(tmp_path, bad_images="skip").skipped).encode()

def test_one_form_of_unicode(tmp_path):
    lay(tmp_path, "Cafe\u0301/0.png", "Café/1.png", "bar/0.png")
    assert read_images(tmp_path).labels == ["Café", "bar"] and len(read_images(tmp_path).rows) == 3


# Formats

@pytest.mark.parametrize("name, kind", [("a.jfif", "jpeg"), ("a.jpe", "jpeg"), ("a.JPEG", "jpeg"), ("a.avif", "avif"), ("a.tga", "tga"), ("a.jp2", "jpeg2000"), ("a.webp", "webp"), ("a.ppm", "ppm"), ("a.pcx", "pcx"),
                                        ("a.qoi", "qoi"), ("a.ico", "ico"), ("a.jpg", "png"), ("a", "jpeg"), ("a", "png")])
def test_whatever_pillow_opens_is_an_image(tmp_path, name, kind):
    if kind.upper() not in image_formats()[0]: pytest.skip(f"this Pillow cannot read {kind}")
    lay(tmp_path, "cat/", "dog/0.png")
    Image.new("RGB", (16, 16), (200, 30, 30)).save(tmp_path/"cat"/name, kind)
    listing = read_images(tmp_path)
    assert listing.labels == ["cat", "dog"] and not listing.left_out
    assert data.open_image(tmp_path/"cat"/name).size == (16, 16)

@pytest.mark.parametrize("name", ["a.txt", "a.eps", "a.ps", "a.pdf", "a.wmf", "a.h5", "a.mpg", "a.mp4", "README"])
def test_what_is_no_image(tmp_path, name):
    lay(tmp_path, *each("{c}", c="cat dog"))
    (tmp_path/"cat"/name).write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    listing = read_images(tmp_path)
    assert listing.left_out == [f"{tmp_path}/cat/{name}: not an image"] and len(listing.rows) == 2

def test_a_program_is_not_opened_as_an_image(tmp_path):
    lay(tmp_path, "a.png", content=b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match="it is not an image"): data.open_image(tmp_path/"a.png")

def test_plugins_are_used_where_installed(tmp_path, monkeypatch):
    "A plug-in for HEIC that reads PNG under that name"
    from PIL import PngImagePlugin
    class Heif(PngImagePlugin.PngImageFile): format = "HEIF"
    def register():
        Image.register_open("HEIF", Heif, lambda prefix: False)
        Image.register_extension("HEIF", ".heic")
    for registry in ("OPEN", "EXTENSION"): monkeypatch.setattr(Image, registry, dict(getattr(Image, registry)))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    image_formats.cache_clear()
    try: assert read_images(lay(tmp_path, "cat/0.HEIC", "dog/0.png")).labels == ["cat", "dog"]
    finally: image_formats.cache_clear()


# Lists

def csv(root, *lines):
    lay(root, *each("img/{c}", 3, c="cat dog"))
    (root/"list.csv").write_text("\n".join(lines), encoding="utf-8")
    return root/"list.csv"

def test_lists_in_any_spelling(tmp_path):
    path = csv(tmp_path, "Label;PATH;split", *(f"{name};img\\{name}\\{i}.png;{split}" for name in ("cat", "dog") for i, split in enumerate(("Training", "dev", "test_set"))))
    upper = path.rename(tmp_path/"UP.CSV")
    listing = read_images(upper)
    assert summary(listing) == [(s, c) for s in ("test", "train", "val") for c in ("cat", "dog")] and all(os.path.exists(row[0]) for row in listing.rows)
    assert datasets.load(upper).name == "UP" and len(datasets.load(str(upper))) == 6

@pytest.mark.parametrize("lines, says", [
    (["path,label", "img/cat/0.png,cat, tabby"], "Line 2 of '.*list.csv' has 3 cells, its first line 2: put a cell that holds a comma in quotes"),
    (["path,label,Label", "img/cat/0.png,cat,x"], "two columns 'label' and 'Label': keep one"),
    (["path,label", "img/cat/0.png,cat", "./img/cat/0.png,dog"], "in line 3 .* was listed before, in line 2"),
    (["path,label", "img/cat/0.png,cat"], "Only one class"),
], ids=["comma", "Label", "twice", "one class"])
def test_lists_that_cannot_be(tmp_path, lines, says):
    with pytest.raises(ValueError, match=says): read_images(csv(tmp_path, *lines))

def test_labels_of_a_list_in_one_form(tmp_path):
    listing = read_images(csv(tmp_path, "path,label", "img/cat/0.png,Cafe\u0301", "img/cat/1.png,Café", "img/dog/0.png,dog"))
    assert listing.labels == ["Café", "dog"]


# A look

def test_a_look_says_what_lies_there(tmp_path):
    lay(tmp_path, *each("{s}/{c}", 4, s="train test", c="cat dog"), "labels/a.txt", "train/cat/notes.txt")
    (tmp_path/"test"/"dog"/"0.png").write_bytes((tmp_path/"train"/"cat"/"1.png").read_bytes())
    (tmp_path/"train"/"dog"/"2.png").write_bytes(png(99)[:40])
    (tmp_path/"train"/"dog"/"3.png").write_bytes(png(98, (80, 60)))
    lines = look(tmp_path)
    assert lines[:5] == [f"{tmp_path}: 2 classes, 16 images", "  class  train  test", "  cat        4     4", "  dog        4     4", "  all        8     8"]
    text = "\n".join(lines)
    assert "smallest 8 x 6, median 8 x 6, largest 80 x 60" in text and "formats: 15 PNG" in text and f"left out: 1 not an image, {tmp_path}/train/cat/notes.txt" in text
    assert f"cannot be read: 1, {tmp_path}/train/dog/2.png (" in text and "1 picture in more than one file with the same bytes (1 of them in more than one split, 1 under two labels)" in text
    assert "note: 1 folder without an image, left out: labels." in lines
    quick = look(tmp_path, read=False)
    assert quick[:5] == lines[:5] and "formats: 16 .png" in quick and not any(line.startswith(("sizes", "duplicates", "cannot")) for line in quick)

def test_a_look_at_many_classes_and_at_a_list(tmp_path):
    lay(tmp_path/"many", *(f"c{i:03}/0.png" for i in range(200)))
    lines = look(tmp_path/"many")
    assert sum(line.startswith("  c0") for line in lines) == 40 and "  ... 160 more" in lines
    lines = look(csv(tmp_path, "path,label", "img/cat/0.png,cat", "img/dog/0.png,dog", "img/dog/9.png,dog"))
    assert "3 images" in lines[0] and any("img/dog/9.png (there is no such file)" in line for line in lines)

def test_a_look_takes_seconds_and_no_torch(tmp_path):
    for c in range(20): lay(tmp_path, *(f"c{c}/{i}.png" for i in range(100)), content=png(c))
    code = f"import sys; from datadesc.folders import look; look({str(tmp_path)!r}); assert not {{'torch', 'pandas', 'numpy'}} & set(sys.modules)"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert time.perf_counter() - start < 10


# What holds for every layout

NAMES = st.sampled_from(["train", "Testing", "val", "cat", "dog", "old", "images", "@eaDir", ".hidden", "papermill_runs"])
FILES = st.sampled_from(["0.png", "1.jpg", "a.txt", "Thumbs.db", MARK])

@settings(max_examples=150, deadline=None)
@given(st.sets(st.tuples(st.lists(NAMES, max_size=4), FILES).map(lambda path: "/".join([*path[0], path[1]])), max_size=14), st.sampled_from(folders._CLASS_LEVELS))
def test_every_file_is_read_or_left_out_once_and_nothing_is_written(tmp_path_factory, paths, level):
    root = lay(tmp_path_factory.mktemp("any"), *sorted(paths))
    state = lambda: sorted((str(path), path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in (root, *root.rglob("*")))
    before = state()
    try:
        listing = read_images(root, level)
        look(root, level)
    except ValueError as error:
        assert any(words in str(error) for words in ("No class folder in", "Only one class in", "all hold the same folders", "folders for the split"))
    else:
        system = lambda path: any(part in ("@eaDir", ".hidden", "Thumbs.db", MARK) for part in path.parts) or path.parts[0] == "papermill_runs"
        ours = lambda path: any((root/parent/MARK).exists() for parent in path.parents if parent != Path("."))
        expected = [path for path in (file.relative_to(root) for file in root.rglob("*") if file.is_file()) if not system(path) and not ours(path)]
        seen = [Path(row[0]).relative_to(root) for row in listing.rows]
        left = [Path(line.rpartition(": ")[0]).relative_to(root) for line in listing.left_out]
        in_empty = lambda path: any(folder in path.parents for folder in left)
        assert sorted(seen) == sorted(set(seen)) and sorted(left) == sorted(set(left)) and not set(seen) & set(left)
        assert all(path in seen or path in left or in_empty(path) for path in expected) and set(seen) <= set(expected)
    assert state() == before
