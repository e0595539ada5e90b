"""Measure a model as a processing job does: what container/evaluate runs."""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from alexmri.contract.failure import report_failure
from alexmri.contract.gpu import use_gpu
from alexmri.contract.paths import Paths
from alexmri.data.groups_table import parse_columns
from alexmri.errors import UserError
from alexmri.terminal import PlainTerminal, prepare_output


def main(doc: str | None) -> int:
    """Measure the model of the job below /opt/ml; `doc` says in --help what that is."""
    prepare_output()
    # There is nothing to save; without a handler process 1 would not even notice.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    paths = Paths.of(os.environ)
    terminal = PlainTerminal()
    try:
        # What an earlier job told would be taken for this one's.
        paths.message.unlink(missing_ok=True)
        arguments = _parse(doc, paths)
        terminal.say(f"alexmri evaluate: {arguments.model} on {arguments.test}")
        use_gpu(terminal.say)
        _measure_into(arguments, terminal)
    except Exception as error:
        return report_failure(error, paths.message)
    return 0


class _Parser(argparse.ArgumentParser):
    """Options whose faults are told as all others are, also in output/message."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; evaluate --help lists the options")


def _parse(doc: str | None, paths: Paths) -> argparse.Namespace:
    parser = _Parser(
        prog="evaluate", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, meaning in (
        ("model", "model directory, model.tar.gz, or folder with one of them"),
        ("test", "folder of class folders, or of train, valid and test folders"),
        ("evaluation", "folder for what is written"),
    ):
        default = paths.processing / name
        parser.add_argument(
            f"--{name}", type=Path, default=default, help=f"{meaning} (default: {default})"
        )
    parser.add_argument(
        "--on-bad-image",
        choices=("fail", "skip"),
        default="fail",
        help="what to do with unreadable images; skip = leave them out (default: fail)",
    )
    parser.add_argument(
        "--subgroups",
        type=parse_columns,
        default=(),
        metavar="COLUMN,…",
        help="also measure subgroups, by columns of groups.csv, as in sex,site,age:65:80",
    )
    return parser.parse_args()


def _measure_into(arguments: argparse.Namespace, terminal: PlainTerminal) -> None:
    import torch

    from alexmri.contract.metric_lines import metric_line
    from alexmri.contract.resources import cpu_cores
    from alexmri.evaluation.evaluate import evaluate_folder, evaluation_document
    from alexmri.evaluation.plots import measured_plots
    from alexmri.evaluation.report import write_measured
    from alexmri.files import make_writable
    from alexmri.model.predictor import Predictor
    from alexmri.training.provenance import code_document, machine_document
    from alexmri.training.results import test_metrics

    evaluation: Path = arguments.evaluation
    make_writable(evaluation)
    torch.set_num_threads(cpu_cores())
    predictor = Predictor.load(arguments.model)
    compute = predictor.compute
    run = machine_document(compute.device, compute.precision)
    facts = evaluate_folder(
        predictor,
        arguments.test,
        workers=cpu_cores(),
        terminal=terminal,
        on_bad_image=arguments.on_bad_image,
        subgroups=arguments.subgroups,
    )
    shown = {
        **facts,
        "title": f"AlexNet on brain-MRI slices: evaluation of model {predictor.bundle.version}",
        "generated": run["started"],
        "run": run,
        "code": code_document(),
        "plots": measured_plots(facts["test"], facts["predictions"], "images measured"),
    }
    write_measured(evaluation, evaluation_document(facts), shown)
    terminal.say(metric_line(test_metrics(facts["test"])))
    terminal.say(f"report: {evaluation / 'report.html'}")
