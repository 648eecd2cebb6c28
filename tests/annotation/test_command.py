"""`lora-cot annotate` as users meet it: streams, exit codes, and a key that nobody sees."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.annotation.conftest import four, ids, lines, number_of, right
from tests.scripted_server import KEY, Fault, completion, serve
from tests.test_cli import HEAVY, ROOT

SCRIPT = """
import sys
from lora_cot.cli import main
try:
    main()
finally:
    print("heavy", *({modules} & set(sys.modules)), file=sys.stderr)
"""


def start(path, server, output, *more, **env):
    """A process of the command."""
    script = SCRIPT.format(modules=set(HEAVY))
    words = [path, "--teacher", server.url, "--model", "teacher", "--output", output, *more]
    env = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"} | {"PYTHONPATH": str(ROOT)} | env
    command = [sys.executable, "-c", script, "annotate", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    hear = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 (a job in the background is deaf to it)
    return subprocess.Popen(command, env=env, preexec_fn=hear, **pipes)


def run(*arguments, **env):
    """(exit code, standard output, standard error), in which the key never stands."""
    process = start(*arguments, **env)
    out, err = process.communicate(timeout=60)
    assert KEY not in out + err and "Traceback" not in err
    return process.returncode, out, err


def test_one_json_object(data, tmp_path):
    """Rows kept aside are no failure; nothing heavy is loaded; the key comes from a file or the environment."""
    (tmp_path / "key").write_text(KEY)
    with serve(lambda body, _: "no" if number_of(body) == 1 else four(str(number_of(body)))) as server:
        code, out, err = run(data(4), server, tmp_path / "out.jsonl", "--json", "--teacher-key-file", tmp_path / "key")
        (report,) = map(json.loads, out.splitlines())
        assert (code, report["rows"], report["used"], report["aside"], report["failed"]) == (0, 4, 3, {"format": 1}, {})
        assert "annotating" in err and "heavy\n" in err
        code, out, _ = run(data(5), server, tmp_path / "out.jsonl", "--retry-aside", OPENAI_API_KEY=KEY)
        assert code == 0 and "asked now       2\n" in out and "  format        1\n" in out and "train with" in out
        assert set(server.keys) == {f"Bearer {KEY}"}


def test_exit_codes(data, tmp_path):
    """2 where the input is wrong, 1 where rows got no answer; in words and with a remedy."""
    path, output = data(3), tmp_path / "out.jsonl"
    with serve([Fault(401, {"error": {"message": f"wrong: {KEY}"}})]) as server:
        code, out, err = run(path, server, output, OPENAI_API_KEY=KEY)
        assert (code, out) == (2, "") and f"error: {server.url} · it answers 401: wrong: *** · give a key" in err
        code, _, err = run(path, server, output, "--part", "test")
        assert code == 2 and "error: --part · no part 'test' · allowed: eval, train" in err
        server.answer = lambda body, _: {1: Fault(500, headers={"Retry-After": "999"})}.get(number_of(body), four("0"))
        code, out, _ = run(path, server, output, "--json")
        assert code == 1 and list(json.loads(out)["failed"]) == ["q1"]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_stopped_from_outside(data, tmp_path, sent):
    """With Ctrl-C or for good, while answers are under way: what was done is kept, at once, and the rest is asked later."""
    path, output = data(8), tmp_path / "out.jsonl"
    slow = lambda body: Fault(seconds=20, body=completion(four(str(number_of(body)))))  # noqa: E731
    with serve(lambda body, _: slow(body) if number_of(body) > 2 else four(str(number_of(body)))) as server:
        process = start(path, server, output, "--json")
        end = time.monotonic() + 30
        while len(lines(output)) < 3 and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(sent)
        begin = time.monotonic()
        out, err = process.communicate(timeout=30)
        assert process.returncode != 0 and out == "" and time.monotonic() - begin < 5
        assert sent == signal.SIGKILL or "stopped: 3 rows are kept; the same command goes on from here" in err
        server.answer = right(four)
        code, out, _ = run(path, server, output, "--json")
        assert (code, json.loads(out)["asked"], sorted(ids(output))) == (0, 5, [f"q{n}" for n in range(8)])
