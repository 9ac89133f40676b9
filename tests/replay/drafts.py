"""The drafts of the shipped recordings."""

from __future__ import annotations

from tests.replay.draft import Draft

_CODE = '''"""Durations as people write them: 90s, 1h30m, 2d."""

import re

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse(text: str) -> int:
    """The seconds of a duration. Raises ValueError for what is none."""
    total = 0
    for number, unit in re.findall(r"(\\d+)([smhd])", text):
        total = int(number) * UNITS[unit]
    return total
'''

_TESTS = """import unittest

from durations import parse


class ParseTest(unittest.TestCase):
    def test_one_unit(self):
        self.assertEqual(parse("90s"), 90)

    def test_several_units(self):
        self.assertEqual(parse("1h30m"), 5400)

    def test_days(self):
        self.assertEqual(parse("2d"), 172800)

    def test_garbage_is_refused(self):
        for text in ("", "abc", "5x", "10m and more"):
            with self.assertRaises(ValueError, msg=text):
                parse(text)


if __name__ == "__main__":
    unittest.main()
"""

_RUN_TESTS = (
    "set -o pipefail; python3 -B -m unittest 2>&1 | "
    "grep -E '^(FAIL|AssertionError|Ran|OK|FAILED)' | sed -E 's/ in [0-9.]+s$//'"
)

_START_SERVER = """python3 -m http.server 8000 --bind 127.0.0.1 --directory docs > http.log 2>&1 &
echo $! > http.pid
for i in $(seq 100); do
  curl -fs -o /dev/null http://127.0.0.1:8000/ && break
  sleep 0.1
done
curl -fs http://127.0.0.1:8000/"""


def _fix_the_bug() -> Draft:
    draft = Draft("fix-the-bug", "Writes a small program with a bug and its tests, and mends it until they pass.")
    draft.user(
        "Please write a small duration parser for me: parse('1h30m') gives seconds, and what is no duration is a "
        "ValueError. With tests, in git. Keep a page about it served on port 8000 while you work, so that I can look."
    )
    draft.says("I'll set up the repository first, then the page, then the parser with its tests.")
    draft.bash(
        "git init -q -b main && mkdir docs && printf '__pycache__/\\nhttp.log\\nhttp.pid\\n' > .gitignore && ls -A"
    )
    draft.uses("write", file_path="docs/index.html", content="<h1>durations</h1>\n<p>Being written.</p>\n")
    draft.bash(_START_SERVER)
    draft.says("The page is up. Now the parser and its tests.")
    draft.uses("write", file_path="durations.py", content=_CODE)
    draft.uses("write", file_path="test_durations.py", content=_TESTS)
    draft.bash(_RUN_TESTS)
    draft.says("Two tests fail: 1h30m gives 1800, so only the last unit counts, and garbage is not refused.")
    draft.uses("grep", pattern="total", path="durations.py")
    draft.uses("read", file_path="durations.py", view_range=[8, 13])
    draft.says("There it is: each unit overwrites the total instead of adding to it.")
    draft.uses("edit", file_path="durations.py", old_string="total = int(number)", new_string="total += int(number)")
    draft.bash(_RUN_TESTS)
    draft.says("One left. findall skips what it doesn't know, so the whole text has to be checked first.")
    draft.uses(
        "edit",
        file_path="durations.py",
        old_string="    total = 0\n",
        new_string='    if not re.fullmatch(r"(\\d+[smhd])+", text):\n'
        '        raise ValueError(f"not a duration: {text!r}")\n    total = 0\n',
    )
    draft.bash(_RUN_TESTS)
    draft.says("All four pass. Let me finish the page and see that the server is still there.")
    draft.uses("glob", pattern="*.py")
    draft.uses(
        "edit",
        file_path="docs/index.html",
        old_string="<p>Being written.</p>",
        new_string="<pre>parse('1h30m')  # 5400</pre>",
    )
    draft.bash('kill -0 "$(cat http.pid)" && curl -fs http://127.0.0.1:8000/')
    draft.bash(
        "git add -A && git -c user.name=Agent -c user.email=agent@example.com commit -q -m 'Parse durations' "
        "&& git log --format=%s && git ls-files && git status --short"
    )
    return draft.says(
        "Done: durations.py has parse(), its four tests pass, and it is committed. The bug was a total that each unit "
        "overwrote. The page is still served on port 8000."
    ).rests()


_GOOD_CODE = '''"""Durations as people write them: 90s, 1h30m, 2d."""

import re

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse(text: str) -> int:
    """The seconds of a duration. Raises ValueError for what is none."""
    if not re.fullmatch(r"(\\d+[smhd])+", text):
        raise ValueError(f"not a duration: {text!r}")
    return sum(int(number) * UNITS[unit] for number, unit in re.findall(r"(\\d+)([smhd])", text))
'''

_SHOW = '''

def show(seconds: int) -> str:
    """A duration as people write it, the largest unit first."""
    parts = []
    for unit, length in UNITS.items():
        count, seconds = divmod(seconds, length)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
'''


def _break_the_tests() -> Draft:
    draft = Draft("break-the-tests", "Extends a program whose tests pass, and finds at the end that one fails.")
    draft.user(
        "durations.py should know weeks, and write durations as well as read them. Keep the tests passing, please, and "
        "say in the README what it can do."
    )
    draft.says("I'll put the program and its tests in place first, and see them pass.")
    draft.uses("write", file_path="durations.py", content=_GOOD_CODE)
    draft.uses("write", file_path="test_durations.py", content=_TESTS)
    draft.bash(_RUN_TESTS)
    draft.says("All four pass. Now the README, and the weeks.")
    draft.uses("write", file_path="README.md", content="# durations\n\n`parse('1h30m')` is 5400.\n")
    draft.uses("edit", file_path="durations.py", old_string="90s, 1h30m, 2d", new_string="90s, 1h30m, 2d, 3w")
    draft.uses("edit", file_path="durations.py", old_string='"d": 86400}', new_string='"d": 86400, "w": 604800}')
    draft.says("The letter has to be allowed in both patterns. While I'm there, blanks between the parts may be, too.")
    draft.bash("sed -i 's/smhd/smhdw/g' durations.py && grep -c smhdw durations.py")
    draft.uses("edit", file_path="durations.py", old_string="[smhdw])+", new_string="[smhdw]\\s*)*")
    draft.says("Now the other direction.")
    draft.bash(f"cat >> durations.py <<'END'{_SHOW}END\npython3 -B -c 'import durations; print(durations.UNITS)'")
    draft.uses(
        "edit",
        file_path="durations.py",
        old_string="in UNITS.items():",
        new_string="in sorted(UNITS.items(), key=lambda one: -one[1]):",
    )
    draft.uses(
        "edit",
        file_path="README.md",
        old_string="is 5400.\n",
        new_string="is 5400, and `show(5400)` is `1h30m`.\nWeeks are `w`.\n",
    )
    draft.bash("python3 -B -c 'import durations; print(durations.show(5400), durations.parse(\"3w\"))'")
    draft.bash(_RUN_TESTS)
    return draft.says("Weeks work, and show() does; but test_garbage_is_refused fails now, and did not before.").rests()


_MAKE_LOGS = """import pathlib

PATHS = ["/", "/login", "/cart", "/checkout", "/search"]
folder = pathlib.Path("logs")
folder.mkdir(exist_ok=True)
for day in range(1, 6):
    lines = []
    for n in range(400):
        path = PATHS[(n * 7 + day) % 5]
        slow = n % 11 == 0
        status = 500 if path == "/checkout" and (n + day) % 9 == 0 else 404 if n % 97 == 0 else 200
        lines.append(f"2026-03-0{day}T{n // 17:02d}:{n % 60:02d} {path} {status} {900 + n if slow else 20 + n % 30}ms")
    (folder / f"access-0{day}.log").write_text("\\n".join(lines) + "\\n")
"""

_COUNTER = """(i=0
while true; do i=$((i+1)); echo "$i" > .beat; mv .beat beat; sleep 0.2; done) > /dev/null 2>&1 &
echo $! > watcher.pid
until [ -s beat ]; do sleep 0.1; done
echo watching"""

_REPORT = """{
  echo '# Requests of five days'
  echo
  echo "Requests: $(cat logs/*.log | wc -l)"
  echo "Errors: $(cat logs/*.log | awk '$3 >= 500' | wc -l)"
  echo
  echo '| path | errors |'
  echo '| --- | --- |'
  awk '$3 >= 500 {n[$2]++} END {for (p in n) print "| " p " | " n[p] " |"}' logs/*.log | sort
} > report.md
cat report.md"""


def _tidy_the_logs() -> Draft:
    draft = Draft(
        "tidy-the-logs", "Makes five days of access logs, finds what fails, writes a report, packs the logs.", "Sweeper"
    )
    draft.user("Make up five days of access logs, find out which page fails, write report.md, and pack the old logs.")
    draft.says("First the logs, from a small script, so that they can be made again.")
    draft.uses("write", file_path="make_logs.py", content=_MAKE_LOGS)
    draft.bash("python3 -B make_logs.py && wc -l logs/*.log")
    draft.bash(_COUNTER)
    draft.uses("glob", pattern="logs/*.log")
    draft.uses("grep", pattern=" 500 ", path="logs/access-03.log")
    draft.says("Only /checkout answers 500. I'll count over all days, and look at what is slow.")
    draft.bash("awk '$3 >= 500 {n[$2]++} END {for (p in n) print n[p], p}' logs/*.log | sort -rn")
    draft.bash(
        'cat logs/*.log | awk \'{sub("ms", "", $4); if ($4 > 1200) print $1, $2, $4}\' | sort -k3,3rn -k1,1 | head -5'
    )
    draft.bash(_REPORT)
    draft.uses(
        "edit",
        file_path="report.md",
        old_string="# Requests of five days\n",
        new_string="# Requests of five days\n\nOnly /checkout fails; the slowest requests come late in the day.\n",
    )
    draft.bash("gzip -n logs/*.log && ls logs && zcat logs/access-01.log.gz | head -2")
    draft.bash(
        'before=$(cat beat); sleep 1; [ "$(cat beat)" -gt "$before" ] && kill -0 "$(cat watcher.pid)" && echo beating'
    )
    draft.uses("read", file_path="report.md")
    return draft.says("Done: report.md names /checkout, and the logs are packed.").rests()


def _parallel_batch() -> Draft:
    draft = Draft("parallel-batch", "Two batches of several calls, with spans and usage as the API sends them.")
    draft.user("Look at three things at once.")
    usage = {
        "input_tokens": 1200,
        "output_tokens": 90,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 800,
    }
    for number in (1, 2):
        start = draft.event("span.model_request_start")
        draft.event("agent.thinking")
        draft.says(f"Batch {number}.")
        calls = [draft.call("bash", command=f"echo {number}.{index} | tee {number}.{index}.txt") for index in (1, 2)]
        calls.append(draft.call("write", file_path=f"notes/{number}.txt", content=f"batch {number}\n"))
        calls.append(draft.call("read", file_path=f"{number}.1.txt"))
        draft.event("span.model_request_end", model_request_start_id=start, is_error=False, model_usage=usage)
        draft.event("session.usage", usage={"input_tokens": 1200 * number, "output_tokens": 90 * number})
        draft.answered(*calls)
    return draft.says("Both batches are through.").rests()


def _ask_and_deny() -> Draft:
    draft = Draft("ask-deny", "Calls that ask first: one allowed, one denied by the user, one denied by the policy.")
    draft.user("Clean up, but ask me first.")
    asked = draft.event(
        "agent.tool_use", name="bash", input={"command": "echo kept > kept.txt"}, evaluated_permission="ask"
    )
    draft.event("session.status_idle", stop_reason={"type": "requires_action", "event_ids": [asked]})
    draft.event("user.tool_confirmation", tool_use_id=asked, result="allow")
    draft.event("user.tool_result", tool_use_id=asked, content=[{"type": "text", "text": "?"}])
    risky = draft.event("agent.tool_use", name="bash", input={"command": "rm kept.txt"}, evaluated_permission="ask")
    draft.event("session.status_idle", stop_reason={"type": "requires_action", "event_ids": [risky]})
    draft.event("user.tool_confirmation", tool_use_id=risky, result="deny", deny_message="Keep that file.")
    draft.event(
        "agent.tool_result", tool_use_id=risky, is_error=True, content=[{"type": "text", "text": "Keep that file."}]
    )
    never = draft.event("agent.tool_use", name="bash", input={"command": "rm -rf ."}, evaluated_permission="deny")
    text = "This tool is not permitted."
    draft.event("agent.tool_result", tool_use_id=never, is_error=True, content=[{"type": "text", "text": text}])
    return draft.bash("cat kept.txt").says("The file is still there.").rests()


def _custom_tool() -> Draft:
    tool = {
        "type": "custom",
        "name": "look_up_ticket",
        "description": "Reads a ticket.",
        "input_schema": {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]},
    }
    draft = Draft("custom-tool", "A call of the app's own tool beside one of the sandbox's.", tools=[tool])
    draft.user("Start on ticket 7.")
    mine = draft.event("agent.custom_tool_use", name="look_up_ticket", input={"number": 7})
    theirs = draft.call("bash", command="mkdir ticket-7 && ls -d ticket-*")
    draft.event("session.status_idle", stop_reason={"type": "requires_action", "event_ids": [mine, theirs]})
    draft.event("user.tool_result", tool_use_id=theirs, content=[{"type": "text", "text": "?"}])
    text = "Ticket 7: say hello in hello.txt."
    draft.event("user.custom_tool_result", custom_tool_use_id=mine, content=[{"type": "text", "text": text}])
    draft.uses("write", file_path="ticket-7/hello.txt", content="hello\n")
    return draft.says("Ticket 7 is done.").rests()


def _threads() -> Draft:
    draft = Draft("threads", "A child thread whose calls are cross-posted, while the primary thread calls too.")
    draft.user("Let a helper count the files while you write one.")
    child = {"agent_name": "Helper", "session_thread_id": "sthr_child"}
    draft.event("session.thread_created", **child)
    text = [{"type": "text", "text": "Count the files."}]
    draft.event("agent.thread_message_sent", to_session_thread_id="sthr_child", to_agent_name="Helper", content=text)
    draft.event("session.thread_status_running", **child)
    theirs = draft.event(
        "agent.tool_use",
        name="bash",
        input={"command": "echo a > a.txt && ls"},
        evaluated_permission="allow",
        session_thread_id="sthr_child",
    )
    mine = draft.call("write", file_path="b.txt", content="b\n")
    draft.answered(theirs, mine)
    draft.event("session.thread_status_idle", **child, stop_reason={"type": "end_turn"})
    text = [{"type": "text", "text": "One file."}]
    draft.event(
        "agent.thread_message_received", from_session_thread_id="sthr_child", from_agent_name="Helper", content=text
    )
    draft.event("session.thread_status_terminated", **child)
    return draft.bash("ls").says("There are two files now.").rests()


def _interrupt() -> Draft:
    draft = Draft("interrupt", "The user interrupts a running command, then asks for another.")
    draft.user("Wait a little.")
    call = draft.call("bash", command="sleep 3; echo awake")
    draft.event("session.status_idle", stop_reason={"type": "requires_action", "event_ids": [call]})
    draft.event("user.interrupt")
    text = "Tool execution was interrupted before completion. Please retry."
    draft.event("user.tool_result", tool_use_id=call, is_error=True, content=[{"type": "text", "text": text}])
    draft.rests()
    draft.user("Never mind. Say hello.")
    return draft.bash("echo hello").says("Hello.").rests()


def _two_turns() -> Draft:
    draft = Draft("two-turns", "A second message, which needs what the first one made.")
    draft.user("Remember 41.").bash("number=41; echo $number > number.txt").says("Remembered.").rests()
    return draft.user("Add one.").bash("echo $((number + 1)); cat number.txt").says("42.").rests()


def _long_output() -> Draft:
    draft = Draft("long-output", "Output beyond the tool's limit, and a result that fails.")
    draft.user("Count to 30000, loudly.")
    draft.bash("seq 1 30000").bash("echo to both; echo to stderr >&2; exit 3").bash("restart me?", restart=True)
    return draft.says("That was long.").rests()


def _many_calls() -> Draft:
    draft = Draft("many-calls", "Forty calls, one after the other.")
    draft.user("Count to forty, one call each.")
    for number in range(1, 41):
        draft.bash(f"echo {number} >> count.txt; tail -n 1 count.txt")
    return draft.says("Forty.").rests()


def _web_search() -> Draft:
    draft = Draft("web-search", "A search that runs at Anthropic's, then a command in the sandbox.")
    draft.user("Look it up and note it.")
    search = draft.event(
        "agent.tool_use", name="web_search", input={"query": "hourglass"}, evaluated_permission="allow"
    )
    text = "An hourglass measures time by the flow of sand."
    draft.event("agent.tool_result", tool_use_id=search, is_error=False, content=[{"type": "text", "text": text}])
    return draft.uses("write", file_path="note.txt", content=text + "\n").says("Noted.").rests()


DRAFTS = [
    _fix_the_bug(),
    _tidy_the_logs(),
    Draft("bash-true", "One call: bash true.").user("Run true.").bash("true").says("Done.").rests(),
    _parallel_batch(),
    _ask_and_deny(),
    _custom_tool(),
    _threads(),
    _interrupt(),
    _two_turns(),
    _long_output(),
    _many_calls(),
    _web_search(),
    _break_the_tests(),
]
