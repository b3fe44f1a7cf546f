"""Images of every kind, folders and lists as users have them, and what is said about the wrong ones."""
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datadesc import data
from datadesc.data import ImageSet, open_image
from datadesc.datasets import load

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

@pytest.mark.parametrize("top, bits", [(255, 8), (200, 8), (1023, 10), (4095, 12), (3000, 12), (16383, 14), (6553, 16), (16382, 16), (65535, 16)])
def test_fewer_bits_in_sixteen(tmp_path, top, bits):
    levels = np.array([[0, top // 2], [top, 0]], dtype=np.uint16)
    for name in ("grey.png", "grey.tif"):
        Image.fromarray(levels).save(tmp_path/name)
        assert np.abs(np.asarray(open_image(tmp_path/name))[..., 0] - levels.astype(float)*255/(2**bits - 1)).max() <= .5

def test_twelve_bits_in_sixteen_are_said(tmp_path):
    album(tmp_path)
    for i in range(2): Image.fromarray(np.full((4, 4), 3000 + i, dtype=np.uint16)).save(tmp_path/"cat"/f"dim{i}.png")
    assert ImageSet.from_files(tmp_path).notes == (f"2 images with fewer than 16 bits in 16: scaled by the white of those bits ({tmp_path}/cat/dim0.png, {tmp_path}/cat/dim1.png).",)

def test_colours_whose_upper_bits_are_empty_are_said(tmp_path):
    "PNGs of 16 bits a colour, written by hand: 2 x 1 pixels of 12 bits, and of 16"
    def chunk(kind, content): return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
    album(tmp_path)
    for name, top in (("dim", 4095), ("full", 65535)):
        pixels = b"\0" + b"".join(value.to_bytes(2, "big") for value in (top, 0, 0, 0, top // 2, 0))
        header = b"\0\0\0\2\0\0\0\1\x10\2\0\0\0"
        (tmp_path/"cat"/f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b""))
    notes = ImageSet.from_files(tmp_path).notes
    assert len(notes) == 1 and notes[0].startswith("1 image of 16 bits a colour, nearly black") and "dim.png" in notes[0]

def test_a_tiff_says_its_bits(tmp_path):
    "A dark picture of 2 x 1 pixels with 12 bits each, written by hand: 100 and 200 of 4095"
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    entry = lambda tag, value: tag.to_bytes(2, "little") + b"\3\0\1\0\0\0" + value.to_bytes(4, "little")
    pixels = (100 << 12 | 200).to_bytes(3, "big") + b"\0"
    (tmp_path/"dark.tif").write_bytes(b"II*\0" + (12).to_bytes(4, "little") + pixels + len(tags).to_bytes(2, "little") + b"".join(entry(*tag) for tag in tags) + bytes(4))
    assert np.asarray(open_image(tmp_path/"dark.tif"))[..., 0].tolist() == [[6, 12]]

def test_the_first_of_several_frames_is_used_and_said(tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "b.tif", "c.webp"): frames[0].save(picture(album(tmp_path)/"cat"/name), save_all=True, append_images=frames[1:])
    images = ImageSet.from_files(tmp_path)
    assert images.notes == (f"3 images of several frames or pages: the first one is used ({tmp_path}/cat/a.gif, {tmp_path}/cat/b.tif, {tmp_path}/cat/c.webp).",)
    assert open_image(tmp_path/"cat"/"a.gif").getpixel((0, 0))[0] > 250

@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("note", [b"no TIFF at all", b"", b"MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0"])
def test_an_orientation_that_cannot_be_read_is_none(tmp_path, note):
    Image.new("RGB", (8, 6), (200, 30, 30)).save(tmp_path/"photo.png", exif=b"Exif\0\0" + note if note else b"x")
    assert open_image(tmp_path/"photo.png").size == (8, 6)

def test_a_broken_image_is_not_excused_by_a_broken_note(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(tmp_path/"photo.png", exif=b"no TIFF")
    (tmp_path/"photo.png").write_bytes((tmp_path/"photo.png").read_bytes()[:9000])
    with pytest.raises(ValueError, match="photo.png': image file is truncated"): open_image(tmp_path/"photo.png")

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
    images = ImageSet.from_files(album(tmp_path/"pets", n=10), superclass="animal")
    assert (images.name, images.classes, images.superclass, images.skipped) == ("pets", ("cat", "dog"), "animal", ())
    assert {split: len(samples) for split, samples in images.samples.items()} == {"train": 12, "val": 4, "test": 4}
    assert all(torch.equal(images.labels(split).bincount(), torch.full((2,), len(images.images(split))//2)) for split in images.samples)
    assert list(images.samples) == ["train", "val", "test"] and len(images) == 20 and "2 classes" in repr(images)

@pytest.mark.parametrize("val", ["val", "valid", "validation", "Validation"])
def test_split_folders(tmp_path, val):
    images = ImageSet.from_files(album(tmp_path, splits=("train", val, "test"), n=2))
    assert all(Path(image).parts[-3] == folder for split, folder in zip(images.samples, ("train", val, "test")) for image in images.images(split))

def test_missing_val_and_test_are_drawn(tmp_path):
    images = ImageSet.from_files(album(tmp_path, splits=("train", "test"), n=10))
    assert [len(images.images(split)) for split in images.samples] == [16, 4, 20]
    assert all("train" in image for image in images.images("val"))
    images = ImageSet.from_files(album(tmp_path/"other", splits=("train", "val"), n=10))
    assert [len(images.images(split)) for split in images.samples] == [16, 20, 4]

def test_splits_are_disjoint_stratified_and_repeatable(tmp_path):
    album(tmp_path, ("cat", "dog", "eel"), n=7)
    once, again, other = ImageSet.from_files(tmp_path), ImageSet.from_files(tmp_path), ImageSet.from_files(tmp_path, seed=1)
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
    images = ImageSet.from_files(tmp_path)
    assert images.classes == ("cat", "dog") and len(images) == 7
    assert sorted(line.removeprefix(f"{tmp_path}/") for line in images.skipped) == ["README.md: not in a class folder", "cat/notes.txt: not an image"]

def test_folders_inside_a_class_belong_to_it(tmp_path):
    album(tmp_path, n=3)
    picture(tmp_path/"cat"/"siamese"/"old"/"0.png")
    assert ImageSet.from_files(tmp_path).classes == ("cat", "dog") and len(ImageSet.from_files(tmp_path)) == 7

def test_links_and_unicode(tmp_path):
    album(tmp_path/"real", ("Café", "猫 z"), n=3)                    # composed é; the link's name is decomposed
    (tmp_path/"linked").mkdir()
    os.symlink(tmp_path/"real"/"Café", tmp_path/"linked"/"Cafe\u0301")
    os.symlink(tmp_path/"real"/"猫 z", tmp_path/"linked"/"猫 z")
    os.symlink(tmp_path/"real", tmp_path/"real"/"猫 z"/"up")          # leads back up
    images = ImageSet.from_files(tmp_path/"linked")
    assert images.classes == ("Café", "猫 z")
    assert images.labels("train").bincount()[0] == 1

def test_a_broken_link_is_named(tmp_path):
    album(tmp_path)
    os.symlink(tmp_path/"gone.png", tmp_path/"cat"/"9.png")
    with pytest.raises(ValueError, match="9.png: there is no such file"): ImageSet.from_files(tmp_path)

def test_classes_called_like_splits(tmp_path):
    assert ImageSet.from_files(album(tmp_path/"a", ("bus", "train"))).classes == ("bus", "train")
    with pytest.raises(ValueError, match="No class folder in '.*b' holds an image: expected .*b/<split>/<class>/"): ImageSet.from_files(album(tmp_path/"b", ("test", "train")))
    album(tmp_path/"c", splits=("train", "test"))
    picture(tmp_path/"c"/"labels"/"0.png")
    images = ImageSet.from_files(tmp_path/"c")
    assert [line.split("/")[-1] for line in images.skipped] == ["0.png: not in a split's folder"] and "labels (1 image)" in images.notes[0]

def test_two_folders_for_one_split(tmp_path):
    with pytest.raises(ValueError, match="2 folders for the split 'val': val, valid. Keep one"): ImageSet.from_files(album(tmp_path, splits=("train", "val", "valid")))

@pytest.mark.parametrize("make, error, says", [
    (lambda root: root/"nowhere", FileNotFoundError, "No folder '.*nowhere': expected"),
    (lambda root: root, ValueError, "No class folder in"),
    (lambda root: picture(root/"a.png").parent, ValueError, "No class folder in"),
    (lambda root: album(root, ("cat",)), ValueError, "Only one class in .*'cat'"),
    (lambda root: album(root, n=1), ValueError, "'.*' has no test image, and no class has enough to spare one"),
    (lambda root: album(root, n=2), ValueError, "'.*' has no validation image, and no class has enough"),
    (lambda root: album(album(root, splits=("test", "val")), ("cat",), ("train",)), ValueError, "Only one class of '.*' has training images, 'cat'"),
], ids=["missing", "empty", "loose", "one class", "one image each", "two images each", "one class to learn"])
def test_folders_that_cannot_be(tmp_path, make, error, says):
    with pytest.raises(error, match=says): ImageSet.from_files(make(tmp_path))

def test_rare_classes_are_named_in_the_notes(tmp_path):
    album(tmp_path)
    for name, n in (("eel", 1), ("fox", 2), ("gnu", 3)):
        for i in range(n): picture(tmp_path/name/f"{i}.png", (7, 60*i, len(name) + ord(name[0])))
    images = ImageSet.from_files(tmp_path)
    counts = {split: images.labels(split).bincount(minlength=5).tolist() for split in images.samples}
    assert images.classes == ("cat", "dog", "eel", "fox", "gnu") and counts == {"train": [3, 3, 1, 1, 1], "val": [1, 1, 0, 0, 1], "test": [1, 1, 0, 1, 1]}
    assert images.notes == ("No validation image of 2 classes (eel, fox): what is measured there says nothing about them.", "No test image of 1 class (eel): what is measured there says nothing about it.")

def test_classes_missing_from_a_split_that_is_there(tmp_path):
    album(tmp_path, splits=("train", "val", "test"))
    picture(tmp_path/"test"/"eel"/"0.png"), picture(tmp_path/"train"/"gnu"/"0.png", (1, 2, 3))
    images = ImageSet.from_files(tmp_path)
    assert images.classes == ("cat", "dog", "eel", "gnu") and [split for split, _ in images.samples.items() if 2 in images.labels(split)] == ["test"]
    assert [note.partition(":")[0] for note in images.notes] == ["No training image of 1 class (eel)", "No validation image of 2 classes (eel, gnu)", "No test image of 1 class (gnu)"]

def test_an_empty_class_folder_is_left_out(tmp_path):
    album(tmp_path), (tmp_path/"eel").mkdir()
    images = ImageSet.from_files(tmp_path)
    assert images.classes == ("cat", "dog") and images.skipped == (f"{tmp_path}/eel: holds no image",) and images.notes == ("1 folder without an image, left out: eel.",)

def test_numbers_before_names_are_off_and_kept_in_the_raw_names(tmp_path):
    images = ImageSet.from_files(album(tmp_path/"birds", ("001.Black_footed_Albatross", "009.Brewer_Blackbird")))
    assert images.classes == ("Black_footed_Albatross", "Brewer_Blackbird") and images.raw_names == ("001.Black_footed_Albatross", "009.Brewer_Blackbird")
    assert Path(images.samples["test"][0][0]).parent.name == images.raw_names[images.samples["test"][0][1]]
    assert len(images.notes) == 1 and "'Black_footed_Albatross' for '001.Black_footed_Albatross'" in images.notes[0]
    plain = ImageSet.from_files(album(tmp_path/"pets"))
    assert plain.raw_names == plain.classes == ("cat", "dog") and plain.notes == ()

def test_bad_images_stop_or_are_skipped(tmp_path):
    album(tmp_path)
    (tmp_path/"cat"/"5.png").write_bytes(b"")
    whole = picture(tmp_path/"dog"/"5.jpg", size=(200, 200))
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cat/5.png: the file is empty \(and 1 more\).*bad_images='skip'"): ImageSet.from_files(tmp_path)
    images = ImageSet.from_files(tmp_path, bad_images="skip")
    assert len(images) == 10 and "empty" in images.skipped[0] and "truncated" in images.skipped[1]
    with pytest.raises(ValueError, match="bad_images is 'ignore': expected 'stop' or 'skip'"): ImageSet.from_files(tmp_path, bad_images="ignore")

def test_a_split_whose_images_are_all_bad(tmp_path):
    for file in album(tmp_path, splits=("train", "test")).glob("test/*/*"): file.write_bytes(b"")
    with pytest.raises(ValueError, match="No image of '.*' in test can be read: .*the file is empty"): ImageSet.from_files(tmp_path, bad_images="skip")

def test_a_class_whose_images_are_all_bad(tmp_path):
    album(tmp_path)
    for file in (tmp_path/"cat").iterdir(): file.write_bytes(b"")
    with pytest.raises(ValueError, match="Only one class of .* has images that can be read, 'dog': expected two or more. .*cat/0.png: the file is empty"): ImageSet.from_files(tmp_path, bad_images="skip")


# Lists

def test_csv(tmp_path):
    album(tmp_path/"img", ("NA", "007"), n=3)
    lines = [f"img/{label}/{i}.png , {label},{split}" for label in ("NA", "007") for i, split in enumerate(("train", "Validation", "test"))]
    images = ImageSet.from_files(listing(tmp_path, ["\ufeffPath, Label,split", *lines]), superclass="agent")
    assert (images.name, images.classes, images.superclass) == ("list", ("007", "NA"), "agent")
    assert [len(images.images(split)) for split in images.samples] == [2, 2, 2]

def test_csv_without_splits_and_with_absolute_paths(tmp_path):
    album(tmp_path/"img")
    images = ImageSet.from_files(listing(tmp_path, ["label,path", *(f"{file.parent.name},{file}" for file in sorted((tmp_path/"img").rglob("*.png")))]))
    assert images.fingerprint == ImageSet.from_files(tmp_path/"img").fingerprint

@pytest.mark.parametrize("lines, says", [
    ([""], "No column 'path' in '.*list.csv', which has no columns"),
    (["path,label"], "No image in '.*list.csv'"),
    (["file;label", "a;b"], "No column 'path' in '.*', which has file, label"),
    (["path,label", "0.png,"], "No label in line 2"),
    (["path,label", "0.png,a", ",b"], "No path in line 3"),
    (["path,label,split", "0.png,a,train", "1.png,a,held-out"], "Unknown split 'held-out' in line 3"),
    (["path,label,split", "0.png,a,train", "1.png,a,"], "Unknown split '' in line 3"),
    (["path,label,split", "0.png,a,train", "0.png,a,test"], "'0.png' in line 3 .* was listed before"),
    (["path,label", "0.png,a", "1.png,b"], "0.png: there is no such file"),
], ids=["empty", "no rows", "columns", "no label", "no path", "split", "no split", "twice", "missing file"])
def test_csvs_that_cannot_be(tmp_path, lines, says):
    with pytest.raises(ValueError, match=says): ImageSet.from_files(listing(tmp_path, lines))

def test_csv_in_another_encoding(tmp_path):
    (tmp_path/"list.csv").write_bytes("path,label\n0.png,Café".encode("latin-1"))
    with pytest.raises(ValueError, match=r"Line 2 of '.*list.csv' is not UTF-8 \(byte 0xe9\): save the file as CSV in UTF-8"): ImageSet.from_files(tmp_path/"list.csv")


# The value

def test_fingerprint_follows_content_only(tmp_path):
    first, second = ImageSet.from_files(album(tmp_path/"a")), ImageSet.from_files(album(tmp_path/"b"))
    assert first.fingerprint == second.fingerprint
    picture(Path(second.images("val")[0]), (1, 2, 3))
    assert first.fingerprint != ImageSet.from_files(tmp_path/"b").fingerprint
    os.rename(tmp_path/"a"/"cat", tmp_path/"a"/"cow")
    assert first.fingerprint != ImageSet.from_files(tmp_path/"a").fingerprint

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
    images = ImageSet.from_files(album(tmp_path))
    assert all(type(image) is str for split in images.samples for image in images.images(split))

def test_load(tmp_path):
    album(tmp_path/"pets")
    assert load(tmp_path/"pets", seed=3).samples == ImageSet.from_files(tmp_path/"pets", seed=3).samples
    with pytest.raises(FileNotFoundError, match="No dataset 'pasture'"): load("pasture")
    with pytest.raises(FileNotFoundError, match="No file '.*list.csv'"): load(tmp_path/"list.csv")

@clothing
def test_clothing():
    images = ImageSet.from_files(SHARED/"clothing", superclass="clothing")
    assert len(images.classes) == 10 and len(images) == 450 and [line.split("/")[-1] for line in images.skipped] == ["LICENSE: not in a split's folder"]

@clothing
def test_grocery_list(tmp_path):
    "Official splits in folders of uneven depth, as a CSV"
    root, lines = SHARED/"grocery"/"dataset", ["path,label,split"]
    for split in ("train", "val", "test"):
        for line in (root/f"{split}.txt").read_text().splitlines():
            path = line.split(",")[0].strip()
            lines.append(f"{root/path},{Path(path).parent.name},{split}")
    images = ImageSet.from_files(listing(tmp_path, lines))
    assert len(images.classes) == 28 and len(images) == len(lines) - 1


# The same picture twice

def test_copies_are_found_whatever_holds_them(tmp_path):
    "A file, the same pixels in another format, in memory as image and as array; not a file of the same name, nor a resized one."
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path/"a.png"), image.save(tmp_path/"b.bmp"), image.resize((4, 3)).save(tmp_path/"small.png")
    images = ImageSet("copies", ("x", "y"), {"train": [(tmp_path/"a.png", 0), (pixels.copy(), 0)], "val": [(tmp_path/"small.png", 0), (pixels[::-1], 1)], "test": [(image, 1), (tmp_path/"b.bmp", 0)]})
    table = images.repeated(progress=False)
    assert list(table.itertuples(index=False, name=None)) == [("train", 0, 0, 0, True, True), ("train", 1, 0, 0, True, True), ("test", 0, 1, 0, True, True), ("test", 1, 0, 0, True, True)]


def test_a_copy_in_its_own_split_does_not_span_splits(tmp_path):
    root = album(tmp_path/"album", splits=("train", "val", "test"))
    (root/"train"/"dog"/"again.png").write_bytes((root/"train"/"dog"/"3.png").read_bytes())
    table = ImageSet.from_files(root).repeated(progress=False)
    assert set(table.split) == {"train"} and len(table) == 2 and not table.across.any() and not table.labels_differ.any()
    (root/"train"/"cat"/"again.png").write_bytes((root/"train"/"dog"/"3.png").read_bytes())
    table = ImageSet.from_files(root).repeated(progress=False)
    assert set(table.split) == {"train"} and len(table) == 3 and table.labels_differ.all() and not table.across.any()


def test_a_set_without_copies_gives_an_empty_table(tmp_path):
    table = ImageSet.from_files(album(tmp_path/"album", splits=("train", "val", "test"))).repeated(progress=False)
    assert len(table) == 0 and list(table) == ["split", "place", "label", "group", "across", "labels_differ"]


@clothing
def test_copies_among_photographs():
    assert not load(SHARED/"clothing").repeated(progress=False).across.any()
