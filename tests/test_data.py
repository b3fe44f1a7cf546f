"""Images of every kind, folders and lists as users have them, and what is said about the wrong ones."""
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datadesc import data
from datadesc.data import ImageSet, few_shot, from_csv, from_folder, load, open_image

SHARED = Path(__file__).parents[2]/"shared"/"data"
clothing = pytest.mark.skipif(not (SHARED/"clothing").is_dir(), reason="needs the photographs in ../shared/data")


def picture(path, colour=(200, 30, 30), size=(8, 6)):
    "A file with one plain picture"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, tuple(colour)).save(path)
    return path

def album(root, classes=("cat", "dog"), splits=("",), n=5):
    "A folder of `n` different pictures per class and split"
    for s, split in enumerate(splits):
        for c, name in enumerate(classes):
            for i in range(n): picture(root/split/name/f"{i}.png", (40*s, 40*c, 10*i))
    return root

def listing(root, lines):
    "A CSV in `root`"
    (root/"list.csv").write_text("\n".join(lines), encoding="utf-8")
    return root/"list.csv"


# Images

GREY = np.array([[0, 64], [191, 255]], dtype=np.uint8)
WIDE = GREY.astype(np.uint16)*257

@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.pgm"])
def test_sixteen_bits_are_scaled(tmp_path, name):
    Image.fromarray(WIDE).save(tmp_path/name)
    assert np.array_equal(np.asarray(open_image(tmp_path/name))[..., 0], GREY)

@pytest.mark.parametrize("pixels", [GREY.astype(np.int32)*257, GREY.astype(np.float32)/255], ids=["int32", "float32"])
def test_thirty_two_bits_are_scaled(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path/"grey.tif")
    assert np.array_equal(np.asarray(open_image(tmp_path/"grey.tif"))[..., 0], GREY)

def test_big_endian_sixteen_bits():
    image = Image.frombytes("I;16B", (2, 2), WIDE.astype(">u2").tobytes())
    assert np.array_equal(np.asarray(open_image(image))[..., 0], GREY)

def test_a_dark_sixteen_bit_image_stays_dark():
    assert np.asarray(open_image(Image.fromarray(WIDE//10))).max() == 25

@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "HSV"])
def test_modes(mode):
    image = open_image(Image.new("RGB", (4, 4), "white").convert(mode))
    assert image.mode == "RGB" and np.asarray(image).min() > 250

@pytest.mark.parametrize("name", ["red.jpg", "red.tif"])
def test_cmyk_files(tmp_path, name):
    Image.new("RGB", (16, 16), (200, 30, 30)).convert("CMYK").save(tmp_path/name)
    assert np.abs(np.asarray(open_image(tmp_path/name), dtype=int) - (200, 30, 30)).max() < 6

def test_transparent_palette_is_laid_on_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 30, 30])
    image.putdata([0, 1])
    for name in ("logo.gif", "logo.png"):
        image.save(tmp_path/name, transparency=0)
        assert np.asarray(open_image(tmp_path/name)).tolist() == [[[255, 255, 255], [200, 30, 30]]], name

def test_transparent_grey_and_rgb_files(tmp_path):
    Image.new("L", (1, 1), 7).save(tmp_path/"grey.png", transparency=7)
    Image.new("RGB", (1, 1), (7, 7, 7)).save(tmp_path/"rgb.png", transparency=(7, 7, 7))
    Image.new("RGBA", (1, 1), (0, 0, 0, 128)).save(tmp_path/"half.png")
    assert [open_image(tmp_path/f"{name}.png").getpixel((0, 0))[0] for name in ("grey", "rgb", "half")] == [255, 255, 127]

@pytest.mark.parametrize("orientation, turn", [(3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90), (8, Image.Transpose.ROTATE_270), (2, Image.Transpose.FLIP_LEFT_RIGHT)])
def test_exif_orientation(tmp_path, orientation, turn):
    upright = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3)*4)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright.transpose(turn).save(tmp_path/"photo.png", exif=exif)
    assert np.array_equal(np.asarray(open_image(tmp_path/"photo.png")), np.asarray(upright))

def test_arrays(tmp_path):
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    assert np.array_equal(np.asarray(open_image(pixels)), pixels)
    with pytest.raises(ValueError, match=r"array of float64 \(4, 5, 3\).*expected uint8"): open_image(pixels/255)

@pytest.mark.parametrize("content, why", [(b"", "the file is empty"), (b"GIF? no", "it is not an image")])
def test_unreadable(tmp_path, content, why):
    (tmp_path/"x.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=f"x.jpg': {why}"): open_image(tmp_path/"x.jpg")


# Folders

def test_flat_folder(tmp_path):
    images = from_folder(album(tmp_path/"pets", n=10), superclass="animal")
    assert (images.name, images.classes, images.superclass, images.skipped) == ("pets", ("cat", "dog"), "animal", ())
    assert {split: len(samples) for split, samples in images.samples.items()} == {"train": 12, "val": 4, "test": 4}
    assert all(torch.equal(images.labels(split).bincount(), torch.full((2,), len(images.images(split))//2)) for split in images.samples)
    assert list(images.samples) == ["train", "val", "test"] and len(images) == 20 and "2 classes" in repr(images)

@pytest.mark.parametrize("val", ["val", "valid", "validation", "Validation"])
def test_split_folders(tmp_path, val):
    images = from_folder(album(tmp_path, splits=("train", val, "test"), n=2))
    assert all(Path(image).parts[-3] == folder for split, folder in zip(images.samples, ("train", val, "test")) for image in images.images(split))

def test_missing_val_and_test_are_drawn(tmp_path):
    images = from_folder(album(tmp_path, splits=("train", "test"), n=10))
    assert [len(images.images(split)) for split in images.samples] == [16, 4, 20]
    assert all("train" in image for image in images.images("val"))
    images = from_folder(album(tmp_path/"other", splits=("train", "val"), n=10))
    assert [len(images.images(split)) for split in images.samples] == [16, 20, 4]

def test_splits_are_disjoint_stratified_and_repeatable(tmp_path):
    album(tmp_path, ("cat", "dog", "eel"), n=7)
    once, again, other = from_folder(tmp_path), from_folder(tmp_path), from_folder(tmp_path, seed=1)
    paths = [image for split in once.samples for image in once.images(split)]
    assert len(paths) == len(set(paths)) == 21
    assert once.samples == again.samples != other.samples
    assert all(once.labels(split).bincount().unique().numel() == 1 for split in once.samples)

def test_extensions_clutter_and_hidden_files(tmp_path):
    album(tmp_path, n=3)
    picture(tmp_path/"cat"/"loud.JPEG")
    for name in (".DS_Store", "cat/.hidden.png", "cat/notes.txt", "cat/Thumbs.db", "README.md"): (tmp_path/name).write_text("x")
    (tmp_path/"__MACOSX"/"cat").mkdir(parents=True)
    (tmp_path/".git").mkdir()
    images = from_folder(tmp_path)
    assert images.classes == ("cat", "dog") and len(images) == 7
    assert sorted(line.removeprefix(f"{tmp_path}/") for line in images.skipped) == ["README.md: not in a class folder", "cat/Thumbs.db: not an image", "cat/notes.txt: not an image"]

def test_folders_inside_a_class_belong_to_it(tmp_path):
    album(tmp_path, n=3)
    picture(tmp_path/"cat"/"siamese"/"old"/"0.png")
    assert from_folder(tmp_path).classes == ("cat", "dog") and len(from_folder(tmp_path)) == 7

def test_links_and_unicode(tmp_path):
    album(tmp_path/"real", ("Café", "猫 z"), n=3)                    # composed é; the link's name is decomposed
    (tmp_path/"linked").mkdir()
    os.symlink(tmp_path/"real"/"Café", tmp_path/"linked"/"Cafe\u0301")
    os.symlink(tmp_path/"real"/"猫 z", tmp_path/"linked"/"猫 z")
    os.symlink(tmp_path/"real", tmp_path/"real"/"猫 z"/"up")          # leads back up
    images = from_folder(tmp_path/"linked")
    assert images.classes == ("Café", "猫 z")
    assert images.labels("train").bincount()[0] == 1

def test_a_broken_link_is_named(tmp_path):
    album(tmp_path)
    os.symlink(tmp_path/"gone.png", tmp_path/"cat"/"9.png")
    with pytest.raises(ValueError, match="9.png: there is no such file"): from_folder(tmp_path)

def test_classes_called_like_splits(tmp_path):
    assert from_folder(album(tmp_path/"a", ("bus", "train"))).classes == ("bus", "train")
    with pytest.raises(ValueError, match="No class folder in '.*test'"): from_folder(album(tmp_path/"b", ("test", "train")))
    album(tmp_path/"c", splits=("train", "test"))
    picture(tmp_path/"c"/"labels"/"0.png")
    assert [line.split("/")[-1] for line in from_folder(tmp_path/"c").skipped] == ["labels: not in a split's folder"]

def test_two_folders_for_one_split(tmp_path):
    with pytest.raises(ValueError, match="2 folders for the split 'val': val, valid. Keep one"): from_folder(album(tmp_path, splits=("train", "val", "valid")))

@pytest.mark.parametrize("make, error, says", [
    (lambda root: root/"nowhere", FileNotFoundError, "No folder '.*nowhere': expected"),
    (lambda root: root, ValueError, "No class folder in"),
    (lambda root: picture(root/"a.png").parent, ValueError, "No class folder in"),
    (lambda root: album(root, ("cat",)), ValueError, "Only one class in .*'cat'"),
    (lambda root: album(root, n=2), ValueError, "Class 'cat' has too few images to split"),
    (lambda root: (album(root), (root/"eel").mkdir(), root)[2], ValueError, "Class folder '.*eel' holds no image"),
    (lambda root: picture(album(root, splits=("train", "val", "test"))/"test"/"eel"/"0.png").parents[2], ValueError, "Class 'eel' of .* has no image in train"),
    (lambda root: picture(album(root, splits=("train", "val", "test"))/"train"/"eel"/"0.png").parents[2], ValueError, "Class 'eel' of .* has no image in val"),
], ids=["missing", "empty", "loose", "one class", "too few", "empty class", "test only", "train only"])
def test_folders_that_cannot_be(tmp_path, make, error, says):
    with pytest.raises(error, match=says): from_folder(make(tmp_path))

def test_bad_images_stop_or_are_skipped(tmp_path):
    album(tmp_path)
    (tmp_path/"cat"/"5.png").write_bytes(b"")
    whole = picture(tmp_path/"dog"/"5.jpg", size=(200, 200))
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cat/5.png: the file is empty \(and 1 more\).*bad_images='skip'"): from_folder(tmp_path)
    images = from_folder(tmp_path, bad_images="skip")
    assert len(images) == 10 and "empty" in images.skipped[0] and "truncated" in images.skipped[1]
    with pytest.raises(ValueError, match="bad_images is 'ignore': expected 'stop' or 'skip'"): from_folder(tmp_path, bad_images="ignore")

def test_a_class_whose_images_are_all_bad(tmp_path):
    album(tmp_path)
    for file in (tmp_path/"cat").iterdir(): file.write_bytes(b"")
    with pytest.raises(ValueError, match="Class 'cat' of .* has no readable image in train"): from_folder(tmp_path, bad_images="skip")


# Lists

def test_csv(tmp_path):
    album(tmp_path/"img", ("NA", "007"), n=3)
    lines = [f"img/{label}/{i}.png , {label},{split}" for label in ("NA", "007") for i, split in enumerate(("train", "Validation", "test"))]
    images = from_csv(listing(tmp_path, ["\ufeffPath, Label,split", *lines]), superclass="agent")
    assert (images.name, images.classes, images.superclass) == ("list", ("007", "NA"), "agent")
    assert [len(images.images(split)) for split in images.samples] == [2, 2, 2]

def test_csv_without_splits_and_with_absolute_paths(tmp_path):
    album(tmp_path/"img")
    images = from_csv(listing(tmp_path, ["label,path", *(f"{file.parent.name},{file}" for file in sorted((tmp_path/"img").rglob("*.png")))]))
    assert images.fingerprint == from_folder(tmp_path/"img").fingerprint

@pytest.mark.parametrize("lines, says", [
    ([""], "Cannot read '.*list.csv' as a CSV"),
    (["path,label"], "No image in '.*list.csv'"),
    (["file;label", "a;b"], "No column 'path' in '.*', which has file;label"),
    (["path,label", "0.png,"], "No label in line 2"),
    (["path,label", "0.png,a", ",b"], "No path in line 3"),
    (["path,label,split", "0.png,a,train", "1.png,a,dev"], "Unknown split 'dev' in line 3"),
    (["path,label,split", "0.png,a,train", "1.png,a,"], "Unknown split '' in line 3"),
    (["path,label,split", "0.png,a,train", "0.png,a,test"], "'0.png' in line 3 .* was listed before"),
    (["path,label", "0.png,a", "1.png,b"], "0.png: there is no such file"),
], ids=["empty", "no rows", "columns", "no label", "no path", "split", "no split", "twice", "missing file"])
def test_csvs_that_cannot_be(tmp_path, lines, says):
    with pytest.raises(ValueError, match=says): from_csv(listing(tmp_path, lines))

def test_csv_in_another_encoding(tmp_path):
    (tmp_path/"list.csv").write_bytes("path,label\n0.png,Café".encode("latin-1"))
    with pytest.raises(ValueError, match="as a CSV in UTF-8"): from_csv(tmp_path/"list.csv")


# The value

def test_fingerprint_follows_content_only(tmp_path):
    first, second = from_folder(album(tmp_path/"a")), from_folder(album(tmp_path/"b"))
    assert first.fingerprint == second.fingerprint
    picture(Path(second.images("val")[0]), (1, 2, 3))
    assert first.fingerprint != from_folder(tmp_path/"b").fingerprint
    os.rename(tmp_path/"a"/"cat", tmp_path/"a"/"cow")
    assert first.fingerprint != from_folder(tmp_path/"a").fingerprint

def test_images_in_memory():
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    both = [ImageSet("tiny", ("a", "b"), {"train": [(image, 0)], "val": [], "test": []}) for image in (pixels, Image.fromarray(pixels))]
    assert both[0].fingerprint == both[1].fingerprint
    assert both[0].labels("val").dtype == torch.long

def test_fingerprint_sees_the_palette():
    red, blue = Image.new("P", (2, 2)), Image.new("P", (2, 2))
    red.putpalette([255, 0, 0])
    blue.putpalette([0, 0, 255])
    assert len({ImageSet("tiny", ("a",), {"train": [(image, 0)]}).fingerprint for image in (red, blue)}) == 2

def test_samples_stay_paths(tmp_path):
    images = from_folder(album(tmp_path))
    assert all(type(image) is str for split in images.samples for image in images.images(split))

def test_load(tmp_path):
    album(tmp_path/"pets")
    assert load(tmp_path/"pets", seed=3).samples == from_folder(tmp_path/"pets", seed=3).samples
    with pytest.raises(FileNotFoundError, match="No dataset 'pasture'"): load("pasture")
    with pytest.raises(FileNotFoundError, match="No file '.*list.csv'"): load(tmp_path/"list.csv")

def test_few_shot():
    labels = torch.tensor([1, 0, 1, 0, 1, 0])
    assert labels[few_shot(labels, 2)].tolist() == [0, 0, 1, 1]
    assert few_shot(labels, 1, seed=1).tolist() == few_shot(labels, 1, seed=1).tolist()
    assert len({tuple(few_shot(labels, 1, seed=seed).tolist()) for seed in range(20)}) > 3
    with pytest.raises(ValueError, match="Class 0 has 3 images: too few for 4 shots"): few_shot(labels, 4)

@clothing
def test_clothing():
    images = from_folder(SHARED/"clothing", superclass="clothing")
    assert len(images.classes) == 10 and len(images) == 450 and [line.split("/")[-1] for line in images.skipped] == ["LICENSE: not in a split's folder"]

@clothing
def test_grocery_list(tmp_path):
    "Official splits in folders of uneven depth, as a CSV"
    root, lines = SHARED/"grocery"/"dataset", ["path,label,split"]
    for split in ("train", "val", "test"):
        for line in (root/f"{split}.txt").read_text().splitlines():
            path = line.split(",")[0].strip()
            lines.append(f"{root/path},{Path(path).parent.name},{split}")
    images = from_csv(listing(tmp_path, lines))
    assert len(images.classes) == 28 and len(images) == len(lines) - 1


# The same picture twice

def test_copies_are_found_whatever_holds_them(tmp_path):
    "A file, the same pixels in another format, in memory as image and as array; not a file of the same name, nor a resized one."
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path/"a.png"), image.save(tmp_path/"b.bmp"), image.resize((4, 3)).save(tmp_path/"small.png")
    images = ImageSet("copies", ("x", "y"), {"train": [(tmp_path/"a.png", 0), (pixels.copy(), 0)], "val": [(tmp_path/"small.png", 0), (pixels[::-1], 1)], "test": [(image, 1), (tmp_path/"b.bmp", 0)]})
    table = data.repeated(images, progress=False)
    assert list(table.itertuples(index=False, name=None)) == [("train", 0, 0, 0, True), ("train", 1, 0, 0, True), ("test", 0, 1, 0, True), ("test", 1, 0, 0, True)]


def test_a_copy_in_its_own_split_does_not_span_splits(tmp_path):
    root = album(tmp_path/"album", splits=("train", "val", "test"))
    (root/"train"/"dog"/"again.png").write_bytes((root/"train"/"dog"/"3.png").read_bytes())
    table = data.repeated(from_folder(root), progress=False)
    assert set(table.split) == {"train"} and len(table) == 2 and not table.across.any()


def test_a_set_without_copies_gives_an_empty_table(tmp_path):
    table = data.repeated(from_folder(album(tmp_path/"album", splits=("train", "val", "test"))), progress=False)
    assert len(table) == 0 and list(table) == ["split", "place", "label", "group", "across"]


@clothing
def test_copies_among_photographs():
    assert not data.repeated(load(SHARED/"clothing"), progress=False).across.any()
