"""Keep the record of a run: metrics.jsonl always, Weights & Biases beside it where it works."""

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alexmri.files import append_text, write_atomically
from alexmri.settings import Settings

# ARN of a secret in AWS Secrets Manager: the key alone, or a JSON object with WANDB_API_KEY.
SECRET_VARIABLE = "ALEXMRI_WANDB_SECRET"  # noqa: S105
KEY_VARIABLE = "WANDB_API_KEY"
SECRET_TIMEOUT_S = 5
ONLINE_TIMEOUT_S = 20
# Without a limit the end of a run waits for a lost network, and a stopped one has 85 s in all.
FINISH_TIMEOUT_S = 15


class MetricsFile:
    """metrics.jsonl: one JSON object per epoch. It is the record; all else is a copy."""

    def __init__(self, path: Path, history: Sequence[Mapping[str, float]]) -> None:
        """Start the file with the epochs in `history`, so that none is lost or doubled."""
        self._path = path
        write_atomically(path, "".join(_line(row) for row in history))

    def append(self, row: Mapping[str, float]) -> None:
        """Add one epoch; it is on disk when this returns."""
        append_text(self._path, _line(row))


class WandbSink:
    """A copy of the record in Weights & Biases; whatever goes wrong there, training goes on.

    Without a key the run is kept offline below `folder`/wandb, for `wandb sync` later.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        run_id: str | None,
        facts: Mapping[str, Any],
        warn: Callable[[str], None],
    ) -> None:
        self._warn = warn
        self._run: Any = None
        if settings.wandb_mode in ("auto", "online") and not os.environ.get("WANDB_MODE"):
            fetch_wandb_key(os.environ, warn)
        mode = _mode(settings)
        if mode != "disabled":
            self._try(lambda: self._start(settings, folder, run_id, facts, mode))

    @property
    def run_id(self) -> str | None:
        """The id under which a resumed training continues the same W&B run."""
        return self._run.id if self._run else None

    def log(self, metrics: Mapping[str, float]) -> None:
        """Send the metrics of one epoch."""
        if self._run:
            self._try(lambda: self._run.log(dict(metrics), step=int(metrics["epoch"])))

    def finish(self, summary: Mapping[str, float | None], pictures: Mapping[str, bytes]) -> None:
        """Send final figures and PNG pictures, then close the run."""

        def send() -> None:
            import wandb
            from PIL import Image

            self._run.summary.update({k: v for k, v in summary.items() if v is not None})
            images = {
                name: wandb.Image(Image.open(io.BytesIO(png))) for name, png in pictures.items()
            }
            if images:
                self._run.log(images)
            self._finish()

        if self._run:
            self._try(send)

    def close(self) -> None:
        """End the run as it stands, for one that will be resumed."""
        if self._run:
            self._try(self._finish)

    def _finish(self) -> None:
        try:
            self._run.finish()
        except TimeoutError:
            self._warn(
                f"W&B did not receive everything within {FINISH_TIMEOUT_S} s; to send the rest:"
                f" wandb sync {self._run.settings.sync_dir}"
            )

    def _start(
        self,
        settings: Settings,
        folder: Path,
        run_id: str | None,
        facts: Mapping[str, Any],
        mode: str,
    ) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        def start(mode: str) -> Any:
            return wandb.init(
                project=settings.wandb_project or "alexmri",
                dir=str(folder),
                id=run_id,
                resume="allow" if mode == "online" and run_id else None,
                mode=mode,  # type: ignore[arg-type]
                config={**settings.model_dump(mode="json"), **facts},
                settings=wandb.Settings(
                    init_timeout=ONLINE_TIMEOUT_S,
                    finish_timeout=FINISH_TIMEOUT_S,
                    finish_timeout_raises=True,
                    console="off",
                    disable_git=True,
                    save_code=False,
                    symlink=False,
                ),
            )

        try:
            self._run = start(mode)
        except Exception as error:
            if mode == "offline":
                raise
            self._warn(f"W&B cannot be reached ({_brief(error)}); the run is kept offline")
            self._run = start("offline")
        _remove_links(folder / "wandb")

    def _try(self, action: Callable[[], None]) -> None:
        """Do `action`; at a failure warn and leave W&B alone for the rest of the run."""
        try:
            action()
        except Exception as error:
            self._warn(f"W&B failed ({_brief(error)}); training goes on without it")
            self._run = None


def fetch_wandb_key(environment: Mapping[str, str], warn: Callable[[str], None]) -> None:
    """Put the key into this process's environment, where W&B looks for it, and nowhere else.

    Nothing is done where there is a key already or no secret is named. Where it cannot be had, one
    line says why, and the run is kept offline: a training does not end for that.
    """
    arn = environment.get(SECRET_VARIABLE)
    if not arn or environment.get(KEY_VARIABLE):
        return
    try:
        key = _read_secret(arn)
    except Exception as error:
        # Never the text of the answer, which may be the key; botocore's errors do not hold it.
        told = type(error).__name__
        warn(f"the W&B key cannot be read from Secrets Manager ({told}); the run is kept offline")
        return
    os.environ[KEY_VARIABLE] = key


def _read_secret(arn: str) -> str:
    import boto3

    from alexmri.aws.client import make_client

    # An ARN is arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME.
    session = boto3.session.Session(region_name=arn.split(":")[3])
    client = make_client(
        session,
        "secretsmanager",
        attempts=2,
        connect_seconds=SECRET_TIMEOUT_S,
        read_seconds=SECRET_TIMEOUT_S,
    )
    text = str(client.get_secret_value(SecretId=arn)["SecretString"]).strip()
    if text.startswith("{"):
        text = str(json.loads(text)[KEY_VARIABLE]).strip()
    if not text:
        raise ValueError("empty")
    return text


def _mode(settings: Settings) -> str:
    if settings.wandb_mode != "auto":
        return settings.wandb_mode
    chosen = os.environ.get("WANDB_MODE", "")
    if chosen in ("online", "offline", "disabled"):
        return chosen
    return "online" if os.environ.get(KEY_VARIABLE) else "offline"


def _remove_links(folder: Path) -> None:
    """Remove what W&B links to its log outside the run, whatever its settings say.

    A platform takes no links among the results, and outside this machine they lead nowhere.
    """
    for path in folder.rglob("*"):
        if path.is_symlink():
            path.unlink()


def _line(row: Mapping[str, float]) -> str:
    return json.dumps(dict(row), allow_nan=False) + "\n"


def _brief(error: Exception) -> str:
    """Return the first line of an error; W&B never puts a key there."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
