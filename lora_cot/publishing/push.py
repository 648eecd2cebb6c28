"""`push`: an adapter or a merged model to the hub, checked first, in one commit, to a repository as private as was asked."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lora_cot.checkpoints.layout import (
    ADAPTER_CONFIG,
    INDEX,
    PROSE,
    PUBLIC,
    RECIPE_FILE,
    VISION_ENCODER,
    WEIGHTS,
    is_named,
    pass_folders,
)
from lora_cot.errors import AccessError, HubError, LoraCotError, Problem, RunError
from lora_cot.publishing.checks import against_public, check_base
from lora_cot.publishing.contents import Contents, PushedFile, gather
from lora_cot.publishing.hub import WRITER, Hub, PassingError, Remote, connected
from lora_cot.recipe import Recipe, load_saved

PAUSES = (1.0, 4.0, 15.0)
"""Seconds before what failed in passing is tried again; huggingface_hub tries uploads again by itself besides."""


@dataclass(frozen=True)
class PushReport:
    """What was pushed, or would be."""

    contents: Contents
    repo: str
    url: str
    public: bool
    dry_run: bool
    commit: str | None
    """Of the repository, now; None after a dry run, or if there is no repository yet."""
    sent: frozenset[str] | None = None
    """Names of the files that the repository did not hold yet; None if it could not be looked at."""
    deleted: tuple[str, ...] = ()
    """Files of an earlier push that are no more."""
    found: str = ""
    """What a dry run saw of the repository."""
    refused: tuple[Problem, ...] = field(default=())
    """Why the push itself would be refused, after a dry run."""

    @property
    def new_commit(self) -> bool:
        """Whether anything had to be sent."""
        return not self.dry_run and bool(self.sent or self.deleted)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        sent = [None if self.sent is None else file.name in self.sent for file in self.contents.files]
        sizes = [{"name": file.name, "size": file.size} for file in self.contents.files]
        return {
            "repo": self.repo,
            "url": self.url,
            "folder": str(self.contents.folder),
            "kind": self.contents.kind,
            "visibility": _visibility(self.public),
            "dry_run": self.dry_run,
            "commit": self.commit,
            "new_commit": self.new_commit,
            "files": [size | {"sent": is_sent} for size, is_sent in zip(sizes, sent, strict=True)],
            "size": sum(file.size for file in self.contents.files),
            "deleted": list(self.deleted),
            "left_out": [{"name": name, "reason": reason} for name, reason in self.contents.left_out],
            "notes": list(self.contents.notes),
            "found": self.found,
            "refused": [str(problem) for problem in self.refused],
        }

    def lines(self) -> list[tuple[str, Any]]:
        """For people."""
        contents, sent = self.contents, self.sent
        rows: list[tuple[str, Any]] = [(f"{contents.kind} folder", str(contents.folder))]
        rows.append(("repository", f"{self.url} ({_visibility(self.public)})"))
        if self.found:
            rows.append(("now there", self.found))
        for file in contents.files:
            same = ", there already" if sent is not None and file.name not in sent else ""
            rows.append((f"  {file.name}", f"{_bytes(file.size)}{same}"))
        rows.append(("in all", f"{len(contents.files)} files, {_bytes(sum(file.size for file in contents.files))}"))
        rows += [("deleted" if not self.dry_run else "to delete", name) for name in self.deleted]
        rows += [("left out", f"{name}: {reason}") for name, reason in contents.left_out]
        rows += [("note", note) for note in contents.notes]
        if self.dry_run:
            return [*rows, ("sent", "nothing: this was a dry run")]
        return [*rows, ("commit", f"{self.commit}{'' if self.new_commit else ', as it was: nothing has changed'}")]


def push(folder: str | Path, repo: str, public: bool = False, dry_run: bool = False) -> PushReport:
    """Push an adapter or a merged model. All of it is one commit; a push that stopped before leaves the repository as it was.

    Pushing again sends what is missing; pushing the same again makes no commit. What an earlier push of this package left
    there and is no more is deleted in the same commit; whatever else lies there is left alone.

    Args:
        folder: a run, of which the adapter is pushed; an adapter folder; or a merged folder.
        repo: NAMESPACE/NAME on the hub; NAME in this user's own namespace. It is made if there is none.
        public: whether the repository is open to everybody. One that is there already must be so already.
        dry_run: send nothing; tell what would be. It needs neither network nor token.

    Raises:
        RunError: something is missing, torn or not for others to see; the repository is of the other visibility; or it is
            public, and the merge is not verified or the base's licence wants another name. Else of these two is warned.
        AccessError: no token, or one that may not write there.
        HubError: the hub failed, again and again; the repository is at its old commit.
    """
    from huggingface_hub import get_token

    token = get_token()
    contents = gather(folder, token)
    against = against_public(repo, contents.recipe, contents.verified)
    contents = replace(contents, notes=(*contents.notes, *(problem.what for problem in against)))
    hub = Hub(repo, token)
    with connected():
        if dry_run:
            found = _preview(hub, contents, public)
            return replace(found, refused=(*against, *found.refused)) if public else found
        _refuse_or_warn(against, public)
        _named(hub, token)
        return _settle(hub, contents, public)


def check_ready(repo: str, public: bool, kind: str, recipe: Recipe | None = None, verified: bool = True) -> None:
    """See before long work whether its result can be pushed at all. Nothing is sent.

    Args:
        repo: as in `push`.
        public: as in `push`.
        kind: adapter or merged.
        recipe: of the run, if it is known.
        verified: whether the merge is to be.

    Raises:
        RunError: it would be refused.
        AccessError, HubError: the hub cannot be asked, or does not take this token.
    """
    from huggingface_hub import get_token

    if kind == "adapter" and recipe is not None and (problems := check_base(recipe, ())):
        raise RunError(problems)
    _refuse_or_warn(against_public(repo, recipe, verified), public)
    token = get_token()
    hub = Hub(repo, token)
    with connected():
        _named(hub, token)
        hub.check_writes()
        if remote := hub.look():
            _check_fits(hub, remote, public, kind)


def _refuse_or_warn(against: Sequence[Problem], public: bool) -> None:
    if against and public:
        raise RunError(against)
    for problem in against:
        print(f"warning: {problem}", file=sys.stderr)


def _named(hub: Hub, token: str | None) -> None:
    if token is None:
        remedy = WRITER.format(namespace=hub.repo.rpartition("/")[0] or "it")
        raise AccessError(Problem(hub.repo, "there is no token for the hub", remedy))
    hub.add_namespace()


def _settle(hub: Hub, contents: Contents, public: bool) -> PushReport:
    """Make the repository hold the contents; whatever happened before, what it lacks is found by looking."""
    failures, first, made = 0, None, None
    sent: set[str] = set()
    deleted: set[str] = set()
    while True:
        try:
            remote = hub.look(made) or _created(hub, public)
            first = first or remote.commit
            _check_fits(hub, remote, public, contents.kind)
            changed, old = difference(hub, contents, remote)
            if not changed and not old:
                is_new = remote.commit != first
                names = (frozenset(sent), tuple(sorted(deleted))) if is_new else (frozenset(), ())
                return PushReport(contents, hub.repo, hub.url, public, False, remote.commit, *names)
            if made:
                lost = ", ".join([*(file.name for file in changed), *old][:3])
                remedy = "look there for a .gitignore, and push again while the folder stays as it is"
                raise HubError(Problem(hub.repo, f"its new commit does not hold what was sent: {lost}", remedy))
            sent, deleted = sent | {file.name for file in changed}, deleted | set(old)
            size = sum(file.size for file in changed)
            print(f"{hub.repo}: {len(changed)} files ({_bytes(size)}) to send, {len(old)} to delete", file=sys.stderr)
            message = f"{'Adapter' if contents.kind == 'adapter' else 'Merged model'} of the run {contents.recipe.name}"
            made = hub.commit(changed, old, message, remote.commit)
        except PassingError as error:
            if failures == len(PAUSES):
                raise
            print(f"{error}; trying again in {PAUSES[failures]:.0f} s", file=sys.stderr)
            time.sleep(PAUSES[failures])
            failures += 1


def _created(hub: Hub, public: bool) -> Remote:
    """The repository, made; seen as it is now, for its namespace may have rules of its own."""
    hub.create(private=not public)
    remote = hub.look()
    if remote is None:
        remedy = WRITER.format(namespace=hub.repo.rpartition("/")[0])
        raise AccessError(Problem(hub.repo, "this token may not see the repository", remedy))
    return remote


def _check_fits(hub: Hub, remote: Remote, public: bool, kind: str) -> None:
    """See that a repository is as open as was asked, and holds nothing that the push would take the place of.

    Raises:
        RunError: it is not, or does.
    """
    if remote.private is public:
        what = f"the repository is {_visibility(not public)}, and a {_visibility(public)} one was asked for; nothing was sent"
        way = "push without --public" if public else "push with --public"
        raise RunError(Problem(hub.repo, what, f"{way}, name another repository, or change it in its settings on the hub"))
    names = {name.rpartition("/")[2] for name in remote.files if VISION_ENCODER not in name}
    held = {"adapter": ADAPTER_CONFIG in names, "merged": bool(names & {WEIGHTS, INDEX})}
    if any(held.values()) and not held[kind]:
        words = {"adapter": "an adapter", "merged": "a merged model"}
        other = words["merged" if kind == "adapter" else "adapter"]
        what = f"the repository holds {other}, and {words[kind]} was to take its place; nothing was sent"
        raise RunError(Problem(hub.repo, what, "name another repository"))


def difference(hub: Hub, contents: Contents, remote: Remote) -> tuple[list[PushedFile], list[str]]:
    """Files that a repository does not hold as they are, and names of those of an earlier push that are no more."""
    there = remote.files
    changed = [file for file in contents.files if file.name not in there or not there[file.name].equals(file)]
    ours = {file.name for file in contents.files}
    gone = [name for name in there if name not in ours and _is_made(name)] if RECIPE_FILE in there else []
    if not gone:
        return changed, []
    places = {"", VISION_ENCODER}
    if any("/" in name for name in gone) and (path := hub.fetch(RECIPE_FILE, remote.commit)):
        with suppress(LoraCotError):  # not a recipe of this version: what lies in folders stays
            places |= _places(load_saved(path))
    places |= _places(contents.recipe)
    return changed, sorted(name for name in gone if name.rpartition("/")[0] in places)


def _is_made(name: str) -> bool:
    """Whether a file has a name that a push gives, and nobody else writes by hand."""
    last = name.rpartition("/")[2]
    return is_named(last, PUBLIC) and not is_named(last, PROSE)


def _places(recipe: Recipe) -> set[str]:
    """Folders of a repository that a push of this recipe writes to."""
    names = set(pass_folders(Path(), recipe)) - {"default"}
    return names | {f"{name}/{VISION_ENCODER}" for name in names}


def _preview(hub: Hub, contents: Contents, public: bool) -> PushReport:
    """What a push would do, as far as the repository can be seen; nothing is sent."""
    known: dict[str, Any] = {}
    try:
        remote = hub.look()
        if remote is None:
            known = {"sent": frozenset(file.name for file in contents.files), "found": "no repository that can be seen"}
        else:
            changed, old = difference(hub, contents, remote)
            found = f"{_visibility(not remote.private)}, {len(remote.files)} files, commit {remote.commit[:7]}"
            known = {"sent": frozenset(file.name for file in changed), "deleted": tuple(old), "found": found}
            _check_fits(hub, remote, public, contents.kind)
    except RunError as error:
        known["refused"] = error.problems
    except LoraCotError as error:
        known["found"] = f"not looked at: {error.problems[0].what}"
    return PushReport(contents, hub.repo, hub.url, public, True, None, **known)


def _visibility(public: bool) -> str:
    return "public" if public else "private"


def _bytes(size: int) -> str:
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size = size / 1000  # type: ignore[assignment]
    return f"{size:.2f} GB"
