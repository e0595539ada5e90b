"""Lightning's Trainer on the textbook's data set, network and recipe."""

import warnings

import lightning
import torch
import torch.nn.functional as F
from job import Job
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
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main():
    job = Job.read()
    batches = loader(job, "train")
    trainer = lightning.Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=1,
        precision="bf16-mixed" if job.precision == "bf16" else "32-true",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(job, 1000 * len(batches)), Timed(job, batches))


class Timed:
    """The batches of a job, which time their use."""

    def __init__(self, job, batches):
        self.job, self.batches = job, batches

    def __iter__(self):
        return self.job.timed(self.batches)


if __name__ == "__main__":
    main()
