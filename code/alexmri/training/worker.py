"""One worker of a training that a platform starts: a process of its own, alone or of torchrun's.

torchrun --nproc-per-node 2 -m alexmri.training.worker [--SETTING VALUE ...]
"""

import faulthandler
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from alexmri.contract.failure import LOST_A_PEER, USER_ERROR_CODE, LostPeer, report_failure
from alexmri.contract.launcher import WORKERS_FOLDER
from alexmri.contract.paths import Paths
from alexmri.contract.signals import Stopped, StopRequest, die_with_parent, exit_code_of_stop
from alexmri.errors import UserError
from alexmri.terminal import PlainTerminal, SilentTerminal, prepare_output
from alexmri.training.platform import check_as_process_1, run_platform_job

# torchrun takes the first worker that ends badly for the cause, so the others wait with their end.
PATIENCE_SECONDS = 2.0


def main() -> int:
    """Train the job below the paths of the environment; return the exit code."""
    prepare_output()
    die_with_parent()
    faulthandler.enable()
    paths, terminal = Paths.of(os.environ), PlainTerminal()
    with StopRequest(silent=os.environ.get("LOCAL_RANK", "0") != "0").on() as stop:
        try:
            with ending_with_the_others(stop), stop.interrupts(at=1):
                if WORKERS_FOLDER not in os.environ:
                    own = terminal if os.environ.get("RANK", "0") == "0" else SilentTerminal()
                    check_as_process_1(paths, own)
                from alexmri.training.distributed import joined
            with ending_with_the_others(stop), joined(os.environ) as workers:
                terminal = terminal if workers.is_first else SilentTerminal()
                outcome = run_platform_job(paths, sys.argv[1:], os.environ, terminal, stop, workers)
        except Stopped:
            terminal.say("stopped before the training began: there was nothing to save")
            return exit_code_of_worker(stop)
        except Exception as error:
            return report_failure(error, paths.failure)
    if outcome.evaluation:
        from alexmri.evaluation.tables import show_run

        show_run(outcome.evaluation)
        terminal.say(f"model in this container: {paths.model}")
        terminal.say(f"report in this container: {outcome.report}")
    return exit_code_of_worker(stop)


def exit_code_of_worker(stop: StopRequest) -> int:
    """Return the exit code of a worker that ended well; torchrun takes all but 0 for a failure."""
    return 0 if "TORCHELASTIC_RUN_ID" in os.environ else exit_code_of_stop(stop.signal)


@contextmanager
def ending_with_the_others(stop: StopRequest) -> Iterator[None]:
    """Let the worker that failed report the cause, and no other.

    A worker that only lost another one exits at once: what still waits for the lost worker, a GPU
    perhaps, would keep an orderly end waiting too.
    """
    try:
        yield
    except LostPeer as error:
        rank = os.environ.get("RANK")
        print(f"warning: rank {rank} lost another worker: {error}", file=sys.stderr, flush=True)
        time.sleep(PATIENCE_SECONDS / 2)
        os._exit(LOST_A_PEER)
    except UserError:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            # The first worker of this host probably has the same mistake, and ends now: torchrun
            # then sends SIGTERM here.
            time.sleep(PATIENCE_SECONDS)
            if stop:
                os._exit(USER_ERROR_CODE)
        raise


if __name__ == "__main__":
    sys.exit(main())
