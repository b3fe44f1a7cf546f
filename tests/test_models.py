"""What `datadesc models` finds, and CLIP and SigLIP of transformers from a folder, against that library's own methods."""
import hashlib, json, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants as hub
from PIL import Image
from safetensors.torch import load_file, save_file

from datadesc import models
from datadesc.embed import cut_tokens, load_encoder
from datadesc.hub import import_library, quiet
from datadesc.models import known_models, load_transformers

import_library("torchvision")
TOWER = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
TEXTS = ["red wing", "A wing", "photo of 3"]


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    "Neither the hub's cache nor open_clip's holds anything"
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path/"cache"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    return tmp_path/"cache"


@pytest.fixture(scope="module")
def transformers():
    transformers = pytest.importorskip("transformers", reason="needs the extra transformers")
    transformers.logging.disable_progress_bar()
    return transformers


@pytest.fixture(scope="module")
def clip_folder(transformers, tmp_path_factory):
    "A tiny CLIP with a vocabulary of characters and one merge"
    folder, letters = tmp_path_factory.mktemp("clip")/"tiny-clip", [chr(i) for i in range(33, 127)]
    vocabulary = {token: i for i, token in enumerate([*letters, *(f"{c}</w>" for c in letters), "wi", "<|startoftext|>", "<|endoftext|>"])}
    start, end = len(vocabulary) - 2, len(vocabulary) - 1
    text = TOWER | dict(vocab_size=len(vocabulary), max_position_embeddings=16, bos_token_id=start, eos_token_id=end, pad_token_id=end)
    torch.manual_seed(0)
    small = transformers.CLIPConfig(text_config=text, vision_config=TOWER | dict(image_size=32, patch_size=16), projection_dim=24)
    transformers.CLIPModel(small).half().save_pretrained(folder)
    transformers.CLIPTokenizer(vocab=vocabulary, merges=[("w", "i")]).save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def siglip_folder(transformers, tmp_path_factory):
    "A tiny SigLIP whose tokenizer knows a few words, with a scale and a bias that are not 1 and 0"
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    folder = tmp_path_factory.mktemp("siglip")/"tiny-siglip"
    words = {word: i for i, word in enumerate("<unk> </s> a red wing wings photo of spots three with".split())}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="</s>", eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(1)
    text = TOWER | dict(vocab_size=len(words), max_position_embeddings=64, projection_size=32, bos_token_id=None, eos_token_id=1, pad_token_id=1)
    model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=TOWER | dict(image_size=32, patch_size=16)))
    with torch.no_grad(): model.logit_scale.fill_(4.76), model.logit_bias.fill_(-12.9)
    model.save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture
def pictures():
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, shape, dtype=np.uint8)) for shape in [(48, 64, 3), (64, 48, 3), (32, 32, 3)]]


def unit(rows): return torch.nn.functional.normalize(rows, dim=1)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_embeddings_are_those_of_the_library(kind, request, transformers, pictures):
    folder = request.getfixturevalue(f"{kind}_folder")
    encoder = load_encoder(f"local-dir:{folder}", device="cpu")
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        images = unit(model.get_image_features(**processor(images=pictures, return_tensors="pt")).pooler_output)
        padded = dict(padding="max_length", max_length=64) if kind == "siglip" else dict(padding=True)
        read = tokenizer(TEXTS, return_tensors="pt", **padded)
        if kind == "siglip": read.pop("attention_mask", None)  # it was trained to read the padding too
        texts = unit(model.get_text_features(**{name: read[name] for name in read if name != "token_type_ids"}).pooler_output)
    torch.testing.assert_close(encoder.embed_images(pictures), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.embed_texts([text.strip() for text in TEXTS]), texts, atol=1e-5, rtol=0)
    assert all(weight.dtype == torch.float32 for weight in encoder.model.parameters()) and encoder.name == f"tiny-{kind}"
    assert encoder.logit_scale == pytest.approx(model.logit_scale.exp().item()) and encoder.dim == texts.shape[1]
    assert encoder.tokenizer.context_length == {"clip": 16, "siglip": 64}[kind]


def test_a_plain_folder_is_the_same_door(clip_folder, monkeypatch):
    by_address = load_encoder(f"local-dir:{clip_folder}", device="cpu")
    monkeypatch.chdir(clip_folder.parent)
    by_folder = load_encoder("tiny-clip/", device="cpu")
    assert by_folder.fingerprint == by_address.fingerprint and by_folder.name == "tiny-clip"
    assert cut_tokens(["w" * 14, "w" * 20], by_folder.tokenizer).tolist() == [0, 6]
    with pytest.raises(ValueError, match="'tiny-clip' has weights of its own: leave out the checkpoint 'openai'"): load_encoder("tiny-clip", "openai")


def test_a_name_wins_over_a_folder(clip_folder, tmp_path, monkeypatch):
    (tmp_path/"ViT-B-32").symlink_to(clip_folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datadesc.embed._from_tag", lambda name, tag: (_ for _ in ()).throw(KeyError(name)))
    with pytest.raises(KeyError, match="ViT-B-32"): load_encoder("ViT-B-32", device="cpu")


def copy_of(folder, place, **config):
    "The folder's files under another path, its config.json changed"
    place.mkdir()
    for file in folder.iterdir(): (place/file.name).write_bytes(file.read_bytes())
    (place/"config.json").write_text(json.dumps(json.loads((place/"config.json").read_text()) | config))
    return place


def test_fingerprint_is_of_weights_pictures_and_vocabulary(clip_folder, tmp_path):
    first = load_encoder(f"local-dir:{clip_folder}", device="cpu").fingerprint
    assert load_encoder(str(copy_of(clip_folder, tmp_path/"copy")), device="cpu").fingerprint == first
    def changed(name, change):
        other = copy_of(clip_folder, tmp_path/name.split(".")[0])
        facts = json.loads((other/name).read_text())
        change(facts)
        (other/name).write_text(json.dumps(facts))
        return load_encoder(str(other), device="cpu").fingerprint
    assert changed("preprocessor_config.json", lambda facts: facts.update(image_mean=[.5] * 3)) != first
    assert changed("tokenizer.json", lambda facts: facts["model"].update(merges=[])) != first
    other = copy_of(clip_folder, tmp_path/"weights")
    weights = load_file(other/"model.safetensors")
    weights["visual_projection.weight"][0, 0] += 1
    save_file(weights, other/"model.safetensors", metadata={"format": "pt"})
    assert load_encoder(str(other), device="cpu").fingerprint != first


def test_what_a_folder_lacks(clip_folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="holds a model of type 'bert': expected clip or siglip"): load_encoder(str(copy_of(clip_folder, tmp_path/"bert", model_type="bert")))
    for lacking in ("model.safetensors", "tokenizer.json", "preprocessor_config.json"):
        folder = copy_of(clip_folder, tmp_path/f"no-{lacking}")
        (folder/lacking).unlink()
        with pytest.raises(ValueError, match=f"is not complete: {lacking} is missing"): load_encoder(str(folder))
    folder = copy_of(clip_folder, tmp_path/"cut")
    (folder/"model.safetensors").write_bytes((clip_folder/"model.safetensors").read_bytes()[:999])
    with pytest.raises(ValueError, match="The weights in .* cannot be read"): load_encoder(str(folder))
    weights = load_file(clip_folder/"model.safetensors")
    save_file({name: value for name, value in weights.items() if name != "logit_scale"}, folder/"model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"its weights lack logit_scale \(1 missing\)"): load_encoder(str(folder))
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install transformers"): load_encoder(str(clip_folder))


def test_siglips_own_tokenizer_names_its_packages(siglip_folder, tmp_path, transformers, monkeypatch):
    def lacking(*args, **options): raise ImportError("requires sentencepiece")
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lacking)
    with pytest.raises(ImportError, match="pip install sentencepiece protobuf"): load_encoder(str(siglip_folder))


def test_open_clips_folder_stays_open_clips(clip_folder, tmp_path):
    folder = copy_of(clip_folder, tmp_path/"both")
    (folder/"open_clip_config.json").write_text("{}")
    assert load_transformers(folder) is None and load_transformers("ViT-B-32") is None and load_transformers(tmp_path) is None


def states(rows): return {row["model"]: row["here"] for row in rows}


def test_nothing_is_cached(no_cache):
    rows = known_models()
    assert states(rows)["meadow-clip"] == "yes" and states(rows)["ViT-B-32-quickgelu"] == "fetch"
    assert set(rows[0]) == {"model", "weights", "here", "size", "licence", "use"}


def plant(cache, repository, files):
    "A repository in the hub's cache"
    folder = cache/f"models--{repository.replace('/', '--')}"
    snapshot = folder/"snapshots"/("0" * 40)
    for place in (snapshot, folder/"refs", folder/"blobs"): place.mkdir(parents=True)
    (folder/"refs"/"main").write_text("0" * 40)
    for name, content in files.items():
        (folder/"blobs"/name).write_bytes(content)
        (snapshot/name).symlink_to(folder/"blobs"/name)
    return snapshot


def test_what_the_cache_holds(no_cache, tmp_path):
    plant(no_cache, "timm/vit_base_patch32_clip_224.openai", {"open_clip_model.safetensors": b"0" * 3_000_000})
    plant(no_cache, "laion/other", {"open_clip_model.safetensors": b"0" * 2000, "open_clip_config.json": b"{}"})
    siglip = plant(no_cache, "google/siglip", {"model.safetensors": b"0", "config.json": b'{"model_type": "siglip"}'})
    plant(no_cache, "somebody/bert", {"model.safetensors": b"0", "config.json": b'{"model_type": "bert"}'})
    (tmp_path/".cache"/"clip").mkdir(parents=True)
    (tmp_path/".cache"/"clip"/"ViT-B-32.pt").write_bytes(b"half")
    rows = known_models()
    assert states(rows) | {"offline": ""} == {"meadow-clip": "yes", "offline": "", "ViT-B-32-quickgelu": "on disk", "hf-hub:laion/other": "on disk",
                                              "google/siglip": "on disk", "ViT-B-32.pt": "on disk"}
    by_model = {row["model"]: row for row in rows}
    assert by_model["ViT-B-32-quickgelu"]["size"] == "3 MB" and by_model["hf-hub:laion/other"]["size"] == "2 kB"
    assert by_model["google/siglip"]["use"] == f"--model {siglip}" and by_model["ViT-B-32.pt"]["weights"] == "unknown"


def test_a_path_of_ones_own(no_cache, clip_folder, tmp_path, monkeypatch):
    assert known_models(clip_folder)[-1] | {"size": ""} == {"model": "tiny-clip", "weights": "transformers", "here": "on disk", "size": "",
                                                           "licence": "not known", "use": f"--model local-dir:{clip_folder}"}
    with pytest.raises(ValueError, match="No encoder in .*expected"): known_models(tmp_path)
    file = tmp_path/"ViT-B-32.pt"
    file.write_bytes(b"as it was published")
    monkeypatch.setattr(models, "_archives", lambda: {hashlib.sha256(b"as it was published").hexdigest(): "ViT-B-32"})
    assert known_models(file)[-1]["use"] == f"--model ViT-B-32 --checkpoint {file}" and known_models(file)[-1]["weights"] == "openai, whole"
    file.write_bytes(b"as it was publishe")
    assert known_models(file)[-1]["weights"] == "unknown"


def test_offlines_packages_are_those_of_its_chapter():
    offline = pytest.importorskip("datadesc.offline")
    assert set(models._OFFLINE.values()) == {name for name in offline.INSTALL_OFFLINE.split() if name.endswith("model")}


def test_the_list_needs_no_torch(tmp_path):
    program = "import sys; from datadesc.models import known_models; known_models(); print({'torch', 'transformers', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_a_file_that_open_clip_saved_is_a_checkpoint(tmp_path):
    "CLIP's file on a machine without a hub: weights saved elsewhere, carried here, given with --checkpoint"
    open_clip = import_library("open_clip")
    torch.manual_seed(0)
    with quiet(): model = open_clip.create_model("ViT-B-32-quickgelu", load_weights=False)
    torch.save({name: value.half() for name, value in model.state_dict().items()}, tmp_path/"ViT-B-32.pt")
    encoder = load_encoder("ViT-B-32-quickgelu", tmp_path/"ViT-B-32.pt", "cpu")
    assert encoder.dim == 512 and "QuickGELU" in repr(encoder.model)
    assert encoder.embed_texts(["a red wing"]).shape == (1, 512)
