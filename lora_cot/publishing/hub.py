"""The hub as a push meets it: what lies there now, one commit that changes it, and every failure in a sentence."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_cot.errors import AccessError, HubError, LoraCotError, Problem, RunError
from lora_cot.publishing.contents import PushedFile

SILENCE = 120.0
"""Seconds without a byte after which a request counts as failed."""
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Answers that may be another the next time."""
WRITER = "run `hf auth login`, or set HF_TOKEN, with a token that may write to {namespace}"


@dataclass(frozen=True)
class RemoteFile:
    """A file that is there."""

    blob_id: str | None
    sha256: str | None
    """Of a large file's bytes; None of a small one."""
    size: int | None

    def equals(self, file: PushedFile) -> bool:
        """Whether it is the same as one of ours."""
        if self.sha256 is not None:
            return self.size == file.size and self.sha256 == file.sha256
        return self.blob_id is not None and self.blob_id == file.blob_id


@dataclass(frozen=True)
class Remote:
    """A repository at a commit."""

    commit: str
    private: bool
    files: dict[str, RemoteFile]


class PassingError(HubError):
    """A failure that may not come again."""


class MovedError(PassingError):
    """Somebody else has changed the repository meanwhile."""


class Hub:
    """One repository of the hub, through huggingface_hub's own client."""

    def __init__(self, repo: str, token: str | None):
        from huggingface_hub import HfApi

        self.repo, self._token = repo, token
        self._api = HfApi(token=token or False, library_name="lora_cot")

    @property
    def url(self) -> str:
        """The repository's page."""
        return f"{self._api.endpoint}/{self.repo}"

    def add_namespace(self) -> None:
        """Put this user's namespace before a repository's name that has none."""
        if "/" not in self.repo:
            with self._explained():
                self.repo = f"{self._api.whoami()['name']}/{self.repo}"

    def check_writes(self) -> None:
        """See that the token is no read-only one; of a finer-grained one the hub does not tell.

        Raises:
            AccessError: it is, or the hub does not take it.
        """
        with self._explained():
            about = self._api.whoami().get("auth") or {}
        if (about.get("accessToken") or {}).get("role") == "read":
            remedy = WRITER.format(namespace=self.repo.rpartition("/")[0])
            raise AccessError(Problem(self.repo, "this token may only read", remedy))

    def look(self, commit: str | None = None) -> Remote | None:
        """What is there now, or at a commit; None if there is no such repository that this token may see."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        with self._explained():
            try:
                info = self._api.model_info(self.repo, revision=commit, files_metadata=True, timeout=SILENCE)
            except GatedRepoError:
                raise
            except RepositoryNotFoundError as error:
                if self._token and error.response.status_code == 401:
                    raise  # of a token that is taken, 404 says so
                return None
        files = {
            file.rfilename: RemoteFile(file.blob_id, file.lfs.sha256 if file.lfs else None, file.size)
            for file in info.siblings or ()
        }
        return Remote(info.sha or "", bool(info.private), files)

    def create(self, private: bool) -> None:
        """Make the repository; one that is there meanwhile stays as it is."""
        with self._explained():
            self._api.create_repo(self.repo, private=private, exist_ok=True)

    def fetch(self, name: str, commit: str) -> Path | None:
        """A small file at a commit; None if it cannot be had."""
        from huggingface_hub import hf_hub_download

        try:
            with self._explained():
                return Path(hf_hub_download(self.repo, name, revision=commit, token=self._token))
        except LoraCotError:
            return None

    def commit(self, files: Sequence[PushedFile], deleted: Sequence[str], message: str, parent: str) -> str:
        """One commit on top of another; large files are uploaded before it. Gives its id.

        Raises:
            MovedError: the repository is not at that commit any more.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        adding = [CommitOperationAdd(file.name, file.content) for file in files]
        removing = [CommitOperationDelete(name, is_folder=False) for name in deleted]
        with self._explained():
            options: dict[str, Any] = {"commit_message": message, "parent_commit": parent or None}
            return self._api.create_commit(self.repo, [*adding, *removing], **options).oid

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Whatever goes wrong inside, as an error of ours that shows no token and no signed address."""
        import httpx2

        try:
            yield
        except (OSError, ValueError, RuntimeError, httpx2.HTTPError) as error:
            raise self._explain(error) from None

    def _explain(self, error: BaseException) -> LoraCotError:
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalTokenNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
        )

        while type(error) is RuntimeError and error.__cause__ is not None:  # of a thread that uploads
            error = error.__cause__
        namespace = self.repo.rpartition("/")[0] or "this repository"
        if isinstance(error, LoraCotError):
            return error
        if isinstance(error, OfflineModeIsEnabled):
            return AccessError(Problem(self.repo, "HF_HUB_OFFLINE is set, so the hub is not asked", "unset it"))
        if isinstance(error, HFValidationError):
            what = "this is no name of a repository"
            return RunError(Problem(self.repo, what, "name one as NAMESPACE/NAME, of letters, digits, '-', '_' and '.'"))
        if isinstance(error, LocalTokenNotFoundError):
            return AccessError(Problem(self.repo, "there is no token for the hub", WRITER.format(namespace="it")))
        if isinstance(error, HfHubHTTPError):
            is_repo = isinstance(error, RepositoryNotFoundError) or str(error.response.url).endswith("/api/repos/create")
            said = self._plain(error.server_message or "")
            return self._explain_status(error.response.status_code, said, namespace, is_repo)
        if isinstance(error, OSError) and error.filename:
            return RunError(Problem(str(error.filename), f"the file cannot be read: {error.strerror}", "push again"))
        again = "push again: what was uploaded already is not sent again"
        if isinstance(error, ValueError) and "README.md" in str(error):
            return RunError(Problem("README.md", self._plain(str(error)), "correct the lines between its two ---"))
        what = f"the hub gave no answer that can be used ({self._plain(f'{type(error).__name__}: {error}')})"
        return PassingError(Problem(self.repo, what, again))

    def _explain_status(self, status: int, message: str, namespace: str, is_repo: bool) -> LoraCotError:
        """An answer of the hub that is an error."""
        said = f": {message}" if message else ""
        if status == 401:
            what = f"the hub does not take this token{said}" if self._token else f"the hub asks for a token{said}"
            return AccessError(Problem(self.repo, what, WRITER.format(namespace=namespace)), status)
        if status == 403:
            what = f"this token may not write there{said}"
            return AccessError(Problem(self.repo, what, WRITER.format(namespace=namespace)), status)
        if status == 404 and is_repo:
            what = f"there is no namespace '{namespace}' that this token may write to, or no such repository{said}"
            return AccessError(Problem(self.repo, what, "check the name; `hf auth whoami` lists those of a token"), status)
        if status in (409, 412):
            return MovedError(Problem(self.repo, f"somebody else is changing this repository{said}", "push again"))
        if status in PASSING:
            what, remedy = f"the hub answered {status}{said}", "push again later: what was uploaded already is not sent again"
            return PassingError(Problem(self.repo, what, remedy))
        return HubError(Problem(self.repo, f"the hub refused with {status}{said}", "see its message, then push again"))

    def _plain(self, text: str) -> str:
        """A message in one line, without addresses, which may be signed, and without the token."""
        words = ["…" if "://" in word else word for word in text.split()]
        line = " ".join(words)
        return (line.replace(self._token, "…") if self._token else line)[:300]


@contextmanager
def connected() -> Iterator[None]:
    """huggingface_hub's client as a push needs it, and as it was afterwards."""
    with _patient(), _quiet():
        yield


@contextmanager
def _patient() -> Iterator[None]:
    """huggingface_hub's client waits for ever by itself; here a silent server is a failed one."""
    from huggingface_hub import close_session, set_client_factory
    from huggingface_hub.utils import _http

    before = _http._GLOBAL_CLIENT_FACTORY  # there is a way to set it, and none to ask for it

    def make() -> Any:
        client = before()
        client.timeout = SILENCE
        return client

    set_client_factory(make)
    try:
        yield
    finally:
        set_client_factory(before)
        close_session()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the client's warnings, which show signed addresses; and off a terminal without its bars."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger = logging.getLogger("huggingface_hub")
    level, bars = logger.level, not are_progress_bars_disabled() and not sys.stderr.isatty()
    logger.setLevel(logging.ERROR)
    if bars:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            enable_progress_bars()
