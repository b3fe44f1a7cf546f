"Made-up embeddings of images and sentences, for tests that need no encoder"
import torch
import torch.nn.functional as F

CLASSES, WIDTH, TEXTS = 4, 16, 6


def two_modalities(spread):
    "Image embeddings around a centre per class, `spread` wide, and sentences around the same centres, each modality shifted its own way: images and labels by split, and (embeddings, classes, no scores)."
    g = torch.Generator().manual_seed(0)
    def noise(*shape): return torch.randn(*shape, generator=g)
    centre, gap = noise(CLASSES, WIDTH), noise(2, WIDTH) * 3
    labels = {split: torch.arange(CLASSES).repeat_interleave(n) for split, n in dict(train=20, val=6, test=50).items()}
    images = {split: F.normalize(centre[y] + spread * noise(len(y), WIDTH) + gap[0], dim=1) for split, y in labels.items()}
    y = torch.arange(CLASSES).repeat_interleave(TEXTS)
    return images, labels, (F.normalize(centre[y] + .5 * noise(len(y), WIDTH) + gap[1], dim=1), y, None)
