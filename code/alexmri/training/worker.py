"""The process in which a platform's training runs, started and watched by container/train."""

import ctypes
import faulthandler
import os
import signal
import sys
from typing import NoReturn

from alexmri.contract.exit_reasons import LOST_A_PEER, LostPeer
from alexmri.contract.failure import report_failure
from alexmri.contract.paths import Paths
from alexmri.contract.process_one import PARENT_VARIABLE
from alexmri.contract.signals import Stopped, StopRequest
from alexmri.terminal import PlainTerminal, SilentTerminal, prepare_output

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main() -> int:
    """Train the job below the paths of the environment; return the exit code."""
    prepare_output()
    die_with_parent()
    faulthandler.enable()
    paths, terminal = Paths.of(os.environ), PlainTerminal()
    with StopRequest().on(signal.SIGTERM, signal.SIGINT) as stop:
        try:
            with stop.interrupts(at=1):
                from alexmri.training.distributed import joined
                from alexmri.training.platform import run_platform_job
            with joined(os.environ, stop) as workers:
                terminal = terminal if workers.is_first else SilentTerminal()
                outcome = run_platform_job(paths, sys.argv[1:], os.environ, terminal, stop, workers)
        except LostPeer as error:
            end_without(error)
        except Stopped:
            terminal.say("stopped before the training began: there was nothing to save")
            return 0 if stop.signal is signal.SIGTERM else 130
        except Exception as error:
            return report_failure(error, paths.failure)
    if outcome.report:
        terminal.say(f"model: {paths.model}")
        terminal.say(f"report: {outcome.report}")
    return 130 if stop.signal is signal.SIGINT else 0


def end_without(peer: LostPeer) -> NoReturn:
    """End at once, with the code that says that the cause is elsewhere.

    What still waits for the lost worker, a GPU perhaps, would keep an orderly end waiting too.
    """
    rank = os.environ.get("RANK")
    print(f"warning: worker {rank} lost another one: {peer}", file=sys.stderr, flush=True)
    os._exit(LOST_A_PEER)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however that happens.

    Two trainings in one folder, of which one is an orphan, would spoil each other's files.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if str(os.getppid()) != os.environ.get(PARENT_VARIABLE, str(os.getppid())):
        os.kill(os.getpid(), signal.SIGKILL)  # it ended before the kernel knew


if __name__ == "__main__":
    sys.exit(main())
