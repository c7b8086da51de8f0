#!/usr/bin/env python3
"""Runs every `sh` block of a README as it stands, in order, so that the README cannot lie.

Before each block stands one comment for us:
  <!-- ci: run -->                            it must end with 0
  <!-- ci: background NAME until CHECK -->    it is started, and CHECK (a shell command) must succeed within the deadline
  <!-- ci: run, then stop NAME -->            as `run`; then the background block gets SIGTERM and must end with 0
  <!-- ci: skip REASON -->                    it is not run, and CI prints why
A block without a comment is an error: nothing is skipped in silence.
"""
import os
import re
import signal
import subprocess
import sys
import time

DEADLINE_S = {"run": 3600, "background": 1200, "stop": 90}
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


def main():
    text = open(sys.argv[1], encoding="utf-8").read()
    running = {}
    try:
        for block in BLOCK.finditer(text):
            how, script = block["how"], block["text"]
            print(f"--- readme: {how}\n{script}", flush=True)
            if how is None:
                sys.exit("readme: this block has no `<!-- ci: … -->` comment")
            if how.startswith("skip "):
                continue
            if how.startswith("background "):
                name, check = re.fullmatch(r"background (\S+) until (.*)", how, re.S).groups()
                running[name] = shell(script, stdin=subprocess.DEVNULL)
                wait_until(check, running[name], name)
                print(f"--- readme: '{name}' runs, and its check succeeded", flush=True)
                continue
            step = shell(script, stdin=subprocess.DEVNULL)
            if step.wait(DEADLINE_S["run"]) != 0:
                sys.exit(f"readme: the block ended with {step.returncode}")
            if stop := re.search(r"then stop (\S+)", how):
                end(running.pop(stop[1]), stop[1])
    finally:
        for name, process in running.items():
            end(process, name)
    print("readme: every command did what it says", flush=True)


if __name__ == "__main__":
    main()
