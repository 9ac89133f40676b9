"""What differs by nature is set aside, rule by rule, and nothing else is."""

from __future__ import annotations

import pytest

from replay.rebuild.normalise import FILE_RULES, RULES, file_kind, needed, set_aside

SAME: list[tuple[str, str, str, str]] = [
    ("tempfile", "temporary name", "made /tmp/tmp.Xk3qQ0aZ1b", "made /tmp/tmp.9aLqQWERT1"),
    (
        "tempfile",
        "temporary name",
        "FileNotFoundError: '/tmp/tmpab12cd_9/x'",
        "FileNotFoundError: '/tmp/tmpzz99__aa/x'",
    ),
    (
        "pytest folder",
        "temporary name",
        "/tmp/pytest-of-root/pytest-3/test_a0",
        "/tmp/pytest-of-root/pytest-14/test_a0",
    ),
    ("uuid", "random", "id 1b4e28ba-2fa1-11d2-883f-0016d3cca427", "id 6FA459EA-EE8A-3CA4-894E-DB77E160355E"),
    ("address", "random", "<Foo object at 0x7f3c2a10bd30>", "<Foo object at 0x7fa4d81c0e50>"),
    ("long hex", "random", "token=9f86d081884c7d659a2feaa0c55ad015", "token=60303ae22b998861bce3b28f33eec1be"),
    ("commit", "random", "[main 1a2b3c4] first", "[main f00dfee] first"),
    ("commit", "random", "[main (root-commit) 1a2b3c4] first", "[main (root-commit) 9999999] first"),
    ("commit", "random", "HEAD is now at 1a2b3c4 first", "HEAD is now at 5d6e7f8 first"),
    ("commit", "random", "index 1a2b3c4..5d6e7f8 100644", "index 2a2b3c4..6d6e7f8 100644"),
    ("date and time", "clock", "2026-11-28T09:30:00Z done", "2027-01-02T10:31:59.123Z done"),
    ("date and time", "clock", "2026-11-28 09:30:00,123 INFO x", "2026-11-29 23:00:01,001 INFO x"),
    ("date and time", "clock", "released 2026-11-28.", "released 2026-11-30."),
    ("date in words", "clock", "Sat Nov 28 07:44:41 UTC 2026", "Sun Nov 29 00:00:00 UTC 2026"),
    ("date in words", "clock", "Date:   Sat Nov 28 07:44:41 2026 +0000", "Date:   Mon Dec  1 08:00:00 2026 +0000"),
    ("date in words", "clock", "-rw-r--r-- 1 root root 5 Nov 28 07:44 a", "-rw-r--r-- 1 root root 5 Dec  1 10:02 a"),
    ("date in words", "clock", "Sat, 28 Nov 2026 07:44:41 GMT", "Sun, 29 Nov 2026 10:00:00 GMT"),
    ("time of day", "clock", "[07:44:41] started", "[08:00:00] started"),
    ("seconds since 1970", "clock", "1795851881", "1795851999"),
    ("seconds since 1970", "clock", "t=1795851881.123456", "t=1795851999.9"),
    ("seconds since 1970", "clock", "1795851881123456789", "1795851882123456789"),
    ("minutes and seconds", "duration", "real\t0m0.012s", "real\t1m2.5s"),
    ("seconds", "duration", "1 passed in 0.01s", "1 passed in 1.20s"),
    ("seconds", "duration", "took 13 ms", "took 250 µs"),
    ("seconds", "duration", "Ran 3 tests in 0.001 seconds", "Ran 3 tests in 12 seconds"),
    ("named", "pid", "listening, pid 1234", "listening, pid 77"),
    ("named", "pid", "Started process 12", "Started process 4711"),
    ("named", "pid", "{'pid': 12}", "{'pid': 13}"),
    ("job", "pid", "[1] 1234\nok", "[1] 99\nok"),
    (
        "message",
        "pid",
        "bash: line 3:  1234 Killed   sleep 9",
        "bash: line 3:    77 Killed   sleep 9".replace("   77", " 77"),
    ),
    ("message", "pid", "sshd[1234]: hello", "sshd[9]: hello"),
    ("message", "pid", "cat: /proc/1234/maps", "cat: /proc/56/maps"),
    ("message", "pid", "==1234== leak", "==99== leak"),
]

DIFFERENT = [
    ("1 passed in 0.01s", "1 failed in 0.01s"),
    ("1 passed in 0.01s", "2 passed in 0.01s"),
    ("total 12", "total 13"),
    ("a.py:12:30: error", "a.py:12:31: error"),
    ("version 1.2.3", "version 1.2.4"),
    ("exit code 1", "exit code 2"),
    ("port 8080", "port 8081"),
    ("12345678", "12345679"),
    ("-rw-r--r-- 1 root root 5 Nov 28 07:44 a", "-rw-r--r-- 1 root root 6 Nov 28 07:44 a"),
    ("/tmp/tmp.txt", "/tmp/tmq.txt"),
    ("/tmp/result1", "/tmp/result2"),
    ("template", "temperature"),
    ("deadbee", "defaced"),
    ("0xff", "0xfe"),
    ("Mayor of 12 towns", "Mayor of 13 towns"),
    ("[1, 1234]", "[1, 1235]"),
    ("answer: 42", "answer: 43"),
    ("sum=1795", "sum=1796"),
    ("10:30 left", "10:31 left"),
    ("x", ""),
    ("2026-11-28 a", "a"),
]


@pytest.mark.parametrize(("rule", "kind", "one", "other"), SAME, ids=[f"{one[0]}-{n}" for n, one in enumerate(SAME)])
def test_what_differs_by_nature_is_named_by_its_kind(rule: str, kind: str, one: str, other: str) -> None:
    assert needed(one, other) == (kind,)
    # By this rule, and by none that happens to match, too.
    only = tuple(each for each in RULES if each.name == rule)
    others = tuple(each for each in RULES if each.name != rule)
    assert set_aside(one, only) == set_aside(other, only)
    assert set_aside(one, others) != set_aside(other, others)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_matters_is_never_set_aside(one: str, other: str) -> None:
    assert needed(one, other) is None
    assert needed(other, one) is None


def test_every_rule_has_a_test_and_a_reason() -> None:
    assert {rule.name for rule in RULES} == {one[0] for one in SAME}
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.why and rule.kind for rule in RULES)


def test_several_kinds_are_named_together_and_the_same_needs_none() -> None:
    one = "2026-11-28 10:00:00 pid 12: 1 passed in 0.1s"
    other = "2026-11-29 10:00:00 pid 13: 1 passed in 0.2s"
    assert needed(one, other) == ("clock", "duration", "pid")
    assert needed(one, one) == ()


def test_a_long_text_made_to_be_slow_is_not() -> None:
    # What a guest prints is hostile: each rule must be linear.
    import time

    for text in (
        "0" * 100_000,
        "a1" * 50_000,
        "Nov " * 25_000,
        "[x " * 30_000,
        "1m " * 30_000,
        "2026-" * 20_000,
        "pid" * 30_000,
    ):
        began = time.process_time()
        set_aside(text)
        assert time.process_time() - began < 5


FILES = {
    "git's own files": [
        ".git/index",
        ".git/objects/2b",
        "a/.git/objects/2b/1f31",
        ".git/logs/HEAD",
        ".git/refs/heads/x",
    ],
    "bytecode": ["__pycache__/a.cpython-311.pyc", "src/__pycache__/b.pyc"],
}
OTHER_FILES = [
    ".git/config",
    ".git/hooks/pre-commit",
    ".gitignore",
    "git/index",
    "index",
    "a.pyc",
    "__pycache__/a.py",
    "HEAD",
]


def test_files_that_differ_as_a_whole_are_known_by_their_path() -> None:
    assert set(FILES) == {rule.name for rule in FILE_RULES}
    for rule in FILE_RULES:
        assert rule.why
        assert all(rule.pattern.search(path) and file_kind(path) == rule.kind for path in FILES[rule.name])
    assert not [path for path in OTHER_FILES if file_kind(path)]
