"""Encoders from files, tags and folders; what is said when they cannot be had; real-size weights on real photographs."""
import gzip, json, os, shutil, subprocess, sys, time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants as hub
from PIL import Image
from safetensors.torch import save_file

from datadesc import data, embed
from datadesc.data import ImageSet
from datadesc.embed import cut_tokens, load_encoder
from datadesc.hub import import_library, quiet
from datadesc.store import Store

open_clip = import_library("open_clip")

SHARED = Path(__file__).parents[2]/"shared"/"data"
LAYERS = {"embed_dim": 16,
          "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
          "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}}


def untrained(name, **options):
    "A model with random weights"
    torch.manual_seed(0)
    with quiet(): return open_clip.create_model(name, load_weights=False, **options)

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A small CLIP as a folder that open_clip reads, half precision"
    folder = tmp_path_factory.mktemp("clip")/"tiny"
    folder.mkdir()
    (folder/"open_clip_config.json").write_text(json.dumps({"model_cfg": LAYERS, "preprocess_cfg": {"mean": [.5]*3, "std": [.5]*3}}))
    save_file({key: value.half().contiguous() for key, value in untrained(f"local-dir:{folder}").state_dict().items()}, folder/"open_clip_model.safetensors")
    return folder

@pytest.fixture(scope="module")
def tiny(folder): return load_encoder(f"local-dir:{folder}", device="cpu")

class Reader:
    "Reads as the tokenizers of transformers do: a token a letter, the end kept when a text is cut, padding that is the end's token or not, perhaps a class token in the last place."
    context_length = 8
    def __init__(self, padding, last=()): self.padding, self.last = padding, list(last)
    def __call__(self, texts, context_length=8):
        room = context_length - len(self.last)
        rows = [[ord(letter) for letter in text[:room - 1]] + [2] for text in texts]
        return torch.tensor([row + [self.padding] * (room - len(row)) + self.last for row in rows])

@pytest.mark.parametrize("tokenizer", [Reader(0), Reader(2), Reader(0, last=[101])])
def test_cut_tokens_are_counted_whatever_pads(tokenizer):
    room = 7 - len(tokenizer.last)
    assert cut_tokens(["", "a", "a" * room, "a" * (room + 1), "a" * 100], tokenizer).tolist() == [0, 0, 0, 1, 100 - room]
    assert cut_tokens([], open_clip.get_tokenizer("ViT-B-32")).tolist() == []

def test_cut_tokens_of_clip():
    assert cut_tokens(["wings " * n for n in (75, 76, 93, 1000)], open_clip.get_tokenizer("ViT-B-32")).tolist() == [0, 1, 18, 925]

@pytest.fixture
def pictures(): return [Image.new("RGB", (40, 30), (i, 255 - i, 7*i % 256)) for i in range(0, 250, 25)]

@pytest.fixture
def small(monkeypatch):
    "ViT-B-32 by name and by its published tags, but of few layers"
    for name, quick in (("ViT-B-32", False), ("ViT-B-32-quickgelu", True)):
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, {**LAYERS, "quick_gelu": quick})

@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    "The hub is a closed port on this machine and the cache is empty"
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path/"cache"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"): monkeypatch.delenv(name, raising=False)
    return tmp_path/"cache"


def test_encoder(tiny):
    assert (tiny.name, tiny.dim, tiny.device) == ("tiny", 16, "cpu") and repr(tiny).startswith("Encoder tiny: 0.8 million weights")
    assert abs(tiny.logit_scale - 1/.07) < .1
    assert not tiny.model.training and next(tiny.model.parameters()).dtype == torch.float32

def test_images_in_any_form_and_batch(tiny, pictures, tmp_path):
    once = tiny.embed_images(pictures)
    assert once.shape == (10, 16) and once.dtype == torch.float32 and torch.allclose(once.norm(dim=1), torch.ones(10))
    for i, picture in enumerate(pictures): picture.save(tmp_path/f"{i}.png")
    assert torch.allclose(tiny.embed_images([tmp_path/f"{i}.png" for i in range(10)], batch_size=3), once, atol=1e-5)
    assert torch.allclose(tiny.embed_images([np.asarray(picture) for picture in pictures], batch_size=1), once, atol=1e-5)

def test_a_bad_image_is_named(tiny, pictures, tmp_path):
    (tmp_path/"bad.png").write_bytes(b"")
    with pytest.raises(ValueError, match="bad.png': the file is empty"): tiny.embed_images([*pictures, tmp_path/"bad.png"], batch_size=4)

def test_only_two_batches_are_open(tiny, pictures):
    read = []
    batches = embed.prepared(lambda image: read.append(image) or tiny.preprocess(image), pictures, 2)
    next(batches)
    assert len(read) <= 4

def test_damaged_weights_are_noticed(folder, pictures):
    encoder = load_encoder(f"local-dir:{folder}", device="cpu")
    encoder.model.visual.proj.fill_(float("nan"))
    with pytest.raises(ValueError, match="No embedding for image 0: it is zero or not finite"): encoder.embed_images(pictures)
    encoder.model.text_projection.zero_()
    with pytest.raises(ValueError, match="No embedding for blue wings"): encoder.embed_texts(["blue wings"])

def test_long_texts_are_counted(tiny):
    with pytest.warns(UserWarning, match="2 of 3 texts are longer than the 12 tokens"): tiny.embed_texts(["a", "b "*12, "c "*11])

@pytest.mark.filterwarnings("error")
def test_texts_that_just_fit(tiny):
    assert tiny.embed_texts(["c "*10]*300).shape == (300, 16)

def test_fingerprint_is_of_content(tiny, folder, tmp_path):
    file = tmp_path/"weights.safetensors"
    weights = {key: value.contiguous() for key, value in tiny.model.state_dict().items()}
    save_file(weights, file)
    assert load_encoder(f"local-dir:{folder}", file, "cpu").fingerprint == tiny.fingerprint
    weights["logit_scale"] = weights["logit_scale"] + 1
    save_file(weights, file)
    assert load_encoder(f"local-dir:{folder}", file, "cpu").fingerprint != tiny.fingerprint

def test_fingerprint_is_of_the_vocabulary_too(tmp_path):
    "A copy of the bundled folder is the same encoder; with two merges of its vocabulary swapped it is another."
    bundled, place = load_encoder("meadow-clip", device="cpu"), tmp_path/"copy"
    shutil.copytree(embed.model_address("meadow-clip").removeprefix("local-dir:"), place)
    assert load_encoder(f"local-dir:{place}", device="cpu").fingerprint == bundled.fingerprint
    with gzip.open(place/"bpe.txt.gz", "rt", encoding="utf-8") as file: merges = file.read().split("\n")
    merges[-2], merges[-3] = merges[-3], merges[-2]
    with gzip.open(place/"bpe.txt.gz", "wt", encoding="utf-8") as file: file.write("\n".join(merges))
    assert load_encoder(f"local-dir:{place}", device="cpu").fingerprint != bundled.fingerprint

def test_own_vocabulary(folder, tmp_path):
    shutil.copytree(folder, tmp_path/"own")
    with gzip.open(open_clip.tokenizer.default_bpe(), "rt", encoding="utf-8") as file: merges = file.read().split("\n")[:101]
    with gzip.open(tmp_path/"own"/"bpe.txt.gz", "wt", encoding="utf-8") as file: file.write("\n".join(merges))
    assert load_encoder(f"local-dir:{tmp_path/'own'}", device="cpu").tokenizer.vocab_size == 512 + 100 + 2

@pytest.mark.parametrize("content, says", [(b"", "cannot be read as saved weights"), (b"PK\x03\x04 half a file", "cannot be read as saved weights")], ids=["empty", "corrupt"])
def test_unreadable_checkpoint(folder, tmp_path, content, says):
    (tmp_path/"w.pt").write_bytes(content)
    with pytest.raises(ValueError, match=f"Checkpoint '.*w.pt' {says}"): load_encoder(f"local-dir:{folder}", tmp_path/"w.pt")

def test_a_checkpoint_cannot_run_code(folder, tmp_path):
    class Trap:
        def __reduce__(self): return Path(tmp_path/"sprung").touch, ()
    torch.save({"state_dict": Trap()}, tmp_path/"w.pt")
    with pytest.raises(ValueError, match="cannot be read as saved weights"): load_encoder(f"local-dir:{folder}", tmp_path/"w.pt")
    assert not (tmp_path/"sprung").exists()

def test_checkpoint_of_another_model(tiny, folder, tmp_path):
    weights, file = tiny.model.state_dict(), tmp_path/"w.pt"
    torch.save(weights | {"visual.proj": torch.zeros(32, 99)}, file)
    with pytest.raises(ValueError, match=r"belongs to another model: visual.proj is \(32, 99\), expected \(32, 16\) \(1 tensors differ\).*--model"): load_encoder(f"local-dir:{folder}", file)
    del weights["ln_final.bias"]
    torch.save(weights, file)
    with pytest.raises(ValueError, match="belongs to another model: ln_final.bias is missing"): load_encoder(f"local-dir:{folder}", file)
    torch.save({"epoch": 3, "model": weights}, file)
    with pytest.raises(ValueError, match="belongs to another model: .* is missing"): load_encoder(f"local-dir:{folder}", file)

def test_training_checkpoint(tiny, folder, tmp_path):
    "As open_clip's own training writes it: nested, from several GPUs"
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in tiny.model.state_dict().items()}}, tmp_path/"epoch_3.pt")
    assert load_encoder(f"local-dir:{folder}", tmp_path/"epoch_3.pt").fingerprint == tiny.fingerprint

@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_openais_archive(small, tmp_path):
    "A TorchScript program of half-precision weights: read without running it, and quick-GELU comes with it"
    model = untrained("ViT-B-32")
    class Holder(torch.nn.Module): pass
    archive = Holder()
    for key, value in model.state_dict().items():
        *path, leaf = key.split(".")
        place = archive
        for part in path:
            if not hasattr(place, part): place.add_module(part, Holder())
            place = getattr(place, part)
        place.register_buffer(leaf, value.half() if value.is_floating_point() else value)
    for name in ("input_resolution", "context_length", "vocab_size"): archive.register_buffer(name, torch.tensor(7))
    torch.jit.script(archive).save(str(tmp_path/"ViT-B-32.pt"))
    assert "QuickGELU" in repr(load_encoder("ViT-B-32", tmp_path/"ViT-B-32.pt", "cpu").model)

def test_names(no_hub):
    with pytest.raises(ValueError, match="Unknown model 'ViT-B-23': did you mean ViT-B-32"): load_encoder("ViT-B-23")
    with pytest.raises(ValueError, match="Unknown model 'medow-clip': did you mean meadow-clip"): load_encoder("medow-clip")
    with pytest.raises(ValueError, match="No weights 'gone.pt' for ViT-B-32: expected --checkpoint with a file or one of openai"): load_encoder("ViT-B-32", "gone.pt")
    with pytest.raises(ValueError, match="No weights 'openai' for ViT-H-14: .*laion2b_s32b_b79k"): load_encoder("ViT-H-14")
    with pytest.raises(ValueError, match="No device 'cuda:7' here") if not torch.cuda.is_available() else pytest.raises(Exception): load_encoder(device="cuda:7")

@pytest.mark.parametrize("model", ["ViT-B-32-quickgelu", "ViT-B-32", "hf-hub:somebody/clip"])
def test_no_network(no_hub, model, capfd):
    with pytest.raises(ConnectionError, match="cannot be downloaded: 127.0.0.1 does not answer.*--checkpoint.*--model"): load_encoder(model)
    assert capfd.readouterr().err == "" and not hub.HF_HUB_OFFLINE

def test_cached_weights_need_no_network_and_keep_quick_gelu(small, no_hub):
    "OpenAI's tag under the plain name, from the hub's cache"
    model = untrained("ViT-B-32")
    place = no_hub/"models--timm--vit_base_patch32_clip_224.openai"
    (place/"refs").mkdir(parents=True)
    (place/"refs"/"main").write_text("0"*40)
    (place/"snapshots"/("0"*40)).mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, place/"snapshots"/("0"*40)/"open_clip_model.safetensors")
    plain, quick = load_encoder("ViT-B-32", device="cpu"), load_encoder("ViT-B-32-quickgelu", device="cpu")
    assert "QuickGELU" in repr(plain.model) and plain.fingerprint == quick.fingerprint

@pytest.mark.skipif(not (SHARED/"clothing").is_dir(), reason="needs the photographs in ../shared/data")
def test_real_size_on_photographs(tmp_path):
    "ViT-B/32 with weights from a file, as a user without network would give them"
    with quiet(), torch.device("meta"): shapes = open_clip.create_model("ViT-B-32", load_weights=False, device="meta").state_dict()
    torch.save({key: torch.empty(value.shape, dtype=torch.half).uniform_(-.05, .05) for key, value in shapes.items()}, tmp_path/"ViT-B-32.pt")
    encoder = load_encoder("ViT-B-32", checkpoint=tmp_path/"ViT-B-32.pt", device="cpu")
    assert encoder.dim == 512 and "QuickGELU" not in repr(encoder.model)
    clothing = ImageSet.from_files(SHARED/"clothing", superclass="clothing")
    for split in clothing.samples: clothing.samples[split][:] = clothing.samples[split][::80]
    embedded = encoder.embed_set(clothing)
    texts = encoder.embed_texts(clothing.classes[:4], template="a photo of a {}")
    assert {split: len(rows) for split, rows in embedded.items()} == {split: len(samples) for split, samples in clothing.samples.items()}
    cosines = embedded["test"] @ texts.T
    assert cosines.shape[1] == 4 and cosines.isfinite().all() and len(cosines.unique()) == cosines.numel()


@pytest.fixture
def opened(monkeypatch):
    "What `decoded`, the one function that opens images, was asked for"
    asked, decoded = [], data._decoded
    monkeypatch.setattr(data, "_decoded", lambda image, *args, **options: asked.append(image) or decoded(image, *args, **options))
    return asked

@pytest.fixture
def album(tmp_path):
    "36 different pictures of three classes; file times that are not of this moment"
    draw = np.random.default_rng(0)
    for i in range(36):
        path = tmp_path/"photos"/("ape", "bee", "cow")[i % 3]/f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(path)
    time.sleep(.15)
    return tmp_path/"photos"

def whole_run(album, store, encoder):
    images = ImageSet.from_files(album, store=store)
    return images.fingerprint, encoder.embed_set(images, progress=False, store=store), images.repeated(progress=False, store=store)

def test_a_picture_is_decoded_twice_and_then_never_again(tiny, album, opened, tmp_path):
    store = Store(tmp_path/"store")
    _, first, none = whole_run(album, store, tiny)
    assert len(opened) == 72 and set(map(opened.count, opened)) == {2} and len(none) == 0
    opened.clear()
    _, again, _ = whole_run(album, store, tiny)
    assert not opened and all(torch.equal(first[split], again[split]) for split in first)
    plain = tiny.embed_set(ImageSet.from_files(album))
    assert all(torch.allclose(first[split], plain[split], atol=1e-5) for split in first)

def test_only_what_changed_is_decoded(tiny, album, opened, tmp_path):
    store, path = Store(tmp_path/"store"), album/"ape"/"0.png"
    before, *_ = whole_run(album, store, tiny)
    opened.clear()
    os.utime(path)   # touched, not changed
    shutil.copytree(album, tmp_path/"elsewhere"/"photos")
    time.sleep(.15)
    assert whole_run(album, store, tiny)[0] == whole_run(tmp_path/"elsewhere"/"photos", store, tiny)[0] == before and not opened
    was = path.stat()
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    os.truncate(path, was.st_size) if path.stat().st_size > was.st_size else path.write_bytes(path.read_bytes().ljust(was.st_size))
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))   # of the same size and time as before
    shutil.copy(album/"bee"/"1.png", album/"cow"/"copy.png")
    fingerprint, _, twice = whole_run(album, store, tiny)
    assert fingerprint != before and set(map(Path, opened)) == {path} and len(twice) == 2 and twice.labels_differ.all()

def test_what_cannot_be_read_is_remembered_too(album, opened, tmp_path):
    (album/"ape"/"bad.png").write_bytes(b"no image")
    time.sleep(.15)
    look = lambda: ImageSet.from_files(album, bad_images="skip", store=Store(tmp_path/"store")).skipped
    first = look()
    opened.clear()
    assert look() == first and first[0].endswith("bad.png: it is not an image") and not opened

def test_an_interrupted_run_keeps_what_it_embedded(tiny, album, opened, tmp_path, monkeypatch):
    images, store, encoder = ImageSet.from_files(album), Store(tmp_path/"store"), replace(tiny, fingerprint="of another")
    encode, calls = tiny.model.encode_image, []
    def interrupted(batch):
        calls.append(len(batch))
        if len(calls) == 3: raise KeyboardInterrupt
        return encode(batch)
    monkeypatch.setattr(tiny.model, "encode_image", interrupted)
    with pytest.raises(KeyboardInterrupt): encoder.embed_set(images, batch_size=8, store=store)
    encoder.embed_set(images, batch_size=8, store=store)
    assert sum(calls) - 8 == len(images)   # the batch that was interrupted came twice

def test_another_reader_of_images_embeds_anew(tiny, album, opened, tmp_path, monkeypatch):
    images, store = ImageSet.from_files(album), Store(tmp_path/"store")
    tiny.embed_set(images, progress=False, store=store)
    opened.clear()
    tiny.embed_set(images, progress=False, store=store)
    assert not opened
    monkeypatch.setattr(ImageSet, "reader", lambda: "another")
    tiny.embed_set(images, progress=False, store=store)
    assert len(opened) == len(images)

def test_facts_are_written_once(tiny, album, tmp_path, monkeypatch):
    "With a shard a batch, each picture's fact is put once, and all are there."
    monkeypatch.setattr(embed, "_SHARD", 8)
    images, store = ImageSet.from_files(album), Store(tmp_path/"store")
    written, put = [], type(store.facts("pixels")).put
    monkeypatch.setattr(type(store.facts("pixels")), "put", lambda facts, values: written.extend(values) or put(facts, values))
    tiny.embed_set(images, batch_size=8, progress=False, store=store)
    written = [key for key in written if " " in key]
    assert len(written) == len(set(written)) == len(images)

def test_each_text_once(tiny, tmp_path, monkeypatch):
    read, tokens_of = [], embed._tokens_of
    monkeypatch.setattr(embed, "_tokens_of", lambda tokenizer, texts: read.extend(texts) or tokens_of(tokenizer, texts))
    texts, store = ["a wing", "a tail", "a wing", "été \ud800"[:3]], Store(tmp_path)
    ask = tiny.text_embedder(store)
    assert ask(texts).shape == (4, 16) and read == ["a wing", "a tail", "été"] and ask([]).shape == (0, 16)
    ask([*texts, "a beak"])
    tiny.text_embedder(store)(["a beak", *texts])
    assert read[3:] == ["a beak"]
    assert torch.allclose(tiny.text_embedder()(texts), ask(texts), atol=1e-6) and len(read) == 7
    replace(tiny, fingerprint="of another").text_embedder(store)(["a wing"])
    assert len(read) == 8

def test_heavy_libraries_come_when_they_are_used():
    "An import of what describes a dataset brings torch, pandas and matplotlib, and nothing that only some of its functions need"
    late = ("torchvision", "open_clip", "timm", "torch._dynamo", "sklearn", "scipy.stats", "seaborn", "openai", "bm25s", "datasets", "transformers", "httpx", "pandas.io.formats.style")
    program = ("import sys, datadesc.data, datadesc.datasets, datadesc.embed, datadesc.head, datadesc.influence, datadesc.selection, datadesc.zeroshot, datadesc.study, datadesc.describe, "
               f"datadesc.plan, datadesc.report, datadesc.figures; print([name for name in {late} if name in sys.modules])")
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"

def test_an_encoder_and_a_head_come_without_the_compiler():
    program = ("import sys, torch; from datadesc.embed import load_encoder; from datadesc.head import train_head; "
               "x = load_encoder('meadow-clip').embed_texts(['a wing', 'a tail']); train_head(x, torch.tensor([0, 1]), 2); print('torch._dynamo' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_mixed_precision_changes_rows_by_less_than_a_thousandth():
    from datadesc import meadow
    encoder = load_encoder("meadow-clip", device="cpu")
    pictures = meadow.load().images.images("val")[:40]
    exact, mixed = encoder.embed_images(pictures, progress=False), encoder.in_mixed_precision()
    assert ((mixed.embed_images(pictures, progress=False) * exact).sum(1) > 1 - 1e-3).all()
    assert mixed.fingerprint != encoder.fingerprint and mixed.in_mixed_precision().mixed
    assert torch.allclose(encoder.embed_images(pictures, progress=False), exact, atol=1e-5)


def test_an_encoder_is_loaded_in_either_precision():
    with pytest.raises(ValueError, match="precision='half': expected 'float32' or 'bfloat16'"): load_encoder("meadow-clip", precision="half")
    mixed = load_encoder("meadow-clip", device="cpu", precision="bfloat16")
    assert mixed.mixed and mixed.fingerprint == load_encoder("meadow-clip", device="cpu").in_mixed_precision().fingerprint
