"""What a training prints before its first epoch."""

import torch

from alexmri.contract.resources import resources_line
from alexmri.data.audit import Audit
from alexmri.data.cache import cache_folder
from alexmri.data.dataset import Dataset
from alexmri.data.synthetic import NOTICE
from alexmri.evaluation.interpretation import describe_split
from alexmri.model.forward import Compute
from alexmri.terminal import Terminal, number_of
from alexmri.training.provenance import version
from alexmri.training.results import protocol_document


def print_run_banner(
    dataset: Dataset, audited: Audit, compute: Compute, terminal: Terminal, *, workers: int
) -> None:
    """Print machine, data and warnings, and what the 1-NN baseline scores on this split."""
    folder = dataset.folder
    people = f", {dataset.subjects.count} people" if dataset.subjects else ", people unknown"
    terminal.say(f"alexmri {version()}: research software, not a diagnostic device")
    if dataset.synthetic:
        terminal.warn(NOTICE)
    terminal.say(resources_line(cache_folder()))
    several = f", {workers} workers" if workers > 1 else ""
    terminal.say(
        f"device: {compute.device.type}, precision {compute.precision},"
        f" {number_of(torch.get_num_threads(), 'thread')}{several}"
    )
    terminal.say(
        f"data: {len(folder.images)} images in {len(folder.classes)} classes{people};"
        f" {number_of(folder.ignored_files, 'other file')} ignored;"
        f" {_decoding(dataset)}"
    )
    for split, counts in dataset.counts().items():
        shown = ", ".join(f"{name} {count}" for name, count in counts.items())
        terminal.say(f"  {split}: {sum(counts.values())} ({shown})")
    for warning in audited.document["warnings"]:
        terminal.warn(warning)
    probe = audited.document["leak_probe"]
    terminal.say(describe_split(protocol_document(dataset)))
    scores = [
        f"{score:.3f} {title}"
        for score, title in (
            (probe["slice"], "on this split" if dataset.folder.is_split else "on a slice split"),
            (probe["subject"], "on a split by person"),
            (probe["shuffled"], "with labels shuffled between people"),
        )
        if score is not None
    ]
    if scores:
        terminal.say(f"the 1-NN baseline scores {', '.join(scores)}")


def _decoding(dataset: Dataset) -> str:
    seconds = dataset.cache.seconds
    if seconds is None:
        return "decoded before"
    each = seconds / len(dataset.folder.images) * 1e6
    return f"decoded now in {seconds:.1f} s, {each:.0f} microseconds each"
