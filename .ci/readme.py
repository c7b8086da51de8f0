#!/usr/bin/env python3
"""Runs every `sh` block of a README as it stands, in order, so that the README cannot lie.

Before each block stands one comment for us:
  <!-- ci: run -->                          it must end with 0
  <!-- ci: background NAME until CHECK -->  it is started, and CHECK (a shell command) must succeed within the deadline
Before these words may stand, each with a semicolon behind it:
  again NAME …;                             background blocks that were stopped are started again, and checked
  stop NAME …;                              background blocks get SIGTERM and must end in time
A `rust` block says which compiled file it shows, and must show it: <!-- same as PATH -->
A block without a comment is an error: nothing is skipped in silence.
"""
import os
import re
import signal
import subprocess
import sys
import time

DEADLINE_S = {"run": 3600, "background": 1200, "stop": 90}
SHOWN = re.compile(r"(?:<!-- same as (?P<path>\S+) -->\s*\n)?```rust\n(?P<text>.*?)```", re.S)
BLOCK = re.compile(r"(?:<!-- ci: (?P<how>.*?) -->\s*\n)?```sh\n(?P<text>.*?)```", re.S)


def shell(text, **more):
    return subprocess.Popen(["bash", "-euo", "pipefail", "-c", text], start_new_session=True, **more)


def end(process, name):
    """The whole group hears SIGTERM, as a terminal's Ctrl-C would reach it; what does not end in time is a failure."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(DEADLINE_S["stop"])
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        sys.exit(f"readme: '{name}' did not end within {DEADLINE_S['stop']} s of SIGTERM")


def wait_until(check, process, name):
    deadline = time.monotonic() + DEADLINE_S["background"]
    while time.monotonic() < deadline:
        if subprocess.run(["bash", "-c", check], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0:
            return
        if process.poll() is not None:
            sys.exit(f"readme: '{name}' ended with {process.returncode} before its check succeeded")
        time.sleep(0.5)
    sys.exit(f"readme: the check of '{name}' did not succeed within {DEADLINE_S['background']} s: {check}")


class Background:
    """Blocks that run beside the others, by name."""

    def __init__(self):
        self.known = {}
        self.running = {}

    def start(self, name, script, check):
        self.known[name] = (script, check)
        self.running[name] = shell(script, stdin=subprocess.DEVNULL)
        wait_until(check, self.running[name], name)
        print(f"--- readme: '{name}' runs, and its check succeeded", flush=True)

    def stop(self, name):
        end(self.running.pop(name), name)

    def stop_all(self):
        for name in reversed(list(self.running)):
            self.stop(name)


def run_block(how, script, background):
    *before, how = [part.strip() for part in how.split(";")]
    for word, *names in (part.split() for part in before):
        for name in names:
            if word == "again":
                background.start(name, *background.known[name])
            elif word == "stop":
                background.stop(name)
            else:
                sys.exit(f"readme: '{word}' is neither 'again' nor 'stop'")
    if how == "run":
        step = shell(script, stdin=subprocess.DEVNULL)
        if step.wait(DEADLINE_S["run"]) != 0:
            sys.exit(f"readme: the block ended with {step.returncode}")
    elif match := re.fullmatch(r"background (\S+) until (.*)", how, re.S):
        background.start(match[1], script, match[2])
    else:
        sys.exit(f"readme: '{how}' is neither 'run' nor 'background NAME until CHECK'")


def main():
    text = open(sys.argv[1], encoding="utf-8").read()
    for shown in SHOWN.finditer(text):
        if shown["path"] is None or open(shown["path"], encoding="utf-8").read() != shown["text"]:
            sys.exit(f"readme: the rust block does not show {shown['path']} as it is")
    background = Background()
    try:
        for block in BLOCK.finditer(text):
            print(f"--- readme: {block['how']}\n{block['text']}", flush=True)
            if block["how"] is None:
                sys.exit("readme: this block has no `<!-- ci: … -->` comment")
            run_block(block["how"], block["text"], background)
    finally:
        background.stop_all()
    print("readme: every command did what it says", flush=True)


if __name__ == "__main__":
    main()
