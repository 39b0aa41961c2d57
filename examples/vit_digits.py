"""A vision transformer of 0.1 million parameters learns the digits 0 to 4, then 5 to 9 by LoRA. Needs transformers."""

import torch
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification

import microplane

torch.manual_seed(0)
sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
vit = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=2, num_channels=1, num_labels=10))
digits = load_digits()
images, labels = torch.tensor(digits.images).float()[:, None] / 16, torch.tensor(digits.target)
held_out = torch.arange(len(labels)) % 5 == 0


def learn(adapted, rows, steps, lr):
    optimizer = torch.optim.AdamW(adapted.param_groups(lr))
    for step in range(steps):
        batch = rows[torch.randint(len(rows), (64,))]
        adapted.model(pixel_values=images[batch], labels=labels[batch]).loss.backward()
        adapted.step(optimizer, step, steps)
        optimizer.zero_grad()


for name, chosen, adapted, steps, lr in (
    ("0 to 4, full", labels < 5, lambda: microplane.attach(vit, "full"), 150, 2e-3),
    ("5 to 9, LoRA", labels > 4, lambda: microplane.attach(vit, "lora", ["q", "v"], train="classifier"), 150, 5e-3),
):
    learn(made := adapted(), torch.nonzero(chosen & ~held_out).flatten(), steps, lr)
    count = made.trainable_parameters
    rows = chosen & held_out
    right = (made.merge().eval()(images[rows]).logits.argmax(-1) == labels[rows]).float().mean()
    print(f"{name}: {count:,} parameters trained, accuracy on held-out rows {right:.1%}")
