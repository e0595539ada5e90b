"""Lightning's Trainer on the textbook's data set, network and recipe."""

import warnings

import lightning
import torch
import torch.nn.functional as F
from job import Job, Stopwatch, answer
from textbook import loader, optimizer_and_schedule

warnings.filterwarnings("ignore")


class Module(lightning.LightningModule):
    def __init__(self, job, steps):
        super().__init__()
        self.network, self.job, self.steps = job.network(), job, steps

    def training_step(self, batch, index):
        images, labels = batch
        loss = F.cross_entropy(self.network(images), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer, schedule = optimizer_and_schedule(self.network, self.job.settings, self.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class Watching(lightning.Callback):
    def __init__(self, steps):
        self.watch = Stopwatch(steps)

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if self.watch.enough_after(len(batch[1])):
            self.images_per_second = self.watch.images_per_second
            trainer.should_stop = True


def main():
    job = Job.read()
    batches = loader(job, "train")
    watching = Watching(job.steps)
    trainer = lightning.Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=1,
        precision="bf16-mixed" if job.precision == "bf16" else "32-true",
        max_epochs=1000,
        min_steps=0,
        callbacks=[watching],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(job, 1000 * len(batches)), batches)
    answer(images_per_second=watching.images_per_second)


if __name__ == "__main__":
    main()
