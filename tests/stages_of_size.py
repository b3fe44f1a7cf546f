"Peak memory of each stage beyond its inputs, as JSON on stdout; each is a fork of this process, which has computed nothing."
import ctypes
import json
import multiprocessing
import sys

import pandas as pd
import torch
import torch.nn.functional as F

from datadesc.head import Checkpoint, HeadOptions, center, train_head
from datadesc.influence import influence
from datadesc.selection import ChoiceOptions
from datadesc.study import Study
from datadesc.transfer import TransferOptions, train_stage, transfer
from datadesc.zeroshot import zero_shot


def study_of(n, n_classes, n_texts, width):
    "A study of random images: half of them train images, the others validation and test images."
    g, parts = torch.Generator().manual_seed(0), dict(train=n // 2, val=n // 4, test=n // 4)
    def random(rows): return F.normalize(torch.randn(rows, width, generator=g), dim=1)
    images, labels = {s: random(m) for s, m in parts.items()}, {s: torch.arange(m) % n_classes for s, m in parts.items()}
    texts = random(n_texts)
    pool = pd.DataFrame(dict(text_id=range(n_texts), class_id=torch.arange(n_texts) % n_classes, text=list(map(str, range(n_texts))), flag=""))
    study = Study(list(map(str, range(n_classes))), images, labels, pool, lambda t: texts[list(map(int, t))], ChoiceOptions("direct", top_k=1))
    study.text_emb
    return study.with_scorer([Checkpoint(random(n_classes), torch.zeros(n_classes), .1, k) for k in range(2)])


def batches_of_many_epochs(n=100_000, epochs=200):
    x, y = torch.rand(n, 4), torch.arange(n) % 2
    start = Checkpoint(torch.zeros(2, 4), torch.zeros(2), 0., 0)
    options = HeadOptions(epochs=epochs, batch_size=10_000, n_checkpoints=1, logit_scale=1.)
    return lambda: train_stage([dict(train=(x, y))], [], [start], [0], n // options.batch_size, options)


def stages(sizes):
    "Name of each stage and the function that makes what is to be run."
    options = HeadOptions(epochs=1, n_checkpoints=1, batch_size=1000)
    def on_study(run):
        def prepare():
            study = study_of(**sizes["all"])
            return lambda: run(study)
        return prepare
    def set_of_many_images():
        study = study_of(**sizes["set"])
        return lambda: study.with_options(form="set").chosen()
    def zero(s): return zero_shot({"all": (s.text_emb, s.text_class)}, torch.cat([*s.image_emb.values()]), torch.cat([*s.labels.values()]), s.n_classes)
    def all_pairs(s):
        x, y = s.features, s.labels
        return influence(x["train"], y["train"], x["val"][:500], y["val"][:500], s.scorer, top_k=5, by_class=False)
    def transferred(s):
        return transfer(s.image_emb, s.labels, {"all": (s.text_emb, s.text_class, None)}, TransferOptions(image=options, text=options), seeds=[0])
    return dict(
        center=on_study(lambda s: center(s.image_emb["train"])), clip=on_study(lambda s: s.scores("clip")), direct=on_study(lambda s: s.scores()),
        head=on_study(lambda s: train_head(s.features["train"], s.labels["train"], s.n_classes, options)),
        mean_loss=on_study(lambda s: s.scorer[0].mean_loss(s.image_emb["train"], s.labels["train"])), influence=on_study(all_pairs),
        set=set_of_many_images, zero_shot=on_study(zero), transfer=on_study(transferred),
        batches=batches_of_many_epochs)


def kilobytes(field):
    with open("/proc/self/status") as f: return int(next(line.split()[1] for line in f if line.startswith(field)))


def peak(prepare):
    "Bytes beyond what was there before; freed memory goes back at once, so that it is not counted."
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD
    run = prepare()
    with open("/proc/self/clear_refs", "w") as f: f.write("5")  # the peak counts from here
    before = kilobytes("VmRSS")
    run()
    return (kilobytes("VmHWM") - before) * 1024


if __name__ == "__main__":
    try:
        with open("/proc/self/clear_refs", "w") as f: f.write("5")
        ctypes.CDLL(None).mallopt
    except (OSError, AttributeError) as error: sys.exit(f"cannot measure peak memory here: {error}")
    fork = multiprocessing.get_context("fork")
    found = {}
    for name, prepare in stages(json.loads(sys.argv[1])).items():
        receive, send = fork.Pipe(duplex=False)
        process = fork.Process(target=lambda: send.send(peak(prepare)))
        process.start(), send.close()
        found[name] = receive.recv()
        process.join()
    print(json.dumps(found))
