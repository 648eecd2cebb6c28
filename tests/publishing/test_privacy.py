"""What a pushed file must not tell: keys to anything, wherever they stand and however they are spelled."""

import json

import pytest

from lora_cot.publishing.privacy import public_prose, secret_problems

TOKENS = (
    "hf_" + "a1B2" * 8,
    "sk-proj-" + "a1B2" * 8,
    "ghp_" + "a1B2" * 9,
    "github_pat_" + "a1B2" * 9,
    "glpat-" + "a1B2" * 5,
    "xoxb-1234567890-" + "a1B2" * 5,
    "AIza" + "a1B2c" * 7,
    "AKIA" + "A1B2" * 4,
    "aws_secret_access_key = " + "a1B2/" * 8,
    "Authorization: Bearer " + "a1B2." * 6,
    'headers = {"authorization": "bearer ' + "a1B2-" * 6 + '"}',
    "Authorization: Basic " + "dXNlcjpwYXNz" * 2,
    "curl https://me:hunter22@example.org/x",
    "-----BEGIN RSA PRIVATE KEY-----",
)
HARMLESS = (
    "set HF_TOKEN to a token that may write",
    "Authorization: Bearer $HF_TOKEN",
    "Authorization: Bearer YOUR_TOKEN_STANDS_HERE",
    "the bearer of this card",
    "hf_hub_download(repo_id, filename)",
    "https://huggingface.co/meta-llama/Llama-3.2-11B-Vision-Instruct",
    "SHA-256 `" + "ab" * 32 + "`",
    "git@github.com:somebody/mine.git, risk-taking-and-other-long-words",
)


@pytest.mark.parametrize("text", TOKENS)
def test_what_looks_like_a_key_is_found_in_any_text(text):
    """By its line, and not shown."""
    (problem,) = secret_problems("README.md", f"one\ntwo {text}\n", None)
    assert problem.where == "README.md line 2" and "a1B2" not in str(problem) and "hunter22" not in str(problem)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_none_is_not(text):
    """Words about tokens, places for one, hashes, addresses."""
    assert secret_problems("README.md", text, None) == []


SECRET_KEYS = """
token hub_token HF_TOKEN accessToken auth_token use_auth_token refresh-token token_secret secret client_secret SECRET_KEY
password Password db_passwd passphrase api_key apiKey API-KEY OPENAI_API_KEY apikey aws_access_key_id AWS_SECRET_ACCESS_KEY
private_key credentials Authorization
"""
PLAIN_KEYS = """
tokenizer tokenizer_class max_tokens max_new_tokens pad_token bos_token eos_token unk_token image_token cls_token mask_token
additional_special_tokens token_type chat_template_token_style api_key_file api_key_env keys author secretary key_proj
"""


@pytest.mark.parametrize("key", SECRET_KEYS.split())
def test_a_secret_is_known_by_its_key(key):
    """However it is spelled, in YAML and JSON, at any depth."""
    values = {"a": [{key: "odd"}]}
    for name in ("recipe.yaml", "config.json"):
        (problem,) = secret_problems(name, json.dumps(values), None)
        assert problem.where == f"{name} · a.0.{key}" and "odd" not in problem.what


@pytest.mark.parametrize("key", PLAIN_KEYS.split())
def test_a_key_that_only_sounds_like_it_is_none(key):
    """The vocabulary's tokens above all."""
    assert secret_problems("tokenizer_config.json", json.dumps({key: "odd", "b": {key: "<pad>"}}), None) == []


def test_a_secret_that_is_not_set_is_none():
    """An empty text, a number or nothing."""
    assert secret_problems("recipe.yaml", json.dumps({"hub_token": "", "password": None, "api_key": 1}), None) == []


PRIVATE = ("client/acme_corp.jsonl", "/data/acme/images", "../rows.jsonl", "./x")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("rows of client/acme_corp.jsonl.", "rows of acme_corp.jsonl."),
        (r"| jsonl | client/acme\_corp.jsonl |", r"| jsonl | acme\_corp.jsonl |"),
        ("in client/acme_corp.jsonl/part", "in part"),
        ("(/data/acme/images/1.png)", "(1.png)"),
        ("see /scratch/bob/runs/a.html, `/mnt/x/y`.", "see a.html, `y`."),
        ("file:///scratch/bob/a.html and ~/b/c and ~bob/d", "a.html and c and d"),
        (r"C:\Users\bob\rows.csv or D:/data/rows.csv or \\host\share\rows.csv", "rows.csv or rows.csv or rows.csv"),
        (r"C:\\Users\\bob\\my\_rows.csv", r"my\_rows.csv"),
        ("made in /home/bob, by /Users/bob/ or C:\\Users\\bob", "made in ~, by ~ or ~"),
        ('image="/srv/models/base"', 'image="base"'),
        ("host:/srv/models/base, **/srv/models/base**, --data=/srv/models/base", "host:base, **base**, --data=base"),
    ],
)
def test_paths_in_prose_are_shortened(text, wanted):
    """Those of the recipe in any spelling, and absolute ones of any system; of a home not even whose it is."""
    shown, found = public_prose(text, PRIVATE)
    assert shown == wanted and found


def test_a_home_anywhere_is_no_name(monkeypatch, tmp_path):
    """Also where it is not under /home."""
    monkeypatch.setenv("HOME", str(tmp_path / "bob"))
    assert public_prose(f"in {tmp_path}/bob and {tmp_path}/bob/x") == ("in ~ and x", ["~", "x"])


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/somebody/mine/blob/main/LICENSE, http://localhost:8000/v1/chat/completions",
        "POST /v1/chat/completions, and /v1, 1/2/3 and/or/nor, a / b / c",
        "org/data, somebody/mine, myclient/acme_corp.jsonl, mini/llava, ./x, lora_cot/cards/card.py, ../run-merged",
        "<details></details></summary> https://www.llama.com/llama3_2/use-policy a://b",
    ],
)
def test_what_is_no_path_of_this_machine_stays(text):
    """Addresses, routes, fractions, hub ids, tags, and what is relative and in no recipe."""
    assert public_prose(text, PRIVATE) == (text, [])
