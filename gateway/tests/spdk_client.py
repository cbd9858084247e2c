#!/usr/bin/env python3
"""For each method that the gateway has, checks the parameters that SPDK's stock client sends: with all defaults, and with each
option of the client set. The gateway must know each parameter, accept it because its value is "off", or refuse it by its name.

The gateway carries out no request. Each request also has a parameter that no method knows and whose name sorts last. If the
error names this parameter, the gateway has accepted all other parameters.

Usage: spdk_client.py SOCKET      (with the Python of the environment in which the client is installed)
"""
import argparse
import json
import socket
import sys

from spdk import spdk_rpc

PROBE = "zzz_probe"
# Valid values for the options that the client itself checks.
VALUES = {
    "admin_cmd_passthru": "sanitize",
    "masked_fuses": "fcws",
    "masked_oncs": "nvmcmps",
    "traddr": "127.0.0.1",
    "trsvcid": "4420",
    "uuid": "6d1d4b8e-0000-4000-8000-000000000001",
}
# Options that the client accepts only together with another option.
WITH = {("bdev_null_create", "dif_type"): ["--md-size", "8"]}


class Recorder:
    """Replaces the client's connection, and records the requests instead of sending them."""

    def __init__(self):
        self.sent = []

    def call(self, method, params=None):
        self.sent.append((method, {key: value for key, value in (params or {}).items() if value is not None}))
        return {}

    def __getattr__(self, method):
        return lambda **params: self.call(method, params)


def ask(path, method, params):
    """Returns the gateway's answer to one request."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(30)
        stream.connect(path)
        stream.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode())
        got = b""
        while True:
            got += stream.recv(65536)
            try:
                return json.loads(got)
            except ValueError:
                continue


def value(action):
    """Returns an argument for an option. The argument is never the "off" value of the option."""
    if action.choices:
        return str(list(action.choices)[-1])
    if action.type in (int, float):
        return "7"
    return VALUES.get(action.dest, "7")


def words(action):
    """Returns the action as words of a command line."""
    takes_none = action.nargs == 0
    texts = [] if takes_none else [value(action)] * (action.nargs if isinstance(action.nargs, int) else 1)
    return action.option_strings[-1:] + texts


def sent(parser, name, line):
    """Returns the requests that the client sends for a command line."""
    args = parser.parse_args([name, *line])
    args.client = Recorder()
    args.func(args)
    return args.client.sent


def changed(params, base):
    """Returns the names of the parameters, also nested ones, whose values differ from the base."""
    names = set()
    for key, given in params.items():
        if given != base.get(key):
            names.add(key)
            if isinstance(given, dict):
                names |= changed(given, base.get(key) or {})
    return names


def main():
    path = sys.argv[1]
    parser, subparsers = spdk_rpc.create_parser()
    spdk_rpc.suppress_cli_prints()
    ours = ask(path, "rpc_get_methods", {})["result"]
    wrong, methods, options, refused = [], 0, 0, []
    # Tuning methods accept any parameters, so there is nothing to compare.
    tuning = {name for name in ours if PROBE not in json.dumps(ask(path, name, {PROBE: 1}))}
    for name in sorted(set(ours) & set(subparsers.choices) - tuning):
        sub = subparsers.choices[name]
        actions = [a for a in sub._actions if not isinstance(a, argparse._HelpAction)]
        groups = [group._group_actions for group in sub._mutually_exclusive_groups if group.required]
        one_of = [group[0] for group in groups]
        needed = [a for a in actions if a.required or a in one_of]
        base_line = [word for a in needed for word in words(a)]
        base = sent(parser, name, base_line)
        others = [a for a in actions if a not in needed and not any(a in group for group in groups)]
        lines = [("its defaults", base_line)]
        lines += [(a.option_strings[-1] if a.option_strings else a.dest, base_line + words(a) + WITH.get((name, a.dest), [])) for a in others]
        for group in groups:
            rest = [word for a in needed if a not in group for word in words(a)]
            lines += [(a.option_strings[-1], rest + words(a)) for a in group[1:]]
        methods += 1
        for option, line in lines:
            try:
                requests = sent(parser, name, line)
            except (SystemExit, Exception) as error:
                wrong.append(f"{name} {option}: the client itself refuses {line}: {error!r}")
                continue
            for (method, params), (_, plain) in zip(requests, base):
                options += 1
                answer = ask(path, method, {**params, PROBE: 1})
                message = answer.get("error", {}).get("message", json.dumps(answer))
                if PROBE in message:
                    continue
                named = [key for key in changed(params, plain) if message.startswith(f"{key}: ")]
                if option == "its defaults" or not named:
                    wrong.append(f"{name} with {option}: {message}")
                else:
                    refused.append(f"{name} {option}")
    for line in wrong:
        print(f"spdk_client: {line}")
    if methods < 30 or options < 150:
        sys.exit(f"spdk_client: only {methods} methods and {options} requests were compared")
    if wrong:
        sys.exit(1)
    print(f"spdk_client: {methods} methods, {options} requests; refused by name: {', '.join(refused)}")


if __name__ == "__main__":
    main()
