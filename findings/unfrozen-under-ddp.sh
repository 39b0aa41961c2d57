#!/usr/bin/env bash
# Guess: DistributedDataParallel averages the gradients of whatever trains, so that all processes hold the same weights at every step, also
#   of a model that is frozen at first and thawed after some steps. Lightning has a callback for just that (BackboneFinetuning).
# What happens: the weights whose gradients are averaged are listed when the model is wrapped, and those are left out that need no gradient
#   then. What is thawed later trains on each process by that process's rows alone. The head goes on being averaged, so the
#   losses stay sensible, while the bodies drift apart; find_unused_parameters changes nothing. Lightning's callback freezes before the
#   model is wrapped, and so all that it thaws is left out. Nothing is said: torch warns of parameters that are "changed" afterwards,
#   and of none that were frozen.
# Why it matters to people who fine-tune: head first, body later is the classical recipe. On eight devices the body that is saved has seen an
#   eighth of the rows with an eighth of the batch, under a head that belongs to eight different bodies; validation on each device
#   measures another model. Freeze after wrapping (with find_unused_parameters), or wrap anew when you thaw.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet torch==2.13.0 lightning==2.6.6 numpy==2.4.6
    PYTHON="$folder/venv/bin/python"
fi
cd "$folder"
cat > program.py <<'PYTHON'
import logging
import socket
import sys
from importlib.metadata import version

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import BackboneFinetuning

torch.set_num_threads(1)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
draw = torch.Generator().manual_seed(0)
inputs = torch.randn(512, 8, generator=draw)
classes = (inputs[:, 0] * inputs[:, 1] > 0).long()


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.head = torch.nn.Linear(8, 16), torch.nn.Linear(16, 2)

    def forward(self, rows):
        return self.head(torch.tanh(self.backbone(rows)))

    def training_step(self, batch, _):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW([weight for weight in self.parameters() if weight.requires_grad], lr=1e-2)


def told(text, model):
    """How far the two processes' weights are from each other, and from where they began, as a share of the first way."""
    start = dict(Model().named_parameters())
    apart = {}
    for name, weight in model.named_parameters():
        both = [torch.zeros_like(weight) for _ in range(2)]
        dist.all_gather(both, weight.detach())
        apart[name.removeprefix("module.")] = float((both[0] - both[1]).norm() / (both[0] - start[name.removeprefix("module.")]).norm())
    if dist.get_rank() == 0:
        print(f"{text}: the two processes are apart, over the way that was gone: backbone {apart['backbone.weight']:.3f}, "
              f"head {apart['head.weight']:.3f}", flush=True)
    return apart["backbone.weight"], apart["head.weight"]


def by_hand(freeze, wrap_again=False, **more):
    model = Model()
    if freeze == "before":
        model.backbone.requires_grad_(False)
    wrapped = torch.nn.parallel.DistributedDataParallel(model, **more)
    if freeze == "after":
        model.backbone.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    mine = torch.arange(dist.get_rank(), 512, 2)
    for step in range(200):
        if step == 20:
            model.backbone.requires_grad_(True)
            if wrap_again:
                wrapped = torch.nn.parallel.DistributedDataParallel(model)
        rows = mine[torch.randint(0, 256, (16,), generator=draw)]
        loss = torch.nn.functional.cross_entropy(wrapped(inputs[rows]), classes[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def process(rank, port):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    right = [told("never frozen", by_hand("never")), told("frozen when wrapped, wrapped again to thaw", by_hand("before", wrap_again=True)),
             told("frozen after it was wrapped", by_hand("after", find_unused_parameters=True))]
    wrong = [told("frozen when wrapped", by_hand("before")),
             told("the same, find_unused_parameters=True", by_hand("before", find_unused_parameters=True))]
    assert all(body < 1e-6 and head < 1e-6 for body, head in right), right
    assert all(body > 0.1 and head < 1e-6 for body, head in wrong), wrong
    dist.destroy_process_group()


class Checked(Model):
    def on_train_end(self):
        body, head = told("Lightning's BackboneFinetuning", self)
        assert body > 0.1 and head < 1e-6, (body, head)


if __name__ == "__main__":
    if sys.argv[1] == "hand":
        print(*(f"{name} {version(name)}" for name in ("torch", "lightning")), flush=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torch.multiprocessing.spawn(process, (port,), nprocs=2)
    else:
        trainer = lightning.Trainer(
            accelerator="cpu", devices=2, strategy="ddp_find_unused_parameters_true", max_epochs=8, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=2)])
        trainer.fit(Checked(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, classes), batch_size=16, shuffle=True))
PYTHON
for part in hand lightning; do
    "$PYTHON" -W ignore program.py "$part" 2>"$folder/said" || { cat "$folder/said" >&2; exit 1; }
done
