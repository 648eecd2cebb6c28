"""A push is one commit or none, whatever the hub does, and the repository is as private as was asked."""

import json

import pytest

from lora_cot.errors import AccessError, HubError, RunError
from lora_cot.publishing.contents import gather
from lora_cot.publishing.push import check_ready, push
from tests.publishing.hub_server import READ_ONLY, TOKEN

REPO = "somebody/mine"


def pushed(hub, repo=REPO):
    """What the repository holds, but for what the hub itself put there."""
    return {name: data for name, data in hub.files(repo).items() if name != ".gitattributes"}


def expected(folder):
    """What a push of the folder should leave."""
    contents = gather(folder)
    return {f.name: f.content if isinstance(f.content, bytes) else f.content.read_bytes() for f in contents.files}


def test_a_push_is_one_commit(hub, adapter):
    """A private repository is made; all files are there, byte for byte."""
    report = push(adapter, REPO)
    repo = hub.repos[REPO]
    assert repo.private and len(repo.commits) == 2 and report.commit == repo.commits[-1][0] and report.new_commit
    assert pushed(hub) == expected(adapter) and "adapter_model.safetensors" in pushed(hub)
    assert repo.commits[-1][1] == "Adapter of the run made"


def test_the_same_again_makes_no_commit(hub, adapter):
    """Nothing is sent, and it says so."""
    first = push(adapter, REPO)
    before = len(hub.requests)
    again = push(adapter, REPO)
    assert (again.commit, again.new_commit, again.sent) == (first.commit, False, frozenset())
    assert [method for method, _ in hub.requests[before:]] == ["GET"]
    assert dict(again.lines())["commit"].endswith("nothing has changed")


def test_only_what_has_changed_is_sent(hub, adapter):
    """One file more or other is one file in one commit."""
    push(adapter, REPO)
    (adapter / "README.md").write_text("---\nlicense: mit\n---\n# Another card\n")
    report = push(adapter, REPO)
    assert report.sent == {"README.md"} and len(hub.repos[REPO].commits) == 3 and pushed(hub) == expected(adapter)
    weights = bytearray((adapter / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (adapter / "adapter_model.safetensors").write_bytes(weights)  # of the same size
    assert push(adapter, REPO).sent == {"adapter_model.safetensors"} and pushed(hub) == expected(adapter)


def test_a_name_alone_is_in_the_users_namespace(hub, adapter):
    """As on the hub."""
    assert push(adapter, "mine").repo == "somebody/mine"
    assert pushed(hub) == expected(adapter)


def test_public_only_when_asked(hub, adapter):
    """--public makes it open."""
    push(adapter, REPO, public=True)
    assert not hub.repos[REPO].private


@pytest.mark.parametrize("public", [False, True])
def test_a_repository_of_the_other_visibility_is_refused(hub, adapter, public):
    """Both are named, nothing is sent; the check before training finds it too."""
    hub.put(REPO, {"theirs.txt": b"1"}, private=public)
    asked, there = ("public", "private") if public else ("private", "public")
    for call in (lambda: push(adapter, REPO, public), lambda: check_ready(REPO, public, "adapter")):
        with pytest.raises(RunError, match=f"the repository is {there}, and a {asked} one was asked for; nothing was sent"):
            call()
    assert {method for method, _ in hub.requests} == {"GET"} and len(hub.repos[REPO].commits) == 1


def test_a_token_that_only_reads_is_found_before_the_work(hub, monkeypatch):
    """Not after hours of training."""
    check_ready(REPO, False, "adapter")
    monkeypatch.setenv("HF_TOKEN", READ_ONLY)
    with pytest.raises(AccessError, match="this token may only read · run `hf auth login`"):
        check_ready(REPO, False, "adapter")


def test_an_organisation_that_makes_repositories_public_gets_nothing(hub, adapter):
    """What was created is looked at before anything is sent to it."""
    create = hub.create
    hub.create = lambda sent, user, writes: create(sent | {"visibility": "public"}, user, writes)
    with pytest.raises(RunError, match="the repository is public, and a private one"):
        push(adapter, "team/mine")
    assert len(hub.repos["team/mine"].commits) == 1


def test_what_an_earlier_push_left_is_deleted_and_theirs_is_not(hub, adapter, split):
    """A split format's folders go when its repository becomes a single adapter's; a user's own files stay."""
    push(split, REPO)
    theirs = {"notes.txt": b"mine", "experiments/config.json": b"{}", "rationale/notes.txt": b"mine", "LICENSE": b"theirs"}
    hub.put(REPO, theirs)
    report = push(adapter, REPO)
    assert pushed(hub) == expected(adapter) | theirs
    assert {"rationale/adapter_config.json", "answer/adapter_model.safetensors"} <= set(report.deleted)
    assert len(hub.repos[REPO].commits) == 4


def test_a_model_does_not_take_an_adapters_place(hub, adapter, merged):
    """The one would delete the other."""
    push(adapter, REPO)
    with pytest.raises(RunError, match="holds an adapter, and a merged model was to take its place"):
        push(merged, REPO)
    assert pushed(hub) == expected(adapter)


def count_requests(hub, folder):
    """How many requests a push takes that nothing stops."""
    push(folder, REPO)
    number, files, commits = len(hub.requests), pushed(hub), len(hub.repos[REPO].commits)
    hub.repos.clear(), hub.objects.clear(), hub.requests.clear()
    return number, files, commits


@pytest.mark.slow
@pytest.mark.parametrize("how", ["drop", 500, "lost"])
def test_stopped_at_any_request_and_pushed_again(hub, split, how):
    """The repository is at its old commit or at its new one, and the second push makes it what one push would have."""
    number, files, commits = count_requests(hub, split)
    assert number >= 8
    for stopped in range(number):
        hub.repos.clear(), hub.objects.clear(), hub.requests.clear()
        hub.fault = lambda method, path, n, stopped=stopped: how if n >= stopped else None
        with pytest.raises(HubError):
            push(split, REPO)
        between = pushed(hub) if REPO in hub.repos else {}
        assert between in ({}, files)
        kept = set(hub.objects)
        hub.fault = lambda *_: None
        del hub.requests[:]
        push(split, REPO)
        assert pushed(hub) == files and len(hub.repos[REPO].commits) == commits
        sent_again = {path.rpartition("/")[2] for method, path in hub.requests if method == "PUT"}
        assert not sent_again & kept


@pytest.mark.parametrize("how", [429, "lost", *(pytest.param(how, marks=pytest.mark.slow) for how in (500, "drop"))])
def test_what_fails_once_is_tried_again(hub, split, how):
    """Each request in turn fails once; the push does not, and there is no commit too many."""
    number, files, commits = count_requests(hub, split)
    for failing in range(number):
        hub.repos.clear(), hub.objects.clear(), hub.requests.clear()
        hub.fault = lambda method, path, n, failing=failing: how if n == failing else None
        report = push(split, REPO)
        assert pushed(hub) == files and len(hub.repos[REPO].commits) == commits, failing
        assert report.commit == hub.repos[REPO].commits[-1][0] and report.new_commit


def test_a_hub_that_is_down_is_given_up(hub, adapter, capsys):
    """After a bounded number of requests, in one sentence with what to do."""
    hub.fault = lambda method, path, n: 500 if method == "PUT" else None
    with pytest.raises(HubError, match=r"somebody/mine · the hub answered 500: out of order · push again later") as error:
        push(adapter, REPO)
    assert error.value.exit_code == 1 and len(hub.requests) < 60 and pushed(hub) == {}
    assert "trying again in" in capsys.readouterr().err


def test_a_broken_upload_is_not_committed(hub, adapter):
    """Bytes that are not those that were promised are refused by the hub, and told."""
    hub.store = lambda oid, body: {}
    with pytest.raises(HubError):
        push(adapter, REPO)
    assert pushed(hub) == {}


def test_somebody_else_commits_meanwhile(hub, adapter):
    """The push starts from what is there then, and takes nothing of it away."""

    def meddle(method, path, number):
        if "/commit/" in path and len(hub.repos[REPO].commits) == 1:
            hub.put(REPO, {"theirs.txt": b"1"})

    hub.fault = meddle
    push(adapter, REPO)
    assert pushed(hub) == expected(adapter) | {"theirs.txt": b"1"} and len(hub.repos[REPO].commits) == 3
    assert sum("/commit/" in path for _, path in hub.requests) == 2  # the first was for another state


def test_somebody_else_commits_right_after(hub, adapter):
    """The push is judged by its own commit, and ends."""

    def meddle(method, path, number):
        if "/revision/" in path:
            hub.put(REPO, {"README.md": b"theirs"})

    hub.fault = meddle
    report = push(adapter, REPO)
    assert report.commit == hub.repos[REPO].commits[1][0] and pushed(hub)["README.md"] == b"theirs"


def test_files_that_the_repository_ignores_are_missed(hub, adapter):
    """A .gitignore there makes the hub leave out files without a word; we look."""
    hub.put(REPO, {".gitignore": b"ignore adapter_model.safetensors"})
    with pytest.raises(HubError, match=r"its new commit does not hold what was sent: adapter_model.safetensors"):
        push(adapter, REPO)


@pytest.mark.parametrize(
    ("token", "repo", "what", "kind"),
    [
        (None, REPO, "there is no token for the hub · run `hf auth login`", AccessError),
        ("hf_wrongwrongwrongwrongwrong0000", REPO, "the hub does not take this token", AccessError),
        (READ_ONLY, REPO, "this token may not write there.* a token that may write to somebody", AccessError),
        (TOKEN, "nobody/mine", "there is no namespace 'nobody' that this token may write to", AccessError),
        (TOKEN, "somebody/mi ne", "this is no name of a repository", RunError),
        (TOKEN, "somebody/gated", "this token may not write there", AccessError),
    ],
)
def test_no_access_is_one_sentence(hub, adapter, monkeypatch, tmp_path, token, repo, what, kind):
    """Where, what, remedy; exit code 2; the token is not shown."""
    hub.put("somebody/gated", {"a": b""}).gated = True
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(kind, match=what) as error:
        push(adapter, repo)
    assert error.value.exit_code == 2 and len(error.value.problems) == 1
    assert str(token) not in str(error.value) and "http" not in str(error.value)


def test_offline_is_one_sentence(hub, adapter, monkeypatch):
    """HF_HUB_OFFLINE is named."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(AccessError, match="HF_HUB_OFFLINE is set"):
        push(adapter, REPO)
    assert hub.requests == []


def test_a_card_that_the_hub_refuses(hub, adapter):
    """Its message is passed on before anything is uploaded."""
    (adapter / "README.md").write_text("---\nlicence: [\n---\n")
    with pytest.raises(RunError, match=r"README.md · .*licence is no list"):
        push(adapter, REPO)
    assert hub.objects == {}


def test_a_dry_run_tells_all_and_sends_nothing(hub, adapter):
    """Every file with its size; what the repository lacks; a refusal is told too."""
    (adapter / "optimizer.pt").write_bytes(b"0" * 10)
    report = push(adapter, REPO, dry_run=True)
    values = report.to_json()
    assert {file["name"]: file["size"] for file in values["files"]} == {k: len(v) for k, v in expected(adapter).items()}
    assert values["left_out"] == [{"name": "optimizer.pt", "reason": "a training state"}]
    assert (values["commit"], values["new_commit"], values["found"]) == (None, False, "no repository that can be seen")
    assert all(file["sent"] for file in values["files"]) and hub.repos == {}
    push(adapter, REPO)
    assert not any(file["sent"] for file in push(adapter, REPO, dry_run=True).to_json()["files"])
    (refused,) = push(adapter, REPO, public=True, dry_run=True).refused
    assert "the repository is private" in refused.what
    assert json.loads(json.dumps(values)) == values and ("left out", "optimizer.pt: a training state") in report.lines()


def test_a_dry_run_needs_neither_network_nor_token(hub, adapter, monkeypatch):
    """It says that it could not look."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("HF_TOKEN")
    report = push(adapter, REPO, dry_run=True)
    assert report.found.startswith("not looked at: HF_HUB_OFFLINE is set") and report.sent is None
    assert hub.requests == []


def test_a_token_in_a_server_message_is_not_shown(hub, adapter):
    """Nor an address, which may be signed."""
    hub.visible = None
    answer = hub.answer

    def echo(method, url, headers, body):
        from tests.publishing.hub_server import Answer

        if "/commit/" in url:
            raise Answer(402, {"error": f"pay at https://x.y/?sig=1 for {TOKEN}"})
        return answer(method, url, headers, body)

    del hub.visible
    hub.answer = echo
    with pytest.raises(HubError, match="the hub refused with 402: pay at … for …"):
        push(adapter, REPO)
